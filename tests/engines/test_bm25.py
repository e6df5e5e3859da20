"""Engines: each result belongs to its request, ties are settled, a simulator's text is read tolerantly."""

import pytest
from engine_fixtures import TEXTS, ask

from zs_lib.engines import SearchResult
from zs_lib.engines.bm25 import BM25Engine
from zs_lib.qa import Passage


@pytest.fixture(scope="module")
def bm25():
    return BM25Engine([Passage(str(i), text, "train") for i, text in enumerate(TEXTS)])


def test_bm25_answers_each_query_for_itself(bm25):
    requests = [ask("capital of Spain"), ask("country of Lyon"), ask("capital of Spain")]
    results = bm25.search(requests, 2)
    assert [result.documents[0] for result in results] == [TEXTS[1], TEXTS[2], TEXTS[1]]
    assert results == [bm25.search([request], 2)[0] for request in requests]


def test_bm25_breaks_ties_by_order_and_returns_no_strangers(bm25):
    assert bm25.search([ask("sea")], 1)[0].documents == (TEXTS[3],)
    assert bm25.search([ask("sea")], 5)[0].documents == (TEXTS[3], TEXTS[4])
    assert bm25.search([ask("zebra")], 3) == [SearchResult((), "empty")]
    assert bm25.search([ask("the of !")], 3) == [SearchResult((), "empty")]
    assert bm25.search([], 3) == []


def test_bm25_takes_no_notice_of_the_noise_flag(bm25):
    assert bm25.search([ask("Lyon", noisy=True)], 2) == bm25.search([ask("Lyon")], 2)
