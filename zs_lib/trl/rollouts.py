"""Our rollouts for a `GRPOTrainer` of your own.

    search = SearchRollouts(questions, engine, cfg, curriculum)
    GRPOTrainer(model, search.reward, args, train_dataset=search.dataset(), rollout_func=search)

By its source, TRL 1.16 passes each prompt `num_generations` times to a `rollout_func`, and expects one
completion for each; `env_mask` (0 on documents) becomes its tool mask, which keeps them out of the loss;
other fields go to the reward functions; log-probabilities are used with vLLM only. It does not sample itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from zs_lib.config.arms import CurriculumConfig, RolloutConfig
from zs_lib.engines import SearchEngine
from zs_lib.errors import ConfigError, DataError
from zs_lib.models.generator import Generator
from zs_lib.models.load import ATTENTION, build_generator
from zs_lib.qa import Question
from zs_lib.rl.curriculum import ADAPTIVE, noise_probability
from zs_lib.rl.rewards import Reward
from zs_lib.rl.rollout import rollout
from zs_lib.rl.train import check_failed
from zs_lib.rl.trajectory import Trajectory

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer


def to_trl(trajectories: Sequence[Trajectory], mask_documents: bool = True) -> dict[str, list]:
    """Turn trajectories into what a `rollout_func` returns.

    Keys: prompt_ids, completion_ids, logprobs (NaN where the policy did not write) and env_mask, 1 on the
    trained tokens: the policy's own or, without `mask_documents`, all; none of one whose engine failed.

    Raises:
        ConfigError: a prompt leaves no room for a turn; TRL needs one.
    """
    if short := next((t for t in trajectories if not t.ids), None):
        raise ConfigError(
            f"The prompt of {short.question.question!r} leaves no tokens for a turn: raise the rollouts' "
            "max_context_tokens."
        )
    return {
        "prompt_ids": [t.prompt_ids for t in trajectories],
        "completion_ids": [t.ids for t in trajectories],
        "logprobs": [t.sampler_logprobs() for t in trajectories],
        "env_mask": [list(map(int, t.trained(mask_documents))) for t in trajectories],
    }


class SearchRollouts:
    """A `rollout_func` for `trl.GRPOTrainer`, with its data set and reward.

    Seed and temperature are the trainer's, in place of `cfg`'s. `curriculum` may be None (always useful
    documents), but not "adaptive", which depends on the rewards of past steps: a resumed TRL training does
    not have them. `reward`: as an arm's. `trajectories` are those of the last call.

    Raises:
        ConfigError: the curriculum is adaptive, or there is no such reward.
        DataError: there is no question, or two have the same text.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        engine: SearchEngine | None,
        cfg: RolloutConfig,
        curriculum: CurriculumConfig | None = None,
        reward: str = "f1",
    ):
        if curriculum and curriculum.schedule in ADAPTIVE:
            raise ConfigError(
                f"The curriculum '{curriculum.schedule}' depends on past rewards, which TRL does not keep: "
                "choose exponential or constant."
            )
        self.questions = {question.question: question for question in questions}
        if not questions or len(self.questions) < len(questions):
            raise DataError(
                "TRL's prompts are the questions' texts: give at least one question, and each text once."
            )
        self.engine, self.cfg, self.curriculum, self._score = engine, cfg, curriculum, Reward(reward)
        self.trajectories: list[Trajectory] = []
        self._generator: Generator | None = None

    def dataset(self) -> Dataset:
        """Make the data set: one row per question, whose `prompt` is its text, without the template."""
        import datasets

        return datasets.Dataset.from_dict({"prompt": list(self.questions)})

    def __call__(self, prompts: Sequence[str], trainer: GRPOTrainer) -> dict[str, list]:
        """Roll out one trajectory per prompt, in TRL's form.

        Keys: those of `to_trl` and, for `reward`, score, searches and noise. Randomness is a function of
        (seed, step, process, question, index in the batch).

        Raises:
            ConfigError: the trainer has a setting that rollouts cannot follow. DataError: a prompt is not a
            question. EngineError: more than `rl.train.FAILED_LIMIT` of the searches failed.
        """
        _check(trainer.args)
        # An evaluation may follow the last step.
        step = min(trainer.state.global_step + 1, trainer.state.max_steps)
        noise = noise_probability(step, trainer.state.max_steps, self.curriculum)
        questions = [self._question(prompt) for prompt in prompts]
        process, seed = trainer.accelerator.process_index, trainer.args.seed
        keys = [(seed, step, process, question.id, index) for index, question in enumerate(questions)]
        cfg = replace(self.cfg, temperature=trainer.args.temperature)
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        generator = self._sampler(model, trainer.processing_class)
        found = self.trajectories = rollout(questions, generator, self.engine, cfg, keys, noise)
        model.train(training)
        check_failed(found, getattr(self.engine, "name", "none"), step)
        return to_trl(found) | {
            "score": [score.total for score in self._score(found)],
            "searches": [t.num_searches for t in found],
            "noise": [noise] * len(found),
        }

    def reward(
        self, score: Sequence[float], searches: Sequence[int], noise: Sequence[float], log_metric, **_
    ) -> list[float]:
        """Reward each trajectory, for TRL; NaN, which TRL leaves out, if the engine or the judge failed.

        Also logs the mean number of searches and the noise probability.
        """
        log_metric("searches", sum(searches) / len(searches))
        log_metric("noise_probability", noise[0])
        return list(score)

    def _question(self, prompt: object) -> Question:
        if not isinstance(prompt, str) or prompt not in self.questions:
            raise DataError(
                f"The prompt {str(prompt)[:80]!r} is none of the questions: train on `dataset()`, or on rows "
                "whose `prompt` is the text of one (not a chat)."
            )
        return self.questions[prompt]

    def _sampler(self, model, tokenizer) -> Generator:
        if model.config._attn_implementation != ATTENTION:
            raise ConfigError(
                f"The model's attention is '{model.config._attn_implementation}', whose masks differ: load "
                f"it with attn_implementation='{ATTENTION}'."
            )
        if self._generator is None or self._generator.model is not model:
            self._generator = build_generator("transformers", model, tokenizer)
        return self._generator


REQUIRED = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "generation_kwargs": None,
    "mask_truncated_completions": False,
}
"""Settings of the trainer that must keep these values.

Rollouts sample from the whole distribution, which is the one that TRL trains. They end with a tag instead of
EOS, so that TRL would regard every one as truncated.
"""


def _check(args: GRPOConfig) -> None:
    for name, required in REQUIRED.items():
        if (given := getattr(args, name)) != required:
            raise ConfigError(
                f"GRPOConfig.{name} = {given!r} has no effect on these rollouts: leave it at {required!r}."
            )
