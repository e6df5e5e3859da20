"""Reproduce the whole study: make its runs in worker processes, then execute the notebooks."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zs_lib import config, pipeline, studies
from zs_lib.config.paths import check_folder
from zs_lib.config.values import pick
from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import executors
from zs_lib.launch.notebooks import OUTPUTS, Notebook, choose, known_parameters
from zs_lib.launch.progress import clock
from zs_lib.launch.scheduler import Queue, make_runs, work_through
from zs_lib.launch.worker import to_job
from zs_lib.runs import Run, RunStore, distributed
from zs_lib.runs.files import read_json, write_json
from zs_lib.runs.provenance import available_cores

LAST_OF_CORE = "04"
"""Number of the last notebook that needs the core arms only."""


def reproduce(
    profile: str = "tiny",
    only: Iterable[str] | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    full: bool = False,
    executor: str = "local",
    address: str | None = None,
) -> list[Path]:
    """Run the numbered notebooks with a profile; the executed ones, in outputs/<profile>/.

    `only`: numbers ("02") or names of notebooks; by default those of the core, or with `full` all. `seeds`
    and `jobs` are passed to the notebooks that have these parameters. Without `only`, all runs are made
    first, in parallel, by an executor (`open_executor`), which may be a cluster; the notebooks then read
    finished runs and are executed in parallel too. With `only`, notebooks make their own runs, and are
    executed one after another.

    Raises:
        ConfigError: unknown profile or notebook. RunError: a run or a cell failed.
    """
    overrides = {} if seeds is None else {"seeds": seeds}
    study = config.load_profile(profile, overrides)  # an invalid name or value fails here, not in a notebook
    folder = check_folder(OUTPUTS / profile, "ZS_OUTPUTS", write=True)
    chosen = [path for path in choose(only) if full or only is not None or path.stem[:2] <= LAST_OF_CORE]
    if only is None:
        runs = studies.study_runs(studies.full(study) if full else study)
        with executors.open_executor(executor, address, study.resources) as opened:
            make_runs(runs, jobs, executor=opened)
        slots = min(len(chosen), jobs or available_cores())
    elif executor == "local":
        slots = 1  # a notebook that may have runs to make uses all cores for them
    else:
        raise ConfigError(
            f"Notebooks make their runs on this machine: leave --only out, or --executor {executor}."
        )
    values = {"profile": profile} | overrides | ({} if jobs is None else {"jobs": jobs})
    folder.mkdir(parents=True, exist_ok=True)
    notebooks = _NotebookQueue(chosen, folder, values)
    work_through(notebooks, [executors.WorkerSlot() for _ in range(slots)])
    if notebooks.failed:
        raise RunError(notebooks.failed)
    return [folder / path.name for path in chosen]


def make_one(profile: str, name: str, seed: int, overrides: dict[str, Any] | None = None) -> Run:
    """Make one run of a policy or simulator of the profile or its studies; its steps are told on stderr.

    `overrides` are those of `config.load_profile`.

    Raises:
        ConfigError: no such profile or arm; others as `pipeline.ensure`.
    """
    study = studies.select(studies.full(config.load_profile(profile, overrides)), *studies.VARIATIONS)
    arm = pick("arm", name, {arm.name: arm for arm in (*study.policies, *study.simulators)})
    return pipeline.ensure(arm, seed, RunStore(), _tell)


def _tell(step: int, steps: int, metrics: dict) -> None:
    if distributed.is_main():
        reward = f"  reward {metrics['reward']:.3f}" if "reward" in metrics else ""
        print(f"step {step} of {steps}{reward}", file=sys.stderr, flush=True)


class _NotebookQueue(Queue):
    """Notebooks to execute, in order, until one fails."""

    def __init__(self, chosen: list[Path], folder: Path, values: dict[str, Any]):
        self.store, self.folder, self.failed = RunStore(), folder, ""
        self.waiting = [
            Notebook(str(path), str(folder / path.name), known_parameters(path, values)) for path in chosen
        ]
        self.total, self.durations = len(chosen), _read_durations(folder)
        self.started: dict[str, float] = {}  # running notebook → when it was started
        self.trained: set[str] = set()  # notebooks beside which runs were made: their times predict nothing
        self.lock = threading.Lock()

    def next(self) -> Notebook | None:
        with self.lock:
            if not self.waiting or self.failed:
                return None
            notebook = self.waiting.pop(0)
            self.started[notebook.name] = time.monotonic()
            return notebook

    def job(self, notebook: Notebook) -> dict:
        log = Path(notebook.output).with_suffix(".log")
        return to_job(notebook) | {"log": str(log)}

    def finished(self, notebook: Notebook, error: str | None) -> None:
        with self.lock:
            self.failed = self.failed or error or ""
            seconds = round(time.monotonic() - self.started.pop(notebook.name), 1)
            if notebook.name not in self.trained:
                write_json(self.folder / "durations.json", self.durations | {notebook.name: seconds})
                self.durations[notebook.name] = seconds

    def close(self) -> None:
        with self.lock:
            self.waiting.clear()

    def headline(self) -> str:
        training = any(run.running for run in self.store.list() if not run.finished)
        with self.lock:
            done = self.total - len(self.waiting) - len(self.started)
            text = f"{done} of {self.total} notebooks done"
            if not self.started:
                return text
            now = time.monotonic()
            running = [f"{name} {clock(now - since)}" for name, since in self.started.items()]
            if training:
                self.trained.update(self.started)
            left = [] if self.trained & self.started.keys() else [self._time_left(now)]
            return "; ".join([text, ", ".join(running), *left])

    def _time_left(self, now: float) -> str:
        """Estimate by the times that these notebooks took on this machine with their runs in the store.

        Not asked for where runs are made: the board then has a line with the time left for each run.
        """
        running = {name: now - since for name, since in self.started.items()}
        names = (*running, *(notebook.name for notebook in self.waiting))
        if not self.durations.keys() >= set(names):
            return "no estimate yet"
        left = [self.durations[name] - running.get(name, 0.0) for name in names]
        if min(left) < 0:
            return "longer than last time"
        return f"about {clock(max(sum(left) / len(running), *left[: len(running)]))} left in all"


def _read_durations(folder: Path) -> dict[str, float]:
    try:
        return read_json(folder / "durations.json", "")
    except RunError:  # they only serve to estimate the time left
        return {}
