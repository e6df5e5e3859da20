"""Scores against values worked out by hand, intervals against scipy and against what intervals promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from zs_lib.analysis.bootstrap import bootstrap_interval, hierarchical_bootstrap
from zs_lib.errors import DataError
from zs_lib.qa import scoring
from zs_lib.simulator.fidelity import distinct_n, two_sample_auc

answers = st.text(alphabet="aen theXY.,'-09 ", max_size=20)


@pytest.mark.parametrize(
    "text, normalized",
    [
        ("The  Eiffel Tower!", "eiffel tower"),
        ("an apple a day", "apple day"),
        ("U.S.A.", "usa"),
        ("Theatre of Anna", "theatre of anna"),  # articles go as whole words only
        ("the", ""),
    ],
)
def test_squad_normalisation(text, normalized):
    assert scoring.normalize_answer(text) == normalized


@pytest.mark.parametrize(
    "prediction, golds, em, cover_em, f1",
    [
        ("The Beatles", ["beatles"], 1, 1, 1.0),
        ("the city of Lyon", ["Lyon"], 0, 1, 0.5),  # P 1/3, R 1 → 2/3 / 4/3
        ("New York", ["New York City"], 0, 0, 0.8),  # P 1, R 2/3
        ("york york", ["york"], 0, 1, 2 / 3),  # a repeated word counts once: P 1/2, R 1
        ("1987", ["198"], 0, 1, 0.0),  # cover-EM is a substring test, as released
        ("Paris", ["London", "paris."], 1, 1, 1.0),  # best over the gold answers
        ("yes it is", ["yes"], 0, 1, 0.5),  # no special case for yes and no
        ("", ["x"], 0, 0, 0.0),
        (None, ["x"], 0, 0, 0.0),
        ("x", [], 0, 0, 0.0),
        ("anything", ["the"], 0, 0, 0.0),  # a gold answer that normalises to nothing covers nothing
    ],
)
def test_scores_by_hand(prediction, golds, em, cover_em, f1):
    assert scoring.em(prediction, golds) == em
    assert scoring.cover_em(prediction, golds) == cover_em
    assert scoring.f1(prediction, golds) == pytest.approx(f1)


@given(answers, st.lists(answers, max_size=3))
def test_scores_are_ordered_and_ignore_what_normalisation_removes(prediction, golds):
    f1 = scoring.f1(prediction, golds)
    assert 0 <= f1 <= 1
    if scoring.normalize_answer(prediction):
        assert scoring.em(prediction, golds) <= min(scoring.cover_em(prediction, golds), f1 + 1e-12)
    assert scoring.f1(f"The {prediction.upper()}", golds) == f1
    assert scoring.f1(prediction, [*golds, "zzz"]) >= f1


def test_contains_wants_whole_words():
    assert scoring.contains("It lies in the Oslo region.", ["Bergen", "oslo"])
    assert not scoring.contains("The Oslofjord", ["Oslo"])
    assert not scoring.contains("anything", ["", "the"])


def test_distinct_n():
    assert distinct_n(["a b a b"], 1) == 0.5
    assert distinct_n(["a b a b"], 2) == pytest.approx(2 / 3)
    assert distinct_n(["A b", "a b"], 2) == 0.5  # across texts, never over their border
    assert distinct_n(["a"], 2) == 0.0


def test_the_two_sample_classifier_knows_apart_from_alike():
    rng = np.random.default_rng(0)
    words = [f"w{i}" for i in range(30)]
    texts = [" ".join(rng.choice(words, 12)) for _ in range(80)]
    assert two_sample_auc(texts[:40], [t + " sold out" for t in texts[40:]]) > 0.95
    assert 0.3 < two_sample_auc(texts[:40], texts[40:]) < 0.7
    with pytest.raises(DataError, match="5 texts"):
        two_sample_auc(["a"], texts)


def test_the_bootstrap_agrees_with_scipy():
    values = np.random.default_rng(1).random(200)
    estimate, low, high = bootstrap_interval(values)
    result = stats.bootstrap((values,), np.mean, method="percentile", rng=np.random.default_rng(2))
    theirs = result.confidence_interval
    assert estimate == pytest.approx(values.mean())
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.005)


def test_groups_are_drawn_whole():
    values = np.repeat(np.random.default_rng(3).random(20), 50)  # 1,000 values, but only 20 independent ones
    _, low, high = bootstrap_interval(values, groups=np.repeat(np.arange(20), 50))
    _, naive_low, naive_high = bootstrap_interval(values)
    _, true_low, true_high = bootstrap_interval(values[::50])
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
    values = [0.0, 1.0, 1.0, 0.5]
    assert bootstrap_interval(values, seed=5) == bootstrap_interval(values, seed=5)
    narrow, wide = (bootstrap_interval(values, level=level) for level in (0.5, 0.99))
    assert wide[1] <= narrow[1] <= narrow[2] <= wide[2]


@pytest.mark.parametrize("bad", [[], [1.0, float("nan")]])
def test_no_interval_without_values(bad):
    with pytest.raises(DataError):
        bootstrap_interval(bad)
    with pytest.raises(DataError):
        hierarchical_bootstrap([bad])


def test_a_wrong_shape_is_named():
    with pytest.raises(DataError, match="2 values came with 3"):
        bootstrap_interval([1.0, 2.0], groups=[0, 1, 1])
    with pytest.raises(DataError, match="seeds × questions"):
        hierarchical_bootstrap([1.0, 2.0])
