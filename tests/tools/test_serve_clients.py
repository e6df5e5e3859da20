"""Clients that send nothing, leave, come all at once, or do not read: what they cost the others."""

import asyncio
import contextlib
import json
import resource
import select
import socket
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from model_fixtures import tiny_model, tiny_tokenizer
from serve_fixtures import serving

from zs_lib.tools.serving import connections, web
from zs_lib.tools.serving.batches import BATCH, Batches, BatchGenerator, Job, Sampling

USER = [{"role": "user", "content": "Doc 1: the capital"}]


def connect(served):
    return socket.create_connection(("127.0.0.1", served.port), timeout=20)


@pytest.fixture
def opened():
    """Opens raw connections to a server, and closes them all at the end."""
    with contextlib.ExitStack() as stack:
        yield lambda served: stack.enter_context(connect(served))


def head(served, length, path="/v1/chat/completions"):
    host = served.url.removeprefix("http://")
    return f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\n\r\n".encode()


def whole(served, **asked):
    body = json.dumps({"messages": USER} | asked).encode()
    return head(served, len(body)) + body


def seconds(served, **asked):
    """Seconds that a request takes, of five tokens if nothing else is said."""
    started = time.monotonic()
    body = {"messages": USER, "max_tokens": 5} | asked
    assert httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60).is_success
    return time.monotonic() - started


def closed(raw):
    try:
        return raw.recv(4096) == b""
    except ConnectionError:
        return True


def unfinished_requests_lock_nobody_out_and_are_closed(served):
    """Silent connections, half a head, a head byte by byte, half a body: each for 50 connections."""
    begun = [b"", b"POST /v1/chat/comp", head(served, 100)[:-2], head(served, 100) + b'{"mess']
    with contextlib.ExitStack() as stack:
        raws = [[stack.enter_context(connect(served)) for _ in range(50)] for _ in begun]
        for some, sent in zip(raws, begun, strict=True):
            for raw in some:
                raw.sendall(sent)
        started = time.monotonic()
        assert seconds(served) < 5
        for _ in range(12):  # one byte a second does not keep a head alive
            time.sleep(1)
            for raw in raws[2]:
                with contextlib.suppress(OSError):
                    raw.sendall(b"x")
        assert all(closed(raw) for some in raws[:3] for raw in some)
        assert all(b" 408 " in raw.recv(4096)[:20] for raw in raws[3])
        assert all(closed(raw) for raw in raws[3]) and time.monotonic() - started < 20


def a_connection_serves_request_after_request(served):
    """Also pipelined ones, and after more than the time that a request may take in all."""
    with connect(served) as raw:
        for count, pause in ((3, 0), (1, 3), (1, 3), (1, 3), (1, 3)):
            time.sleep(pause)
            raw.sendall(whole(served, max_tokens=2) * count)
            received = b""
            while received.count(b'"total_tokens"') < count:
                part = raw.recv(65536)
                assert part
                received += part
            assert received.count(b"HTTP/1.1 200 ") == count


def a_client_that_does_not_read_is_cut_off(served):
    """Its answer, of some 18 MB, does not stay in the server."""
    body = json.dumps({"queries": ["capital of Spain"] * 66_000, "topk": 3}).encode()
    with socket.socket() as raw:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        raw.connect(("127.0.0.1", served.port))
        raw.settimeout(60)
        raw.sendall(head(served, len(body), "/retrieve") + body)
        assert b" 200 " in raw.recv(64)[:20]
        time.sleep(connections.WRITE_S + 3)
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := raw.recv(1 << 20):
                received += len(part)
        assert received < 8 << 20
        assert httpx.get(f"{served.url}/health").is_success


WAITING = (
    unfinished_requests_lock_nobody_out_and_are_closed,
    a_connection_serves_request_after_request,
    a_client_that_does_not_read_is_cut_off,
)


@pytest.fixture(scope="module", autouse=True)
def waiting(request, corpus, simulator):
    """The checks of servers' time limits: each waits for long, so they are begun beside the other tests."""
    chosen = {item.name.partition("[")[2].removesuffix("]") for item in request.session.items}
    with (
        serving("retriever", "--corpus", str(corpus), ZS_SERVE_TOKEN="") as unread,
        ThreadPoolExecutor() as pool,
    ):
        yield {
            check: pool.submit(check, unread if check is WAITING[-1] else simulator)
            for check in WAITING
            if check.__name__ in chosen
        }


@pytest.fixture(scope="module")
def shipped():
    """The largest of the shipped models, by which the bounds on time are checked."""
    with serving("simulator", "--model", "tiny-L", ZS_SERVE_TOKEN="") as served:
        yield served


