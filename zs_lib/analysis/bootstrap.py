"""TODO."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from zs_lib.errors import DataError

RESAMPLES = 2000  # percentile limits then move by about a hundredth of the interval from seed to seed


def bootstrap_interval(
    values: Sequence[float], groups: Sequence | None = None, level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high) by the percentile bootstrap.

    With `groups` (one label a value) whole groups are drawn, because values of one group are not independent:
    the rollouts of one question, for example. No values or a NaN is a DataError.
    """
    array = _checked(values)
    own = np.arange(array.size)  # each value a group of its own
    labels = own if groups is None else np.unique(np.asarray(groups), return_inverse=True)[1]
    if labels.shape != array.shape:
        raise DataError(f"{array.size} values came with {labels.size} group labels.")
    sums, counts = np.bincount(labels, array), np.bincount(labels)
    weights = draw_counts(np.random.default_rng(seed), counts.size)
    means = (weights @ sums) / (weights @ counts)
    return float(array.mean()), *_percentiles(means, level)


def hierarchical_bootstrap(
    matrix: Sequence[Sequence[float]], level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """(mean, low, high) of a score matrix, seeds × questions, over both: a new seed and new questions.

    Every seed answers the same questions, so rows and columns are drawn independently (a crossed design).
    With two or three seeds the seeds' share of the interval is too small by about sqrt((S - 1) / S); say how
    many.
    """
    array = _checked(matrix)
    if array.ndim != 2:
        raise DataError(f"A matrix of seeds × questions is needed, got {array.ndim} dimension(s).")
    rows, columns = _shares(array.shape, seed)
    return float(array.mean()), *_percentiles(((rows @ array) * columns).sum(axis=1), level)


@lru_cache(maxsize=4)  # a table's rows have few shapes, and drawing takes longer than all the rest
def _shares(shape: tuple[int, ...], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [draw_counts(rng, size) / size for size in shape]


def draw_counts(rng: np.random.Generator, size: int) -> np.ndarray:
    """(RESAMPLES, size) float64: how often each of `size` things comes when `size` are drawn with return."""
    return rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES).astype(np.float64)


def _percentiles(means: np.ndarray, level: float) -> tuple[float, float]:
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _checked(values) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:  # rows of different lengths, 10**400, text
        raise DataError(f"These values are no numbers, or no matrix of them ({error}).") from None
    with np.errstate(over="ignore"):
        whole = np.abs(array).sum() * array.size  # as large as anything that is computed from them
    if array.size == 0 or not np.isfinite(whole):
        raise DataError("An interval needs at least one value, and no NaN or infinity among them.")
    return array
