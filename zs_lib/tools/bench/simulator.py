"""Documents a second of a simulator, in process, served, and by transformers' own generate; and who waits how long for it."""

from __future__ import annotations

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
from zs_lib.engines.simulated import SimulatedEngine, simulator_prompt, stop_string
from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.load import load_model
from zs_lib.rl.rollout import rollout
from zs_lib.tools.bench.machine import forward_flops, peak_flops, seconds

BACKBONE = "tiny-L"
CONCURRENT = (1, 8, 32, 128)
REPEATED = 4
"""How often each of the greedy requests comes, as when the rollouts of a group ask alike."""
RUNS, BURST = 2, 72
"""Trainings that share a server, and rollouts of a step, which ask it all at once."""


def measure(small: bool = False) -> Iterator[dict]:
    """Documents a second at so many queries at once; the share of rolling out that is waiting; the longest wait of runs that
    share a server."""
    arm = replace(config.load_profile("tiny").simulators[0], backbone=BACKBONE)
    ours = build_engine("simulated", model=BACKBONE, simulator=arm)
    with _server() as address:
        limits = Limits(concurrency=max(CONCURRENT), attempt_s=120.0)
        served = OpenAIEngine(address, arm.template, arm.temperature, arm.max_tokens, limits=limits)
        for count in CONCURRENT[:2] if small else CONCURRENT:
            for who, engine in (
                ("ours", ours),
                ("ours, served", served),
                ("transformers", _Transformers(ours, arm)),
            ):
                yield from _speed(f"{count} queries at once", who, engine, _requests(count), arm)
        burst = 8 if small else BURST
        for who, engine in (("ours", ours), ("ours, served", served)):
            yield from _waiting(who, engine, burst)
        yield from _sharing(address, arm, burst)
    greedy = replace(arm, temperature=0.0)
    alike, writes_once = _requests(8) * REPEATED, build_engine("simulated", model=BACKBONE, simulator=greedy)
    for who, engine in (("ours", writes_once), ("transformers", _Transformers(ours, greedy))):
        yield from _speed(
            f"greedy, {len(alike)} queries, {len(alike) // REPEATED} of them different",
            who,
            engine,
            alike,
            arm,
        )


def _speed(
    case: str, who: str, engine: SearchEngine, requests: Sequence[SearchRequest], arm: SimulatorArm
) -> Iterator[dict]:
    before = engine.tokens
    found = engine.search(requests, arm.num_documents)  # what a first call prepares is not measured
    written = engine.tokens - before
    took = seconds(lambda: engine.search(requests, arm.num_documents), 3)
    row = {"case": case, "who": who}
    yield row | {
        "measure": "speed",
        "value": sum(len(result.documents) for result in found) / took,
        "unit": "documents/s",
    }
    if isinstance(engine, SimulatedEngine):
        texts = {simulator_prompt(request, arm.num_documents, arm.template) for request in requests}
        read = sum(len(engine.generator.encode_prompt(text)) for text in texts)
        least = forward_flops(engine.generator.model, read + written, written)
        yield row | {"measure": "of the peak", "value": least / took / peak_flops(), "unit": "share"}


def _waiting(who: str, engine: SearchEngine, count: int) -> Iterator[dict]:
    """Of a step's rollouts by `tiny`'s policy, as it begins: the share of the time in which they wait for documents."""
    arm, searching = config.load_profile("tiny").policy("zerosearch"), 0.0

    class Timed(SearchEngine):
        name = engine.name

        def search(self, requests, num_documents):
            nonlocal searching
            started = time.perf_counter()
            found = engine.search(requests, num_documents)
            searching += time.perf_counter() - started
            return found

    loaded, questions = (
        load_model(arm.backbone),
        qa.load_questions(subset=arm.subsets, split="train")[:count],
    )
    generator = TransformersGenerator(loaded.model, loaded.tokenizer)
    took = seconds(
        lambda: rollout(questions, generator, Timed(), arm.rollout, [(0, i) for i in range(count)], 0.25)
    )
    yield {
        "case": f"{count} rollouts",
        "who": who,
        "measure": "waiting for documents",
        "value": searching / took,
        "unit": "of the time",
    }


@dataclass(frozen=True)
class _Watched(Service):
    """A service that knows how long each call took, from the search's beginning."""

    waits: list[float] = field(default_factory=list)

    async def _answer(self, *asked):
        started = time.perf_counter()
        answer = await super()._answer(*asked)
        self.waits.append(time.perf_counter() - started)
        return answer


def _sharing(address: str, arm: SimulatorArm, burst: int) -> Iterator[dict]:
    """Runs that ask one server at the same moment, each for a burst: the longest wait over the mean. In order of arrival it is
    below 2."""
    engines = [OpenAIEngine(address, arm.template, arm.temperature, arm.max_tokens) for _ in range(RUNS)]
    for engine in engines:
        engine.service = _Watched(
            engine.service.name, engine.service.address, engine.service.limits, engine.service.headers
        )
    with ThreadPoolExecutor(RUNS) as pool:
        list(pool.map(lambda engine: engine.search(_requests(burst), arm.num_documents), engines))
    waits = [wait for engine in engines for wait in engine.service.waits]
    yield {
        "case": f"{RUNS} runs, {burst} queries each",
        "who": "ours, served",
        "measure": "longest wait",
        "value": max(waits) * len(waits) / sum(waits),
        "unit": "times the mean",
    }


def _requests(count: int) -> list[SearchRequest]:
    """Good queries, half of them for useful documents."""
    chains = [q for q in qa.load_questions(subset=qa.TRAINED_ON, split="train") if q.is_chain][:count]
    return [
        SearchRequest(q.hops[0].query, q.question, q.golden_answers, i % 2 == 1, (0, i))
        for i, q in enumerate(chains)
    ]


class _Transformers(SearchEngine):
    """The same simulator by `model.generate`: one batch, padded, to the end of its slowest row."""

    name = "transformers"

    def __init__(self, engine: SimulatedEngine, arm: SimulatorArm):
        self.generator, self.arm, self.tokens = engine.generator, arm, 0

    @torch.inference_mode()
    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        model, tokenizer, arm = self.generator.model, self.generator.tokenizer, self.arm
        torch.manual_seed(0)
        texts = [simulator_prompt(request, num_documents, arm.template) for request in requests]
        inputs = tokenizer(texts, return_tensors="pt", padding=True, padding_side="left")
        sampling = (
            {"do_sample": True, "temperature": arm.temperature, "top_k": 0}
            if arm.temperature
            else {"do_sample": False}
        )
        output = model.generate(
            inputs.input_ids,
            attention_mask=inputs.attention_mask,
            max_new_tokens=arm.max_tokens,
            tokenizer=tokenizer,
            stop_strings=[stop_string(num_documents)],
            **sampling,
        )
        written = [self.generator.decode(ids) for ids in output[:, inputs.input_ids.shape[1] :].tolist()]
        return [SearchResult.of(protocol.parse_documents(text, num_documents)) for text in written]


@contextmanager
def _server() -> Iterator[str]:
    """The address of `zs serve simulator`, in a process of its own."""
    command = [sys.executable, "-m", "zs_lib", "serve", "simulator", "--model", BACKBONE, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        yield process.stdout.readline().split()[2].rpartition("/v1")[0]
    finally:
        process.terminate()
        process.wait()
