"""`make faults`: engines that fail, at rates from 1% to 100%, over real sockets; and training with an engine
that does.

    PYTHONPATH=tests/support python tests/drills/faults.py

writes faults.csv and faults_training.csv in data/results/.

Every attempt at a server draws anew (from SEED) whether it is spoilt and how, so that retries help as they
would in life. Each search must end within its bound; what comes back is the right documents, or "failed" with
a cause, and never a document made of an error. Training: `search-r1` of `tiny`, with a tenth of the requests
failing for good.
"""

from __future__ import annotations

import socket
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from random import Random

import pandas as pd
import torch
from engine_fixtures import simulator_arm
from http_fixtures import Asked, serving

from zs_lib import config, qa
from zs_lib.analysis.results import load_tables
from zs_lib.config import paths
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult, build_engine
from zs_lib.engines.client import Limits
from zs_lib.engines.http import OpenAIEngine, SearchR1Engine
from zs_lib.models.load import load_model
from zs_lib.rl.train import SUMMARY_STEPS, Training, train
from zs_lib.rng import uniform
from zs_lib.runs import RunStore
from zs_lib.runs.provenance import available_cores, provenance

RECORDS = paths.ROOT / "data" / "results"
SEED = 0
RATES = (0.01, 0.1, 1.0)
REQUESTS = {0.01: 2000, 0.1: 1000, 1.0: 48}
"""Few where every one fails: each takes all its attempts."""
LIMITS = Limits(attempts=3, attempt_s=0.5, search_s=20, first_wait_s=0.01, longest_wait_s=0.5)
FAILING = 0.1
"""Share of the requests that fail for good in training."""
SEEDS = (0, 1, 2)
"""Those that are recorded without faults."""


def hang(asked: Asked) -> None:
    asked.server.over.wait(2 * LIMITS.attempt_s)


def drip(asked: Asked) -> None:
    asked.send_response(200)
    asked.send_header("Content-Length", "1000")
    asked.end_headers()
    for _ in range(20):
        asked.wfile.write(b" ")
        asked.server.over.wait(LIMITS.attempt_s / 5)


def retriever(asked: Asked) -> dict:
    return {
        "result": [
            [{"document": {"id": "1", "contents": right(query)}, "score": 1.0}]
            for query in asked.body["queries"]
        ]
    }


def simulator(asked: Asked) -> dict:
    query = asked.body["messages"][0]["content"].rpartition("Query: ")[2].partition("\n")[0]
    return {"choices": [{"message": {"content": f"Doc 1: {right(query)}"}}]}


SERVERS = {
    "retriever": (retriever, lambda address: SearchR1Engine(address, LIMITS)),
    "simulator": (
        simulator,
        lambda address: OpenAIEngine(address, simulator_arm("paper", 0.0, 50), "M", LIMITS),
    ),
}
"""Kind of server → its right answer, and the engine that asks it."""
SPOILT: dict[str, Callable[[Asked], None]] = {
    "hang": hang,
    "drip": drip,
    "reset": Asked.reset,
    "429": lambda asked: asked.reply({"error": "slow down"}, 429, Retry_After="0"),
    "500": lambda asked: asked.reply({"error": "oops"}, 500),
    "garbage": lambda asked: asked.reply(b"\xff\x00<html>Error: try later</html>"),
    "half a JSON": lambda asked: asked.reply(b'{"result": [[{"document": {"id": "1", "contents": "Err'),
    "another protocol": lambda asked: asked.reply({"data": ["Error: unknown route"]}),
    "10 MB": lambda asked: asked.reply(b'{"result": "' + b"x" * 10_000_000 + b'"}'),
    "zero documents": lambda asked: asked.reply(
        {"result": [[] for _ in asked.body["queries"]]}
        if "queries" in asked.body
        else {"choices": [{"message": {"content": ""}}]}
    ),
}
"""Name of a fault → what it does to an answer."""


def right(query: str) -> str:
    return f"the document of {query}"


