"""Search-R1's and ZeroSearch's clients, in their published form, against `zs serve retriever`."""

import httpx
import pytest
from serve_fixtures import CORPUS, request, serving

from zs_lib.engines.http import SearchR1Engine, WikiRetrieverEngine

SPAIN, SEA = CORPUS[1]["contents"], CORPUS[2]["contents"]


def search_r1(served, queries, topk=3):
    """`_batch_search` of Search-R1 (search_r1/llm_agent/generation.py)."""
    payload = {"queries": queries, "topk": topk, "return_scores": True}
    answer = httpx.post(f"{served.url}/retrieve", json=payload, timeout=60)
    assert answer.status_code == 200, answer.text
    return [[item["document"]["contents"] for item in items] for items in answer.json()["result"]]


def retrieve_from_wiki(served, query, topk=5):
    """`retrieve_from_wiki` of ZeroSearch (llm_agent/generation.py)."""
    answer = httpx.post(f"{served.url}/retrieve", json={"query": query, "top_k": topk}, timeout=60)
    assert answer.status_code == 200, answer.text
    return "\n".join([f"Doc {i + 1}: {doc['text']}" for i, doc in enumerate(answer.json())])


@pytest.fixture(scope="module", params=["bm25", "dense"])
def served(request, corpus):
    with serving("retriever", "--engine", request.param, "--corpus", str(corpus), ZS_SERVE_TOKEN="") as one:
        yield one


def test_no_queries_are_answered_by_no_lists(served):
    assert search_r1(served, []) == []


@pytest.mark.parametrize("count", [400, 2560])
def test_all_queries_of_a_step_in_one_call(served, count):
    found = search_r1(served, ["capital of Spain", "a city by the sea"] * (count // 2))
    assert [documents[0] for documents in found] == [SPAIN, SEA] * (count // 2)


def test_a_long_query_costs_its_neighbours_nothing(served):
    long = ["capital of Spain" + "." * 1985, "sea " * 25_000]
    found = search_r1(served, ["capital of Spain", *long, "a city by the sea", ""])
    assert len(long[0]) == 2001 and len(found) == 5
    assert [found[i][0] for i in (0, 1, 3)] == [SPAIN, SPAIN, SEA]


@pytest.mark.parametrize("topk", [0, None])
def test_no_number_of_documents_is_the_default(served, topk):
    assert search_r1(served, ["capital"], topk) == search_r1(served, ["capital"], 3)
    assert retrieve_from_wiki(served, "capital", topk) == retrieve_from_wiki(served, "capital", 5)


def test_zerosearch_s_wiki_client(served):
    assert retrieve_from_wiki(served, "capital of Spain", 1) == f"Doc 1: {SPAIN}"
    assert retrieve_from_wiki(served, "a city by the sea").startswith(f"Doc 1: {SEA}")


def test_our_engines_speak_both_protocols(served):
    requests = [request("capital of Spain"), request("x" * 5000), request("a city by the sea")]
    for engine in (SearchR1Engine(served.url), WikiRetrieverEngine(served.url)):
        results = engine.search(requests, 1)
        assert [results[0].documents, results[2].documents] == [(SPAIN,), (SEA,)]
        assert results[1].status in ("ok", "empty")


def test_health(served):
    assert httpx.get(f"{served.url}/health").status_code == 200
