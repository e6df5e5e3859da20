"""The noise schedule: how likely a search is answered with noisy documents, from easy to hard."""

from __future__ import annotations

from zs_lib.config import CurriculumConfig
from zs_lib.errors import ConfigError


def noise_probability(step: int, total: int, cfg: CurriculumConfig) -> float:
    """The chance in [0, 1] of noisy documents at `step` of `total` (1 … total; 0 is the state before).

    "exponential" is the paper's curriculum, p_i = p_s + (b^(i/m) - 1) / (b - 1) * (p_e - p_s), section 3.4:
    the last step has p_e, and for b = 4 the middle one has gone a third of the way. "constant" stays at
    p_start: the arm of Table 6. Another schedule, or a step outside the range, is a ConfigError.
    """
    if not 0 <= step <= total or total < 1:
        raise ConfigError(
            f"Step {step} of {total} is outside the noise schedule (0 to {total}, at least one step)."
        )
    if cfg.schedule == "constant":
        return cfg.p_start
    if cfg.schedule != "exponential":
        raise ConfigError(f"Unknown noise schedule '{cfg.schedule}'. Known: exponential, constant.")
    # b = 1 is the formula's limit, a straight line
    share = step / total if cfg.base == 1 else (cfg.base ** (step / total) - 1) / (cfg.base - 1)
    return cfg.p_start + share * (cfg.p_end - cfg.p_start)
