"""Engines over HTTP, against a real local server that plays the providers, their errors included."""

import asyncio
import json
import logging
import multiprocessing
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from urllib.parse import parse_qs, quote, urlsplit

import pytest
from http_fixtures import serving
from model_fixtures import ScriptedGenerator

from zs_lib import config, protocol
from zs_lib.config import paths
from zs_lib.config.values import digest
from zs_lib.engines import SearchRequest, SearchResult, build_engine, client, http
from zs_lib.engines.client import Limits
from zs_lib.engines.http import (
    OpenAIEngine,
    SearchR1Engine,
    SerpApiEngine,
    SerperEngine,
    WikipediaEngine,
    WikiRetrieverEngine,
)
from zs_lib.engines.wrappers import BudgetedEngine, CachedEngine
from zs_lib.errors import BudgetError, ConfigError, EngineError
from zs_lib.qa import Question
from zs_lib.rl.rollout import rollout

KEY = "planted+key/7f3a9"
QUICK = Limits(attempts=2, attempt_s=0.4, search_s=5, first_wait_s=0.01, longest_wait_s=1)


def ask(*queries):
    return [SearchRequest(query, "which?", ("Paris",), key=(i,)) for i, query in enumerate(queries)]


def params(asked):
    return {name: values[0] for name, values in parse_qs(urlsplit(asked.path).query).items()}


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in (*http.SERPAPI_KEYS, *http.SERPER_KEYS, *http.TOKENS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def keys(environment, monkeypatch):
    for name in (http.SERPAPI_KEYS[0], http.SERPER_KEYS[0], http.TOKENS[0]):
        monkeypatch.setenv(name, KEY)


# ------------------------------------------------------------------------------------------ what providers speak


@pytest.mark.parametrize("scored", [True, False])
def test_search_r1_in_both_forms_of_its_answer(scored):
    def answer(asked):
        items = [
            [{"id": str(i), "contents": f'"{query}"\ntext {i}'} for i in range(asked.body["topk"] + 1)]
            for query in asked.body["queries"]
        ]
        asked.reply(
            {
                "result": [
                    [{"document": item, "score": 1.5} for item in row] if scored else row for row in items
                ]
            }
        )

    with serving(answer) as server:
        queries = [f"query {i}" for i in range(20)]
        results = SearchR1Engine(server.url + "/", QUICK).search(ask(*queries), 2)
        assert [result.documents for result in results] == [
            (f'"{q}"\ntext 0', f'"{q}"\ntext 1') for q in queries
        ]
        assert sorted(len(one.body["queries"]) for one in server.asked) == [4, 8, 8]
        assert {one.path for one in server.asked} == {"/retrieve"} and server.asked[0].body[
            "return_scores"
        ] is True


def test_zerosearch_wiki():
    with serving(
        lambda asked: asked.reply([{"text": asked.body["query"]}, {"text": " "}][: asked.body["top_k"]])
    ) as server:
        engine = WikiRetrieverEngine(server.url, QUICK)
        assert engine.search(ask("a", "b"), 2) == [SearchResult(("a",), "ok"), SearchResult(("b",), "ok")]
        assert engine.search([], 2) == [] and len(server.asked) == 2


def test_serpapi(keys):
    items = [
        {"title": "Paris", "snippet": "a city"},
        {"title": "Lyon"},
        {"snippet": "no title"},
        {"position": 4},
    ]
    with serving(lambda asked: asked.reply({"organic_results": items})) as server:
        found = SerpApiEngine(server.url, QUICK).search(ask("capital & more"), 5)
        assert found == [SearchResult(("Paris\na city", "Lyon", "no title"), "ok")]
        assert params(server.asked[0]) == {
            "engine": "google",
            "q": "capital & more",
            "num": "5",
            "api_key": KEY,
        }


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        ({"error": "Google hasn't returned any results for this query."}, "empty"),
        ({"search_metadata": {}, "organic_results": []}, "empty"),
        ({"error": f"Your account {KEY} has run out of searches."}, "failed"),
        ({"error": "We couldn't get valid results for this search. Please try again later."}, "failed"),
    ],
)
def test_serpapi_without_results(keys, answer, status):
    with serving(lambda asked: asked.reply(answer)) as server:
        (result,) = SerpApiEngine(server.url, QUICK).search(ask("q"), 3)
        assert (
            (result.status, result.documents) == (status, ())
            and KEY not in result.error
            and len(server.asked) == 1
        )
        assert status == "empty" or result.error.startswith("SerpAPI: an error (")


