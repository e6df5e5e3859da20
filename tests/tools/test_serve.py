"""`zs serve`: real processes on real ports, asked by our engines and by hand."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import threading
import time

import httpx
import pytest
from engine_fixtures import simulator_arm
from model_fixtures import tiny_model, tiny_tokenizer
from run_fixtures import CountingArm
from serve_fixtures import CORPUS, TOKEN, request, serving

from zs_lib import cli, config, qa
from zs_lib.engines import build_engine
from zs_lib.engines.client import Limits
from zs_lib.engines.http import OpenAIEngine, SearchR1Engine, seed_of
from zs_lib.engines.simulated import SimulatedEngine
from zs_lib.errors import DataError, EngineError, RunError
from zs_lib.models.decode import TransformersGenerator
from zs_lib.pipeline import ensure
from zs_lib.tools.serving import batches, serve


@pytest.fixture(autouse=True)
def no_token(monkeypatch):
    monkeypatch.delenv("ZS_SERVE_TOKEN", raising=False)


# retriever


def test_the_retriever_speaks_search_r1(retriever):
    asked = {"queries": ["capital of Spain", "sea", "zebra"], "topk": 2}
    bare = httpx.post(f"{retriever.url}/retrieve", json=asked).json()["result"]
    assert [[document["id"] for document in row] for row in bare] == [["8", "7"], ["9"], []]
    assert bare[0][0] == {"id": "8", "contents": CORPUS[1]["contents"]}
    scored = httpx.post(f"{retriever.url}/retrieve", json=asked | {"return_scores": True}).json()["result"]
    assert [[item["document"] for item in row] for row in scored] == bare
    assert scored[0][0]["score"] > scored[0][1]["score"] > 0
    assert (
        len(httpx.post(f"{retriever.url}/retrieve", json={"queries": ["capital city"]}).json()["result"][0])
        == 3
    )


def test_our_search_r1_engine_asks_our_retriever(retriever):
    results = SearchR1Engine(retriever.url).search(
        [request("capital of Spain"), request("zebra"), request("\udcff sea")], 1
    )
    assert [result.documents for result in results] == [
        (CORPUS[1]["contents"],),
        (),
        (CORPUS[2]["contents"],),
    ]


def test_the_example_of_the_ready_line_works(retriever):
    command = retriever.line.removeprefix("Ready: ")
    shown = subprocess.run(
        command.replace("curl", "curl -s", 1), shell=True, capture_output=True, text=True, check=True
    ).stdout
    assert json.loads(shown)["result"][0][0]["document"]["id"] == "7"


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({}, 400, "'queries' must be given"),
        ({"queries": [5]}, 400, "texts"),
        ({"queries": "a"}, 400, "as list"),
        ({"queries": ["a"] * 2001, "topk": 100}, 400, "at most 200,000 documents"),
        ({"queries": ["a"], "topk": -1}, 400, "from 0 to 100"),
        ({"queries": ["a"], "topk": 101}, 400, "from 0 to 100"),
        ({"query": ["a"]}, 400, "as str"),
        ({"query": "a", "top_k": -1}, 400, "from 0 to 100"),
        ({"queries": ["a"], "topk": True}, 400, "as int"),
        ({"queries": ["a"], "topk": 1e300}, 400, "as int"),
        ({"queries": ["a"], "return_scores": 1}, 400, "as bool"),
        ([], 400, "not a JSON object"),
        ({"queries": ["a" * 17_000_000]}, 413, "bytes"),
    ],
)
def test_wrong_requests_are_refused(retriever, asked, status, message):
    answer = httpx.post(f"{retriever.url}/retrieve", json=asked)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True)


def test_rubbish_is_refused_and_nothing_is_served_from_the_disk(retriever):
    for body in (
        b"",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"queries": ["\xed\xa0\x80"]}',
        '{"queries": []}'.encode("utf-16"),
    ):
        assert httpx.post(f"{retriever.url}/retrieve", content=body).status_code == 400
    for path in ("/", "/../pyproject.toml", "/retrieve/../../etc/passwd", "/retrieve%00", "/docs"):
        assert httpx.get(retriever.url + path).status_code in (404, 405)
    with socket.create_connection(
        ("127.0.0.1", retriever.port), timeout=5
    ) as raw:  # chunks beyond the limit, no length
        raw.sendall(b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for _ in range(300):
                raw.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
        except OSError:
            pass
        assert b" 413 " in raw.recv(4096)[:20]
    assert SearchR1Engine(retriever.url).search([request("sea")], 1)[0].status == "ok"  # still there


def test_a_token_is_asked_for_where_one_is_set(corpus, monkeypatch):
    with serving(
        "retriever", "--engine", "dense", "--corpus", str(corpus), "--host", "0.0.0.0", ZS_SERVE_TOKEN=TOKEN
    ) as served:
        url = f"http://127.0.0.1:{served.port}"
        assert TOKEN not in served.line and "$ZS_SERVE_TOKEN" in served.line
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}):
            assert httpx.post(f"{url}/retrieve", json={"queries": ["a"]}, headers=headers).status_code == 401
        with pytest.raises(EngineError, match="put the right key into ZS_SERVE_TOKEN"):
            SearchR1Engine(url).search([request("capital of Spain")], 1)
        monkeypatch.setenv("ZS_SERVE_TOKEN", TOKEN)
        assert (
            SearchR1Engine(url).search([request("capital of Spain")], 3)[0].documents[0]
            == CORPUS[1]["contents"]
        )
        assert served.stop() == 0 and TOKEN not in served.process.stderr.read()


@pytest.mark.parametrize(("by", "code", "body"), [(signal.SIGTERM, 0, b"{"), (signal.SIGINT, 130, b"{}")])
def test_signals_end_it_cleanly(by, code, body):
    """Also while a client has only sent a part of its request."""
    with (
        serving("retriever", ZS_SERVE_TOKEN="") as served,
        socket.create_connection(("127.0.0.1", served.port)) as raw,
    ):
        raw.sendall(b"POST /retrieve HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n" + body)
        found = SearchR1Engine(served.url).search([request("capital of Norway")], 3)[0].documents
        assert found == build_engine("bm25").search([request("capital of Norway")], 3)[0].documents
        started = time.monotonic()
        assert served.stop(by) == code and time.monotonic() - started < 10
        assert "Traceback" not in served.process.stderr.read()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["retriever", "--host", "0.0.0.0"],
            "Other machines can reach 0.0.0.0: put a secret into the environment variable ZS_SERVE_TOKEN",
        ),
        (["retriever", "--host", "no.such.host.invalid"], "Other machines can reach no.such.host.invalid"),
        (["retriever", "--port", "99999"], "Port 99999 of 127.0.0.1 cannot be used"),
        (["retriever", "--port", "TAKEN"], "cannot be used (Address already in use): choose another --port"),
        (
            ["retriever", "--port", "0", "--corpus", "nowhere.jsonl"],
            "nowhere.jsonl is missing: each line must be",
        ),
        (["simulator", "--port", "0", "--model", "nothing"], "No run is called 'nothing'"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments, message, store, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code = cli.main(
            ["serve", *(str(taken.getsockname()[1]) if word == "TAKEN" else word for word in arguments)]
        )
    out, err = capsys.readouterr()
    assert (code, out, err.count("\n")) == (1, "", 1) and message in err


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is not JSON (Expecting property name"),
        ("[]", "line 2"),
        ('{"id": "1"}', "line 2: no passage (id or contents are missing"),
        ('{"id": null, "contents": "x"}', "no text"),
        ('{"id": "1", "contents": ["x"]}', "no text"),
        ("\udcff", "cannot be read as UTF-8"),
    ],
)
def test_damaged_corpora_say_where(line, message, tmp_path):
    path = tmp_path / "mine.jsonl"
    path.write_bytes((json.dumps(CORPUS[0]) + "\n" + line + "\n").encode(errors="surrogateescape"))
    with pytest.raises(DataError, match=re.escape(message)) as caught:
        list(qa.read_corpus(path))
    assert "mine.jsonl" in str(caught.value)


def test_corpora_keep_their_ids(corpus, tmp_path):
    assert list(qa.read_corpus(corpus))[1] == qa.Passage("8", CORPUS[1]["contents"], "")
    (tmp_path / "empty").touch()
    with pytest.raises(DataError, match="is empty"):
        list(qa.read_corpus(tmp_path / "empty"))


# simulator


def chat(served, **asked):
    whole = {"messages": [{"role": "user", "content": "Doc 1: the capital"}]} | asked
    return httpx.post(f"{served.url}/v1/chat/completions", json=whole, timeout=60)


def test_a_simulator_s_run_is_served_by_its_name(store):
    store.root.mkdir()
    arm = config.load_profile("tiny").simulators[0]
    run = store.complete(arm, 0, lambda run: {})
    assert serve._weights(run.path.name) == (str(run.model_dir), arm.name)
    with pytest.raises(RunError, match="no finished simulator"):
        serve._weights(ensure(CountingArm(), 0, store).digest)


def test_our_openai_engine_asks_our_simulator(simulator):
    engine = OpenAIEngine(simulator.url, simulator_arm("short", 0.9, 40), limits=Limits(concurrency=8))
    assert engine.model == "tiny"
    requests = [request("Doc 1: capital", (i,), i % 2 == 0) for i in range(12)]
    results = engine.search(requests, 3)
    ours = SimulatedEngine(
        TransformersGenerator(tiny_model(), tiny_tokenizer()), simulator_arm("short", 0.9, 40)
    )
    seeded = [request(r.query, (seed_of(r.key),), r.noisy) for r in requests]
    assert results == ours.search(seeded, 3) and results[7] == engine.search([requests[7]], 3)[0]
    assert engine.tokens > 0


def test_a_replica_killed_in_the_middle_of_a_batch_costs_no_answer(simulator, folder):
    requests = [
        request("Doc 1: capital", (i,), i % 2 == 0) for i in range(320)
    ]  # so many that it is killed before the last
    with serving("simulator", "--model", str(folder), ZS_SERVE_TOKEN="") as other:
        engine = OpenAIEngine(f"{simulator.url},{other.url}", simulator_arm("short", 2.0))
        dying = engine.service.replicas[1]
        killer = threading.Thread(
            target=kill_when, args=(lambda: dying.asked > dying.in_flight > 0, other.process)
        )
        killer.start()
        found = engine.search(requests, 3)
        killer.join()
        assert other.process.wait(5) == -signal.SIGKILL and dying.failures > 0
    assert found == OpenAIEngine(simulator.url, simulator_arm("short", 2.0)).search(requests, 3)
    assert engine.search(requests[:2], 3) == found[:2] and {result.status for result in found} <= {
        "ok",
        "empty",
    }


def kill_when(due, process):
    """As soon as a batch was answered and another is under way."""
    deadline = time.monotonic() + 60
    while not due() and time.monotonic() < deadline:
        time.sleep(0.002)
    process.kill()


@pytest.mark.parametrize("other", [{}, {"temperature": 0.3}])
def test_a_burst_delays_another_s_request_by_no_more_than_what_is_before_it(simulator, other):
    """First come, first served: of the second burst at most one batch comes before the single request."""
    answered, sent = [], []

    async def trace(event, _):
        sent.extend([event] * (event == "http11.send_request_body.complete"))

    async def ask(client, who, **asked):
        body = {
            "messages": [{"role": "user", "content": "Doc 1: the capital"}],
            "max_tokens": 60,
            "temperature": 2.0,
        } | asked
        url, extensions = f"{simulator.url}/v1/chat/completions", {"trace": trace}
        assert (await client.post(url, json=body, extensions=extensions)).is_success
        answered.append(who)

    async def clients():
        limits = httpx.Limits(max_connections=None)
        async with (
            httpx.AsyncClient(timeout=60, limits=limits) as greedy,
            httpx.AsyncClient(timeout=60) as modest,
            asyncio.TaskGroup() as group,
        ):
            for client, who, count, asked in (
                (greedy, "first", 70, {}),
                (modest, "single", 1, other),
                (greedy, "second", 50, {}),
            ):
                expected = len(sent) + count
                for seed in range(count):
                    group.create_task(ask(client, who, seed=seed, **asked))
                while len(sent) < expected:  # on a busy machine opening 70 connections takes its time
                    await asyncio.sleep(0.05)
                await asyncio.sleep(0.5)

    asyncio.run(clients())
    before = answered[: answered.index("single")]
    assert len(answered) == 121 and before.count("second") <= batches.BATCH


def test_completions_have_openai_s_form(simulator):
    answer = chat(
        simulator, model="tiny", max_tokens=20, seed=3, temperature=0.5, n=1, stream=False, top_p=1.0
    ).json()
    choice, usage = answer["choices"][0], answer["usage"]
    assert choice["message"]["role"] == "assistant" and choice["finish_reason"] in ("stop", "length")
    assert answer["object"] == "chat.completion" and answer["model"] == "tiny"
    assert (
        usage["total_tokens"] == usage["prompt_tokens"] + usage["completion_tokens"]
        and 0 < usage["completion_tokens"] <= 20
    )
    assert (
        chat(simulator, max_tokens=20, seed=3, temperature=0.5).json()["choices"][0]["message"]
        == choice["message"]
    )
    whole = chat(simulator, max_tokens=20, seed=3, temperature=0).json()["choices"][0]["message"]["content"]
    cut = chat(simulator, max_tokens=20, seed=3, temperature=0, stop=whole[2:5]).json()["choices"][0]
    assert cut == {
        "index": 0,
        "message": {"role": "assistant", "content": whole.partition(whole[2:5])[0]},
        "finish_reason": "stop",
    }
    assert [model["id"] for model in httpx.get(f"{simulator.url}/v1/models").json()["data"]] == ["tiny"]


@pytest.mark.parametrize(
    ("asked", "status", "message"),
    [
        ({"model": "../../etc/passwd"}, 404, "no such model: this server has 'tiny'"),
        ({"messages": []}, 400, "'messages' must be"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "both texts"),
        ({"messages": [{"role": "user", "content": None}]}, 400, "both texts"),
        ({"messages": [3]}, 400, "both texts"),
        ({"messages": [{"role": "user", "content": ""}]}, 400, "a prompt of 0 tokens"),
        ({"messages": None}, 400, "as list"),
        ({"messages": [{"role": "user", "content": "word " * 600}]}, 400, "context of 512"),
        ({"max_tokens": 0}, 400, "from 1 to 4096"),
        ({"max_tokens": 5000}, 400, "from 1 to 4096"),
        ({"temperature": -1}, 400, "from 0 to 2"),
        ({"temperature": "hot"}, 400, "as float"),
        ({"stop": ["a"] * 65}, 400, "at most 64"),
        ({"stop": ""}, 400, "1 to 100 characters"),
        ({"stream": 1}, 400, "as bool"),
        ({"n": 0}, 400, "from 1 to 128"),
        ({"n": 129}, 400, "from 1 to 128"),
        ({"top_p": 1.5}, 400, "from 0 to 1"),
        ({"top_k": -2}, 400, "from -1 to inf"),
        ({"top_logprobs": 3}, 400, "needs 'logprobs'"),
        ({"logprobs": True, "top_logprobs": 21}, 400, "from 0 to 20"),
        ({"tools": [{"type": "function"}]}, 400, "'tools' is not supported"),
        ({"response_format": {"type": "json_object"}}, 400, "'response_format' is not supported"),
        ({"repetition_penalty": 1.1}, 400, "'repetition_penalty' is not supported"),
        ({"store": True}, 400, "'store' is not supported"),
        ({"unheard_of": 0}, 400, "'unheard_of' is not supported"),
        ({"seed": "x"}, 400, "as int"),
    ],
)
def test_wrong_chats_are_refused(simulator, asked, status, message):
    answer = chat(simulator, **asked)
    assert (answer.status_code, message in answer.json()["error"]["message"]) == (status, True), answer.text


@pytest.mark.parametrize("stream", [False, True])
def test_sigterm_breaks_off_a_long_completion(folder, stream):
    asked = {"messages": [{"role": "user", "content": "word"}], "max_tokens": 500, "temperature": 2}
    body = json.dumps(asked | {"stream": stream}).encode()
    with (
        serving("simulator", "--model", str(folder), ZS_SERVE_TOKEN="") as served,
        contextlib.ExitStack() as clients,
    ):
        for _ in range(100):  # batches of 32, one after the other
            raw = clients.enter_context(socket.create_connection(("127.0.0.1", served.port)))
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
            raw.sendall(head.encode() + b"\r\n\r\n" + body)
        started = time.monotonic()
        assert served.stop() == 0 and time.monotonic() - started < 15
        assert "Traceback" not in served.process.stderr.read()


VLLM = """
import os, sys
from http.server import BaseHTTPRequestHandler, HTTPServer
given = dict(zip(sys.argv[1::2], sys.argv[2::2]))
if "broken" in given["--model"]:
    sys.exit("no GPU")
