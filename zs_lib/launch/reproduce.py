"""The whole study from one call: runs side by side in worker processes, then notebooks."""

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
"""The notebooks up to here need the core arms only."""


def reproduce(
    profile: str = "tiny",
    only: Iterable[str] | None = None,
    seeds: int | None = None,
    jobs: int | None = None,
    full: bool = False,
    executor: str = "local",
    address: str | None = None,
) -> list[Path]:
    """Run the numbered notebooks with a profile; returns the executed ones, in outputs/<profile>/.

    `only`: numbers ("02") or names of notebooks; by default those of the core, or with `full` all. `seeds` and
    `jobs` go to those that take them. Without `only`, all runs are made first, side by side, so that no core waits
    for a notebook that needs one arm: by an executor (`executors.opened`), which may be a cluster. Then notebooks have
    only to read, and run side by side, too; with `only`, one after another.

    Raises:
        ConfigError: unknown profile or notebook. RunError: a run or a cell failed.
    """
    overrides = {} if seeds is None else {"seeds": seeds}
    study = config.load_profile(profile, overrides)  # a wrong name or value fails here, not in a notebook
    chosen = [path for path in choose(only) if full or only is not None or path.stem[:2] <= LAST_OF_CORE]
    if only is None:
        with executors.opened(executor, address, study.resources) as opened:
            make_runs(studies.study_runs(studies.full(study) if full else study), jobs, executor=opened)
    elif executor != "local":
        raise ConfigError(
            f"Notebooks make their runs on this machine: leave --only out, or --executor {executor}."
        )
    values = {"profile": profile} | overrides | ({} if jobs is None else {"jobs": jobs})
    folder = OUTPUTS / profile
    folder.mkdir(parents=True, exist_ok=True)
    notebooks = _NotebookQueue(chosen, folder, values)
    # Those that may have runs to make use all cores for them.
    places = 1 if only is not None else min(len(chosen), jobs or executors.LOCAL.places)
    work_through(notebooks, [executors.LOCAL.place() for _ in range(places)])
    if notebooks.failed:
        raise RunError(notebooks.failed)
    return [folder / path.name for path in chosen]


class _NotebookQueue(Queue):
    """Notebooks to be executed, in order; after one that failed, no more."""

    def __init__(self, chosen: list[Path], folder: Path, values: dict[str, Any]):
        self.store, self.folder, self.failed = RunStore(), folder, ""
        self.waiting = [
            Notebook(str(path), str(folder / path.name), known_parameters(path, values)) for path in chosen
        ]
        self.total, self.past = len(chosen), _durations(folder)
        self.begun: dict[str, float] = {}  # of those that run
        self.lock = threading.Lock()

    def next(self) -> Notebook | None:
        with self.lock:
            if not self.waiting or self.failed:
                return None
            notebook = self.waiting.pop(0)
            self.begun[notebook.name] = time.monotonic()
            return notebook

    def job(self, notebook: Notebook) -> dict:
        """Its run as JSON values, for `worker.do`."""
        log = Path(notebook.output).with_suffix(".log")
        return to_job(notebook) | {"log": str(log)}

    def finished(self, notebook: Notebook, error: str | None) -> None:
        with self.lock:
            took, self.failed = time.monotonic() - self.begun.pop(notebook.name), self.failed or error or ""
            self.past[notebook.name] = round(took, 1)
            write_json(self.folder / "durations.json", self.past)

    def close(self) -> None:
        with self.lock:
            self.waiting.clear()

    def headline(self) -> str:
        """Which notebooks run, for how long, and for how long from now by this machine's earlier times."""
        with self.lock:
            now, done = time.monotonic(), self.total - len(self.waiting) - len(self.begun)
            ahead = {
                name: self.past.get(name)
                for name in [*self.begun, *(notebook.name for notebook in self.waiting)]
            }
            running = [f"{name} {clock(now - since)}" for name, since in self.begun.items()]
            rest = sum(
                max(0, took - (now - self.begun.get(name, now)))
                for name, took in ahead.items()
                if took is not None
            )
            left = (
                "first time here"
                if None in ahead.values()
                else f"about {clock(rest / max(1, len(running)))} left in all"
            )
        return f"{done} of {self.total} notebooks done" + (
            f"; {', '.join(running)}; {left}" if running else ""
        )


def _durations(folder: Path) -> dict[str, float]:
    try:
        return read_json(folder / "durations.json", "")
    except RunError:  # they are but a guess for the time left
        return {}
