"""The objectives of policy optimisation, as pure functions of tensors: no model, no file, no randomness.

An algorithm is one row of ALGORITHMS: how rewards become advantages, which surrogate of the probability ratio is
maximised, and by what the sum over tokens is divided. To add one, add its functions and its row here.

On the batch that was just sampled every ratio is 1, and each surrogate's gradient is REINFORCE's, A * grad(log p);
clipping only acts when a batch is used for several updates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zs_lib.config.arms import ObjectiveConfig
from zs_lib.config.values import pick

STD_FLOOR = 1e-4  # TRL's value: keeps a group of nearly equal rewards from being blown up

# Advantages: rewards of P prompts x G rollouts, (P, G) float in, (P, G) out. NaN marks a rollout that left the batch
# (its engine failed): it counts in no mean and gets advantage 0.


def no_baseline(rewards: Tensor) -> Tensor:
    """The reward itself."""
    return rewards.nan_to_num(0.0)


def batch_mean(rewards: Tensor) -> Tensor:
    """Reward minus the mean over all P x G rollouts."""
    return (rewards - rewards.nanmean()).nan_to_num(0.0)


def group_mean(rewards: Tensor) -> Tensor:
    """Reward minus its group's mean, its own reward included; exact zeros in a zero-variance group."""
    present = ~rewards.isnan() & ~zero_variance_groups(rewards)[:, None]
    return (rewards - rewards.nanmean(1, keepdim=True)).where(present, 0.0)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Reward minus the mean of the other rollouts of its group: unbiased; 0 for a lone rollout."""
    count = (~rewards.isnan()).sum(1, keepdim=True)
    return group_mean(rewards) * count / (count - 1).clamp(min=1)


def group_standardised(rewards: Tensor) -> Tensor:
    """GRPO: (reward - group mean) / (group standard deviation + 1e-4), the deviation with n - 1 as in TRL."""
    count, centred = (~rewards.isnan()).sum(1, keepdim=True), group_mean(rewards)
    deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation + STD_FLOOR)


def batch_standardised(rewards: Tensor) -> Tensor:
    """REINFORCE++ (arXiv 2501.03262): (reward - batch mean) / (batch standard deviation + 1e-4).

    Its KL stands in the reward, ours in the loss, as for the other algorithms here.
    """
    present = ~rewards.isnan()
    return torch.zeros_like(rewards).masked_scatter(present, standardise(rewards[present]))


# Surrogates: what is maximised at each token, and whether clipping took its gradient. Arguments of one shape: log p,
# ratio of new to old probability, advantage; `clip` of the configuration.


def clipped_surrogate(logp: Tensor, ratio: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """PPO's: min(ratio * A, clip(ratio, 1 - clip, 1 + clip) * A)."""
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
    clipped = ((ratio > 1 + clip) & (advantages > 0)) | ((ratio < 1 - clip) & (advantages < 0))
    return surrogate, clipped


def clipped_weight(logp: Tensor, ratio: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """CISPO's (arXiv 2506.13585, equation 4): min(ratio, 1 + clip) as a constant weight, times A * log p.

    No token loses its gradient: where the weight is clipped it is only bounded. There is no lower bound, as in
    the paper's experiments.
    """
    return ratio.detach().clamp(max=1 + clip) * advantages * logp, ratio > 1 + clip


# Normalisers: the divisor of the sum over a batch's tokens, from the number of trained tokens, of rollouts, and of
# tokens that one rollout may write at most.


def trained_tokens(tokens: int, rollouts: int, budget: int) -> int:
    """The mean over the trained tokens of the whole batch (DAPO's; TRL's "dapo" and "bnpo")."""
    return tokens


def token_budget(tokens: int, rollouts: int, budget: int) -> int:
    """Dr. GRPO's constant: a rollout's length changes no other token's weight."""
    return rollouts * budget


@dataclass(frozen=True)
class Algorithm:
    """One row: rewards to advantages, the surrogate, the normaliser, and whether a critic is trained."""

    advantages: Callable[[Tensor], Tensor] | None
    """None: the baseline that the configuration names."""
    surrogate: Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]] = clipped_surrogate
    normalizer: Callable[[int, int, int], int] = trained_tokens
    critic: bool = False


BASELINES = {
    "group_mean": group_mean,
    "batch_mean": batch_mean,
    "leave_one_out": leave_one_out,
    "none": no_baseline,
}
"""What REINFORCE may subtract from a reward."""
ALGORITHMS = {
    "reinforce": Algorithm(None),
    "reinforce++": Algorithm(batch_standardised),
    "grpo": Algorithm(group_standardised),
    "ppo": Algorithm(no_baseline, critic=True),  # its critic makes advantages of the rewards (`gae`)
    "cispo": Algorithm(group_standardised, clipped_weight),
    "dr_grpo": Algorithm(
        group_mean, normalizer=token_budget
    ),  # arXiv 2503.20783: GRPO without its two divisions
}


def algorithm(cfg: ObjectiveConfig) -> Algorithm:
    """The row of an objective's algorithm.

    Raises:
        ConfigError: the algorithm or the baseline has an unknown name; it lists the known ones.
    """
    pick("baseline", cfg.baseline, BASELINES)
    return pick("algorithm", cfg.algorithm, ALGORITHMS)


def group_advantages(rewards: Tensor, cfg: ObjectiveConfig) -> Tensor:
    """Advantages of P prompts x G rollouts by the objective's algorithm, (P, G) float in, (P, G) out."""
    return (algorithm(cfg).advantages or BASELINES[cfg.baseline])(rewards)


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


def zero_variance_groups(rewards: Tensor) -> Tensor:
    """(P,) bool: groups whose rewards (NaN aside) are all equal; a group baseline learns nothing from such a dead group."""
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

    loss = sum over the mask of [-surrogate + kl_coef * k3] / normalizer: the KL is added to what is minimised,
    so it pulls the policy to the reference. `normalizer` is the algorithm's for the whole batch; micro-batches
    that share it add up to the batch's loss. By default it is this mask's own count, and the loss then equals
    TRL's loss_type="bnpo" ("dapo" with the shared normaliser).

    The statistics ("kl" when there is a reference, "clip_fraction") are sums over the same normaliser, and
    add up too.
    """
    normalizer = normalizer if normalizer is not None else mask.sum().clamp(min=1)
    # A masked place is replaced before the arithmetic: 0 * NaN would still be NaN in the gradient.
    logp, advantages = logp.where(mask, 0.0), advantages.expand_as(logp).where(mask, 0.0)
    ratio = torch.exp(logp - old_logp.where(mask, 0.0))
    surrogate, clipped = algorithm(cfg).surrogate(logp, ratio, advantages, cfg.clip)
    loss = -surrogate.sum() / normalizer
    stats = {"clip_fraction": clipped.sum() / normalizer}
    if ref_logp is not None:
        kl = kl_k3(logp, ref_logp.where(mask, 0.0)).sum() / normalizer
        loss = loss + cfg.kl_coef * kl
        stats["kl"] = kl.detach()
    return loss, stats
