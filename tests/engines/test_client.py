"""The HTTP client under failures: each is a result that says why, in bounded time; replicas share load."""

import asyncio
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from engine_fixtures import simulator_arm
from http_fixtures import QUICK, ask, completion, drip, drip_headers, half, hang, serving

from zs_lib.config import paths
from zs_lib.engines import SearchResult, client
from zs_lib.engines.client import Limits
from zs_lib.engines.http import OpenAIEngine, SearchR1Engine, WikiRetrieverEngine
from zs_lib.errors import EngineError


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


@pytest.fixture
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_proxies_are_for_other_machines_only(no_proxies, monkeypatch):
    with serving(lambda asked: asked.reply([{"text": asked.path}])) as server:
        monkeypatch.setenv("http_proxy", server.url)
        assert WikiRetrieverEngine("http://search.invalid", QUICK).search(ask("q"), 1)[0].documents == (
            "http://search.invalid/retrieve",
        )
        monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
        port = server.server_port
        for here in (server.url, f"http://localhost:{port}", f"http://0.0.0.0:{port}"):
            assert WikiRetrieverEngine(here, QUICK).search(ask("q"), 1)[0].documents == ("/retrieve",)


@pytest.mark.parametrize("name", ["http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"])
def test_a_proxy_needs_no_scheme(no_proxies, monkeypatch, name):
    with serving(lambda asked: asked.reply([{"text": asked.path}])) as server:
        monkeypatch.setenv(name, f"127.0.0.1:{server.server_port}")
        (result,) = WikiRetrieverEngine("http://search.invalid:81", QUICK).search(ask("q"), 1)
        assert result.documents == ("http://search.invalid:81/retrieve",)


@pytest.mark.parametrize(
    ("no_proxy", "host", "direct"),
    [
        ("10.0.0.0/8", "10.1.2.3", True),
        ("10.0.0.0/8", "11.1.2.3", False),
        ("a.example, 10.1.2.3", "10.1.2.3", True),
        ("10.1.2.3", "10.1.2.30", False),
        ("example", "search.example", True),
        (".example", "search.example", True),
        ("example", "anexample", False),
        ("search.example:81", "search.example", True),
        ("search.example:82", "search.example", False),
        ("*", "search.example", True),
    ],
)
def test_no_proxy_is_read_as_requests_reads_it(no_proxies, monkeypatch, no_proxy, host, direct):
    with serving(lambda asked: asked.reply([])) as server:
        monkeypatch.setenv("http_proxy", server.url)
        monkeypatch.setenv("no_proxy", no_proxy)
        proxy = client._proxy(f"http://{host}:81")
        assert proxy is None if direct else str(proxy.url) == server.url
        if not direct:
            assert WikiRetrieverEngine(f"http://{host}:81", QUICK).search(ask("q"), 1)[0].status == "empty"
            assert server.asked[0].path == f"http://{host}:81/retrieve"


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        ("socks5://me:secret@127.0.0.1:9", r"pip install 'httpx\[socks\]'"),
        ("socks4://me:secret@127.0.0.1:9", "none that can be used: give http://HOST:PORT"),
        ("ftp://me:secret@127.0.0.1", "none that can be used"),
        ("http://me:secret@127.0.0.1:x", "none that can be used"),
        ("http://[me", "none that can be used"),
        ("http://", "none that can be used"),
    ],
)
@pytest.mark.parametrize(
    "make",
    [WikiRetrieverEngine, SearchR1Engine, lambda url, limits: OpenAIEngine(url, simulator_arm(), "", limits)],
)
def test_a_proxy_that_cannot_be_used_is_one_error_without_its_password(
    no_proxies, monkeypatch, proxy, message, make
):
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(EngineError, match=message) as caught:
        make("http://search.example", QUICK).search(ask("q"), 1)
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)


def test_a_proxy_that_is_down_is_named_without_its_password(no_proxies, monkeypatch):
    with serving(hang) as server:
        pass
    monkeypatch.setenv("http_proxy", f"me:secret@127.0.0.1:{server.server_port}")
    (result,) = WikiRetrieverEngine("http://search.example", QUICK).search(ask("q"), 1)
    assert f"no answer through the proxy {server.url} (ConnectError) (2 attempts); check" in result.error
    assert "secret" not in result.error


def test_ctrl_c_ends_a_search_at_once():
    asked = threading.Event()
    with serving(lambda request: asked.set() or hang(request)) as server:
        command = [sys.executable, "-m", "zs_lib", "search", "q", "--engine", f"search-r1:{server.url}"]
        process = subprocess.Popen(command, cwd=paths.ROOT, stderr=subprocess.PIPE, text=True)
        assert asked.wait(30)
        process.send_signal(signal.SIGINT)
        assert process.wait(4) == 130 and process.stderr.read() == ""
        process.stderr.close()


def simulator(seconds=0.0):
    """Documents that depend on the query and the seed alone, as a simulator's do."""

    def answer(asked):
        asked.server.over.wait(seconds)
        asked.reply(completion(f"Doc 1: {asked.body['messages'][0]['content'][-40:]} {asked.body['seed']}"))

    return answer


def replicas(*servers, limits=QUICK):
    return OpenAIEngine(",".join(f"{server.url}/v1/" for server in servers), simulator_arm(), "M", limits)


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
            OpenAIEngine(f"{gone.url},{broken.url}", simulator_arm(), limits=QUICK)