class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
        self.wfile.write(repr((given, os.environ.get("VLLM_API_KEY"))).encode())
    log_message = lambda *_: None
HTTPServer((given["--host"], int(given["--port"])), Handler).serve_forever()
"""


@pytest.fixture
def vllm(tmp_path, monkeypatch):
    """A stand-in for the package, which is not on every machine: it listens where it is told to, and tells
    what it was given."""
    place = tmp_path / "packages" / "vllm" / "entrypoints" / "openai"
    place.mkdir(parents=True)
    for path in (place, place.parent, place.parent.parent):
        (path / "__init__.py").touch()
    (place / "api_server.py").write_text(VLLM)
    monkeypatch.syspath_prepend(tmp_path / "packages")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "packages"), prepend=os.pathsep)


def test_vllm_serves_where_it_is_installed(vllm, folder):
    with serving("simulator", "--model", str(folder), ZS_SERVE_TOKEN=TOKEN) as served:
        shown = httpx.get(f"{served.url}/x").text
        assert f"'--model': '{folder}', '--served-model-name': 'tiny'" in shown and "message.content" in shown
        assert "'--middleware': 'zs_lib.tools.serving.web.LoopbackOnly'" in shown
        assert TOKEN in shown.partition("}")[2]  # in its environment, not among its arguments
        assert served.stop() == 0


def test_vllm_that_does_not_start_is_an_error(vllm, tmp_path, capfd):
    tiny_tokenizer().save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "config.json").write_text("{}")
    serve_it = ["serve", "simulator", "--model", str(tmp_path / "broken"), "--port", "0"]
    assert cli.main(serve_it) == 1
    assert "broken' cannot be read (Unrecognized model" in capfd.readouterr().err
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "llama"}')
    assert cli.main(serve_it) == 1
    assert "no GPU\nzs: vLLM ended with exit code 1" in capfd.readouterr().err