def http(kind: str, rate: float, served: str) -> dict:
    """Searches at a server that spoils this share of its answers; what came back, and how long it took."""
    draw, spoil, (answers, engine_at) = (
        Random(f"{SEED} {kind} {rate} {served}"),
        SPOILT.get(kind),
        SERVERS[served],
    )

    def answer(asked: Asked) -> None:
        with asked.server.lock:
            spoilt = draw.random() < rate
        if spoilt:
            spoil(asked)
        else:
            asked.reply(answers(asked))

    requests = [SearchRequest(f"query {i}", "which?", ("x",), key=(SEED, i)) for i in range(REQUESTS[rate])]
    with serving(answer) as server:
        address = server.url if spoil else f"http://127.0.0.1:{_free_port()}"
        engine, started, longest, results = engine_at(address), time.monotonic(), 0.0, []
        for start in range(0, len(requests), 64):  # a step's rollouts
            began = time.monotonic()
            results += engine.search(requests[start : start + 64], 3)
            longest = max(longest, time.monotonic() - began)
        attempts = len(server.asked)
    counts = Counter(result.status for result in results)
    wrong = sum(
        result.documents not in ((), (right(request.query),))
        or (result.status == "failed") != bool(result.error)
        for request, result in zip(requests, results, strict=True)
    )
    return {
        "server": served,
        "fault": kind,
        "rate": rate,
        "requests": len(requests),
        "attempts": attempts,
        "ok": counts["ok"],
        "empty": counts["empty"],
        "failed": counts["failed"],
        "wrong": wrong,
        "longest_search_s": round(longest, 2),
        "seconds": round(time.monotonic() - started, 1),
    }


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


class FailingEngine(SearchEngine):
    """Another engine, whose answer to a share of the requests (by their key) is a failure."""

    def __init__(self, engine: SearchEngine, share: float):
        self.engine, self.share, self.name = engine, share, engine.name

    def search(self, requests, num_documents: int) -> list[SearchResult]:
        failing = [uniform(request.key, 0, "fault") < self.share for request in requests]
        found = iter(
            self.engine.search(
                [request for request, fails in zip(requests, failing, strict=True) if not fails],
                num_documents,
            )
        )
        return [SearchResult.failed("planted fault") if fails else next(found) for fails in failing]


def training(seed: int) -> dict:
    """`search-r1` of `tiny` with an engine of which FAILING fails, beside the recorded run of that seed."""
    torch.set_num_threads(1)
    arm = config.load_profile("tiny").policy("search-r1")
    questions, loaded = qa.load_questions(subset=arm.subsets, split="train"), load_model(arm.backbone)
    engine = FailingEngine(build_engine(arm.engine, split="train"), FAILING)
    with tempfile.TemporaryDirectory() as folder:
        run = RunStore(Path(folder)).complete(
            arm, seed, lambda run: train(Training(run, arm, questions, loaded, engine))
        )
        log, reward = run.metrics(), run.summary["last_reward"]
    recorded = load_tables("tiny")["training"].query("arm == @arm.name and seed == @seed")["reward"]
    return {
        "seed": seed,
        "failing_requests": FAILING,
        "failed_rollouts": log["failed"].mean(),
        "steps": len(log),
        "last_reward": reward,
        "last_reward_without": recorded.tail(SUMMARY_STEPS).mean(),
    }


def main() -> int:
    sources = provenance()["code"]["sources"]
    with ProcessPoolExecutor(available_cores(), get_context("spawn")) as pool:
        trained = pool.map(training, SEEDS)
        tried = [http(kind, rate, served) for served in SERVERS for kind in SPOILT for rate in RATES]
        tried += [http("refused", 1.0, served) for served in SERVERS]
        learnt = pd.DataFrame(trained).assign(sources=sources)
    faults = pd.DataFrame(tried).assign(sources=sources)
    for name, table in (("faults", faults), ("faults_training", learnt)):
        table.to_csv(RECORDS / f"{name}.csv", index=False, float_format="%.4g", lineterminator="\n")
        print(table.drop(columns="sources").to_string(index=False))
    slow = faults["longest_search_s"] > LIMITS.search_s + LIMITS.attempt_s
    return int((faults["wrong"] > 0).any() or slow.any())


if __name__ == "__main__":
    sys.exit(main())
