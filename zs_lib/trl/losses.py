"""TRL's losses by the names of our algorithms, and what TRL cannot train."""

from __future__ import annotations

from typing import Any

from zs_lib.config.arms import PolicyArm
from zs_lib.config.values import pick
from zs_lib.errors import ConfigError

LOSSES: dict[str, dict[str, Any]] = {
    # Ours, by the same names: the same losses; REINFORCE with any baseline.
    "reinforce": {"loss_type": "dapo", "scale_rewards": "none"},
    "grpo": {"loss_type": "dapo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "cispo": {"loss_type": "cispo"},
    # Others of TRL, by its names; its page "Paper Index" has the papers.
    "bnpo": {"loss_type": "bnpo"},
    "dapo": {"loss_type": "dapo"},
    "luspo": {"loss_type": "luspo", "importance_sampling_level": "sequence"},
    "sapo": {"loss_type": "sapo"},
    "vespo": {"loss_type": "vespo"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "grpo_by_sequence": {"loss_type": "grpo"},  # its "grpo": a mean over rollouts of means over tokens
}
"""Algorithm of an arm with `trainer = "trl"` -> its settings of `trl.GRPOConfig`."""


def check_arm(arm: PolicyArm) -> None:
    """Check that TRL can train an arm; ConfigError, which says what it cannot do and what to change."""
    objective, batch = arm.objective, arm.prompts_per_step * arm.group_size
    pick("algorithm of the trainer 'trl'", objective.algorithm, LOSSES)
    cannot = []
    if arm.group_size < 2:
        cannot.append("learn from a group of one (group_size)")
    if objective.minibatch_rollouts and batch % objective.minibatch_rollouts:
        cannot.append(f"split {batch} rollouts into minibatches of {objective.minibatch_rollouts}")
    if objective.likelihood_coef or objective.balance_signs:
        cannot.append("guard likelihoods (likelihood_coef, balance_signs)")
    if objective.credit != "trajectory":
        cannot.append("give credit by turn (objective.credit)")
    if cannot:
        raise ConfigError(
            f"policy '{arm.name}': TRL cannot {' or '.join(cannot)}: change that, or take trainer = \"own\"."
        )
