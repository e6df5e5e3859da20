"""Our rollouts in TRL's own trainer: what it trains on is what was sampled, without the documents, for our
reward."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from trl import GRPOConfig, GRPOTrainer

from zs_lib import config, qa
from zs_lib.config import paths
from zs_lib.config.arms import CurriculumConfig
from zs_lib.engines import SearchResult, build_engine
from zs_lib.errors import ConfigError, DataError, EngineError
from zs_lib.rl.rewards import REWARDS
from zs_lib.rng import uniform
from zs_lib.trl.rollouts import SearchRollouts

ARM = config.load_profile("tiny", {"policy.rollout.draws": "rollout"}).policy("zerosearch")
QUESTIONS = qa.load_questions(subset="natural", split="train")[:12]
NOISE = CurriculumConfig(p_start=0.0, p_end=1.0)


class WatchedTrainer(GRPOTrainer):
    """Keeps what each loss is made of: TRL's inputs, its log-probabilities with the loss's gradient, and our
    trajectories."""

    def compute_loss(self, model, inputs, **kwargs):
        self.inputs = inputs
        return super().compute_loss(model, inputs, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        logprobs, *rest = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if logprobs.requires_grad:
            logprobs.retain_grad()
            self.seen.append((self.inputs, logprobs, self.rollout_func.trajectories))
        return logprobs, *rest


def in_rows(inputs, trajectories) -> list:
    """The trajectories in the order of TRL's rows, which it shuffles."""
    rows = zip(
        inputs["prompt_ids"],
        inputs["prompt_mask"].bool(),
        inputs["completion_ids"],
        inputs["completion_mask"].sum(1),
        strict=True,
    )
    known = {(*t.prompt_ids, "|", *t.ids): t for t in trajectories}  # equal ones are interchangeable
    found = [known[*prompt[kept].tolist(), "|", *ids[:length].tolist()] for prompt, kept, ids, length in rows]
    assert len(found) == len(trajectories) and set(map(id, found)) == set(map(id, known.values()))
    return found


class WatchedEngine:
    """BM25 that remembers its requests; `failing` of them fail."""

    name = "bm25"

    def __init__(self, failing: float = 0.0):
        self.engine, self.failing, self.requests = build_engine("bm25", split="train"), failing, []

    def search(self, requests, num_documents):
        self.requests += requests
        found = self.engine.search(requests, num_documents)
        return [
            SearchResult.failed("no line") if uniform(request.key, 0, "fault") < self.failing else result
            for request, result in zip(requests, found, strict=True)
        ]


