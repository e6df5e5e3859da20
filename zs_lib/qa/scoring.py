"""Scores of an answer: EM, cover-EM and token F1 after SQuAD normalisation, best over the gold answers.

The paper rewards F1 and reports EM; its released scorer computes cover-EM under the name of EM, so both are
here by their own names. Two cases in which the references go wrong are decided otherwise:

- An answer of which SQuAD's normalisation leaves nothing ("A", "The The", "%") keeps its articles, or else
  its punctuation. SQuAD, Search-R1 and ZeroSearch compare nothing with nothing: there any other such answer
  is right by EM, and the right one scores F1 0. Empty against empty scores 1, as in SQuAD v2.
- Typographic quotes and dashes count as their ASCII counterparts, which are deleted ("O’Brien" is "O'Brien",
  "1914–18" is "1914-18"). SQuAD keeps them; TriviaQA's scorer deletes such quotes, too.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_TYPOGRAPHIC = str.maketrans(
    dict.fromkeys("‘’‚‛‹›′´ʹʻʼ＇", "'") | dict.fromkeys("“”„‟«»″＂", '"') | dict.fromkeys("‐‑‒–—―−－", "-")
)


def normalize_answer(text: str) -> str:
    """Normalise as SQuAD does: lower case, no punctuation, no articles, single spaces.

    What would vanish keeps its articles ("the the"), or else its punctuation ("%").
    """
    return next(filter(None, _forms(text)), "")


def _forms(text: str) -> list[str]:
    """A text without punctuation and articles, without punctuation, and with both."""
    text = text.lower().translate(_TYPOGRAPHIC)
    bare = text.translate(_PUNCTUATION)
    return [" ".join(form.split()) for form in (_ARTICLES.sub(" ", bare), bare, text)]


def em(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """Score 1.0 if the prediction equals a gold answer, else 0.0; no prediction scores 0."""
    if prediction is None:
        return 0.0
    normalized = normalize_answer(prediction)
    return float(any(normalized == normalize_answer(golden) for golden in golden_answers))


def cover_em(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """Score 1.0 if a gold answer is a substring of the prediction, else 0.0: the released scorer's "EM".

    A gold answer of articles or punctuation alone, which nearly every text holds, must be the prediction.
    """
    if prediction is None:
        return 0.0
    normalized, goldens = normalize_answer(prediction), [_forms(golden)[0] for golden in golden_answers]
    return float(any(golden and golden in normalized for golden in goldens) or em(prediction, golden_answers))


def f1(prediction: str | None, golden_answers: Sequence[str]) -> float:
    """Score token F1 in [0, 1], best over the gold answers: the paper's reward.

    Yes and no are no special case.
    """
    if prediction is None:
        return 0.0
    return max((_token_f1(prediction, golden) for golden in golden_answers), default=0.0)


def _token_f1(prediction: str, golden: str) -> float:
    predicted, expected = normalize_answer(prediction).split(), normalize_answer(golden).split()
    if not predicted or not expected:
        return float(predicted == expected)
    common = sum((Counter(predicted) & Counter(expected)).values())
    # 2PR / (P + R) with P = common / predicted and R = common / expected
    return 2 * common / (len(predicted) + len(expected))


def contains(text: str, phrases: Sequence[str]) -> bool:
    """Tell whether a phrase stands in the text as whole words, normalised ("Oslo" is not in "Oslofjord")."""
    padded = f" {normalize_answer(text)} "
    normalized = (normalize_answer(phrase) for phrase in phrases)
    return any(phrase and f" {phrase} " in padded for phrase in normalized)


def contains_answer(documents: Sequence[str], answers: Sequence[str]) -> bool:
    """Tell whether one of the documents contains one of the answers (`contains`)."""
    return any(contains(document, answers) for document in documents)
