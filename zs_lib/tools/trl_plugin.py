"""A plug-in for people who live in TRL: search, simulated or real, under the curriculum, in any `trl.GRPOTrainer`.

    search = SearchRollouts(questions, engine, cfg, curriculum)
    GRPOTrainer(model, search.reward, args, train_dataset=search.dataset(), rollout_func=search)

What TRL 1.16 does with a `rollout_func`, as its source says: it hands over each prompt `num_generations` times, and wants
one completion for each; `env_mask` (0 on documents) becomes its tool mask, so they stay out of the loss; other fields
go to the reward functions; the log-probabilities are used with vLLM only. It never samples itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from zs_lib.config.arms import CurriculumConfig, RolloutConfig
from zs_lib.engines import SearchEngine
from zs_lib.errors import ConfigError, DataError
from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.generator import Generator
from zs_lib.models.load import ATTENTION
from zs_lib.qa import Question
from zs_lib.rl.curriculum import noise_probability
from zs_lib.rl.rewards import reward
from zs_lib.rl.rollout import rollout
from zs_lib.rl.train import check_failed
from zs_lib.rl.trajectory import Trajectory

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer


class SearchRollouts:
    """A `rollout_func` with its data set and reward. The temperature is the trainer's, in place of `cfg`'s; so is the seed.

    `curriculum` may be None (always useful documents), but not "adaptive": it hangs on the rewards of the steps before,
    which a resumed TRL training does not have. `trajectories` are those of the last call.

    Raises:
        ConfigError: an adaptive curriculum. DataError: no question, or two with the same text.
    """

    def __init__(
        self,
        questions: Sequence[Question],
        engine: SearchEngine | None,
        cfg: RolloutConfig,
        curriculum: CurriculumConfig | None = None,
    ):
        if curriculum and curriculum.schedule == "adaptive":
            raise ConfigError(
                "TRL does not keep what the curriculum 'adaptive' hangs on: choose exponential or constant."
            )
        self.questions = {question.question: question for question in questions}
        if not questions or len(self.questions) < len(questions):
            raise DataError(
                "TRL's prompts are the questions' texts: give at least one question, and each text once."
            )
        self.engine, self.cfg, self.curriculum = engine, cfg, curriculum
        self.trajectories: list[Trajectory] = []
        self._generator: Generator | None = None

    def dataset(self) -> Dataset:
        """One row a question: `prompt` is its text. The policy sees it in `cfg.template`."""
        import datasets

        return datasets.Dataset.from_dict({"prompt": list(self.questions)})

    def __call__(self, prompts: Sequence[str], trainer: GRPOTrainer) -> dict[str, list]:
        """One trajectory a prompt, in TRL's form: prompt_ids, completion_ids, logprobs, env_mask (1 on what the policy wrote)
        and, for `reward`, f1 and searches. Dice are a function of (seed, step, process, question, place in the batch).

        Raises:
            ConfigError: a setting of the trainer that this cannot follow. DataError: a prompt is none of the questions.
            EngineError: more than `policy.FAILED_LIMIT` of the searches failed.
        """
        _check(trainer.args)
        step = min(
            trainer.state.global_step + 1, trainer.state.max_steps
        )  # evaluation may follow the last one
        noise = noise_probability(step, trainer.state.max_steps, self.curriculum) if self.curriculum else 0.0
        asked = [self._question(prompt) for prompt in prompts]
        process = trainer.accelerator.process_index
        keys = [
            (trainer.args.seed, step, process, question.id, place) for place, question in enumerate(asked)
        ]
        cfg = replace(self.cfg, temperature=trainer.args.temperature)
        model = trainer.accelerator.unwrap_model(trainer.model)
        training = model.training
        found = self.trajectories = rollout(
            asked, self._sampler(model, trainer.processing_class), self.engine, cfg, keys, noise
        )
        model.train(training)
        check_failed(found, getattr(self.engine, "name", "none"), step)
        if short := next((t for t in found if not t.ids), None):
            raise ConfigError(
                f"{short.question.question!r} leaves no room for a turn: raise the rollouts' max_context_tokens "
                f"({cfg.max_context_tokens})."
            )
        return {
            "prompt_ids": [t.prompt_ids for t in found],
            "completion_ids": [t.ids for t in found],
            "logprobs": [t.logprobs for t in found],
            "env_mask": [list(map(int, t.mask)) for t in found],
            "f1": [reward(t) for t in found],
            "searches": [t.num_searches for t in found],
            "noise": [noise] * len(found),
        }

    def reward(
        self, f1: Sequence[float], searches: Sequence[int], noise: Sequence[float], log_metric, **_
    ) -> list[float]:
        """TRL's reward function: the paper's F1 of each answer; NaN, which TRL leaves out, where the engine failed. TRL logs
        the mean number of searches and the noise probability with it."""
        log_metric("searches", sum(searches) / len(searches))
        log_metric("noise_probability", noise[0])
        return list(f1)

    def _question(self, prompt: object) -> Question:
        if not isinstance(prompt, str) or prompt not in self.questions:
            raise DataError(
                f"The prompt {str(prompt)[:80]!r} is none of the questions: train on `dataset()`, or on rows whose "
                "`prompt` is the text of one (not a chat)."
            )
        return self.questions[prompt]

    def _sampler(self, model, tokenizer) -> Generator:
        if model.config._attn_implementation != ATTENTION:
            raise ConfigError(
                f"The model's attention is '{model.config._attn_implementation}', whose masks differ: load it with "
                f"attn_implementation='{ATTENTION}'."
            )
        if self._generator is None or self._generator.model is not model:
            self._generator = TransformersGenerator(model, tokenizer)
        return self._generator


PLAIN = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "generation_kwargs": None,
    "mask_truncated_completions": False,
}
"""What the trainer must leave as it is. Rollouts sample from the whole distribution, which is the one that TRL trains; and
they end with a tag, not with EOS, so that TRL would take every one for truncated."""


def _check(args: GRPOConfig) -> None:
    for name, plain in PLAIN.items():
        if (given := getattr(args, name)) != plain:
            raise ConfigError(
                f"GRPOConfig.{name} = {given!r} has no meaning for these rollouts: leave it at {plain!r}."
            )
