"""The training loop for real, on a tiny model: it learns, survives kill -9, and counts what it should."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from arm_fixtures import arm, prompted_simulator
from forks import exit_code, start
from policy_fixtures import KL, PPO, QUESTIONS, LookupEngine, load
from safetensors.torch import load_file
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from zs_lib import pipeline, qa
from zs_lib.config.arms import CurriculumConfig, PolicyArm
from zs_lib.errors import ConfigError, EngineError
from zs_lib.models import load as load_models
from zs_lib.rl.learner import Learner
from zs_lib.rl.train import FAILED_LIMIT, Training, train
from zs_lib.runs import RunStore

KILLED = {
    "reinforce": arm(
        engine="bm25", curriculum=CurriculumConfig(schedule="exponential", p_start=0.0, p_end=0.75)
    ),
    # what has most to remember: a critic, its optimizer, and a curriculum that follows the rewards
    "ppo": arm(
        engine="bm25",
        objective=PPO,
        curriculum=CurriculumConfig(schedule="adaptive", p_start=0.0, p_end=0.5, band_low=0.1, band_high=0.1),
    ),
}
NOISY = CurriculumConfig(schedule="exponential", p_start=0.0, p_end=0.75)
LEAN = {"dtype": "bfloat16", "gradient_checkpointing": True}
KILLED |= {
    "full, bfloat16": arm(engine="bm25", curriculum=NOISY, objective=KL, **LEAN),
    "lora, bfloat16": arm(engine="bm25", curriculum=NOISY, objective=KL, lora_rank=4, **LEAN),
}

# what follows each question's own past: which come again, their noise, and fresh ones for dead groups
KILLED |= {
    "questions": arm(
        engine="bm25",
        curriculum=dataclasses.replace(KILLED["ppo"].curriculum, schedule="by_question", gain=0.2),
        rollout=dataclasses.replace(arm().rollout, draws="query"),
        selection="pass_rates",
        extra_rounds=1,
    )
}

LOGGED = """reward f1 em turns searches query_quality answer_in_documents invalid_actions
zero_variance_groups entropy kl clip_fraction grad_norm prompt_tokens completion_tokens noise_probability
learning_rate rollout_tokens search_tokens update_tokens"""


def trained(backbone, store: Path, arm: PolicyArm, engine=None, questions=QUESTIONS, **kwargs):
    def work(run):
        return train(Training(run, arm, questions, load(backbone), engine, **kwargs))

    return RunStore(store).complete(arm, 0, work)


def test_rl_raises_the_reward_and_leaves_an_ordinary_model(backbone, tmp_path):
    seen = []
    question = QUESTIONS[:1]  # one answer out of six is always right: what a few steps can find out
    learning = arm(steps=25, group_size=12)
    run = trained(
        backbone, tmp_path, learning, LookupEngine(), question, progress=lambda *event: seen.append(event)
    )
    assert run.summary["steps"] == 25
    assert run.summary["last_reward"] > 2 * run.summary["first_reward"] > 0
    assert [event[:2] for event in seen] == [(step, 25) for step in range(1, 26)]
    logged = run.metrics()
    assert set(LOGGED.split()) <= set(logged)
    assert logged["sampler_gap"].max() < 1e-4  # trainer and sampler give the same tokens the same probability
    assert (run.path / "timing.jsonl").exists() and "seconds" not in " ".join(logged)
    kept = run.trajectories()
    groups, watched = ([t for t in kept if t.get("watched", False) is w] for w in (False, True))
    assert len(groups) == 25 * 2 * 12 and abs(sum(t["advantage"] for t in groups[:12])) < 0.01
    assert {t["step"] for t in watched} == {1, *range(3, 25, 3), 25} and {t["question"] for t in watched} == {
        "q0"
    }
    written = ["".join(part[0] for part in t["tokens"] if isinstance(part, list)) for t in groups]
    assert all(
        text.replace(" ", "") == "".join(u["text"] for u in t["turns"]).replace(" ", "")
        for text, t in zip(written, groups, strict=True)
    )
    finished = LlamaForCausalLM.from_pretrained(run.model_dir)
    assert not torch.equal(finished.lm_head.weight, load(backbone).model.lm_head.weight)
    assert PreTrainedTokenizerFast.from_pretrained(run.model_dir).get_vocab()


def test_watching_a_question_changes_nothing_else(backbone, tmp_path, monkeypatch):
    watched = trained(backbone, tmp_path / "watched", KILLED["reinforce"], LookupEngine())
    monkeypatch.setattr(Training, "_watch", lambda *_: [])
    plain = trained(backbone, tmp_path / "plain", KILLED["reinforce"], LookupEngine())
    for name in ("metrics.jsonl", "summary.json", "model/model.safetensors"):
        assert (watched.path / name).read_bytes() == (plain.path / name).read_bytes()
    assert [t for t in watched.trajectories() if "watched" not in t] == plain.trajectories()


def train_to_six(number: int, name: str, backbone: Path, store: Path) -> None:
    """Train, and send this signal to the own process after the sixth step."""

    def progress(step, *_):
        if step == 6:
            os.kill(os.getpid(), number)

    try:
        trained(backbone, store, KILLED[name], LookupEngine(), progress=progress)
    except KeyboardInterrupt:  # Python ends a program by the signal itself, but not a forked process
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)


def end_at_six(number: int, name: str, backbone: Path, store: Path) -> int:
    """Send this signal to a training after its sixth step; the exit code."""
    return exit_code(start(train_to_six, number, name, backbone, store))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 128 + signal.SIGTERM), (signal.SIGINT, -signal.SIGINT)]
)
def test_a_signal_ends_a_training_after_its_step_with_a_checkpoint(number, code, backbone, tmp_path):
    assert end_at_six(number, "reinforce", backbone, tmp_path / "stopped") == code
    store = RunStore(tmp_path / "stopped")
    run = store.get(KILLED["reinforce"], 0)
    assert run.checkpoint().step == len(run.metrics()) == 6 and not run.running and store.verify() == []
    whole = trained(backbone, tmp_path / "whole", KILLED["reinforce"], LookupEngine())
    resumed = trained(backbone, tmp_path / "stopped", KILLED["reinforce"], LookupEngine())
    assert (resumed.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


@pytest.mark.parametrize("name", KILLED)
def test_a_killed_and_resumed_run_ends_bit_identical(name, backbone, tmp_path):
    whole = trained(backbone, tmp_path / "whole", KILLED[name], LookupEngine())
    assert whole.metrics()["noise_probability"].nunique() > 2
    assert end_at_six(signal.SIGKILL, name, backbone, tmp_path / "killed") == -signal.SIGKILL
    killed = tmp_path / "killed" / whole.path.name
    assert (
        len((killed / "metrics.jsonl").read_text().splitlines()) == 6
        and not (killed / "summary.json").exists()
    )

    seen = []
    resumed = trained(
        backbone,
        tmp_path / "killed",
        KILLED[name],
        LookupEngine(),
        progress=lambda *event: seen.append(event),
    )
    assert [event[0] for event in seen] == [5, 6, 7, 8, 9]  # from the checkpoint of step 4
    for log in ("metrics.jsonl", "trajectories.jsonl", "groups.jsonl"):
        assert (resumed.path / log).read_bytes() == (whole.path / log).read_bytes()
    ours, theirs = (load_file(run.model_dir / "model.safetensors") for run in (resumed, whole))
    assert all(torch.equal(ours[weights], theirs[weights]) for weights in theirs)
    assert resumed.summary == whole.summary and whole.summary["last_reward"] > 0


def test_seeds_differ_and_a_seed_repeats(backbone, tmp_path):
    def rewards(folder, seed):
        store = RunStore(tmp_path / folder)
        short = arm(steps=2)
        run = store.complete(
            short, seed, lambda run: train(Training(run, short, QUESTIONS, load(backbone), LookupEngine()))
        )
        return run.metrics()["entropy"].tolist()

    assert rewards("a", 0) == rewards("b", 0) != rewards("a", 1)


def test_ensure_brings_backbone_questions_and_simulator_together(backbone, tmp_path, monkeypatch):
    """The simulator here is the backbone itself, only prompted; fine-tuning is tested elsewhere."""
    monkeypatch.setattr(qa, "load_benchmark", lambda benchmark, split, subsets: QUESTIONS)
    simulator = prompted_simulator(str(backbone))
    curriculum = CurriculumConfig(schedule="constant", p_start=0.5, p_end=0.5)
    simulated = arm(
        backbone=str(backbone), engine="simulated", simulator=simulator, curriculum=curriculum, steps=2
    )
    run = pipeline.ensure(simulated, 0, RunStore(tmp_path))
    assert (run.metrics()["search_tokens"] > 0).all() and (run.metrics()["noise_probability"] == 0.5).all()
    monkeypatch.setattr(load_models, "load_model", None)  # a finished run is found: nothing is loaded again
    assert pipeline.ensure(simulated, 0, RunStore(tmp_path)).summary == run.summary


def test_a_greedy_policy_cannot_be_trained(backbone, tmp_path):
    greedy = dataclasses.replace(arm().rollout, temperature=0.0)
    with pytest.raises(ConfigError, match="temperature"):
        trained(backbone, tmp_path, arm(rollout=greedy))


def test_an_engine_that_fails_too_often_ends_the_run_and_a_repaired_one_goes_on(backbone, tmp_path):
    searching = arm(engine="bm25")
    with pytest.raises(
        EngineError, match=r"rollouts of step 7 failed with their engine \(no line\).* 'bm25'.*goes on"
    ):
        trained(backbone, tmp_path / "broken", searching, LookupEngine(failing=0.9, from_step=7))
    store = RunStore(tmp_path / "broken")
    assert store.get(searching, 0).checkpoint().step == 4 and store.verify() == []
    repaired = trained(backbone, tmp_path / "broken", searching, LookupEngine())
    whole = trained(backbone, tmp_path / "whole", searching, LookupEngine())
    assert (repaired.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


def test_training_goes_on_when_one_search_in_ten_fails(backbone, tmp_path, monkeypatch):
    update, learnt_from = Learner.update, []

    def watched(self, step, trajectories, advantages):
        learnt_from.append([t.stop_reason for t in trajectories])
        assert all(map(math.isfinite, advantages))
        return update(self, step, trajectories, advantages)

    monkeypatch.setattr(Learner, "update", watched)
    run = trained(backbone, tmp_path, arm(engine="bm25", steps=12), LookupEngine(failing=0.1))
    logged = run.metrics()
    assert len(logged) == 12 and 0 < logged["failed"].mean() < FAILED_LIMIT
    assert [round((1 - share) * 18) for share in logged["failed"]] == [
        len(reasons) for reasons in learnt_from
    ]
    assert not any("engine_failed" in reasons for reasons in learnt_from)
    assert logged["reward"].between(0, 1).all() and logged["grad_norm"].max() > 0
