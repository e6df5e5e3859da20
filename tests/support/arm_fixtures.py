"""Configurations small enough for tests, each with the one value that a test is about changed."""

from __future__ import annotations

from zs_lib.config.arms import FormatSFT, ObjectiveConfig, PolicyArm, RolloutConfig, SimulatorArm


def rollout_config(**changes) -> RolloutConfig:
    values = {
        "max_searches": 2,
        "num_documents": 1,
        "template": "short",
        "max_turn_tokens": 60,
        "temperature": 1.0,
        "max_context_tokens": 400,
    }
    return RolloutConfig(**(values | changes))


def objective(algorithm: str = "reinforce", **changes) -> ObjectiveConfig:
    values = {"baseline": "group_mean", "clip": 0.2, "kl_coef": 0.0, "updates_per_batch": 1}
    return ObjectiveConfig(algorithm=algorithm, **(values | changes))


def arm(**changes) -> PolicyArm:
    """Nine steps without an engine, for the model of `policy_fixtures.save_backbone`."""
    values = {
        "name": "test",
        "backbone": "",
        "engine": "none",
        "simulator": None,
        "curriculum": None,
        "objective": objective(),
        "rollout": rollout_config(max_turn_tokens=6, max_context_tokens=96),
        "steps": 9,
        "checkpoint_every": 4,
        "prompts_per_step": 3,
        "group_size": 6,
        "learning_rate": 2e-3,
        "max_grad_norm": 1.0,
        "warmup_ratio": 0.1,
        "subsets": ("natural",),
    }
    return PolicyArm(**(values | changes))


def prompted_simulator(backbone: str, **changes) -> SimulatorArm:
    """A simulator that is not fine-tuned."""
    values = {
        "recipe": "prompted",
        "collector": "",
        "judge": "",
        "num_questions": 1,
        "attempts": 1,
        "steps": 0,
        "batch_size": 1,
        "learning_rate": 0.0,
        "num_documents": 1,
        "temperature": 1.0,
        "max_tokens": 4,
        "template": "short",
    }
    return SimulatorArm(backbone=backbone, **(values | changes))


def format_sft(**changes) -> FormatSFT:
    values = {
        "steps": 2,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "template": "short",
        "num_documents": 2,
        "engine": "bm25",
    }
    return FormatSFT(**(values | changes))
