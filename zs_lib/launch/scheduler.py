"""Many runs side by side: what they need first, who makes which, and what failed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import executors
from zs_lib.launch.executors import Executor, Place
from zs_lib.launch.progress import Board, clock
from zs_lib.launch.worker import to_job
from zs_lib.pipeline import check, needs
from zs_lib.runs import Run, RunStore, distributed, kind_of

STOP_S = 10
"""Seconds for workers that are asked to end: to finish their step and save a checkpoint."""
SEEN_S = 60
"""Seconds for a network disk to show what another machine wrote."""


def make_runs(
    arms: Iterable[tuple[Any, int]],
    jobs: int | None = None,
    store: RunStore | None = None,
    watch: Callable[..., None] | None = None,
    executor: Executor | None = None,
) -> list[Run]:
    """Make the missing runs of these (arm, seed) pairs side by side; all finished runs, in order.

    `jobs` at once, in the places of `executor`: by default one a core of this machine, each a process with one thread.
    What an arm needs (an evaluation its policy, that its simulator) is made first, and added if it is not among the
    arms. A failing run does not stop the others. Ctrl-C ends the workers within STOP_S; what they have done up to the
    last checkpoint is kept (the current step, if it ends in time). While they work, `watch()` is called several times
    a second, and at the end `watch(last=True)`.

    Raises:
        ConfigError: a name in an arm stands in no table, before any work. RunError: some runs failed; it names each
            with its cause.
    """
    store, wanted = store or RunStore(), list(arms)
    executor = executor or executors.LOCAL
    jobs = executor.places if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs}: at least one process is needed.")
    if distributed.world_size() > 1:
        raise ConfigError(
            "Runs side by side are started by one process: leave torchrun out, or have it make one run (`zs train`)."
        )
    queue = _RunQueue(store, wanted)
    if queue.waiting:
        work_through(queue, [executor.place() for _ in range(min(jobs, len(queue.waiting)))], watch)
    if queue.failed:
        causes = "; ".join(f"{name}: {cause}" for name, cause in queue.failed.items())
        raise RunError(f"{len(queue.failed)} of {queue.total} runs failed (the others are kept). {causes}")
    return [store.get(arm, seed) for arm, seed in wanted]


class Queue(Protocol):
    """Tasks that are handed out to places, and what becomes of them; used by several threads."""

    store: RunStore

    def next(self) -> Any:
        """The next task that can begin, after waiting for one if need be; None when none is left."""

    def job(self, task: Any) -> dict:
        """A task as JSON values, for `worker.do`."""

    def finished(self, task: Any, error: str | None) -> None:
        """Take note that a task ended, and what went wrong, if anything did."""

    def close(self) -> None:
        """Hand out nothing any more."""

    def headline(self) -> str:
        """How far it is, in one line."""


def work_through(queue: Queue, places: list[Place], watch: Callable[..., None] | None = None) -> None:
    """Do all tasks of a queue, one at a time in each place, with a progress board on the terminal."""
    threads = [threading.Thread(target=_work, args=(place, queue), daemon=True) for place in places]
    shown = [Board(queue.store, queue.headline).refresh] + ([watch] if watch else [])
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.1)
            for refresh in shown:
                refresh()
    finally:
        queue.close()
        for place in places:
            place.ask_to_end()
        deadline = time.monotonic() + STOP_S
        for place in places:
            place.end(deadline)
        for refresh in shown:
            refresh(last=True)


@dataclass(frozen=True)
class _Task:
    """A run to be made, and the folders of the runs that must be finished before."""

    arm: Any
    seed: int
    needs: tuple[Path, ...]

    @property
    def name(self) -> str:
        return f"{kind_of(self.arm)} {self.arm.name} s{self.seed}"


class _RunQueue(Queue):
    """Runs to be made, by folder of their run; handed out to threads as soon as what they need is there."""

    def __init__(self, store: RunStore, wanted: list[tuple[Any, int]]):
        self.store, self.begun = store, time.monotonic()
        self.waiting: dict[Path, _Task] = {}
        self.done: set[Path] = set()
        self.lost: dict[Path, str] = {}  # with its name
        self.failed: dict[str, str] = {}  # name → cause
        self.changed = threading.Condition()
        for arm, seed in wanted:
            self._add(arm, seed)
        self.total = len(self.waiting) + len(self.done)

    def _add(self, arm: Any, seed: int) -> None:
        path, run = self.store.path(arm, seed), self.store.get(arm, seed)
        if run and run.finished:
            self.done.add(path)
        elif path not in self.waiting:
            check(arm)
            needed = needs(arm, seed)
            for other in needed:
                self._add(*other)  # before this one, so that it begins before
            self.waiting[path] = _Task(arm, seed, tuple(self.store.path(*other) for other in needed))

    def next(self) -> _Task | None:
        with self.changed:
            while self.waiting:
                for path, task in list(self.waiting.items()):
                    if lost := next((self.lost[need] for need in task.needs if need in self.lost), None):
                        self._settle(path, task, f"needs {lost}, which failed")
                    elif self.done.issuperset(task.needs):
                        return self.waiting.pop(path)
                self.changed.wait(timeout=1)
        return None

    def job(self, task: _Task) -> dict:
        """The making of its run as JSON values, for `worker.do` on whatever machine."""
        log = self.store.path(task.arm, task.seed) / "worker.log"
        return to_job(task.arm) | {
            "kind": kind_of(task.arm),
            "seed": task.seed,
            "store": str(self.store.root),
            "log": str(log),
        }

    def finished(self, task: _Task, error: str | None) -> None:
        path = self.store.path(task.arm, task.seed)
        if error is None and not _seen(path):
            error = f"it is finished on another machine, and not here: {self.store.root} must be a folder that all machines share"
        with self.changed:
            self._settle(path, task, error)

    def close(self) -> None:
        with self.changed:
            self.waiting.clear()
            self.changed.notify_all()

    def headline(self) -> str:
        bad = f", {len(self.failed)} failed" if self.failed else ""
        return f"{len(self.done)} of {self.total} runs finished{bad} ({clock(time.monotonic() - self.begun)})"

    def _settle(self, path: Path, task: _Task, error: str | None) -> None:
        self.waiting.pop(path, None)
        if error is None:
            self.done.add(path)
        else:
            self.lost[path] = task.name
            self.failed[task.name] = error
        self.changed.notify_all()


def _work(place: Place, queue: Queue) -> None:
    """Do tasks until none is left."""
    while (task := queue.next()) is not None:
        queue.finished(task, place.do(queue.job(task)))


def _seen(path: Path) -> bool:
    """Whether a run is finished here too; a network disk may take a while to show what another machine wrote."""
    deadline = time.monotonic() + SEEN_S
    while not (path / "summary.json").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True
