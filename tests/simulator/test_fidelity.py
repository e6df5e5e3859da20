"""Fidelity beside the engine that a simulator stands for, of simulators known to be good or bad."""

from __future__ import annotations

import math

import numpy as np
import pytest
from engine_fixtures import FixedEngine

from zs_lib import qa
from zs_lib.engines import SearchResult, build_engine
from zs_lib.engines.bm25 import BM25Engine
from zs_lib.errors import DataError
from zs_lib.qa import Question
from zs_lib.qa.scoring import contains_answer
from zs_lib.simulator.fidelity import _bad_query, agreement, distinct_n, measure_fidelity, two_sample_auc
from zs_lib.simulator.pairs import Pair


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


def asked() -> list[Question]:
    questions = qa.load_questions(subset=qa.TRAINED_ON, split="train")
    return [question for question in questions if "/compare/" not in question.id][::20]


class Perfect:
    """BM25 playing the simulator: noisy documents are the engine's without those that state an answer."""

    name = "perfect"

    def __init__(self, real: BM25Engine):
        self.real = real

    def search(self, requests, num_documents):
        wider = self.real.search(requests, 40)
        by_question = {question.question: question.all_answers for question in asked()}
        return [
            SearchResult.of(
                [
                    document
                    for document in result.documents
                    if not request.noisy or not contains_answer([document], by_question[request.question])
                ][:num_documents]
            )
            for request, result in zip(requests, wider, strict=True)
        ]


class Parrot:
    """States the gold answer whatever the query and the keyword: what a naive simulator becomes."""

    name = "parrot"

    def search(self, requests, num_documents):
        return [
            SearchResult.of([f"It is known that {request.golden_answers[0]} is right."] * (num_documents - 1))
            for request in requests
        ]


@pytest.fixture(scope="module")
def real() -> BM25Engine:
    return build_engine("bm25", split="train")


def test_a_perfect_simulator_cannot_be_told_from_the_engine(real):
    report, queries = measure_fidelity(Perfect(real), asked(), real, 3)
    counted = queries.groupby("rate")["answered"].agg(["mean", "size"])
    for rate, asked_of in (("answer_good", "good"), ("leak", "good"), ("answer_bad", "bad")):
        assert counted.loc[rate].tolist() == [report[rate], report[f"{asked_of}_queries"]]
    assert report["answer_good"] == report["real_good"] > 0.85
    assert report["answer_bad"] == report["real_bad"] < 0.15
    assert report["leak"] == 0.0 and report["auc"] == pytest.approx(0.5, abs=0.1)
    assert report["words"] == report["real_words"] and report["distinct_2"] == report["real_distinct_2"]
    assert (
        min(report["answer_first"], report["answer_last"]) > 0.8
        and report["good_queries"] > report["bad_queries"] > 0
    )


def test_a_simulator_that_always_answers_is_found_out(real):
    report, _ = measure_fidelity(Parrot(), asked(), real, 3)
    assert report["answer_bad"] == 1.0
    assert report["answer_last"] == 1.0 and report["answer_first"] < 0.2  # it never says the bridge
    assert report["leak"] > 0.5 and report["auc"] > 0.95 and report["short"] == 1.0


def test_one_that_writes_nothing_has_no_auc(real):
    class Silent(Parrot):
        def search(self, requests, num_documents):
            return [SearchResult.of([]) for _ in requests]

    report, _ = measure_fidelity(Silent(), asked(), real, 3)
    assert (
        math.isnan(report["auc"])
        and report["short"] == 1.0
        and report["answer_good"] == report["leak"] == report["distinct_2"] == 0.0
    )


def test_bad_queries_do_not_name_the_entity():
    from random import Random

    questions, rng = asked(), Random(0)
    for question in questions:
        assert question.hops[-1].entity not in _bad_query(question, questions, rng)


def test_agreement_with_the_real_engine_by_hand():
    def pair(query: str, contained: bool) -> Pair:
        return Pair(query, f"{query}?", "Oslo", ("Oslo",), ("real",), ("clean",), contained)

    pairs = [pair("capital", True), pair("seat", True), pair("weather", False)]

    class Simulator:
        """Knows the capital, and states the answer of any query whose documents should be noisy but one."""

        def search(self, requests, num_documents):
            told = [r.query == "capital" or (r.noisy and r.query == "seat") for r in requests]
            return [SearchResult.of(["It is Oslo." if answer else "It rains."]) for answer in told]

    # useful: right, wrong, right; noisy: wrong, wrong, right
    assert agreement(Simulator(), pairs, 3) == 3 / 6
    assert agreement(FixedEngine("It rains."), pairs, 3) == 4 / 6
