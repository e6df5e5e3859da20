"""The arithmetic of policy optimisation, as pure functions of tensors: no model, no file, no randomness.

All algorithms share one clipped loss and differ in their advantages; PPO has a critic, and its loss, besides. On
the batch that was just sampled every probability ratio is 1, so the clipped surrogate's gradient is exactly
REINFORCE's, A * grad(log p); clipping only acts when a batch is used for several updates.
"""

from __future__ import annotations

import torch
from torch import Tensor

from zs_lib.arms import ObjectiveConfig
from zs_lib.errors import ConfigError

KINDS = ("group_mean", "batch_mean", "leave_one_out", "none", "grpo", "reinforce++", "ppo")
STD_FLOOR = 1e-4  # TRL's value: keeps a nearly dead group from being blown up


def advantage_kind(cfg: ObjectiveConfig) -> str:
    """The advantage an objective uses: REINFORCE the chosen baseline's, the others their own."""
    return cfg.baseline if cfg.algorithm == "reinforce" else cfg.algorithm


def group_advantages(rewards: Tensor, kind: str) -> Tensor:
    """Advantages of P prompts × G rollouts, (P, G) float in, (P, G) out.

    - "none": r
    - "batch_mean": r minus the mean over all P × G rollouts
    - "group_mean": r minus its group's mean (its own reward included, so it shrinks by (G - 1) / G)
    - "leave_one_out": r minus the mean of the other rollouts of its group: unbiased; 0 for a lone rollout
    - "grpo": (r - group mean) / (group standard deviation + 1e-4), the deviation with n - 1 as in TRL
    - "reinforce++": (r - batch mean) / (batch standard deviation + 1e-4): normalised over the whole batch (arXiv
      2501.03262; its KL stands in the reward, ours in the loss, as for the other algorithms here)
    - "ppo": r itself; its critic makes advantages of it (`gae`)

    NaN marks a rollout that left the batch (its engine failed): it counts in no mean and gets advantage 0. A
    dead group, all rewards alike, gets exact zeros from the group baselines. An unknown kind is a
    ConfigError.
    """
    if kind not in KINDS:
        raise ConfigError(f"Unknown kind of advantage '{kind}'. Known: {', '.join(KINDS)}.")
    present = ~rewards.isnan()
    if kind in ("none", "ppo"):
        return rewards.where(present, 0.0)
    if kind == "batch_mean":
        return (rewards - rewards.nanmean()).where(present, 0.0)
    if kind == "reinforce++":
        return torch.zeros_like(rewards).masked_scatter(present, standardise(rewards[present]))
    count = present.sum(1, keepdim=True)
    alive = present & ~dead_groups(rewards)[:, None]
    centred = (rewards - rewards.nanmean(1, keepdim=True)).where(alive, 0.0)
    if kind == "leave_one_out":
        return centred * count / (count - 1).clamp(min=1)
    if kind == "grpo":
        deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
        return centred / (deviation + STD_FLOOR)
    return centred


def standardise(values: Tensor) -> Tensor:
    """(values - mean) / (standard deviation + 1e-4), the deviation with n - 1; a lone value gives 0. Any shape."""
    if values.numel() < 2:
        return torch.zeros_like(values)
    return (values - values.mean()) / (values.std() + STD_FLOOR)


def gae(values: Tensor, reward: float, gamma: float, lam: float) -> Tensor:
    """Generalised advantage estimates of one trajectory, (T,) float in, (T,) out.

    `values` are the critic's at the T tokens that the policy wrote, in order: document tokens between them do not
    count as steps (in the original they do). The reward comes with the last token, after which the value is 0.
    A_t = delta_t + gamma * lam * A_(t+1), delta_t = r_t + gamma * V_(t+1) - V_t; with gamma = lam = 1, as in the
    paper, A_t = reward - V_t.
    """
    advantages, following, ahead = torch.zeros_like(values), 0.0, 0.0
    for t in reversed(range(len(values))):
        delta = (reward if t == len(values) - 1 else 0.0) + gamma * following - values[t]
        ahead = delta + gamma * lam * ahead
        advantages[t], following = ahead, values[t]
    return advantages


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float, normalizer: float) -> Tensor:
    """PPO's critic loss, a scalar: sum of max((V - R)^2, (clipped V - R)^2) / 2 over `normalizer`.

    All (N,) float, on the policy's tokens only. The clipped value stays within `clip` of that before the update.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return torch.max((values - returns).square(), (clipped - returns).square()).sum() / (2 * normalizer)


def dead_groups(rewards: Tensor) -> Tensor:
    """(P,) bool: groups whose rewards (NaN aside) are all the same: a group baseline learns nothing there."""
    present = ~rewards.isnan()
    return rewards.where(present, -torch.inf).amax(1) <= rewards.where(present, torch.inf).amin(1)


def kl_k3(logp: Tensor, ref_logp: Tensor) -> Tensor:
    """Per-token estimate of KL(policy || reference) from policy samples: exp(d) - d - 1, d = ref - logp.

    Never negative, zero where both agree, and right on average; same shape as its inputs (natural
    logarithms). As a loss its average gradient is that of KL(reference || policy), which pulls to the same
    point.
    """
    difference = ref_logp - logp
    return torch.exp(difference) - difference - 1


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    cfg: ObjectiveConfig,
    normalizer: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The scalar to minimise, and batch statistics, from per-token log-probabilities.

    `logp` (has the gradient), `old_logp` (when sampled) and `ref_logp` (reference policy; None if kl_coef is
    0) are (B, T) float; `advantages` broadcasts to them; `mask` is bool, True on the tokens that are trained.
    Whatever stands where the mask is False moves neither loss nor gradient, be it NaN.

    loss = sum over the mask of [-min(ratio * A, clip(ratio) * A) + kl_coef * k3] / normalizer: the KL is
    added to what is minimised, so it pulls the policy to the reference. `normalizer` is the number of trained
    tokens of the whole batch; micro-batches that share it add up to the batch's loss. By default it is this
    mask's own count, and the loss then equals TRL's loss_type="bnpo" ("dapo" with the shared normaliser).

    The statistics ("kl" when there is a reference, "clip_fraction") are sums over the same normaliser, and
    add up too.
    """
    normalizer = normalizer if normalizer is not None else mask.sum().clamp(min=1)
    # A masked place is replaced before the arithmetic: 0 * NaN would still be NaN in the gradient.
    advantages = advantages.expand_as(logp).where(mask, 0.0)
    ratio = torch.exp((logp - old_logp).where(mask, 0.0))
    clipped = ratio.clamp(1 - cfg.clip, 1 + cfg.clip)
    loss = -torch.min(ratio * advantages, clipped * advantages).sum() / normalizer
    clipping = ((ratio > 1 + cfg.clip) & (advantages > 0)) | ((ratio < 1 - cfg.clip) & (advantages < 0))
    stats = {"clip_fraction": clipping.sum() / normalizer}
    if ref_logp is not None:
        kl = kl_k3(logp.where(mask, 0.0), ref_logp.where(mask, 0.0)).sum() / normalizer
        loss = loss + cfg.kl_coef * kl
        stats["kl"] = kl.detach()
    return loss, stats
