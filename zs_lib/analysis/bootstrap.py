"""Intervals of scores by the hierarchical bootstrap over seeds and questions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from zs_lib.errors import DataError

RESAMPLES = 2000
"""Resamples: the limits vary by about a hundredth of the interval's width between bootstrap seeds."""


def hierarchical_bootstrap(
    matrix: Sequence[Sequence[float]], level: float = 0.95, seed: int = 0
) -> tuple[float, float, float]:
    """Average a (seeds, questions) score matrix, with a percentile interval over both: (mean, low, high).

    Every seed answers the same questions, so rows and columns are resampled independently (a crossed design).
    With few seeds S their share of the interval is too small by about sqrt((S - 1) / S), so report S with it.

    Raises:
        DataError: no matrix of finite numbers.
    """
    array = _checked(matrix)
    if array.ndim != 2:
        raise DataError(f"A matrix of seeds × questions is needed, got {array.ndim} dimension(s).")
    rows, columns = _weights(array.shape, seed)
    means = ((rows @ array) * columns).sum(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(array.mean()), float(low), float(high)


@lru_cache(maxsize=4)  # a table's rows have few shapes, and resampling takes longer than all the rest
def _weights(shape: tuple[int, ...], seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [draw_counts(rng, size) / size for size in shape]


def draw_counts(rng: np.random.Generator, size: int) -> np.ndarray:
    """Count how often each of `size` items is drawn, with replacement: (RESAMPLES, size) float64."""
    return rng.multinomial(size, np.full(size, 1 / size), size=RESAMPLES).astype(np.float64)


def _checked(values: Sequence) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:  # rows of different lengths, 10**400, text
        raise DataError(f"These values are not numbers, or not a matrix of them ({error}).") from None
    with np.errstate(over="ignore"):
        whole = np.abs(array).sum() * array.size  # as large as anything that is computed from them
    if array.size == 0 or not np.isfinite(whole):
        raise DataError("An interval needs at least one value, and no NaN or infinity among them.")
    return array
