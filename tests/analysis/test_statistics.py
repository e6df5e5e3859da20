"""Intervals by hand, against scipy, and against what they promise: how often they hold the truth."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from zs_lib.analysis import results, statistics
from zs_lib.analysis.statistics import Statement, holm, over_seeds, share, two_way, verdict_table
from zs_lib.errors import DataError

MAIN, REAL, SMALL = "zerosearch", "search-r1", "zerosearch/simulator=grounded-tiny-S"


def test_two_ways_by_hand():
    found = two_way([[1, 0], [3, 4]])  # the questions' variance is estimated below 0: only seeds are left
    assert (found.mean, found.error, found.df) == (2.0, 1.5, 1)  # sqrt(4.5 / 2)
    assert found.high - found.mean == pytest.approx(12.7062 * 1.5, rel=1e-4)
    found = two_way([[0, 1, 2], [1, 2, 3]])  # variances 0.5 / 2 of seeds, 1 / 3 of questions, no rest
    assert (found.mean, found.error) == (1.5, pytest.approx((0.25 + 1 / 3) ** 0.5))
    assert found.df == pytest.approx((0.25 + 1 / 3) ** 2 / (0.25**2 / 1 + (1 / 3) ** 2 / 2))
    same = two_way(np.full((3, 7), 0.25))
    assert (same.low, same.mean, same.high) == (0.25, 0.25, 0.25)


def test_of_one_seed_it_is_over_questions_and_says_so():
    values = np.random.default_rng(1).random(200)
    for found, over in ((two_way([values]), statistics.ONE_SEED), (over_seeds(values), statistics.SEEDS)):
        theirs = stats.ttest_1samp(values, 0).confidence_interval()
        assert (found.low, found.high) == (pytest.approx(theirs.low), pytest.approx(theirs.high))
        assert found.over == over
    assert over_seeds([0.5]).high == math.inf and not Statement("", two_way([values])).decides


def test_questions_count_once_however_many_seeds_answer_them():
    values = np.random.default_rng(3).random(20)
    many, one = two_way([values] * 50), two_way([values])  # 1,000 values, but only 20 independent ones
    assert (many.low, many.high) == (pytest.approx(one.low), pytest.approx(one.high))


def recorded(arm: str, other: str | None = None) -> np.ndarray:
    table = results.load_tables("tiny")["evaluation"]
    first, *second = (
        table[table["arm"] == name].pivot_table(index="seed", columns="id", values="f1")
        for name in filter(None, (arm, other))
    )
    return (first - second[0] if second else first).to_numpy()


def simulated(matrix: np.ndarray, seeds: int, questions: int, rng: np.random.Generator) -> np.ndarray:
    """A study with mean 0 and the recorded one's variances: questions and rest are drawn from it."""
    found, (s, n) = two_way(matrix), matrix.shape
    effect = matrix.mean(axis=0) - matrix.mean()
    effect *= (found.question_variance * n / effect.var()) ** 0.5
    rest = matrix - matrix.mean(axis=1, keepdims=True) - matrix.mean(axis=0) + matrix.mean()
    rest *= (s * n / ((s - 1) * (n - 1))) ** 0.5
    between = max(0.0, found.seed_variance - (rest**2).mean() / n) ** 0.5
    return (
        rng.normal(0, between, (seeds, 1))
        + rng.choice(effect, questions)
        + rng.choice(rest.ravel(), (seeds, questions))
    )