def test_serper(keys):
    answer = {
        "organic": [{"title": "Paris", "snippet": "a city", "link": "x"}],
        "answerBox": {"answer": "Paris"},
    }
    with serving(lambda asked: asked.reply(answer if asked.body["q"] == "a" else {"organic": []})) as server:
        found = SerperEngine(server.url, QUICK).search(ask("a", "b"), 3)
        assert found == [SearchResult(("Paris\na city",), "ok"), SearchResult((), "empty")]
        assert {one.headers["X-API-KEY"] for one in server.asked} == {KEY} and server.asked[0].body[
            "num"
        ] == 3


def test_wikipedia_in_its_own_order_with_a_polite_name():
    pages = [
        {"index": 2, "title": "Lyon", "extract": "second"},
        {"index": 1, "title": "Paris", "extract": "first"},
        {"index": 3, "title": "x"},
    ]

    def answer(asked):
        query = params(asked)["gsrsearch"]
        asked.reply(
            {"batchcomplete": True}
            if query == "none"
            else {"error": {"code": "x", "info": "too busy"}}
            if query == "busy"
            else {"query": {"pages": pages}}
        )

    with serving(answer) as server:
        results = WikipediaEngine(server.url, QUICK).search(ask("q" * 400, "none", "busy"), 50)
        assert results[:2] == [
            SearchResult(("Paris\nfirst", "Lyon\nsecond"), "ok"),
            SearchResult((), "empty"),
        ]
        assert results[2].status == "failed" and "too busy" in results[2].error
        first = next(one for one in server.asked if "qq" in one.path)
        assert len(params(first)["gsrsearch"]) == 300 and params(first)["gsrlimit"] == "20"
        assert (
            first.headers["User-Agent"].startswith("zerosearch-workbench/")
            and "http" in first.headers["User-Agent"]
        )


# ------------------------------------------------------------------------------------------ a simulator on a server


def completion(text, tokens=7):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": {"completion_tokens": tokens},
    }


def test_a_served_simulator_is_asked_and_read_like_ours(keys):
    def answer(asked):
        asked.reply(
            {"data": [{"id": "M"}]}
            if asked.path == "/v1/models"
            else completion("Doc 1: one\nDoc 2: two\nDoc 3: three")
        )

    with serving(answer) as server:
        engine = OpenAIEngine(server.url + "/v1/", "paper", 0.8, 60, limits=QUICK)
        request = SearchRequest("capital", "which?", ("Paris", "P"), noisy=True, key=(3, "search"))
        assert engine.search([request, request], 2) == [SearchResult(("one", "two"), "ok")] * 2
        body = server.asked[1].body
        prompt = protocol.simulator_prompt("capital", "which?", "Paris", False, 2, "paper")
        assert body["messages"] == [{"role": "user", "content": prompt}]
        assert (body["model"], body["temperature"], body["max_tokens"], body["stop"]) == (
            "M",
            0.8,
            60,
            ["Doc 3"],
        )
        assert (
            body["seed"]
            == server.asked[2].body["seed"]
            == http.seed_of((3, "search"))
            != http.seed_of((4, "search"))
        )
        assert 0 <= body["seed"] < 2**31 and server.asked[1].headers["Authorization"] == f"Bearer {KEY}"
        engine.search([request], 5)
        assert (engine.tokens, engine.searches, engine.format_errors) == (21, 3, 1)


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({"data": [{"id": "A"}, {"id": "B"}]}, "2 .A, B.: name one, openai:MODEL@URL"),
        ({"data": []}, "none"),
        ([], "does not list its models"),
    ],
)
def test_a_server_with_several_models_needs_a_name(listed, message):
    with serving(lambda asked: asked.reply(listed)) as server:
        with pytest.raises(EngineError, match=message):
            OpenAIEngine(server.url, "paper", 0.8, 60, limits=QUICK)
        assert OpenAIEngine(server.url, "paper", 0.8, 60, "A", QUICK).model == "A"


