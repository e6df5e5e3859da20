"""Intervals against scipy, and against what intervals promise."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from zs_lib.analysis.bootstrap import hierarchical_bootstrap
from zs_lib.errors import DataError


def test_the_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(1).random(200)
    estimate, low, high = hierarchical_bootstrap([values])  # of one seed only its questions are drawn
    result = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2))
    theirs = result.confidence_interval
    assert estimate == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_questions_are_drawn_whole():
    values = np.random.default_rng(3).random(20)
    _, low, high = hierarchical_bootstrap([values] * 50)  # 1,000 values, but only 20 independent ones
    _, naive_low, naive_high = hierarchical_bootstrap([np.repeat(values, 50)])
    _, true_low, true_high = hierarchical_bootstrap([values])
    assert (high - low) == pytest.approx(true_high - true_low, rel=0.1)
    assert (high - low) > 4 * (naive_high - naive_low)


def test_the_hierarchical_interval_covers_both_sources_of_chance():
    rng = np.random.default_rng(4)
    matrix = 0.5 + 0.1 * rng.standard_normal((8, 1)) + 0.1 * rng.standard_normal((1, 100))
    estimate, low, high = hierarchical_bootstrap(matrix)
    assert estimate == pytest.approx(matrix.mean())
    # Var = var over seeds / 8 + var over questions / 100, both as the bootstrap sees them (divided by n)
    width = 2 * 1.96 * np.sqrt(matrix.mean(1).var() / 8 + matrix.mean(0).var() / 100)
    assert high - low == pytest.approx(width, rel=0.1)
    assert hierarchical_bootstrap(np.full((3, 7), 0.25)) == pytest.approx((0.25, 0.25, 0.25))


def test_the_interval_is_a_function_of_its_seed():
    values = [[0.0, 1.0, 1.0, 0.5]]
    assert hierarchical_bootstrap(values, seed=5) == hierarchical_bootstrap(values, seed=5)
    narrow, wide = (hierarchical_bootstrap(values, level=level) for level in (0.5, 0.99))
    assert wide[1] <= narrow[1] <= narrow[2] <= wide[2]


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")]])
def test_no_interval_without_values(bad):
    with pytest.raises(DataError):
        hierarchical_bootstrap([bad])


def test_a_wrong_shape_is_named():
    with pytest.raises(DataError, match="seeds × questions"):
        hierarchical_bootstrap([1.0, 2.0])
