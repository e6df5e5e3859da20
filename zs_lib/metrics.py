"""Scores of an answer, properties of a set of texts, and intervals around a mean.

EM, cover-EM and F1 compare after SQuAD normalisation and take the best over the gold answers. The paper
rewards F1 and reports EM; its released scorer computes cover-EM under the name of EM, so both are here by
their own names.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from zs_lib.errors import DataError

RESAMPLES = 2000  # percentile limits then move by about a hundredth of the interval from seed to seed

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


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Share of different n-grams of words among all n-grams, in [0, 1]; 0 when there are none."""
    words = [text.lower().split() for text in texts]
    ngrams = [tuple(ws[i : i + n]) for ws in words for i in range(len(ws) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def two_sample_auc(first: Sequence[str], second: Sequence[str], seed: int = 0) -> float:
    """How well a linear classifier on word and word-pair counts tells two sets of texts apart: AUC, 5-fold.

    0.5 means it cannot; 1.0 means it always can. Equal texts stay in one fold: else a copy of a text in the other
    set would teach the classifier the wrong answer for it, and identical sets would come out far below 0.5. Each
    set needs 5 texts, not all equal, and both together 5 different ones with words in them, else DataError.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    if min(len(first), len(second)) < 5 or min(len(set(first)), len(set(second))) < 2:
        raise DataError(
            f"A two-sample test needs 5 texts on each side, not all equal; got {len(first)} and {len(second)}."
        )
    labels = np.array([0] * len(first) + [1] * len(second))
    counts = TfidfVectorizer(ngram_range=(1, 2), use_idf=False)
    classifier = make_pipeline(counts, LogisticRegression(C=10.0, max_iter=1000))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=seed)
    texts = [*first, *second]
    groups = np.unique(texts, return_inverse=True)[1]
    try:
        scores = cross_val_predict(
            classifier, texts, labels, groups=groups, cv=folds, method="predict_proba"
        )[:, 1]
    except ValueError as error:  # too few groups for the folds, no words, a fold of one set alone
        raise DataError(f"These texts are too few or too alike for a two-sample test ({error}).") from None
    return float(roc_auc_score(labels, scores))


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