@pytest.mark.parametrize("model", ["shipped", "simulator"])
def test_two_hundred_requests_at_once_are_queued(model, request):
    """Each is answered before its client's patience ends, a minute."""
    served = request.getfixturevalue(model)

    async def ask(client, i):
        body = {"messages": USER, "max_tokens": 10 + i % 7, "temperature": 0.5 + i % 2, "seed": i}
        return (await client.post(f"{served.url}/v1/chat/completions", json=body)).status_code

    async def all_at_once():
        async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:
            return await asyncio.gather(*(ask(client, i) for i in range(200)))

    assert asyncio.run(all_at_once()) == [200] * 200


def test_requests_beyond_the_stated_bound_are_told_to_come_again(folder, opened):
    with serving("simulator", "--model", str(folder), ZS_SERVE_TOKEN="") as served:
        asked = whole(served, max_tokens=450, temperature=2)
        raws = [opened(served) for _ in range(web.MAX_REQUESTS + 150)]
        for raw in raws:
            raw.sendall(asked)
        time.sleep(3)
        answered, _, _ = select.select(raws, [], [], 0)
        answers = [raw.recv(4096).lower() for raw in answered]
        refused = [answer for answer in answers if b" 503 " in answer[:20]]
        assert 0 < len(refused) <= 150 and all(b"retry-after: 1" in answer for answer in refused)
        assert all(b" 200 " in answer[:20] for answer in answers if answer not in refused)
        for raw in raws:
            raw.close()
        time.sleep(1)
        assert seconds(served) < 5


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("model", ["simulator", "shipped"])
def test_generation_stops_for_clients_that_left(model, request, opened, stream):
    served, long = request.getfixturevalue(model), {"max_tokens": 450, "temperature": 2}
    one = seconds(served, **long, seed=0)
    for _ in range(100):
        raw = opened(served)
        raw.sendall(whole(served, **long, stream=stream))
        if stream:
            assert b" 200 " in raw.recv(4096)[:20]
        raw.close()
    assert seconds(served) < 3 + one  # four batches of them would take more than four times as long


HALF = "\ud83d"


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": f"a{HALF}b"}]}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": HALF}]}]},
        ),
        ("/v1/chat/completions", {"messages": USER, "stop": [HALF]}),
        ("/v1/chat/completions", {"messages": USER, "model": HALF}),
        ("/v1/chat/completions", {"messages": USER, HALF: None}),
        ("/v1/completions", {"prompt": HALF}),
        ("/v1/completions", {"prompt": ["a", "\udfff"]}),
    ],
)
def test_half_a_surrogate_is_refused(simulator, path, body):
    answer = httpx.post(simulator.url + path, content=json.dumps(body), timeout=20)
    assert answer.status_code == 400 and "surrogate" in answer.json()["error"]["message"]


def test_half_a_surrogate_is_refused_by_the_retriever(retriever):
    for body in ({"queries": ["a", HALF]}, {"query": HALF}):
        assert httpx.post(f"{retriever.url}/retrieve", content=json.dumps(body)).status_code == 400


def test_whole_surrogate_pairs_and_escaped_backslashes_are_texts(retriever, simulator):
    for text in ("\N{GRINNING FACE}", "\\ud83d", "\N{REPLACEMENT CHARACTER}"):
        content = json.dumps({"queries": [text]})
        assert httpx.post(f"{retriever.url}/retrieve", content=content).json() == {"result": [[]]}
        content = json.dumps({"messages": [{"role": "user", "content": text}], "max_tokens": 2})
        assert httpx.post(f"{simulator.url}/v1/chat/completions", content=content).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 403),
        ({"Host": "127.0.0.1.evil.example:8000"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": "192.168.0.5:8000"}, 403),
        ({"Host": "evil.example@127.0.0.1"}, 200),  # a user name: the host is this machine
        ({"Host": "127.0.0.1@evil.example"}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "localhost:80"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "127.0.0.2"}, 200),
        ({"Host": "[::1]:8000"}, 200),
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1.evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "file://"}, 403),
        ({"Origin": ""}, 403),
        ({"Origin": "http://localhost:8888"}, 200),
        ({"Origin": "http://127.0.0.1:8888"}, 200),
        ({}, 200),
    ],
)
def test_web_pages_do_not_reach_a_server_on_loopback(retriever, simulator, headers, status):
    for address, path, body in (
        (retriever.url, "/retrieve", {"queries": ["sea"]}),
        (simulator.url, "/v1/completions", {"prompt": "a", "max_tokens": 1}),
    ):
        answer = httpx.post(address + path, json=body, headers=headers)
        assert answer.status_code == status
        assert httpx.get(f"{address}/health", headers=headers).status_code == status
        assert "access-control-allow-origin" not in answer.headers