@pytest.mark.parametrize("seeds", [5, 10, 20])
@pytest.mark.parametrize("compared", [(MAIN,), (MAIN, REAL), (MAIN, SMALL)], ids=len)
def test_intervals_cover_the_truth_as_often_as_they_say(compared, seeds):
    """A percentile bootstrap held it in 90 to 99% with five seeds, the more the less seeds differ."""
    matrix, rng = recorded(*compared), np.random.default_rng(0)
    studies = [two_way(simulated(matrix, seeds, 200, rng)) for _ in range(12000 // seeds)]
    assert 0.93 <= np.mean([found.low <= 0 <= found.high for found in studies]) <= 0.97


def test_as_many_seeds_as_it_asks_for_decide_whatever_is_true():
    matrix, rng, margin = recorded(MAIN, REAL), np.random.default_rng(0), 0.06
    seeds = int(two_way(matrix).seeds_to_decide(margin))
    assert 5 < seeds < 10 and two_way(matrix).seeds_to_decide(0.001) == math.inf
    estimates = [two_way(simulated(matrix, seeds, 525, rng)) for _ in range(200)]
    verdicts = {
        truth: [
            Statement("", shifted, margin=margin).verdict(shifted.p_below())
            for shifted in (replace(found, mean=found.mean + truth) for found in estimates)
        ]
        for truth in (0.0, margin / 2, margin)
    }
    assert all(np.mean([v != "undecided" for v in found]) > 0.8 for found in verdicts.values())
    assert np.mean([v == "equal" for v in verdicts[0.0]]) > 0.8
    assert np.mean([v == "equal" for v in verdicts[margin]]) < 0.05  # two tests, each at 2.5%
    assert np.mean([v in ("holds", "does not hold") for v in verdicts[0.0]]) < 0.12


def found(mean: float, error: float = 0.01) -> statistics.Estimate:
    return statistics.Estimate(mean, statistics.BOTH, 5, 100, 5 * error**2, 0.0)


def test_verdicts_by_hand():
    """Intervals of 0.0196 to each side; the margin is 0.03."""
    means = {0.02: "holds", 0.01: "equal", 0.0: "equal", -0.011: "undecided", -0.02: "does not hold"}
    statements = [Statement(str(mean), found(mean), margin=0.03) for mean in means]
    assert verdict_table(statements)["verdict"].tolist() == list(means.values())
    below = [Statement(str(mean), found(-mean), margin=0.03, below=True) for mean in means]
    assert verdict_table(below)["verdict"].tolist() == list(means.values())
    no_margin = [replace(each, equal=False) for each in statements]
    assert verdict_table(no_margin)["verdict"].tolist()[1:4] == ["undecided"] * 3
    assert verdict_table([replace(statements[0], limit="one level")])["verdict"].iloc[0] == "undecided"
    assert verdict_table([replace(statements[0], bound=None), Statement("missing")])["verdict"].tolist() == [
        "reported",
        "no runs",
    ]


def test_where_one_failing_is_enough_the_tests_are_corrected():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    lower = [Statement(str(n), found(-0.022), margin=0.03) for n in range(3)]  # p = 0.014, times 3: 0.042
    assert verdict_table(lower)["verdict"].eq("does not hold").all()
    assert verdict_table(lower, corrected=True)["verdict"].eq("undecided").all()
    assert verdict_table([Statement("clear", found(-0.03)), *lower], corrected=True)["verdict"].iloc[0] == (
        "does not hold"
    )


def test_shares_and_spreads_near_those_of_scipy():
    theirs = stats.binomtest(380, 400).proportion_ci(method="wilson")
    ours = share(0.95, 400)
    assert (ours.low, ours.high) == (
        pytest.approx(theirs.low, abs=5e-3),
        pytest.approx(theirs.high, abs=5e-3),
    )
    spread = statistics.log_spread_ratio([0, 2, 4, 6, 8], [0, 1, 2, 3, 4])
    assert spread.mean == pytest.approx(math.log(2))
    exact = math.log(stats.f(4, 4).ppf(0.975)) / 2
    assert spread.high - spread.mean == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize("bad", [[[]], [[1.0, float("nan")]], [1.0, 2.0], [[1e200, 1e200]], [["a"]]])
def test_no_interval_without_a_matrix_of_numbers(bad):
    with pytest.raises(DataError):
        two_way(bad)
