"""Reproduce the whole study: make its runs in worker processes, then execute the notebooks."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zs_lib import config, studies
from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import executors
from zs_lib.launch.notebooks import OUTPUTS, Notebook, choose, known_parameters
from zs_lib.launch.progress import clock
from zs_lib.launch.scheduler import Queue, make_runs, work_through
from zs_lib.launch.worker import to_job
from zs_lib.runs import RunStore
from zs_lib.runs.files import read_json, write_json

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
    first, in parallel, by an executor (`executors.opened`), which may be a cluster; the notebooks then read
    finished runs and are executed in parallel too. With `only`, notebooks make their own runs, and are
    executed one after another.

    Raises:
        ConfigError: unknown profile or notebook. RunError: a run or a cell failed.
    """
    overrides = {} if seeds is None else {"seeds": seeds}
    study = config.load_profile(profile, overrides)  # an invalid name or value fails here, not in a notebook
    chosen = [path for path in choose(only) if full or only is not None or path.stem[:2] <= LAST_OF_CORE]
    if only is None:
        runs = studies.study_runs(studies.full(study) if full else study)
        with executors.opened(executor, address, study.resources) as opened:
            make_runs(runs, jobs, executor=opened)
    elif executor != "local":
        raise ConfigError(
            f"Notebooks make their runs on this machine: leave --only out, or --executor {executor}."
        )
    if only is None and full:
        study = studies.full(study)
    values = {"profile": profile} | overrides | ({} if jobs is None else {"jobs": jobs})
    folder = OUTPUTS / profile
    folder.mkdir(parents=True, exist_ok=True)
    notebooks = _NotebookQueue(chosen, folder, values)
    # A notebook that may have runs to make uses all cores for them.
    slots = 1 if only is not None else min(len(chosen), jobs or executors.LOCAL.slots)
    work_through(notebooks, [executors.LOCAL.new_slot() for _ in range(slots)])
    if notebooks.failed:
        raise RunError(notebooks.failed)
    return [folder / path.name for path in chosen]


class _NotebookQueue(Queue):
    """Notebooks to execute, in order, until one fails."""

    def __init__(self, chosen: list[Path], folder: Path, values: dict[str, Any]):
        self.store, self.folder, self.failed = RunStore(), folder, ""
        self.waiting = [
            Notebook(str(path), str(folder / path.name), known_parameters(path, values)) for path in chosen
        ]
        self.total, self.durations = len(chosen), _read_durations(folder)
        self.started: dict[str, float] = {}  # running notebook → when it was started
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
            self.durations[notebook.name] = round(time.monotonic() - self.started.pop(notebook.name), 1)
            write_json(self.folder / "durations.json", self.durations)

    def close(self) -> None:
        with self.lock:
            self.waiting.clear()

    def headline(self) -> str:
        with self.lock:
            done = self.total - len(self.waiting) - len(self.started)
            text = f"{done} of {self.total} notebooks done"
            if not self.started:
                return text
            now = time.monotonic()
            running = [f"{name} {clock(now - since)}" for name, since in self.started.items()]
            return f"{text}; {', '.join(running)}; {self._time_left(now)}"

    def _time_left(self, now: float) -> str:
        """Estimate by the times that these notebooks took on this machine before."""
        seconds = 0.0
        for name in (*self.started, *(notebook.name for notebook in self.waiting)):
            if name not in self.durations:
                return "first time here"
            seconds += max(0.0, self.durations[name] - (now - self.started.get(name, now)))
        return f"about {clock(seconds / len(self.started))} left in all"


def _read_durations(folder: Path) -> dict[str, float]:
    try:
        return read_json(folder / "durations.json", "")
    except RunError:  # they only serve to estimate the time left
        return {}
