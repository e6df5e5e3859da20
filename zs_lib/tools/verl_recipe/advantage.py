"""Advantages of REINFORCE that verl lacks: the bare reward, and the reward minus the batch's mean.

verl loads this file as its data set's class (`data.custom_cls`), because that happens in the process in which
advantages are computed; the class itself is verl's own.
"""

from __future__ import annotations

import torch
from verl.trainer.ppo.core_algos import register_adv_est
from verl.utils.dataset.rl_dataset import RLHFDataset

__all__ = ["RLHFDataset", "batch_mean", "no_baseline"]


@register_adv_est("zerosearch_no_baseline")
def no_baseline(token_level_rewards: torch.Tensor, response_mask: torch.Tensor, **kwargs):
    """Take a trajectory's reward itself as the advantage of its tokens; (B, T) in and out, twice."""
    advantages = token_level_rewards.sum(-1, keepdim=True) * response_mask
    return advantages, advantages


@register_adv_est("zerosearch_batch_mean")
def batch_mean(token_level_rewards: torch.Tensor, response_mask: torch.Tensor, **kwargs):
    """Subtract the mean reward of the batch; (B, T) in and out, twice."""
    rewards = token_level_rewards.sum(-1, keepdim=True)
    advantages = (rewards - rewards.mean()) * response_mask
    return advantages, advantages
