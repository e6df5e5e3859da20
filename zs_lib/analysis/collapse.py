"""Early warnings of a collapsing training, as named conditions over its logged metrics.

Users of the original code saw runs collapse (the reward falls to zero) and asked how to see it coming. Each
condition reads a moving mean, so that one bad batch gives no warning, unless it tells of settings that do not
fit, which the first step shows. A metric that was not logged gives no warning. To add a condition, add its
row to CONDITIONS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pandas as pd

WINDOW = 10  # steps of the moving mean: a step's reward is itself the mean of only tens of rollouts


@dataclass(frozen=True)
class Condition:
    """A named sign of collapse: `holds` maps the moving mean of `column` to a boolean for each step."""

    name: str
    column: str
    message: str
    holds: Callable[[pd.Series], pd.Series]
    at_once: bool = False
    """Whether it reads each step by itself, from the first on."""


@dataclass(frozen=True)
class CollapseWarning:
    """A condition that held, and the first step at which it did."""

    name: str
    step: int
    message: str


def _first(x: pd.Series) -> float:
    """Return the first full moving mean, the run's initial value."""
    return x.dropna().iloc[0] if x.notna().any() else float("nan")


def _halved(x: pd.Series) -> pd.Series:
    best = x.cummax()
    return (best > 0.1) & (x < 0.5 * best)  # a best below 0.1 is noise


CONDITIONS = (
    Condition("reward_drop", "reward", "The reward lost half of its best.", _halved),
    Condition(
        "zero_variance_groups",
        "zero_variance_groups",
        "In nine of ten groups all rewards are equal: a group baseline leaves nothing to learn from.",
        lambda x: x > 0.9,
    ),
    Condition(
        "entropy_collapse",
        "entropy",
        "Entropy is below a tenth of its initial value: the policy no longer explores.",
        lambda x: x < 0.1 * _first(x),
    ),
    Condition(
        "kl_blowup",
        "kl",
        "The policy is more than one nat per token away from its reference.",
        lambda x: x > 1.0,
    ),
    Condition(
        "no_search",
        "searches",
        "Searches fell from one in every second trajectory to one in ten.",
        lambda x: (x.cummax() > 0.5) & (x < 0.1),
    ),
    Condition(
        "query_drift",
        "query_quality",
        "The share of good queries is half of its best: the engine may reward bad queries.",
        _halved,
    ),
    Condition(
        "format_loss",
        "invalid_actions",
        "Invalid actions doubled, to one in every second trajectory or more.",
        lambda x: (x > 0.5) & (x > 2 * x.cummin()),  # a policy may begin with many
    ),
    Condition(
        "length_blowup",
        "policy_tokens",
        "The policy writes three times as many tokens as at the start.",
        lambda x: x > 3.0 * _first(x),
    ),
    Condition(
        "context_full",
        "stop_length",
        "Every second rollout ends because its context window is full: raise rollout.max_context_tokens, or "
        "lower rollout.max_turn_tokens or max_searches.",
        lambda x: x > 0.5,
        at_once=True,
    ),
    Condition(
        "documents_cut",
        "cut_observations",
        "In every second rollout documents are cut to fit the context window: raise "
        "rollout.max_context_tokens, or lower rollout.num_documents.",
        lambda x: x > 0.5,
        at_once=True,
    ),
)


def collapse_warnings(metrics: pd.DataFrame) -> list[CollapseWarning]:
    """Find the conditions that held, ordered by the first step at which they did.

    `metrics` has one row per step: "step" and the columns that the conditions read, in the units that
    `rl.train` logs. A run of fewer than WINDOW steps has no moving mean, and gets only warnings `at_once`.
    """
    found = []
    for condition in CONDITIONS:
        if condition.column not in metrics:
            continue
        values = pd.to_numeric(metrics[condition.column], errors="coerce")
        held = condition.holds(values if condition.at_once else values.rolling(WINDOW).mean()).to_numpy()
        if held.any():
            step = int(metrics["step"].iloc[int(held.argmax())])
            found.append(CollapseWarning(condition.name, step, condition.message))
    return sorted(found, key=lambda warning: warning.step)


def collapse_step(metrics: pd.DataFrame) -> int | None:
    """Find the step from which on the reward stays below half of its best; None if it does not end so.

    `metrics` as of `collapse_warnings`; the reward is read as its moving mean.
    """
    held = _halved(metrics["reward"].rolling(WINDOW).mean()).to_numpy()
    stays = np.logical_and.accumulate(held[::-1])[::-1]
    return int(metrics["step"].iloc[stays.argmax()]) if stays.any() else None
