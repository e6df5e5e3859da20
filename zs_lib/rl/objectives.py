"""The objectives of policy optimisation, as pure functions of tensors: no model, no file, no randomness.

An algorithm is one row of ALGORITHMS; to add one, add its functions and its row here.

In the first optimizer step on a batch every ratio is 1, and each surrogate's gradient is REINFORCE's,
A * grad(log p); clipping only acts in later ones, on further minibatches or epochs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from zs_lib.config.arms import ObjectiveConfig
from zs_lib.config.values import pick

STD_FLOOR = 1e-4  # TRL's value: keeps the advantages of nearly equal rewards small

# Advantages: rewards of P prompts x G rollouts, (P, G) float in, (P, G) out. NaN marks a rollout that left
# the batch (its engine failed): it counts in no mean and gets advantage 0.


def no_baseline(rewards: Tensor) -> Tensor:
    """Take the reward itself as the advantage."""
    return rewards.nan_to_num(0.0)


def batch_mean(rewards: Tensor) -> Tensor:
    """Subtract the mean over all P x G rollouts."""
    return (rewards - rewards.nanmean()).nan_to_num(0.0)


def group_mean(rewards: Tensor) -> Tensor:
    """Subtract the group's mean, the reward itself included; exact zeros in a zero-variance group."""
    present = ~rewards.isnan() & ~zero_variance_groups(rewards)[:, None]
    return (rewards - rewards.nanmean(1, keepdim=True)).where(present, 0.0)


def leave_one_out(rewards: Tensor) -> Tensor:
    """Subtract the mean of the group's other rollouts, which is unbiased; 0 for a lone rollout."""
    count = (~rewards.isnan()).sum(1, keepdim=True)
    return group_mean(rewards) * count / (count - 1).clamp(min=1)


def group_standardised(rewards: Tensor) -> Tensor:
    """Standardise within the group, as GRPO does: (reward - mean) / (std + 1e-4), std with n - 1 (TRL's)."""
    count, centred = (~rewards.isnan()).sum(1, keepdim=True), group_mean(rewards)
    deviation = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    return centred / (deviation + STD_FLOOR)


# Surrogates (`Algorithm.surrogate`); `ratio` is new over old probability, in the shape of `logp`.