# ------------------------------------------------------------------------------------------ what goes wrong


def hang(asked):
    asked.server.over.wait(5)


def drip(asked):
    asked.send_response(200)
    asked.send_header("Content-Length", "1000")
    asked.end_headers()
    while not asked.server.over.wait(0.05):
        asked.wfile.write(b" ")


def drip_headers(asked):
    asked.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not asked.server.over.wait(0.05):
        asked.wfile.write(b"X-More: 1\r\n")


def half(asked):
    asked.send_response(200)
    asked.send_header("Content-Length", "1000")
    asked.end_headers()
    asked.wfile.write(b'[{"text": "ha')
    asked.close_connection = True


@pytest.mark.parametrize(
    ("script", "message", "calls"),
    [
        (hang, "no whole answer within 0.4 s (2 attempts); check that", 2),
        (drip, "no whole answer within 0.4 s", 2),
        (drip_headers, "no whole answer within 0.4 s", 2),
        (lambda asked: asked.reset(), "no answer (", 2),
        (half, "no answer (RemoteProtocolError)", 2),
        (lambda asked: asked.reply({}, 500), "HTTP 500 (2 attempts)", 2),
        (lambda asked: asked.reply({}, 429), "HTTP 429 (2 attempts)", 2),
        (
            lambda asked: asked.reply({}, 429, Retry_After="3600"),
            "wants to be left alone for 3600 s; go on later",
            1,
        ),
        (lambda asked: asked.reply({}, 503, Retry_After="inf"), "wants to be left alone", 1),
        (lambda asked: asked.reply({"why": "no such path"}, 404), 'HTTP 404 ({"why": "no such path"})', 1),
        (lambda asked: asked.reply(b"", 302, Location="/else"), "HTTP 302", 1),
        (lambda asked: asked.reply(b'[{"text": "ha'), "is no JSON", 1),
        (lambda asked: asked.reply(b"[" * 100_000), "is no JSON", 1),
        (lambda asked: asked.reply(b"\xff\x00<html>"), "is no JSON", 1),
        (lambda asked: asked.reply(b""), "is no JSON", 1),
        (lambda asked: asked.reply({"error": "I am ill"}), "another form than expected", 1),
        (lambda asked: asked.reply([{"text": 5}]), "another form than expected", 1),
        (
            lambda asked: asked.reply(b'"' + b"x" * 10_000_000 + b'"'),
            "longer than 1,048,576 bytes; ask for fewer",
            1,
        ),
    ],
)
def test_every_failure_is_a_failed_result_that_says_why(script, message, calls):
    with serving(script) as server:
        started = time.monotonic()
        (result,) = WikiRetrieverEngine(server.url, QUICK).search(ask("q"), 3)
        assert (result.status, result.documents) == ("failed", ()) and time.monotonic() - started < 4
        assert (
            message in result.error
            and result.error.startswith("the wiki retriever: ")
            and len(server.asked) == calls
        )


def test_nobody_there():
    with serving(hang) as server:
        url = server.url
    (result,) = WikiRetrieverEngine(url, QUICK).search(ask("q"), 3)
    assert (
        result.status == "failed"
        and f"no answer (ConnectError) (2 attempts); check that {url} is up" in result.error
    )


