"""Fidelity of a simulator: its answers to good and to bad queries, beside the real engine's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from random import Random

import numpy as np
import pandas as pd

from zs_lib.engines import SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import DataError
from zs_lib.qa import TRAINED_ON, Question, load_questions
from zs_lib.qa.scoring import contains_answer
from zs_lib.simulator.pairs import Pair, split_questions


def distinct_n(texts: Sequence[str], n: int) -> float:
    """Compute the share of distinct n-grams of words among all n-grams, in [0, 1]; 0 if there are none."""
    words = [text.lower().split() for text in texts]
    ngrams = [tuple(ws[i : i + n]) for ws in words for i in range(len(ws) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 0.0


def two_sample_auc(first: Sequence[str], second: Sequence[str]) -> float:
    """Compute the AUC of a linear classifier, on word and word-pair counts, between two sets of texts.

    0.5: it cannot tell them apart; 1.0: it always can. Of the five folds, equal texts stay in one: else a
    copy of a text in the other set would teach the classifier the wrong label, and identical sets would come
    out far below 0.5.

    Raises:
        DataError: a set has fewer than 5 texts or only equal ones, or both together fewer than 5 different
            ones.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
    from sklearn.pipeline import make_pipeline

    if min(len(first), len(second)) < 5 or min(len(set(first)), len(set(second))) < 2:
        raise DataError(
            f"A two-sample test needs 5 texts on each side, not all equal; got {len(first)} and "
            f"{len(second)}."
        )
    labels = np.array([0] * len(first) + [1] * len(second))
    counts = TfidfVectorizer(ngram_range=(1, 2), use_idf=False)
    classifier = make_pipeline(counts, LogisticRegression(C=10.0, max_iter=1000))
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    texts = [*first, *second]
    groups = np.unique(texts, return_inverse=True)[1]
    try:
        scores = cross_val_predict(
            classifier, texts, labels, groups=groups, cv=folds, method="predict_proba"
        )[:, 1]
    except ValueError as error:  # too few groups for the folds, no words, a fold of one set alone
        raise DataError(f"These texts are too few or too alike for a two-sample test ({error}).") from None
    return float(roc_auc_score(labels, scores))


def fidelity_questions(questions_from: str, count: int) -> list[Question]:
    """Draw at most `count` questions of the embedded benchmark whose hops are known, by a fixed key.

    "held out": training questions that no pair was made from (the simulator may know the facts that bridge
    two hops); "test": questions about entities that it never met.
    """
    if questions_from == "test":
        questions = load_questions(subset=TRAINED_ON, split="test")
    else:
        _, questions = split_questions(load_questions(subset=TRAINED_ON, split="train"))
    chains = [question for question in questions if question.is_chain]
    return Random("fidelity").sample(chains, min(count, len(chains)))


def measure_fidelity(
    engine: SearchEngine,
    questions: Sequence[Question],
    real: SearchEngine,
    k: int,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[dict, pd.DataFrame]:
    """Measure a simulator on `questions` with known hops, beside the real engine: (means, queries).

    queries: one row per query, question (its id), rate ("answer_good", "leak" or "answer_bad"), query, and
    whether its documents state the answer; the rates are their means. The means:

    - answer_first, answer_last: share of good queries for the first and the last hop of two whose useful
      documents state that hop's answer (one-hop questions count as last); answer_good: both together
    - answer_bad: the same for queries that do not name the entity, where the answer must not appear
    - leak: share of good queries whose noisy documents state the answer
    - short: share of requests that brought fewer than k documents; words: mean words a document
    - distinct_2: share of distinct bigrams; auc: of a classifier that separates these documents from the real
      engine's (0.5: it cannot; NaN with too few documents)
    - real_*: the real engine's values; good_queries, bad_queries: their numbers
    """
    rng = Random(0)
    good = [(question, hop, hop.query) for question in questions for hop in question.hops]
    bad = [(question, question.hops[-1], _bad_query(question, questions, rng)) for question in questions]

    def ask(engine: SearchEngine, queries: Sequence[tuple], kind: str) -> list[SearchResult]:
        requests = [
            SearchRequest(query, question.question, question.golden_answers, kind == "noisy", (kind, i))
            for i, (question, _, query) in enumerate(queries)
        ]
        return engine.search(requests, k)

    progress(0, 3)
    useful = ask(engine, good, "useful")
    progress(1, 3)
    noisy = ask(engine, good, "noisy")
    progress(2, 3)
    off = ask(engine, bad, "bad")
    truth, truth_off = ask(real, good, "useful"), ask(real, bad, "bad")
    first = [hop is question.hops[0] and len(question.hops) > 1 for question, hop, _ in good]
    hit, real_hit = _hits(useful, good), _hits(truth, good)
    found = {
        "answer_good": (good, hit),
        "leak": (good, _hits(noisy, good)),
        "answer_bad": (bad, _hits(off, bad)),
    }
    documents = [document for result in useful for document in result.documents]
    real_documents = [document for result in truth for document in result.documents]
    everything, auc = [*useful, *noisy, *off], float("nan")
    with suppress(DataError):  # a simulator that does not understand its prompt writes hardly a document
        auc = two_sample_auc(documents, real_documents)
    means = {
        "answer_good": _mean(hit),
        "answer_first": _mean(h for h, f in zip(hit, first, strict=True) if f),
        "answer_last": _mean(h for h, f in zip(hit, first, strict=True) if not f),
        "answer_bad": _mean(found["answer_bad"][1]),
        "leak": _mean(found["leak"][1]),
        "short": _mean(len(result.documents) < k for result in everything),
        "words": _mean(len(document.split()) for document in documents),
        "distinct_2": distinct_n(documents, 2),
        "auc": auc,
        "real_good": _mean(real_hit),
        "real_bad": _mean(_hits(truth_off, bad)),
        "real_words": _mean(len(document.split()) for document in real_documents),
        "real_distinct_2": distinct_n(real_documents, 2),
        "good_queries": len(good),
        "bad_queries": len(bad),
    }
    return means, pd.DataFrame(
        {"question": question.id, "rate": rate, "query": query, "answered": answered}
        for rate, (asked, hits) in found.items()
        for (question, _, query), answered in zip(asked, hits, strict=True)
    )


def agreement(engine: SearchEngine, pairs: Sequence[Pair], k: int) -> float:
    """Measure the share of requests in which a simulator states an answer where it should, in [0, 1].

    Asked for useful documents it should where the real engine did (good queries) and only there; for noisy
    ones, never. Each pair is asked both, by a fixed key; no hops need be known.
    """
    requests = [
        SearchRequest(pair.query, pair.question, (pair.answer,), noisy, ("agreement", i, int(noisy)))
        for i, pair in enumerate(pairs)
        for noisy in (False, True)
    ]
    results, asked = engine.search(requests, k), [pair for pair in pairs for _ in range(2)]
    return _mean(
        contains_answer(result.documents, pair.answers) == (pair.contained and not request.noisy)
        for request, result, pair in zip(requests, results, asked, strict=True)
    )


def _bad_query(question: Question, questions: Sequence[Question], rng: Random) -> str:
    """Make a query without the entity: half the time the relation alone, else another entity's good query."""
    hop = question.hops[-1]
    if rng.random() < 0.5:
        return hop.noun
    return rng.choice([other.hops[-1] for other in questions if other.hops[-1].entity != hop.entity]).query


def _hits(results, asked) -> list[bool]:
    return [
        contains_answer(result.documents, hop.answers)
        for result, (_, hop, _) in zip(results, asked, strict=True)
    ]


def _mean(values) -> float:
    values = list(values)
    return sum(values) / len(values) if values else float("nan")
