"""The teaching loop against the trainer: the same arm, questions, model and engine give the same weights."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest
import torch
from arm_fixtures import arm
from policy_fixtures import KL, PPO, QUESTIONS, LookupEngine, load

from zs_lib import qa
from zs_lib.config import load_profile
from zs_lib.config.arms import CurriculumConfig
from zs_lib.engines import build_engine
from zs_lib.errors import ConfigError
from zs_lib.models.load import load_model
from zs_lib.rl import minimal
from zs_lib.rl.minimal import train_minimal
from zs_lib.rl.train import Training, train
from zs_lib.runs import RunStore

NOISY = CurriculumConfig(schedule="exponential", p_start=0.0, p_end=0.75)
ADAPTIVE = CurriculumConfig(
    schedule="adaptive", p_start=0.0, p_end=0.5, band_low=0.0, band_high=0.0, gain=0.2
)
PLAIN = arm().objective
# Three steps, of which the learning rate rises over the first two.
OWN = {"engine": "bm25", "curriculum": NOISY, "steps": 3, "warmup_ratio": 0.7, "max_grad_norm": 0.05}
ARMS = {
    "REINFORCE": arm(**OWN, objective=PLAIN),
    "KL, two updates": arm(**OWN, objective=replace(KL, kl_coef=0.1)),
    "GRPO, documents trained": arm(**OWN, objective=replace(PLAIN, algorithm="grpo", mask_documents=False)),
    "CISPO, two updates": arm(**OWN, objective=replace(PLAIN, algorithm="cispo", updates_per_batch=2)),
    "REINFORCE++": arm(**OWN, objective=replace(KL, algorithm="reinforce++", updates_per_batch=2)),
    "Dr. GRPO": arm(**OWN, objective=replace(KL, algorithm="dr_grpo")),
    "adaptive curriculum": arm(**OWN | {"curriculum": ADAPTIVE}, reward="em"),
}


def both(arm, questions, load_policy, engine, tmp_path):
    """Train with the trainer and with the loop; (its model, ours, the model before) and both metrics."""
    theirs, ours, before = load_policy(), load_policy(), load_policy()
    run = RunStore(tmp_path).complete(
        arm, 5, lambda run: train(Training(run, arm, questions, theirs, engine()))
    )
    history = train_minimal(arm, questions, ours, engine(), seed=5)
    return [loaded.model for loaded in (theirs, ours, before)], run.metrics(), history


def assert_same_weights(models, atol):
    """Equal to float32 rounding, after a training that moved the weights."""
    theirs, ours, before = (dict(model.named_parameters()) for model in models)
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], atol=atol, rtol=1e-5, msg=name)
    theirs, ours, before = (torch.cat([w.flatten() for w in x.values()]) for x in (theirs, ours, before))
    moved = (theirs - before).norm()
    assert moved > 0.1 and (ours - theirs).norm() < 2e-4 * moved


@pytest.mark.parametrize("name", ARMS)
def test_it_ends_with_the_trainers_weights(name, backbone, tmp_path):
    arm = ARMS[name]
    models, logged, history = both(arm, QUESTIONS, lambda: load(backbone), LookupEngine, tmp_path)
    assert_same_weights(models, atol=2e-6)
    assert [metrics["step"] for metrics in history] == [1, 2, 3]
    for column in ("reward", "noise_probability"):
        assert [metrics[column] for metrics in history] == logged[column].tolist()
    assert len({metrics["noise_probability"] for metrics in history}) == 3
    if arm.objective.updates_per_batch == 1:  # else the trainer logs the mean over the updates
        for column in ("grad_norm", "clip_fraction"):
            assert [m[column] for m in history] == pytest.approx(logged[column].tolist(), rel=1e-4)
    assert ("kl" in history[-1]) == (arm.objective.kl_coef > 0)


@pytest.mark.parametrize("name", ["KL, two updates", "Dr. GRPO"])
def test_rollouts_whose_engine_failed_leave_its_batch_too(name, backbone, tmp_path):
    arm = replace(ARMS[name], max_grad_norm=10.0)  # unclipped: a gradient's size depends on the normaliser
    models, logged, history = both(
        arm, QUESTIONS, lambda: load(backbone), lambda: LookupEngine(failing=0.2), tmp_path
    )
    assert logged["failed"].nunique() > 1
    assert_same_weights(models, atol=2e-6)
    assert [metrics["reward"] for metrics in history] == pytest.approx(logged["reward"].tolist())


def test_a_step_without_anything_to_learn_from_moves_nothing(backbone):
    """The right answer is no word of the model's, so all rewards are 0."""
    question = [replace(QUESTIONS[0], golden_answers=("unheard",))]
    policy, before = load(backbone), load(backbone)
    train_minimal(ARMS["REINFORCE"], question, policy, LookupEngine(), seed=0)
    for one, other in zip(policy.model.parameters(), before.model.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("kl_coef", [0.0, 0.05])
def test_on_the_benchmark_with_a_shipped_backbone_and_bm25_too(kl_coef, tmp_path):
    real = load_profile("smoke").policy("search-r1")
    real = replace(
        real,
        format_sft=None,
        steps=3,
        objective=replace(real.objective, kl_coef=kl_coef, updates_per_batch=1),
    )
    assert real.engine == "bm25"
    models, logged, history = both(
        real,
        qa.load_benchmark(real.benchmark, "train", real.subsets),
        lambda: load_model(real.backbone),
        lambda: build_engine(real.engine, split="train"),
        tmp_path,
    )
    # In a million weights some gradients are mere rounding, of which AdamW makes a fraction of a step.
    assert_same_weights(models, atol=real.learning_rate / 4)
    assert [metrics["reward"] for metrics in history] == logged["reward"].tolist()
    assert logged["searches"].min() > 0 and logged["reward"].max() > 0


@pytest.mark.parametrize(
    "change",
    [
        {"objective": PPO},
        {"objective": replace(PLAIN, minibatch_rollouts=2)},
        {"objective": replace(PLAIN, sampler_ratio_max=2.0)},
        {"lora_rank": 2},
        {"dtype": "bfloat16"},
    ],
)
def test_what_it_leaves_out_is_an_error(change, backbone):
    with pytest.raises(ConfigError, match="a part that is left out here"):
        train_minimal(replace(ARMS["REINFORCE"], **change), QUESTIONS, load(backbone), LookupEngine(), seed=0)


def test_it_fits_on_a_few_screens():
    assert len(inspect.getsource(minimal).splitlines()) <= 150
