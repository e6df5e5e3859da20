"""The noise schedule: how likely a search is answered with noisy documents, from easy to hard."""

from __future__ import annotations

from collections.abc import Mapping

from zs_lib.arms import CurriculumConfig
from zs_lib.errors import ConfigError


def noise_probability(
    step: int, total: int, cfg: CurriculumConfig, before: Mapping[str, float] | None = None
) -> float:
    """The chance in [0, 1] of noisy documents at `step` of `total` (1 … total; 0 is the state before).

    "exponential" is the paper's curriculum, p_i = p_s + (b^(i/m) - 1) / (b - 1) * (p_e - p_s), section 3.4:
    the last step has p_e, and for b = 4 the middle one has gone a third of the way. "constant" stays at
    p_start: the arm of Table 6. "adaptive" does not follow the clock but the policy: it goes on from the step
    `before` (its logged noise_probability and reward; None at the first step), and keeps the mean reward in a
    band. Another schedule, or a step outside the range, is a ConfigError.
    """
    if not 0 <= step <= total or total < 1:
        raise ConfigError(
            f"Step {step} of {total} is outside the noise schedule (0 to {total}, at least one step)."
        )
    if cfg.schedule == "constant":
        return cfg.p_start
    if cfg.schedule == "adaptive":
        return _adapted(before, cfg) if before else cfg.p_start
    if cfg.schedule != "exponential":
        raise ConfigError(f"Unknown noise schedule '{cfg.schedule}'. Known: exponential, constant, adaptive.")
    # b = 1 is the formula's limit, a straight line
    share = step / total if cfg.base == 1 else (cfg.base ** (step / total) - 1) / (cfg.base - 1)
    return cfg.p_start + share * (cfg.p_end - cfg.p_start)


def _adapted(before: Mapping[str, float], cfg: CurriculumConfig) -> float:
    reward = before["reward"]
    change = cfg.gain * ((reward > cfg.band_high) - (reward < cfg.band_low))
    return min(max(before["noise_probability"] + change, cfg.p_start), cfg.p_end)
