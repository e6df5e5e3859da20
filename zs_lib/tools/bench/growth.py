"""Benchmark the growth of time and memory with rollouts a step, passages, runs and logged trajectories.

The 10 million passages on disk take most of the time, and 6 GB of the temporary folder.
"""

from __future__ import annotations

import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random
from unittest import mock

import numpy as np

from zs_lib import config, qa
from zs_lib.engines import build_engine
from zs_lib.engines.bm25 import BM25Engine
from zs_lib.models.load import load_generator
from zs_lib.qa import Passage
from zs_lib.rl.rollout import rollout
from zs_lib.rl.trajectory import Trajectory, to_record
from zs_lib.runs import RunStore
from zs_lib.runs.files import to_json
from zs_lib.tools.bench import start
from zs_lib.tools.bench.machine import peak_bytes, peak_flops, row, seconds
from zs_lib.tools.bench.rollouts import GROUP, grouped_questions, least_work
from zs_lib.ui import widgets

ROLLOUTS = (64, 256, 1024, 4096)
PASSAGES = (4_000, 62_500, 1_000_000)
ON_DISK, RUNS, TRAJECTORIES, QUERIES = 10_000_000, 10_000, 100_000, 50


def measure(small: bool = False) -> Iterator[dict]:
    """Measure time and memory by size."""
    peaks, done = {}, []
    for count in ROLLOUTS[:1] if small else ROLLOUTS:
        for measured in _rollouts(count, done):
            if measured["measure"] == "highest memory":
                peaks[count] = measured["value"]
            yield measured
    few, many = min(peaks), max(peaks)
    if few < many:
        growth = (peaks[many] - peaks[few]) / (many - few)
        yield row(f"{few} to {many} rollouts", "memory a rollout", growth, "MB")
    for count in PASSAGES[:1] if small else PASSAGES:
        yield from _corpus(count)
    yield from _corpus(PASSAGES[0] if small else ON_DISK, on_disk=True)
    yield from _store(10 if small else RUNS)
    yield from _explorer(100 if small else TRAJECTORIES, [to_record(one, 0.0) for one in done[:50]])


def _rollouts(count: int, done: list[Trajectory]) -> Iterator[dict]:
    """One step's rollouts of tiny-S-instruct with BM25.

    Sizes are measured in rising order, so the process's peak memory is that of the last one.
    """
    arm, generator = config.load_profile("tiny").policies[0], load_generator("tiny-S-instruct")
    engine = build_engine("bm25", split="train")
    questions = grouped_questions(arm, count // GROUP)
    keys = [(0, i) for i in range(count)]
    done.clear()
    took = seconds(lambda: done.extend(rollout(questions, generator, engine, arm.rollout, keys)))
    yield row(f"{count} rollouts", "time a rollout", 1000 * took / count, "ms")
    yield row(f"{count} rollouts", "highest memory", _peak_mb(), "MB")
    yield row(f"{count} rollouts", "of the peak", least_work(generator, done) / took / peak_flops(), "share")


def _corpus(count: int, on_disk: bool = False) -> Iterator[dict]:
    """BM25 in memory, or over a file, whose index is built and then opened."""
    case, engines = f"{count:,} passages{' on disk' if on_disk else ''}", []
    passages = _passages(count) if on_disk else list(_passages(count))
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, ZS_INDEXES=folder):
        if on_disk:
            rows = (to_json({"id": one.id, "contents": one.text}) for one in passages)
            with (passages := Path(folder, "corpus.jsonl")).open("w") as file:
                file.writelines(rows)
        for what in ("index", "open") if on_disk else ("index",):
            took = seconds(lambda: engines.append(BM25Engine(passages)))
            yield row(case, f"time to {what}", took, "s")
        parts = [part for part in engines[-1].index.scores.values() if isinstance(part, np.ndarray)]
        where = "size" if on_disk else "memory"
        yield row(case, f"{where} of the index", sum(part.nbytes for part in parts) / 1e6, "MB")
        queries = [" ".join(passage.text.split()[:4]) for passage in qa.load_passages()[:QUERIES]]
        took = seconds(lambda: [engines[-1].rank([query], 3) for query in queries], 3)
    yield row(case, "time a query", 1000 * took / len(queries), "ms")
    least_bytes = 4.0 * count * len(queries)  # every query writes each passage's score at least once
    yield row(case, "of the peak", least_bytes / took / peak_bytes(), "share")


def _passages(count: int) -> Iterator[Passage]:
    """The benchmark's passages and, if these are too few, passages of their words at random."""
    passages = qa.load_passages()[:count]
    words, rng = [word for passage in passages for word in passage.text.split()], Random(0)
    yield from passages
    for i in range(count - len(passages)):
        yield Passage(f"made-{i}", " ".join(rng.choices(words, k=15)), "train")


def _store(count: int) -> Iterator[dict]:
    """List copies of a finished run: to make each would take minutes of waiting for the disk."""
    with tempfile.TemporaryDirectory(prefix="zs-bench-") as folder:
        arm = config.load_profile("tiny").policies[0]
        run = RunStore(folder).complete(arm, 0, lambda run: {"steps": 0})
        for seed in range(1, count):
            shutil.copytree(run.path, RunStore(folder).path(arm, seed))
        took = seconds(lambda: start.zs("runs", "list", ZS_RUNS=folder), 3)
        yield row(f"{count:,} runs", "time to list", took, "s")


def _explorer(count: int, records: list[dict]) -> Iterator[dict]:
    """The explorer on a run whose log repeats these trajectories at each step."""
    case, shown = f"{count:,} trajectories", []
    with tempfile.TemporaryDirectory(prefix="zs-bench-") as folder:
        arm, steps = config.load_profile("tiny").policies[0], range(count // len(records))
        run = RunStore(folder).complete(
            arm, 0, lambda run: {"logged": [run.log_trajectories(step, records) for step in steps]}
        )
        took = seconds(lambda: shown.append(widgets.Explorer([run], run)))
        yield row(case, "time to explore", took, "s")
        yield row(case, "time to show a step", seconds(lambda: setattr(shown[0].step, "value", 0)), "s")


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