def clipped_surrogate(
    logp: Tensor, ratio: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Compute PPO's surrogate, min(ratio * A, clip(ratio, 1 - low, 1 + high) * A).

    A clipped token has no gradient: its ratio is beyond the range on the side to which A pushes it.
    """
    surrogate = torch.min(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
    clipped = ((ratio > 1 + high) & (advantages > 0)) | ((ratio < 1 - low) & (advantages < 0))
    return surrogate, clipped


def clipped_weight(
    logp: Tensor, ratio: Tensor, advantages: Tensor, low: float, high: float
) -> tuple[Tensor, Tensor]:
    """Compute CISPO's surrogate, sg(min(ratio, 1 + high)) * A * log p, where sg stops the gradient.

    A clipped token keeps its gradient; only its importance weight is bounded, for both signs of A. There is
    no lower bound, as in the paper's experiments. TRL's `epsilon_high` is the bound itself, 1 + high.
    """
    return ratio.detach().clamp(max=1 + high) * advantages * logp, ratio > 1 + high


# Normalisers (`Algorithm.normalizer`); `budget` is `rollout.token_budget`.


def trained_tokens(tokens: int, rollouts: int, budget: int) -> int:
    """Divide by the trained tokens of the whole batch: a mean over tokens, as in DAPO and TRL's "cispo"."""
    return tokens


def full_length(tokens: int, rollouts: int, budget: int) -> int:
    """Divide by a constant, as Dr. GRPO does: a rollout's length changes no token's weight."""
    return rollouts * budget


@dataclass(frozen=True)
class Algorithm:
    """One policy-gradient algorithm: advantages, surrogate, normaliser, and whether it trains a critic."""

    advantages: Callable[[Tensor], Tensor] | None
    """From rewards, (P, G) in and out; None: the baseline that the configuration names."""
    surrogate: Callable[[Tensor, Tensor, Tensor, float, float], tuple[Tensor, Tensor]] = clipped_surrogate
    """(log p, ratio, advantages, clip, clip_high) -> (what is maximised, whether clipped), both per token."""
    normalizer: Callable[[int, int, int], int] = trained_tokens
    """(trained tokens, rollouts, tokens that a rollout may write) -> the divisor of the sum over tokens."""
    critic: bool = False
    """Whether a critic is trained, which turns rewards into advantages (`gae`)."""
    over_tokens: bool = False
    """Whether advantages are then standardised over the trained tokens of the batch."""


BASELINES = {
    "group_mean": group_mean,
    "batch_mean": batch_mean,
    "leave_one_out": leave_one_out,
    "none": no_baseline,
}
"""Name -> baseline that REINFORCE may subtract from a reward."""
ALGORITHMS = {
    "reinforce": Algorithm(None),
    # arXiv 2501.03262; the paper puts the KL into the reward, here it is in the loss, as for the others
    "reinforce++": Algorithm(no_baseline, over_tokens=True),
    "grpo": Algorithm(group_standardised),
    "ppo": Algorithm(no_baseline, critic=True, over_tokens=True),
    # arXiv 2506.13585, equations 4 and 5
    "cispo": Algorithm(group_standardised, clipped_weight),
    # arXiv 2503.20783: GRPO with neither the standard deviation nor the lengths as divisors
    "dr_grpo": Algorithm(group_mean, normalizer=full_length),
}
"""Name -> algorithm."""


def algorithm(cfg: ObjectiveConfig) -> Algorithm:
    """Look up the algorithm that an objective names; ConfigError if it, or the baseline, is unknown."""
    pick("baseline", cfg.baseline, BASELINES)
    return pick("algorithm", cfg.algorithm, ALGORITHMS)


def group_advantages(rewards: Tensor, cfg: ObjectiveConfig) -> Tensor:
    """Compute the advantages of P prompts x G rollouts from their rewards, (P, G) float in and out."""
    return (algorithm(cfg).advantages or BASELINES[cfg.baseline])(rewards)


def standardise(values: Tensor, batch: Tensor) -> Tensor:
    """Compute (values - mean) / (std + 1e-4) with the mean and the std (n - 1) of `batch`.

    `values` are those of `batch`, or a part of them; a lone value gives 0.
    """
    if batch.numel() < 2:
        return torch.zeros_like(values)
    return (values - batch.mean()) / (batch.std() + STD_FLOOR)


def balance_signs(values: Tensor, batch: Tensor) -> Tensor:
    """Scale negative advantages down so that over the batch's tokens they weigh no more than positive ones.

    `values` are those of `batch`, or a part of them. Failed rollouts are often the longer ones, so that most
    of a step's gradient pushes probabilities down. BAPO (arXiv 2510.18927) balances both by moving the
    clipping range, here the weights change.
    """
    up, down = batch.clamp(min=0).sum(), -batch.clamp(max=0).sum()
    return values.where(values > 0, values * (up / down).clamp(max=1).nan_to_num(1.0))


def likelihood_drop(logp: Tensor, old_logp: Tensor, advantages: Tensor, lengths: list[int]) -> Tensor:
    """Sum what the tokens of good trajectories lost in log-probability, where the whole one lost some.

    All (N,) float, the trained tokens of trajectories of these lengths; a scalar out, in nats. Good is an
    advantage above 0. Only the tokens that became less likely count (arXiv 2512.04220, LLDS).
    """
    parts = zip((old_logp - logp).split(lengths), advantages.split(lengths), strict=True)
    lost = [drop.clamp(min=0).sum() for drop, gain in parts if gain.mean() > 0 and drop.sum() > 0]
    return sum(lost, logp.new_zeros(()))


def gae(values: Tensor, reward: float, gamma: float, lam: float) -> Tensor:
    """Compute generalised advantage estimates of one trajectory.

    `values` are the critic's at the T tokens that the policy wrote, in order, (T,) float in and out: document
    tokens between them are no steps (in the original they are). The reward comes with the last token, after
    which the value is 0. A_t = delta_t + gamma * lam * A_(t+1), delta_t = r_t + gamma * V_(t+1) - V_t; with
    gamma = lam = 1, as in the paper, A_t = reward - V_t.
    """
    advantages, following, ahead = torch.zeros_like(values), 0.0, 0.0
    for t in reversed(range(len(values))):
        delta = (reward if t == len(values) - 1 else 0.0) + gamma * following - values[t]
        ahead = delta + gamma * lam * ahead
        advantages[t], following = ahead, values[t]
    return advantages


def value_loss(values: Tensor, old_values: Tensor, returns: Tensor, clip: float, normalizer: float) -> Tensor:
    """Compute PPO's critic loss, a scalar: sum of max((V - R)^2, (clipped V - R)^2) / 2 over `normalizer`.

    All (N,) float, on the policy's tokens only. The clipped value stays within `clip` of that before the
    update.
    """
    clipped = old_values + (values - old_values).clamp(-clip, clip)
    return torch.max((values - returns).square(), (clipped - returns).square()).sum() / (2 * normalizer)


def zero_variance_groups(rewards: Tensor) -> Tensor:
    """Find the groups whose rewards, NaN aside, are all equal: (P, G) float in, (P,) bool out.

    A group baseline learns nothing from such a dead group.
    """
    present = ~rewards.isnan()
    return rewards.where(present, -torch.inf).amax(1) <= rewards.where(present, torch.inf).amin(1)


def kl_k3(logp: Tensor, ref_logp: Tensor, most: float = 0.0) -> Tensor:
    """Estimate KL(policy || reference) at each token from policy samples: exp(d) - d - 1, d = ref - logp.

    Same shape as the inputs (natural logarithms). Never negative, zero where both agree, and unbiased. As a
    loss its expected gradient is that of KL(reference || policy), which has the same minimum. With a bound
    (`most` above 0) it is at most that, and pulls no token beyond it.
    """
    difference = ref_logp - logp
    k3 = torch.exp(difference) - difference - 1
    return k3.clamp(max=most) if most else k3


def sampler_weights(old_logp: Tensor, sampler_logp: Tensor, most: float) -> Tensor:
    """Compute truncated importance weights, min(pi_old / pi_sampler, most), at each token.

    They correct for a sampler whose probabilities differ from the trainer's under the same weights, as
    vLLM's do (TRL's "token_truncate"); 1 where the policy did not write (NaN in `sampler_logp`).
    """
    return torch.exp(old_logp - sampler_logp).clamp(max=most).nan_to_num(1.0)


def policy_loss(
    logp: Tensor,
    old_logp: Tensor,
    ref_logp: Tensor | None,
    advantages: Tensor,
    mask: Tensor,
    cfg: ObjectiveConfig,
    normalizer: float,
    sampler_logp: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the scalar to minimise, and batch statistics, from per-token log-probabilities.

    `logp` (with gradient), `old_logp` (the policy that sampled), `ref_logp` (the reference policy; None
    without a KL term) and `sampler_logp` (as the sampler reported them, NaN where it wrote nothing; needed
    with `cfg.sampler_ratio_max` only) are (B, T) float; `advantages` broadcasts to them; `mask` is bool, True
    on the tokens that are trained. Values where the mask is False move neither loss nor gradient, even NaN.

    loss = sum over the mask of [-weight * surrogate + kl_coef * k3] / normalizer, where the weight is 1, or
    `sampler_weights` with `cfg.sampler_ratio_max`. `normalizer` is that of the whole batch
    (`Algorithm.normalizer`), so that the losses of its micro-batches add up to its own; so do the statistics,
    "clip_fraction" and, with a reference, "kl".
    """
    # Masked values are replaced before the arithmetic: 0 * NaN would still be NaN in the gradient.
    logp, advantages = logp.where(mask, 0.0), advantages.expand_as(logp).where(mask, 0.0)
    ratio = torch.exp(logp - old_logp.where(mask, 0.0))
    surrogate, clipped = algorithm(cfg).surrogate(
        logp, ratio, advantages, cfg.clip, cfg.clip_high or cfg.clip
    )
    if cfg.sampler_ratio_max:
        weights = sampler_weights(old_logp, sampler_logp, cfg.sampler_ratio_max)
        surrogate = surrogate * weights.where(mask, 0.0)
    loss = -surrogate.sum() / normalizer
    stats = {"clip_fraction": clipped.sum() / normalizer}
    if ref_logp is not None:
        kl = kl_k3(logp, ref_logp.where(mask, 0.0), cfg.kl_max).sum() / normalizer
        loss = loss + cfg.kl_coef * kl
        stats["kl"] = kl.detach()
    return loss, stats