def test_a_failure_is_its_own_query_s_alone_and_passes_where_it_can():
    def answer(asked):
        if asked.body["query"] == "bad" or (asked.body["query"] == "flaky" and asked.number <= 2):
            asked.reply({}, 502)
        else:
            asked.reply([{"text": asked.body["query"]}])

    limits = Limits(concurrency=1, attempts=3, first_wait_s=0.01)
    with serving(answer) as server:
        results = WikiRetrieverEngine(server.url, limits).search(ask("flaky", "bad", "fine"), 3)
    assert [result.status for result in results] == ["ok", "failed", "ok"]


@pytest.mark.parametrize("in_seconds", [True, False])
def test_retry_after_is_kept(in_seconds):
    header = "0.3" if in_seconds else format_datetime(datetime.now(UTC) + timedelta(seconds=1.4), usegmt=True)
    came = []

    def answer(asked):
        came.append(time.monotonic())
        asked.reply([], 429, Retry_After=header) if len(came) == 1 else asked.reply([])

    with serving(answer) as server:
        limits = Limits(attempts=2, first_wait_s=0.01, longest_wait_s=3)
        assert WikiRetrieverEngine(server.url, limits).search(ask("q"), 3) == [SearchResult((), "empty")]
    assert 0.2 < came[1] - came[0] < 2.5


def test_a_search_is_over_in_its_time_and_calls_are_bounded():
    under_way, most, lock = 0, 0, threading.Lock()

    def answer(asked):
        nonlocal under_way, most
        with lock:
            under_way += 1
            most = max(most, under_way)
        asked.server.over.wait(0.3)
        with lock:
            under_way -= 1
        asked.reply([{"text": "late"}])

    with serving(answer) as server:
        started = time.monotonic()
        results = WikiRetrieverEngine(server.url, Limits(concurrency=3, search_s=0.8)).search(
            ask(*map(str, range(12))), 1
        )
        assert time.monotonic() - started < 2 and most <= 3
        status = [result.status for result in results]
        assert "ok" in status and "not over within 0.8 s" in results[status.index("failed")].error


def test_it_works_where_an_event_loop_runs():
    async def cell(engine):
        return engine.search(ask("q"), 1)

    with serving(lambda asked: asked.reply([{"text": "yes"}])) as server:
        assert asyncio.run(cell(WikiRetrieverEngine(server.url, QUICK))) == [SearchResult(("yes",), "ok")]


def test_proxies_are_for_other_machines_only(monkeypatch):
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    with serving(lambda asked: asked.reply([{"text": asked.path}])) as server:
        monkeypatch.setenv("http_proxy", server.url)
        assert WikiRetrieverEngine("http://search.invalid", QUICK).search(ask("q"), 1)[0].documents == (
            "http://search.invalid/retrieve",
        )
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        assert WikiRetrieverEngine(server.url, QUICK).search(ask("q"), 1)[0].documents == ("/retrieve",)


def test_ctrl_c_ends_a_search_at_once():
    asked = threading.Event()
    with serving(lambda request: asked.set() or hang(request)) as server:
        command = [sys.executable, "-m", "zs_lib", "search", "q", "--engine", f"search-r1:{server.url}"]
        process = subprocess.Popen(command, cwd=paths.ROOT, stderr=subprocess.PIPE, text=True)
        assert asked.wait(30)
        process.send_signal(signal.SIGINT)
        assert process.wait(4) == 130 and process.stderr.read() == ""
        process.stderr.close()


# ------------------------------------------------------------------------------------------ replicas


def simulator(seconds=0.0):
    """Documents that depend on the query and the seed alone, as a simulator's do."""

    def answer(asked):
        asked.server.over.wait(seconds)
        asked.reply(completion(f"Doc 1: {asked.body['messages'][0]['content'][-40:]} {asked.body['seed']}"))

    return answer


def replicas(*servers, limits=QUICK):
    return OpenAIEngine(",".join(f"{server.url}/v1/" for server in servers), "paper", 0.8, 60, "M", limits)


