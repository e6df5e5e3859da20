"""Scores against values worked out by hand, and against SQuAD's own scorer where it decides."""

from __future__ import annotations

import collections
import re
import string

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
        ("the", "the"),  # what would vanish keeps its articles,
        ("The The!", "the the"),
        ("A+", "a"),
        (" % ", "%"),  # or else its punctuation
        ("...", "..."),
        ("", ""),
        (" \n", ""),
        ("O’Brien", "obrien"),  # as O'Brien
        ("1914–18", "191418"),  # as 1914-18
        ("“Zürich” — « Genève »", "zürich genève"),
        ("—", "-"),
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
        ("banana", ["A"], 0, 0, 0.0),  # a gold answer that SQuAD reduces to nothing is in no other text
        ("A", ["A"], 1, 1, 1.0),
        ("a.", ["A"], 1, 1, 1.0),
        ("the", ["A"], 0, 0, 0.0),
        ("...", ["A"], 0, 0, 0.0),
        ("The The", ["the the"], 1, 1, 1.0),
        ("the", ["The The"], 0, 0, 2 / 3),  # P 1, R 1/2
        ("%", ["%"], 1, 1, 1.0),
        ("...", ["%", "$"], 0, 0, 0.0),
        ("50 %", ["%"], 0, 0, 0.0),
        ("", [""], 1, 1, 1.0),  # as SQuAD v2 has it
        ("x", [""], 0, 0, 0.0),
        ("", ["the"], 0, 0, 0.0),
        ("O'Brien", ["O’Brien"], 1, 1, 1.0),
        ("in 1914—18", ["1914-18"], 0, 1, 2 / 3),  # P 1/2, R 1
    ],
)
def test_scores_by_hand(prediction, golds, em, cover_em, f1):
    assert scoring.em(prediction, golds) == em
    assert scoring.cover_em(prediction, golds) == cover_em
    assert scoring.f1(prediction, golds) == pytest.approx(f1)


def squad_normalize(s):
    """As evaluate-v2.0.py of SQuAD has it, line by line."""

    def remove_articles(text):
        regex = re.compile(r"\b(a|an|the)\b", re.UNICODE)
        return re.sub(regex, " ", text)

    def white_space_fix(text):
        return " ".join(text.split())

    def remove_punc(text):
        exclude = set(string.punctuation)
        return "".join(ch for ch in text if ch not in exclude)

    def lower(text):
        return text.lower()

    return white_space_fix(remove_articles(remove_punc(lower(s))))


def squad_f1(a_gold, a_pred):
    gold_toks, pred_toks = squad_normalize(a_gold).split(), squad_normalize(a_pred).split()
    common = collections.Counter(gold_toks) & collections.Counter(pred_toks)
    num_same = sum(common.values())
    if len(gold_toks) == 0 or len(pred_toks) == 0:
        return int(gold_toks == pred_toks)
    if num_same == 0:
        return 0
    precision, recall = 1.0 * num_same / len(pred_toks), 1.0 * num_same / len(gold_toks)
    return (2 * precision * recall) / (precision + recall)


@given(answers | st.text(st.characters(max_codepoint=127)), answers, st.booleans())
def test_where_squad_leaves_something_its_scores_are_ours(prediction, golden, same):
    golden = prediction if same else golden
    if squad_normalize(prediction) and squad_normalize(golden):
        assert scoring.normalize_answer(prediction) == squad_normalize(prediction)
        assert scoring.em(prediction, [golden]) == int(squad_normalize(golden) == squad_normalize(prediction))
        assert scoring.f1(prediction, [golden]) == pytest.approx(squad_f1(golden, prediction))


@given(answers, st.lists(answers, max_size=3))
def test_scores_are_ordered_and_ignore_what_normalisation_removes(prediction, golds):
    f1 = scoring.f1(prediction, golds)
    assert 0 <= f1 <= 1
    assert scoring.em(prediction, golds) <= min(scoring.cover_em(prediction, golds), f1)
    assert scoring.em(prediction, [prediction]) == scoring.f1(prediction, [prediction]) == 1
    if squad_normalize(prediction):
        assert scoring.f1(f"The {prediction.upper()}", golds) == f1
    assert scoring.f1(prediction, [*golds, "zzz"]) >= f1


def test_contains_wants_whole_words():
    assert scoring.contains("It lies in the Oslo region.", ["Bergen", "oslo"])
    assert not scoring.contains("The Oslofjord", ["Oslo"])
    assert not scoring.contains("anything", ["", "the"])
