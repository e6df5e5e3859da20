"""Make many runs in parallel: order them by what they need, hand them to workers, report what failed."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import executors
from zs_lib.launch.executors import Executor, Slot
from zs_lib.launch.progress import Board, clock
from zs_lib.launch.worker import to_job
from zs_lib.pipeline import check, needs
from zs_lib.runs import Run, RunStore, distributed, kind_of

STOP_S = 10
"""Seconds for stopping workers to finish their step and save a checkpoint."""
SEEN_S = 60
"""Seconds for a shared disk to show what another machine wrote."""


def make_runs(
    arms: Iterable[tuple[Any, int]],
    jobs: int | None = None,
    store: RunStore | None = None,
    watch: Callable[..., None] | None = None,
    executor: Executor | None = None,
) -> list[Run]:
    """Make the missing runs of these (arm, seed) pairs in parallel; all their finished runs, in order.

    At most `jobs` runs are made at once, in the slots of `executor`: by default as many processes with one
    thread as this machine has cores. The runs that an arm needs (an evaluation its policy, a policy its
    simulator) are added, and made first. A run that fails does not stop the others. Ctrl-C stops the workers
    within STOP_S seconds; unfinished runs keep their last checkpoint. `watch()` is called several times a
    second, and at the end `watch(last=True)`.

    Raises:
        ConfigError: a name in an arm is unknown, before any work.
        RunError: some runs failed; it names each with its cause.
    """
    store, wanted = store or RunStore(), list(arms)
    executor = executor or executors.local()
    jobs = executor.slots if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs}: at least one process is needed.")
    if distributed.world_size() > 1:
        raise ConfigError(
            "Parallel runs are started by one process: leave torchrun out, or make one run (`zs train`)."
        )
    queue = _RunQueue(store, wanted)
    if queue.waiting:
        work_through(queue, [executor.new_slot() for _ in range(min(jobs, len(queue.waiting)))], watch)
    if queue.failed:
        names = Counter(name for name, _ in queue.failed.values())
        causes = "; ".join(
            f"{name if names[name] == 1 else f'{name} ({path.name})'}: {cause}"
            for path, (name, cause) in queue.failed.items()
        )
        raise RunError(f"{len(queue.failed)} of {queue.total} runs failed (the others are kept). {causes}")
    return [store.get(arm, seed) for arm, seed in wanted]


class Queue(Protocol):
    """Tasks to hand out to slots, and their results; thread-safe."""

    store: RunStore

    def next(self) -> Any:
        """Wait for the next task that can start, and return it; None when none is left."""

    def job(self, task: Any) -> dict:
        """Encode a task as JSON values, for `worker.do`."""

    def finished(self, task: Any, error: str | None) -> None:
        """Record that a task ended, and its error, if any."""

    def close(self) -> None:
        """Hand out no more tasks."""

    def headline(self) -> str:
        """Describe the progress in one line."""

    def includes(self, run: Run) -> bool:
        """Tell whether a run in progress belongs to these tasks, and not to other processes' alone."""
        return True


def work_through(queue: Queue, slots: list[Slot], watch: Callable[..., None] | None = None) -> None:
    """Do all tasks of a queue, one at a time in each slot, with a progress board on the terminal."""
    threads = [threading.Thread(target=_work, args=(slot, queue), daemon=True) for slot in slots]
    shown = [Board(queue.store, queue.headline, queue.includes).refresh] + ([watch] if watch else [])
    try:
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.1)
            for refresh in shown:
                refresh()
    finally:
        queue.close()
        for slot in slots:
            slot.ask_to_end()
        deadline = time.monotonic() + STOP_S
        for slot in slots:
            slot.end(deadline)
        for refresh in shown:
            refresh(last=True)


@dataclass(frozen=True)
class _Task:
    """A run to make, its folder, and the folders of the runs that must be finished first."""

    arm: Any
    seed: int
    path: Path
    needs: tuple[Path, ...]

    @property
    def name(self) -> str:
        return f"{kind_of(self.arm)} {self.arm.name} s{self.seed}"


class _RunQueue(Queue):
    """Runs to make, keyed by folder; each is handed out once the runs that it needs are finished."""

    def __init__(self, store: RunStore, wanted: list[tuple[Any, int]]):
        self.store, self.started = store, time.monotonic()
        self.closed, self.paths = False, set()
        self.waiting: dict[Path, _Task] = {}
        self.done: set[Path] = set()
        self.failed: dict[Path, tuple[str, str]] = {}  # folder of a failed run → its name, and the cause
        self.changed = threading.Condition()
        for arm, seed in wanted:
            self._add(arm, seed)
        self.total = len(self.waiting) + len(self.done)

    def _add(self, arm: Any, seed: int) -> None:
        path, run = self.store.path(arm, seed), self.store.get(arm, seed)
        self.paths.add(path)
        if run and run.finished:
            self.done.add(path)
        elif path not in self.waiting:
            check(arm)
            needed = needs(arm, seed)
            for other in needed:
                self._add(*other)  # earlier in the queue than this one
            self.waiting[path] = _Task(arm, seed, path, tuple(self.store.path(*other) for other in needed))

    def next(self) -> _Task | None:
        with self.changed:
            while self.waiting:
                for task in list(self.waiting.values()):
                    failed = [self.failed[need][0] for need in task.needs if need in self.failed]
                    if failed:
                        self._settle(task, f"needs {failed[0]}, which failed")
                    elif self.done.issuperset(task.needs):
                        return self.waiting.pop(task.path)
                self.changed.wait(timeout=1)
        return None

    def job(self, task: _Task) -> dict:
        store, log = str(self.store.root), str(task.path / "worker.log")
        return to_job(task.arm) | {"kind": kind_of(task.arm), "seed": task.seed, "store": store, "log": log}

    def finished(self, task: _Task, error: str | None) -> None:
        if error is None and not _seen(task.path):
            error = (
                f"it is finished on another machine, and not here: {self.store.root} must be a folder "
                "that all machines share"
            )
        with self.changed:
            if error is None or not self.closed:  # else it was stopped, and has not failed
                self._settle(task, error)

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.waiting.clear()
            self.changed.notify_all()

    def headline(self) -> str:
        failed = f", {len(self.failed)} failed" if self.failed else ""
        seconds = time.monotonic() - self.started
        return f"{len(self.done)} of {self.total} runs finished{failed} ({clock(seconds)})"

    def includes(self, run: Run) -> bool:
        return run.path in self.paths

    def _settle(self, task: _Task, error: str | None) -> None:
        self.waiting.pop(task.path, None)
        if error is None:
            self.done.add(task.path)
        else:
            self.failed[task.path] = (task.name, error)
        self.changed.notify_all()


def _work(slot: Slot, queue: Queue) -> None:
    while (task := queue.next()) is not None:
        queue.finished(task, slot.do(queue.job(task)))


def _seen(path: Path) -> bool:
    """Wait up to SEEN_S for a finished run to appear on this machine; whether it did."""
    deadline = time.monotonic() + SEEN_S
    while not (path / "summary.json").exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(1)
    return True
