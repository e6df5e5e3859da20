"""Benchmark the growth of time and memory with rollouts per step, passages, and runs in the store."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import numpy as np

from zs_lib import config, qa
from zs_lib.engines import build_engine
from zs_lib.engines.bm25 import BM25Engine
from zs_lib.models.load import load_generator
from zs_lib.qa import Passage
from zs_lib.rl.rollout import rollout
from zs_lib.rl.trajectory import Trajectory
from zs_lib.runs import RunStore
from zs_lib.tools.bench import start
from zs_lib.tools.bench.machine import peak_bytes, peak_flops, seconds
from zs_lib.tools.bench.rollouts import GROUP, grouped_questions, least_work

ROLLOUTS = (64, 256, 1024)
PASSAGES = (4_000, 62_500, 1_000_000)
RUNS, QUERIES = 1000, 50


def measure(small: bool = False) -> Iterator[dict]:
    """Measure time and memory by size."""
    peaks = {}
    for count in ROLLOUTS[:1] if small else ROLLOUTS:
        for row in _rollouts(count):
            if row["measure"] == "highest memory":
                peaks[count] = row["value"]
            yield row
    few, many = min(peaks), max(peaks)
    if few < many:
        growth = (peaks[many] - peaks[few]) / (many - few)
        yield _row(f"{few} to {many} rollouts", "memory a rollout", growth, "MB")
    for count in PASSAGES[:1] if small else PASSAGES:
        yield from _corpus(count)
    yield from _store(10 if small else RUNS)


def _rollouts(count: int) -> Iterator[dict]:
    """One step's rollouts of tiny-S-instruct with BM25.

    Sizes are measured in rising order, so the process's peak memory is that of the last one.
    """
    arm, generator = config.load_profile("tiny").policies[0], load_generator("tiny-S-instruct")
    engine = build_engine("bm25", split="train")
    questions = grouped_questions(arm, count // GROUP)
    keys = [(0, i) for i in range(count)]
    done: list[Trajectory] = []
    took = seconds(lambda: done.extend(rollout(questions, generator, engine, arm.rollout, keys)))
    yield _row(f"{count} rollouts", "time a rollout", 1000 * took / count, "ms")
    yield _row(f"{count} rollouts", "highest memory", _peak_mb(), "MB")
    yield _row(f"{count} rollouts", "of the peak", least_work(generator, done) / took / peak_flops(), "share")


def _corpus(count: int) -> Iterator[dict]:
    """BM25 over the benchmark's passages and, if these are too few, passages of their words at random."""
    passages = qa.load_passages()[:count]
    words, rng = [word for passage in passages for word in passage.text.split()], Random(0)
    made = [
        Passage(f"made-{i}", " ".join(rng.choices(words, k=15)), "train")
        for i in range(count - len(passages))
    ]
    queries = [" ".join(passage.text.split()[:4]) for passage in passages[:QUERIES]]
    engines: list[BM25Engine] = []
    built = seconds(lambda: engines.append(BM25Engine(passages + made)))
    parts = [part for part in engines[0].index.scores.values() if isinstance(part, np.ndarray)]
    case, index_bytes = f"{count:,} passages", sum(part.nbytes for part in parts)
    yield _row(case, "time to index", built, "s")
    yield _row(case, "memory of the index", index_bytes / 1e6, "MB")
    took = seconds(lambda: [engines[0].rank([query], 3) for query in queries], 3)
    yield _row(case, "time a query", 1000 * took / len(queries), "ms")
    least_bytes = 4.0 * count * len(queries)  # every query reads each passage's score at least once
    yield _row(case, "of the peak", least_bytes / took / peak_bytes(), "share")


@dataclass(frozen=True)
class NothingArm:
    """An arm whose run takes no work."""

    name: str = "nothing"


def _store(count: int) -> Iterator[dict]:
    with tempfile.TemporaryDirectory(prefix="zs-bench-") as folder:
        store = RunStore(folder)
        for seed in range(count):
            store.complete(NothingArm(), seed, lambda run: {"steps": 0})
        took = seconds(lambda: start.zs("runs", "list", ZS_RUNS=folder), 3)
        yield _row(f"{count:,} runs", "time to list", took, "s")


def _row(case: str, measure: str, value: float, unit: str) -> dict:
    return {"case": case, "who": "ours", "measure": measure, "value": value, "unit": unit}


def _peak_mb() -> float:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