def test_replicas_share_the_load_by_what_each_has_under_way():
    queries = ask(*map(str, range(60)))
    with serving(simulator(0.03)) as one, serving(simulator(0.03)) as other, serving(simulator(0.3)) as slow:
        engine = replicas(one, other, slow, limits=Limits(concurrency=2))
        found = engine.search(queries, 1)
        assert abs(len(one.asked) - len(other.asked)) <= 4 and 2 <= len(slow.asked) <= len(one.asked) / 2
        assert found == replicas(one).search(queries, 1)  # the seed goes with the request


@pytest.mark.parametrize(
    "spoil", [hang, drip, lambda asked: asked.reset(), lambda asked: asked.reply({}, 500)]
)
def test_a_replica_that_fails_is_left_to_rest_and_the_others_answer(spoil):
    queries, ill = ask(*map(str, range(12))), threading.Event()
    ill.set()
    with (
        serving(lambda asked: (spoil if ill.is_set() else simulator())(asked)) as bad,
        serving(simulator()) as good,
    ):
        engine = replicas(bad, good)
        rested = engine.service.replicas[0]
        first = engine.search(queries, 1)
        assert first == replicas(good).search(queries, 1) and bad.asked and rested.rest_s == client.REST_S
        asked = len(bad.asked)
        assert engine.search(queries, 1) == first and len(bad.asked) == asked
        rested.until = 0.0  # a minute later one call tries it
        assert (
            engine.search(queries, 1) == first
            and len(bad.asked) == asked + 1
            and rested.rest_s == 2 * client.REST_S
        )
        ill.clear()
        rested.until = 0.0
        assert engine.search(queries, 1) == engine.search(queries, 1) == first and len(bad.asked) > asked + 4


def test_a_failure_that_passes_costs_no_replica_its_place():
    def flaky(asked):
        asked.reply({}, 503) if asked.number % 7 == 0 else simulator()(asked)

    with serving(flaky) as one, serving(flaky) as other:
        results = replicas(one, other).search(ask(*map(str, range(30))), 1)
        assert {result.status for result in results} == {"ok"} and min(len(one.asked), len(other.asked)) > 10


def test_all_replicas_dead_is_an_error_that_names_each_in_bounded_time():
    with serving(hang) as gone:
        pass
    with serving(hang) as silent, serving(lambda asked: asked.reply({}, 500)) as broken:
        started = time.monotonic()
        (result,) = replicas(gone, silent, broken).search(ask("q"), 1)
        assert result.status == "failed" and time.monotonic() - started < 3
        for server, cause in (
            (gone, "no answer (ConnectError)"),
            (silent, "no whole answer within 0.4 s"),
            (broken, "HTTP 500"),
        ):
            assert (
                f"the simulator's server: {cause} (2 attempts); check that {server.url} is up" in result.error
            )
        with pytest.raises(EngineError, match=f"{gone.url} is up .*{broken.url} is up"):
            OpenAIEngine(f"{gone.url},{broken.url}", "paper", 0.8, 60, limits=QUICK)


# ------------------------------------------------------------------------------------------ keys


@pytest.mark.parametrize(
    ("make", "names"), [(SerpApiEngine, "SERPAPI_API_KEY or SER_API_KEY"), (SerperEngine, "SERPER_API_KEY")]
)
def test_a_key_is_needed(make, names, monkeypatch):
    with pytest.raises(EngineError, match=f"needs a key: put it into the environment's {names}"):
        make()
    monkeypatch.setenv(names.split()[-1], KEY + "\ninjected: é")
    with pytest.raises(EngineError, match="characters that no key has") as caught:
        make()
    assert KEY not in str(caught.value)
    monkeypatch.setenv(names.split()[-1], f" {KEY}\n")
    assert make().service.key == KEY and KEY not in repr(make().service)