def trainer(folder, engine, steps=2, curriculum=NOISE, questions=QUESTIONS, **changes) -> WatchedTrainer:
    search = SearchRollouts(questions, engine, ARM.rollout, curriculum, "f1 - 0.1 * no_answer")
    args = GRPOConfig(
        str(folder),
        max_steps=steps,
        per_device_train_batch_size=12,
        num_generations=4,
        learning_rate=1e-4,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        bf16=False,
        **changes,
    )
    watched = WatchedTrainer(
        str(paths.BACKBONES / "tiny-S-instruct"),
        search.reward,
        args,
        train_dataset=search.dataset(),
        rollout_func=search,
    )
    watched.seen = []
    return watched


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trainer after three steps, and its engine."""
    engine = WatchedEngine()
    watched = trainer(tmp_path_factory.mktemp("trl"), engine, steps=3, temperature=0.8, seed=3)
    watched.train()
    return watched, engine


def test_what_trl_trains_on_is_what_was_sampled(trained):
    assert len(trained[0].seen) == 3
    for inputs, logprobs, trajectories in trained[0].seen:
        assert len(trajectories) == len(logprobs) == 12
        for row, t in enumerate(in_rows(inputs, trajectories)):
            mine = torch.tensor(t.mask)
            assert inputs["tool_mask"][row, : len(t.ids)].tolist() == t.mask
            torch.testing.assert_close(
                logprobs[row, : len(t.ids)][mine], torch.tensor(t.logprobs)[mine], atol=1e-3, rtol=0
            )


def test_document_tokens_have_no_gradient(trained):
    learnt = 0
    for inputs, logprobs, trajectories in trained[0].seen:
        assert any(turn.documents for t in trajectories for turn in t.turns)
        mask = torch.zeros_like(logprobs, dtype=torch.bool)
        for row, t in enumerate(in_rows(inputs, trajectories)):
            mask[row, : len(t.ids)] = torch.tensor(t.mask)
        assert logprobs.grad[~mask].abs().max() == 0
        taught = mask & (inputs["advantages"] != 0)[:, None]
        assert (logprobs.grad[taught] != 0).all()
        learnt += taught.sum()
    assert learnt > 0


def test_the_reward_is_the_sum_and_noise_follows_the_curriculum(trained):
    watched, engine = trained
    logged = [row for row in watched.state.log_history if "reward" in row]
    assert [row["noise_probability"] for row in logged] == pytest.approx(
        [(4 ** (i / 3) - 1) / 3 for i in (1, 2, 3)]
    )
    for row, (*_, trajectories) in zip(logged, watched.seen, strict=True):
        rewards = [REWARDS["f1"](t) - 0.1 * REWARDS["no_answer"](t) for t in trajectories]
        assert row["reward"] == row["rewards/reward/mean"] == pytest.approx(sum(rewards) / 12)
        assert row["searches"] == pytest.approx(sum(t.num_searches for t in trajectories) / 12)
        assert {t.question for t in trajectories} <= set(QUESTIONS) and len(
            {t.question for t in trajectories}
        ) == 3
    assert max(row["reward"] for row in logged) > 0
    keys = [request.key for request in engine.requests]
    assert len(set(keys)) == len(keys) and all(
        request.noisy for request in engine.requests if request.key[1] == 3
    )


def test_the_same_seed_repeats_and_evaluation_works(tmp_path):
    def rollouts(seed):
        watched = trainer(tmp_path, WatchedEngine(), 1, seed=seed)
        watched.train()
        return watched, [t.ids for t in watched.seen[0][-1]]

    watched, ids = rollouts(1)
    assert rollouts(1)[1] == ids != rollouts(2)[1]
    assert watched.evaluate(watched.train_dataset.select(range(3)))["eval_reward"] >= 0  # after the last step


def test_an_engine_that_fails_sometimes_is_left_out_and_one_that_fails_often_ends_it(tmp_path):
    watched = trainer(tmp_path, WatchedEngine(failing=0.2))
    watched.train()
    failed = [
        advantage
        for inputs, _, trajectories in watched.seen
        for t, advantage in zip(in_rows(inputs, trajectories), inputs["advantages"], strict=True)
        if t.stop_reason == "engine_failed"
    ]
    assert (
        failed
        and not any(failed)
        and all(math.isfinite(row["reward"]) for row in watched.state.log_history if "reward" in row)
    )
    with pytest.raises(EngineError, match="failed with their engine"):
        trainer(tmp_path, WatchedEngine(failing=1.0)).train()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 5}, "top_k"),
        ({"mask_truncated_completions": True}, "mask_truncated_completions"),
        ({"model_init_kwargs": {"attn_implementation": "eager"}}, "sdpa"),
    ],
)
def test_settings_that_rollouts_cannot_follow_are_refused(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        trainer(tmp_path, None, **changes).train()


def test_wrong_questions_prompts_and_curricula_are_refused(tmp_path):
    for questions in ([], [QUESTIONS[0], QUESTIONS[0]]):
        with pytest.raises(DataError, match="once"):
            SearchRollouts(questions, None, ARM.rollout)
    with pytest.raises(ConfigError, match="adaptive"):
        SearchRollouts(
            QUESTIONS, None, ARM.rollout, CurriculumConfig(schedule="adaptive", p_start=0, p_end=1)
        )
    watched = trainer(tmp_path, None, curriculum=None)
    for prompt in ("who?", [{"role": "user", "content": QUESTIONS[0].question}]):
        with pytest.raises(DataError, match="none of the questions"):
            watched.rollout_func([prompt], watched)
    watched.rollout_func.cfg = dataclasses.replace(ARM.rollout, max_context_tokens=10)
    with pytest.raises(ConfigError, match="max_context_tokens"):
        watched.rollout_func([QUESTIONS[0].question], watched)
