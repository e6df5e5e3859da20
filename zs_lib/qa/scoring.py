"""Scores of an answer: EM, cover-EM and token F1 after SQuAD normalisation, best over the gold answers.

The paper rewards F1 and reports EM; its released scorer computes cover-EM under the name of EM, so both are
here by their own names.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """SQuAD normalisation: lower case, no ASCII punctuation, no articles, single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def em(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """1.0 if the prediction equals a gold answer, else 0.0; no prediction scores 0."""
    if prediction is None:
        return 0.0
    normalized = normalize_answer(prediction)
    return float(any(normalized == normalize_answer(golden) for golden in golden_answers))


def cover_em(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """1.0 if a gold answer is a substring of the prediction, else 0.0: what the released scorer calls EM."""
    if prediction is None:
        return 0.0
    normalized = normalize_answer(prediction)
    goldens = [normalize_answer(golden) for golden in golden_answers]
    return float(any(golden and golden in normalized for golden in goldens))  # "" is in every prediction


def f1(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """Token F1 in [0, 1], best over the gold answers: the paper's reward. No special case for yes and no."""
    if prediction is None:
        return 0.0
    return max((_token_f1(prediction, golden) for golden in golden_answers), default=0.0)


def _token_f1(prediction: str, golden: str) -> float:
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(golden).split()
    common = sum((Counter(predicted) & Counter(expected)).values())
    # 2PR / (P + R) with P = common / predicted and R = common / expected
    return 2 * common / (len(predicted) + len(expected)) if common else 0.0


def contains(text: str, phrases: Sequence[str]) -> bool:
    """Whether a phrase stands in the text as whole words, normalised ("Oslo" is not in "Oslofjord")."""
    padded = f" {normalize_answer(text)} "
    normalized = (normalize_answer(phrase) for phrase in phrases)
    return any(phrase and f" {phrase} " in padded for phrase in normalized)
