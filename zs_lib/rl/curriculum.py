"""The curriculum: the probability that a search is answered with noisy documents, from easy to hard.

A schedule is one row of SCHEDULES; to add one, add its function and its row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from zs_lib.config.arms import CurriculumConfig
from zs_lib.config.values import pick
from zs_lib.errors import ConfigError


def exponential(progress: float, cfg: CurriculumConfig, last: Mapping[str, float] | None) -> float:
    """Follow the paper's equation 4: p_i = p_s + (b^(i/m) - 1) / (b - 1) * (p_e - p_s), `progress` = i/m.

    With b = 4 a third of the rise is done halfway; b = 1 is the limit, a straight line.
    """
    b = cfg.base
    share = progress if b == 1 else (b**progress - 1) / (b - 1)
    return cfg.p_start + share * (cfg.p_end - cfg.p_start)


def constant(progress: float, cfg: CurriculumConfig, last: Mapping[str, float] | None) -> float:
    """Keep p_s throughout: the ablation of Table 6."""
    return cfg.p_start


def adaptive(progress: float, cfg: CurriculumConfig, last: Mapping[str, float] | None) -> float:
    """Follow the policy instead of the step number: keep the mean reward within a band.

    One `gain` towards p_e after a step whose reward was above the band, back after one below it, within p_s
    and p_e.
    """
    if last is None:
        return cfg.p_start
    change = cfg.gain * ((last["reward"] > cfg.band_high) - (last["reward"] < cfg.band_low))
    low, high = sorted((cfg.p_start, cfg.p_end))
    change = change if cfg.p_end == high else -change
    return min(max(last["noise_probability"] + change, low), high)


SCHEDULES: dict[str, Callable[[float, CurriculumConfig, Mapping[str, float] | None], float]] = {
    "exponential": exponential,
    "constant": constant,
    "adaptive": adaptive,
    "by_question": adaptive,  # each question by its own past: its success stays within the band
}
"""Name -> (share of the steps done, configuration, last noise_probability and reward) -> probability."""
ADAPTIVE = tuple(name for name, schedule in SCHEDULES.items() if schedule is adaptive)
"""Schedules that need past rewards."""


def noise_probability(
    step: int,
    total: int,
    cfg: CurriculumConfig | None,
    last: Mapping[str, float] | None = None,
    asked: Mapping[str, float] | None = None,
) -> float:
    """Compute the probability in [0, 1] of noisy documents at a step from 1 to `total` (0: before training).

    `cfg` None: always 0. `last`: the noise_probability and reward of the step before; None at the first step.
    `asked`: those of the question when it was last asked (`rl.questions`), for "by_question"; None: never.

    Raises:
        ConfigError: an unknown schedule, or a step outside the range.
    """
    if cfg is None:
        return 0.0
    schedule = pick("schedule", cfg.schedule, SCHEDULES)
    if not 0 <= step <= total or total < 1:
        raise ConfigError(
            f"Step {step} of {total} is outside the schedule (0 to {total}, at least one step)."
        )
    return schedule(step / total, cfg, asked if cfg.schedule == "by_question" else last)
