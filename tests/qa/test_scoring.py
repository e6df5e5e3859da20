"""Scores against values worked out by hand, intervals against scipy and against what intervals promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zs_lib.qa import scoring

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