@pytest.mark.parametrize("make", [SerpApiEngine, SerperEngine, SearchR1Engine])
@pytest.mark.parametrize("status", [401, 403])
def test_a_refused_key_ends_the_search_at_once(make, status, keys):
    with serving(lambda asked: asked.reply({"error": f"Invalid key {KEY}"}, status)) as server:
        engine = make(server.url, Limits(concurrency=1))
        with pytest.raises(
            EngineError, match=f"HTTP {status}.: put the right key into {engine.service.key_names}"
        ) as caught:
            engine.search(ask("a", "b") * 20, 3)
        assert len(server.asked) == 1 and KEY not in str(caught.value)


@pytest.mark.parametrize("make", [SerpApiEngine, SerperEngine, SearchR1Engine, WikiRetrieverEngine])
def test_no_error_log_or_cache_file_holds_the_key(make, keys, caplog, tmp_path):
    caplog.set_level(logging.DEBUG)
    scripts = [
        lambda asked: asked.reply({"echo": asked.path, "headers": str(asked.headers)}, 400),
        lambda asked: asked.reply({"error": KEY}),
        lambda asked: asked.reset(),
        half,
        lambda asked: asked.reply({"organic_results": [], "organic": [], "result": [[]]}),
    ]
    for script in scripts:
        with serving(script) as server:
            (result,) = CachedEngine(make(server.url, QUICK), tmp_path).search(ask("q"), 3)
            assert server.asked and not leaks(result.error), result.error
    assert caplog.text and not leaks(caplog.text)
    assert not any(leaks(path.read_text()) for path in tmp_path.rglob("*.json"))


def leaks(text):
    return KEY in text or quote(KEY, safe="") in text


@pytest.mark.parametrize(
    "address",
    [
        "",
        "127.0.0.1:8000",
        "ftp://host",
        "http://",
        "http://me:secret@host",
        "http://host?key=secret",
        "http://[",
        "http://h:x",
        "http://h,",
        "http://h,http://me:secret@h",
    ],
)
def test_addresses_that_cannot_be_used(address):
    with pytest.raises(EngineError, match="give http://HOST:PORT") as caught:
        SearchR1Engine(address)
    assert "secret" not in str(caught.value)


# ------------------------------------------------------------------------------------------ cache and budget


class Counting:
    """A paid engine that says how often it was asked."""

    name, usd_per_query = "counting", 0.01

    def __init__(self, fail=()):
        self.asked, self.fail, self.lock = [], fail, threading.Lock()

    def search(self, requests, num_documents):
        with self.lock:
            self.asked += [request.query for request in requests]
        return [
            SearchResult((), "failed", "ill")
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
    assert sorted(inner.asked) == ["", "a", "b", "bad"] and (cached.hits, cached.misses) == (1, 4)
    again = CachedEngine(inner, tmp_path)
    assert again.search(ask("a", "bad", "a", "", "b"), 2) == first and inner.asked[4:] == ["bad"]
    assert (again.hits, again.misses, again.hit_rate, again.saved_usd) == (4, 1, 0.8, pytest.approx(0.04))
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
    budgeted = BudgetedEngine(inner, max_queries=5)
    budgeted.search(ask("a", "b", "c"), 1)
    with pytest.raises(BudgetError, match=r"3 queries .\$0.03. were made, 3 more would go beyond 5 queries"):
        budgeted.search(ask("d", "e", "f"), 1)
    budgeted.search(ask("d", "e"), 1)
    assert inner.asked == ["a", "b", "c", "d", "e"] and (budgeted.queries, budgeted.usd) == (5, 0.05)
    dollars = BudgetedEngine(inner, max_usd=0.03)
    dollars.search(ask("a", "b", "c"), 1)
    with pytest.raises(BudgetError, match=r"beyond \$0.03; allow more"):
        dollars.search(ask("d"), 1)


def test_a_budget_counts_across_threads():
    inner, refused = Counting(), []
    budgeted = BudgetedEngine(inner, max_queries=37)

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
        config.load_profile("tiny").policy("search-r1"),
        ScriptedGenerator(lambda prompt, key: "<search> a </search>"),
    )
    questions = [Question(str(i), "which?", ("Paris",)) for i in range(2)]
    with pytest.raises(BudgetError):
        rollout(questions, generator, BudgetedEngine(Counting(), max_queries=3), arm.rollout, [(0,), (1,)])
    failed = rollout(questions, generator, Counting(fail={"a"}), arm.rollout, [(0,), (1,)])
    assert [trajectory.stop_reason for trajectory in failed] == ["engine_failed"] * 2


