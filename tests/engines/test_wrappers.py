"""Engines around engines: mixed, noisy, cached, budgeted."""

import json
import multiprocessing
import threading

import pytest
from engine_fixtures import TEXTS
from http_fixtures import ask
from model_fixtures import ScriptedGenerator

from zs_lib import config
from zs_lib.engines import SearchRequest, SearchResult
from zs_lib.engines.bm25 import BM25Engine
from zs_lib.engines.wrappers import BudgetedEngine, CachedEngine, MixedEngine, NoisyEngine
from zs_lib.errors import BudgetError, EngineError
from zs_lib.qa import Passage, Question
from zs_lib.rl.rollout import rollout


@pytest.fixture(scope="module")
def bm25():
    return BM25Engine([Passage(str(i), text, "train") for i, text in enumerate(TEXTS)])


def test_a_mixed_engine_asks_the_real_one_for_its_share(bm25):
    class Marked(BM25Engine):
        tokens = 7

        def search(self, requests, num_documents):
            return [SearchResult((f"simulated {request.query}",), "ok") for request in requests]

    simulated = Marked([Passage("0", TEXTS[0], "train")])
    requests = [SearchRequest("Lyon", "which?", ("Paris",), key=(i,)) for i in range(400)]
    mixed = MixedEngine(simulated, bm25, 0.25)
    results = mixed.search(requests, 1)
    real = [result.documents[0] == TEXTS[2] for result in results]
    assert mixed.real_searches == sum(real) and 70 < sum(real) < 130 and mixed.tokens == 7
    assert mixed.search(requests[200:], 1) == results[200:]  # by its key alone, whatever else is asked
    assert {r.documents[0] for r, true in zip(results, real, strict=True) if not true} == {"simulated Lyon"}
    assert MixedEngine(simulated, bm25, 0.0).search(requests[:3], 1)[0].documents == ("simulated Lyon",)


def test_noise_at_test_time_hides_the_answer_for_its_share(bm25):
    passages = [Passage(str(i), text, "train") for i, text in enumerate(TEXTS)]
    requests = [SearchRequest("capital of France", "which?", ("Paris",), key=(i,)) for i in range(300)]
    noisy = NoisyEngine(bm25, passages, 0.4)
    hidden = [
        result.documents != bm25.search(requests[:1], 2)[0].documents for result in noisy.search(requests, 2)
    ]
    assert 85 < sum(hidden) < 155
    found = [result for result, gone in zip(noisy.search(requests, 2), hidden, strict=True) if gone]
    assert all(TEXTS[0] not in result.documents and len(result.documents) == 2 for result in found)
    assert noisy.search(requests[100:], 2) == noisy.search(requests, 2)[100:]
    assert NoisyEngine(bm25, passages, 0.0).search(requests[:5], 2) == bm25.search(requests[:5], 2)


class Counting:
    """A paid engine that says how often it was asked."""

    name, usd_per_query = "counting", 0.01

    def __init__(self, fail=()):
        self.asked, self.fail, self.lock = [], fail, threading.Lock()

    def search(self, requests, num_documents):
        with self.lock:
            self.asked += [request.query for request in requests]
        return [
            SearchResult.failed("ill")
            if request.query in self.fail
            else SearchResult.of([f"é {request.query}"] * (num_documents if request.query else 0))
            for request in requests
        ]


def test_the_cache_asks_once_and_keeps_no_failure(tmp_path):
    inner = Counting(fail={"bad"})
    cached = CachedEngine(inner, tmp_path)
    first = cached.search(ask("a", "bad", "a", "", "b"), 2)
    assert [result.status for result in first] == ["ok", "failed", "ok", "empty", "ok"] and first[0] == first[
        2
    ]
    assert sorted(inner.asked) == ["", "a", "b", "bad"]
    again = CachedEngine(inner, tmp_path)
    assert again.search(ask("a", "bad", "a", "", "b"), 2) == first and inner.asked[4:] == ["bad"]
    again.search(ask("a"), 3)
    assert inner.asked[5:] == ["a"]  # another number of documents is another search


@pytest.mark.parametrize(
    "damage",
    [
        b"",
        b"{",
        b'{"documents": 5}',
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b'{"engine": "counting", "query": "a", "num_documents": 2, "documents": [7]}',
    ],
)
def test_a_damaged_cache_file_is_written_anew(damage, tmp_path):
    inner = Counting()
    cached = CachedEngine(inner, tmp_path)
    found = cached.search(ask("a"), 2)
    (file,) = tmp_path.rglob("*.json")
    whole = file.read_bytes()
    file.write_bytes(damage)
    assert cached.search(ask("a"), 2) == found and len(inner.asked) == 2
    assert file.read_bytes() == whole and not list(tmp_path.rglob("*.tmp"))


def fill(folder):
    engine = CachedEngine(Counting(), folder)
    for _ in range(20):
        assert [r.documents[0] for r in engine.search(ask(*map(str, range(10))), 1)] == [
            f"é {i}" for i in range(10)
        ]
        for path in list(folder.rglob("*.json"))[::3]:
            path.unlink(missing_ok=True)


def test_several_processes_share_a_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(tmp_path,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert all(json.loads(path.read_text())["documents"] for path in tmp_path.rglob("*.json")) and not list(
        tmp_path.rglob("*.tmp")
    )


def test_a_cache_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EngineError, match="cannot be used .*make it writable"):
        CachedEngine(Counting(), tmp_path / "file").search(ask("a"), 1)


def test_a_budget_is_never_overspent():
    inner = Counting()
    budgeted = BudgetedEngine(inner, max_usd=0.05)
    budgeted.search(ask("a", "b", "c"), 1)
    with pytest.raises(
        BudgetError, match=r"3 queries .\$0.03. were made, 3 more would go beyond \$0.05; allow more"
    ):
        budgeted.search(ask("d", "e", "f"), 1)
    budgeted.search(ask("d", "e"), 1)
    assert inner.asked == ["a", "b", "c", "d", "e"] and (budgeted.queries, budgeted.usd) == (5, 0.05)
    with pytest.raises(BudgetError, match=r"5 queries .\$0.05. were made, 1 more"):
        budgeted.search(ask("f"), 1)


def test_a_budget_counts_across_threads():
    inner, refused = Counting(), []
    budgeted = BudgetedEngine(inner, max_usd=0.37)

    def spend():
        for _ in range(20):
            try:
                budgeted.search(ask("a"), 1)
            except BudgetError:
                refused.append(1)

    threads = [threading.Thread(target=spend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(inner.asked) == 37 and len(refused) == 160 - 37


def test_a_spent_budget_ends_a_rollout():
    """Other failures only end their own trajectory."""
    arm, generator = (
        config.load_profile("tiny", {"policy.rollout.draws": "rollout"}).policy("search-r1"),
        ScriptedGenerator(lambda prompt, key: "<search> a </search>"),
    )
    questions = [Question(str(i), "which?", ("Paris",)) for i in range(2)]
    with pytest.raises(BudgetError):
        rollout(questions, generator, BudgetedEngine(Counting(), max_usd=0.03), arm.rollout, [(0,), (1,)])
    failed = rollout(questions, generator, Counting(fail={"a"}), arm.rollout, [(0,), (1,)])
    assert [trajectory.stop_reason for trajectory in failed] == ["engine_failed"] * 2
