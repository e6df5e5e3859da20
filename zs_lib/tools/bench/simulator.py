"""Benchmark a simulator: documents per second in process, served, and by transformers; and waiting times."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch

from zs_lib import config, protocol, qa
from zs_lib.config.arms import SimulatorArm
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult, build_engine
from zs_lib.engines.client import Limits, Service
from zs_lib.engines.http import OpenAIEngine
from zs_lib.engines.simulated import SYSTEM, SimulatedEngine, simulator_prompt, stop_string
from zs_lib.models.load import load_generator
from zs_lib.rl.rollout import rollout
from zs_lib.rl.train import Stopwatch
from zs_lib.tools.bench.machine import as_peers_have_it, forward_flops, peak_flops, row, seconds
from zs_lib.tools.bench.rollouts import sampling

BACKBONE = "tiny-L"
CONCURRENT = (1, 8, 32, 128)
REPEATED = 4
"""Copies of each greedy request, as when the rollouts of a group send the same query."""
RUNS, BURST = 2, 72
"""Training runs that share a server, and rollouts of a step, whose requests arrive at once."""


def measure(small: bool = False) -> Iterator[dict]:
    """Measure documents per second by number of queries at once, and waiting times.

    Waiting: the share of the rollouts' time, and the longest wait of runs that share a server.
    """
    arm = replace(config.load_profile("tiny").simulators[0], backbone=BACKBONE)
    ours = build_engine("simulated", model=BACKBONE, simulator=arm)
    with server(BACKBONE) as address:
        limits = Limits(concurrency=max(CONCURRENT), attempt_s=120.0)
        served = OpenAIEngine(address, arm, limits=limits)
        for count in CONCURRENT[:2] if small else CONCURRENT:
            theirs = _Transformers(ours, arm)
            for who, engine in (("ours", ours), ("ours, served", served), ("transformers", theirs)):
                yield from _speed(f"{count} queries at once", who, engine, _requests(count), arm)
        burst = 8 if small else BURST
        for who, engine in (("ours", ours), ("ours, served", served)):
            yield from _waiting(who, engine, burst)
        yield from _sharing(address, arm, burst)
    greedy = replace(arm, temperature=0.0)
    requests, ours = _requests(8) * REPEATED, build_engine("simulated", model=BACKBONE, simulator=greedy)
    case = f"greedy, {len(requests)} queries, {len(requests) // REPEATED} of them different"
    for who, engine in (("ours", ours), ("transformers", _Transformers(ours, greedy))):
        yield from _speed(case, who, engine, requests, arm)


def _speed(
    case: str, who: str, engine: SearchEngine, requests: Sequence[SearchRequest], arm: SimulatorArm
) -> Iterator[dict]:
    before = engine.tokens
    found = engine.search(requests, arm.num_documents)  # preparations of a first call are not measured
    written = engine.tokens - before
    took = seconds(lambda: engine.search(requests, arm.num_documents), 3)
    documents = sum(len(result.documents) for result in found)
    yield row(case, "speed", documents / took, "documents/s", who)
    if isinstance(engine, SimulatedEngine):
        texts = {simulator_prompt(request, arm.num_documents, arm.template) for request in requests}
        read = sum(len(engine.generator.encode_prompt(text, SYSTEM, arm.thinking)) for text in texts)
        least = forward_flops(engine.generator.model, read + written, written)
        yield row(case, "of the peak", least / took / peak_flops(), "share", who)


def _waiting(who: str, engine: SearchEngine, count: int) -> Iterator[dict]:
    """The share of the time that a step's rollouts, of the untrained policy of `tiny`, wait for documents."""
    arm, timed = config.load_profile("tiny").policy("zerosearch"), Stopwatch(engine)
    questions = qa.load_questions(subset=arm.subsets, split="train")[:count]
    generator, keys = load_generator(arm.backbone), [(0, i) for i in range(count)]
    took = seconds(lambda: rollout(questions, generator, timed, arm.rollout, keys, 0.25))
    waited = timed.seconds / took
    yield row(f"{count} rollouts", "waiting for documents", waited, "of the time", who)


@dataclass(frozen=True)
class _Watched(Service):
    """A service that records how long each call took, from the start of the search."""

    waits: list[float] = field(default_factory=list)

    async def _answer(self, *asked):
        started = time.perf_counter()
        answer = await super()._answer(*asked)
        self.waits.append(time.perf_counter() - started)
        return answer


def _sharing(address: str, arm: SimulatorArm, burst: int) -> Iterator[dict]:
    """The longest wait over the mean when runs send their bursts to one server at the same time.

    It is below 2 if requests are answered in order of arrival.
    """
    engines = [OpenAIEngine(address, arm) for _ in range(RUNS)]
    for engine in engines:
        service = engine.service
        engine.service = _Watched(service.name, service.address, service.limits, service.headers)
    with ThreadPoolExecutor(RUNS) as pool:
        list(pool.map(lambda engine: engine.search(_requests(burst), arm.num_documents), engines))
    waits = [wait for engine in engines for wait in engine.service.waits]
    longest, case = max(waits) * len(waits) / sum(waits), f"{RUNS} runs, {burst} queries each"
    yield row(case, "longest wait", longest, "times the mean", "ours, served")


def _requests(count: int) -> list[SearchRequest]:
    """Good queries, half of them for useful documents."""
    chains = [q for q in qa.load_questions(subset=qa.TRAINED_ON, split="train") if q.is_chain][:count]
    return [
        SearchRequest(q.hops[0].query, q.question, q.golden_answers, i % 2 == 1, (0, i))
        for i, q in enumerate(chains)
    ]


class _Transformers(SearchEngine):
    """The same simulator by `model.generate`: one padded batch, until its slowest row ends."""

    name = "transformers"

    def __init__(self, engine: SimulatedEngine, arm: SimulatorArm):
        self.generator, self.arm, self.tokens = engine.generator, arm, 0
        self.model = as_peers_have_it(self.generator.model)

    @torch.inference_mode()
    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        model, tokenizer, arm = self.model, self.generator.tokenizer, self.arm
        torch.manual_seed(0)
        texts = [simulator_prompt(request, num_documents, arm.template) for request in requests]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        output = model.generate(
            inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=arm.max_tokens,
            tokenizer=tokenizer,
            stop_strings=[stop_string(num_documents)],
            **sampling(arm),
        )
        written = [self.generator.decode(ids) for ids in output[:, inputs.input_ids.shape[1] :].tolist()]
        return [SearchResult.of(protocol.parse_documents(text, num_documents)) for text in written]


@contextmanager
def server(model: str, *options: str) -> Iterator[str]:
    """Run `zs serve simulator` in another process; its address. A vLLM's prefix cache may be emptied."""
    command = ["-m", "zs_lib", "serve", "simulator", "--model", model, "--port", "0", *options]
    settings = os.environ | {"VLLM_SERVER_DEV_MODE": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
    process = subprocess.Popen([sys.executable, *command], env=settings, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[2].rpartition("/v1")[0]
    finally:
        process.terminate()
        process.wait()