# ------------------------------------------------------------------------------------------ by name


def test_engines_by_name(keys, monkeypatch, tmp_path):
    monkeypatch.setenv("ZS_SEARCH_CACHE", str(tmp_path))
    monkeypatch.setenv("ZS_SEARCH_BUDGET", "0.02")
    engine = build_engine("serpapi")
    assert isinstance(engine, CachedEngine) and (engine.folder, engine.engine.max_usd) == (tmp_path, 0.02)
    assert isinstance(engine.engine.engine, SerpApiEngine) and build_engine("wikipedia").name == "wikipedia"
    assert build_engine("search-r1:http://127.0.0.1:1").service.address == "http://127.0.0.1:1"
    assert isinstance(build_engine("zerosearch-wiki:http://127.0.0.1:1"), WikiRetrieverEngine)
    arm = config.load_profile("tiny").simulators[0]
    served = build_engine("openai:llama3.2:3b@http://127.0.0.1:1", arm=arm)
    assert (served.model, served.service.address, served.template) == (
        "llama3.2:3b",
        "http://127.0.0.1:1",
        arm.template,
    )
    assert (
        len(build_engine("openai:M@http://127.0.0.1:1,http://127.0.0.1:2/v1", arm=arm).service.replicas) == 2
    )
    with pytest.raises(EngineError, match="needs a simulator's arm"):
        build_engine("openai:http://127.0.0.1:1")
    for budget in ("lots", "nan", "-1"):
        monkeypatch.setenv("ZS_SEARCH_BUDGET", budget)
        with pytest.raises(EngineError, match="number of dollars"):
            build_engine("serper")
    for name in ("search-r1", "serpapi:http://x", "bing:http://x"):
        with pytest.raises(
            EngineError,
            match="Unknown search engine .*serpapi, serper, wikipedia, search-r1:URL, zerosearch-wiki:URL, python:MODULE.FUNCTION, simulated, openai:URL",
        ):
            build_engine(name)


def test_profiles_name_them():
    tiny = config.load_profile("tiny", {"evaluation.engine": "search-r1:http://127.0.0.1:8000"})
    assert tiny.evaluation.engine == "search-r1:http://127.0.0.1:8000"
    served = config.load_profile("tiny", {"policy.engine": "openai:http://127.0.0.1:8000"}).policy(
        "zerosearch"
    )
    plain = config.load_profile("tiny").policy("zerosearch")
    assert (served.simulator, served.curriculum) == (plain.simulator, plain.curriculum) and digest(
        served
    ) != digest(plain)
    assert config.load_profile("tiny", {"policy.engine": "wikipedia"}).policy("zerosearch").simulator is None
    for key, engine in (
        ("policy.engine", "search-r1"),
        ("evaluation.engine", "openai:http://x"),
        ("policy.engine", "bm25:http://x"),
    ):
        with pytest.raises(ConfigError, match="Known: .*search-r1:URL, zerosearch-wiki:URL"):
            config.load_profile("tiny", {key: engine})


def test_digests_of_recorded_arms_stay():
    """The recorded study's runs are found by them."""
    rows = (paths.ROOT / "data" / "results" / "tiny" / "provenance.csv").read_text().splitlines()
    run = next(row for row in rows if row.startswith("policy,zerosearch,")).split(",")[3]
    assert digest(config.load_profile("tiny").policy("zerosearch")) in run
