"""Credit by turn: an advantage for each turn of a trajectory, in place of one for all (`objective.credit`).

"turn": the turn's discounted return (GiGPO, arXiv 2505.10978) against those of the group's
rollouts in the same turn (MT-GRPO, arXiv 2505.11821), by the algorithm's own baseline. "branch": what the
turn added to the value of where it began, r_k + discount * V_(k+1) - V_k, where a value is the mean return of
rollouts from there (VinePPO, arXiv 2410.01679): branches that go on from the trajectory's own tokens, and for
the first turn the other rollouts of its group. Branches are not trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import fmean

import torch

from zs_lib.config.arms import ObjectiveConfig, PolicyArm
from zs_lib.errors import ConfigError
from zs_lib.rl.objectives import algorithm, group_advantages
from zs_lib.rl.rollout import Prefix
from zs_lib.rl.trajectory import Trajectory
from zs_lib.rng import Key

Turns = Sequence[float]
"""One number a turn; NaN throughout for a trajectory that leaves the batch."""


def check_arm(arm: PolicyArm) -> None:
    """Raise ConfigError if an arm asks for credit by turn and its algorithm or group cannot give it."""
    if arm.objective.credit != "trajectory" and (algorithm(arm.objective).critic or arm.group_size < 2):
        raise ConfigError(
            f"policy '{arm.name}': credit by turn needs groups of two or more, and an algorithm without a "
            'critic: change group_size or algorithm, or set objective.credit to "trajectory".'
        )


def discounted(rewards: Turns, discount: float) -> list[float]:
    """Compute each turn's return, G_k = r_k + discount * G_(k+1)."""
    returns, ahead = [], 0.0
    for reward in reversed(rewards):
        ahead = reward + discount * ahead
        returns.append(ahead)
    return returns[::-1]


def turn_advantages(rewards: Sequence[Turns], size: int, cfg: ObjectiveConfig) -> list[list[float]]:
    """Compute the advantage of each turn among its group's rollouts of as many turns or more.

    `rewards`: of P x G trajectories, group by group, G = `size`.
    """
    returns = [discounted(turns, cfg.discount) for turns in rewards]
    table = torch.full((len(returns), max(map(len, returns))), math.nan, dtype=torch.float64)
    for row, turns in zip(table, returns, strict=True):
        row[: len(turns)] = torch.tensor(turns, dtype=torch.float64)
    for column in table.T:
        column[:] = group_advantages(column.view(-1, size), cfg).flatten()
    return [row[: len(turns)].tolist() for row, turns in zip(table, returns, strict=True)]


def branch_returns(
    trajectories: Sequence[Trajectory],
    keys: Sequence[Key],
    cfg: ObjectiveConfig,
    sample: Callable[[list[Prefix], list[Key]], list[tuple[Trajectory, Turns]]],
) -> tuple[dict[tuple[int, int], list[float]], int]:
    """Sample `cfg.branches` rollouts from before every turn but the first, of trajectories that did not fail.

    `sample` makes a rollout, with its rewards, of each prefix and key; a branch's key is its trajectory's but
    for the last entry, the rollout in its group. Returns (trajectory, turn) -> its branches' returns from
    that turn on, and the number of tokens sampled.
    """
    turns = [(n, k) for n, t in enumerate(trajectories) if not t.failed for k in range(1, len(t.turns))]
    places = [(n, k, branch) for n, k in turns for branch in range(cfg.branches)]
    branches = sample(
        [(trajectories[n], k) for n, k, _ in places],
        [(*keys[n][:-1], f"{keys[n][-1]} from {k}, branch {branch}") for n, k, branch in places],
    )
    returns: dict[tuple[int, int], list[float]] = {}
    tokens = 0
    for (n, k, _), (branch, rewards) in zip(places, branches, strict=True):
        returns.setdefault((n, k), []).append(discounted(rewards, cfg.discount)[k])
        tokens += sum(branch.mask[branch.token_turns.index(k) :])
    return returns, tokens


def branch_advantages(
    rewards: Sequence[Turns], branches: dict[tuple[int, int], list[float]], size: int, discount: float
) -> list[list[float]]:
    """Compute each turn's r_k + discount * V_(k+1) - V_k, 0 where a value is missing.

    `branches`: (trajectory, turn) -> returns from that turn on, NaN of those that failed. V_0 is the mean of
    the group's other rollouts; the value after the last turn is 0.
    """
    returns = [discounted(turns, discount)[0] for turns in rewards]
    advantages = []
    for n, turns in enumerate(rewards):
        first = n - n % size
        starts = [returns[m] for m in range(first, first + size) if m != n]
        values = [_mean(starts), *(_mean(branches.get((n, k), [])) for k in range(1, len(turns))), 0.0]
        gains = [r + discount * values[k + 1] - values[k] for k, r in enumerate(turns)]
        advantages.append([0.0 if math.isnan(gain) else gain for gain in gains])
    return advantages


def _mean(returns: Sequence[float]) -> float:
    present = [value for value in returns if not math.isnan(value)]
    return fmean(present) if present else math.nan