def test_a_server_for_others_is_guarded_by_its_token_instead(corpus):
    arguments = ("retriever", "--corpus", str(corpus), "--host", "0.0.0.0")
    with serving(*arguments, ZS_SERVE_TOKEN="planted-51c") as served:
        url, body = f"http://127.0.0.1:{served.port}/retrieve", {"queries": ["sea"]}
        own = {"Host": "gpu7.cluster", "Authorization": "Bearer planted-51c"}
        assert httpx.post(url, json=body, headers=own).status_code == 200
        foreign = {"Origin": "https://evil.example"}
        assert httpx.post(url, json=body, headers=foreign).status_code == 401
        assert httpx.get(f"http://127.0.0.1:{served.port}/health").status_code == 200


@pytest.mark.parametrize("text", ["word " * 200_000, "a" * 1_000_000, "\N{GRINNING FACE}" * 80_000])
def test_prompts_far_too_long_hold_nobody_up(simulator, text):
    async def ask(client, path, **body):
        return await client.post(simulator.url + path, json=body | {"max_tokens": 2})

    async def clients():
        async with httpx.AsyncClient(timeout=60) as client:
            long = [asyncio.create_task(ask(client, "/v1/completions", prompt=text)) for _ in range(5)]
            chat = [{"role": "user", "content": text}]
            long += [
                asyncio.create_task(ask(client, "/v1/chat/completions", messages=chat)) for _ in range(5)
            ]
            await asyncio.sleep(0.05)
            started = time.monotonic()
            brief = await ask(client, "/v1/completions", prompt="Query:")
            return (
                time.monotonic() - started,
                brief.status_code,
                [one.status_code for one in await asyncio.gather(*long)],
            )

    waited, status, refused = asyncio.run(clients())
    assert status == 200 and refused == [400] * 10 and waited < 1.5


# in one process


class Counted(BatchGenerator):
    """Counts its batches and their steps."""

    batches = steps = 0

    def complete(self, jobs, *progress):
        self.batches += 1
        return super().complete(jobs, *progress)

    def _choose(self, *row):
        self.steps += 1
        return super()._choose(*row)


async def completed(generator, jobs):
    queue = Batches(generator)
    async with queue.running(None):
        queue.add(jobs)
        await asyncio.gather(*(job.done for job in jobs))


def job(i, **settings):
    prompt = tiny_tokenizer()("Doc 1: the capital").input_ids
    return Job(prompt=tuple(prompt), key=(i,), sampling=Sampling(**{"max_tokens": 8} | settings))


def test_requests_of_different_settings_share_a_batch():
    async def run():
        settings = [
            {"max_tokens": 4 + i, "temperature": i / 10, "top_k": i, "stop": ("q" * (i + 1),)}
            for i in range(BATCH)
        ]
        jobs = [job(i, **one) for i, one in enumerate(settings)]
        await completed(generator, jobs)
        return jobs

    generator = Counted(tiny_model(), tiny_tokenizer())
    jobs = asyncio.run(run())
    assert generator.batches == 1 and all(0 < len(one.ids) <= one.sampling.max_tokens for one in jobs)


def test_a_short_request_does_not_wait_for_the_long_ones_of_its_batch():
    async def run():
        long, brief = job(0, max_tokens=400, temperature=0), job(1, max_tokens=2)
        queue = Batches(generator)
        async with queue.running(None):
            queue.add([long, brief])
            await brief.done
            steps = generator.steps
            long.done.cancel()
            await asyncio.sleep(1)
        return steps, generator.steps

    generator = Counted(tiny_model(), tiny_tokenizer())
    generator._eos = set()
    steps, last = asyncio.run(run())
    assert steps < 100 and last < 200  # and the cancelled one was not completed


def test_a_failed_batch_fails_its_own_requests_alone():
    class Failing(Counted):
        def complete(self, jobs, *progress):
            super().complete(jobs, *progress)
            if self.batches == 1:
                raise MemoryError("no more")

    async def run():
        queue, first = Batches(generator), [job(0, max_tokens=300), job(1, max_tokens=300)]
        async with queue.running(None):
            queue.add(first)
            await asyncio.sleep(0.1)
            second = job(2)
            queue.add([second])
            await asyncio.wait_for(second.done, 20)
        return second

    generator = Failing(tiny_model(), tiny_tokenizer())
    assert 0 < len(asyncio.run(run()).ids) <= 8


# at the end: when the others have waited, and what closes their connections


@pytest.mark.parametrize("check", WAITING, ids=lambda check: check.__name__)
def test_time_limits(check, waiting):
    waiting[check].result()


def test_more_silent_connections_than_the_server_keeps(simulator, opened):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    busy = opened(simulator)
    busy.sendall(whole(simulator, max_tokens=400, temperature=2))
    assert seconds(simulator) < 5  # so that the request has been read before the others come
    raws = [opened(simulator) for _ in range(connections.MAX_CONNECTIONS + 50)]
    assert seconds(simulator) < 5
    assert b" 200 " in busy.recv(4096)[:20]  # one that waits for its answer is not closed for others
    assert sum(closed(raw) for raw in raws[:40]) == 40
