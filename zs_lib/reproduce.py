"""The whole study from one call: runs side by side in worker processes, then notebooks."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zs_lib import config, executors, processes
from zs_lib.arms import PairsArm, SimulatorArm, WarmUpArm, served
from zs_lib.errors import ConfigError, DataError, RunError
from zs_lib.executors import Executor, Place
from zs_lib.files import read_json, write_json
from zs_lib.progress import Board, clock
from zs_lib.runs import Run, RunStore, kind_of
from zs_lib.values import reject_unknown
from zs_lib.worker import spelled

NOTEBOOKS = config.ROOT / "notebooks"
OUTPUTS = Path(os.environ.get("ZS_OUTPUTS") or config.ROOT / "outputs")
WORK = {
    "WarmUpArm": "zs_lib.warm_up:ensure",
    "PairsArm": "zs_lib.simulator:ensure_pairs",
    "SimulatorArm": "zs_lib.simulator:ensure",
    "PolicyArm": "zs_lib.policy:ensure",
    "FidelityArm": "zs_lib.simulator:ensure_fidelity",
    "EvaluationArm": "zs_lib.evaluate:ensure",
}
"""Type of arm → the function (arm, seed, store) → Run that makes its runs; imported in the worker only."""
SIMULATOR_SEED = 0
"""All policies share the one run of their simulator, as in the paper."""
KERNEL_START_S = 120
STOP_S = 10
"""So long workers that are asked to end may take to finish their step and keep a checkpoint."""
SEEN_S = 60
"""So long a network disk may take to show what was written by another machine."""
LAST_OF_CORE = "04"
"""The notebooks up to here need the core arms only."""


# ------------------------------------------------------------------------------------------ runs side by side


def ensure_arms(
    arms: Iterable[tuple[Any, int]],
    jobs: int | None = None,
    store: RunStore | None = None,
    watch: Callable[..., None] | None = None,
    executor: Executor | None = None,
) -> list[Run]:
    """The finished runs of these (arm, seed) pairs, in order; those that are missing are made side by side.

    `jobs` at once, in the places of `executor`: by default one a core of this machine, each a process with one thread.
    What an arm needs (an evaluation its policy, that its simulator) is made first, and added if it is not among the
    arms. A failing run does not stop the others. Ctrl-C ends the workers within STOP_S; what they have done up to the
    last checkpoint is kept (that is the present step, if it ends in time). While they work, `watch()` is called several
    times a second, and at the end `watch(last=True)`.

    Raises:
        RunError: some runs failed; it names each with its cause.
    """
    store, wanted = store or RunStore(), list(arms)
    executor = executor or executors.LOCAL
    jobs = executor.places if jobs is None else jobs
    if jobs < 1:
        raise ConfigError(f"jobs = {jobs}: at least one process is needed.")
    if processes.count() > 1:
        raise ConfigError(
            "Runs side by side are started by one process: leave torchrun out, or have it make one run (`zs train`)."
        )
    queue = _Queue(store, wanted)
    if queue.waiting:
        _work_through(queue, [executor.place() for _ in range(min(jobs, len(queue.waiting)))], watch)
    if queue.failed:
        causes = "; ".join(f"{name}: {cause}" for name, cause in queue.failed.items())
        raise RunError(f"{len(queue.failed)} of {queue.total} runs failed (the others are kept). {causes}")
    return [store.get(arm, seed) for arm, seed in wanted]


def _work_through(
    queue: _Queue | _Notebooks, places: list[Place], watch: Callable[..., None] | None = None
) -> None:
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
    """A run to be made, and the run that must be there before, if any."""

    arm: Any
    seed: int
    needs: Path | None

    @property
    def name(self) -> str:
        return f"{kind_of(self.arm)} {self.arm.name} s{self.seed}"


def _needs(arm: Any, seed: int) -> tuple[Any, int] | None:
    """What must be finished before: an evaluation's policy, else the simulator (one for all seeds), its pairs, or the warm-up."""
    if getattr(arm, "policy", None):
        return arm.policy, seed
    if getattr(arm, "simulator", None) and not served(getattr(arm, "engine", "")):
        return arm.simulator, SIMULATOR_SEED
    if isinstance(arm, SimulatorArm):
        return (arm.pairs, SIMULATOR_SEED) if arm.fine_tuned else None
    if how := getattr(arm, "warm_up", None):
        begins = arm.collector if isinstance(arm, PairsArm) else arm.backbone
        return WarmUpArm(backbone=begins, benchmark=arm.benchmark, how=how), SIMULATOR_SEED
    return None


class _Queue:
    """The tasks, by folder of their run; handed out to threads as soon as what they need is there."""

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
            needed = _needs(arm, seed)
            if needed:
                self._add(*needed)  # before, so that it is begun before
            self.waiting[path] = _Task(arm, seed, self.store.path(*needed) if needed else None)

    def next(self) -> _Task | None:
        """The next task that can begin, after waiting for one if need be; None when none is left."""
        with self.changed:
            while self.waiting:
                for path, task in list(self.waiting.items()):
                    if task.needs in self.lost:
                        self._settle(path, task, f"needs {self.lost[task.needs]}, which failed")
                    elif task.needs is None or task.needs in self.done:
                        return self.waiting.pop(path)
                self.changed.wait(timeout=1)
        return None

    def job(self, task: _Task) -> dict:
        """The making of its run as JSON values, for `worker.do` on whatever machine."""
        log = self.store.path(task.arm, task.seed) / "worker.log"
        return spelled(task.arm) | {
            "kind": kind_of(task.arm),
            "work": WORK[type(task.arm).__name__],
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
        """Hand out nothing any more."""
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


def _work(place: Place, queue: _Queue | _Notebooks) -> None:
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


# ------------------------------------------------------------------------------------------ notebooks


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
    from zs_lib import studies
    from zs_lib.results import study_runs

    overrides = {} if seeds is None else {"seeds": seeds}
    study = config.load_profile(
        profile, overrides
    )  # a wrong name or value is told now, not by the first notebook
    chosen = [path for path in choose(only) if full or only is not None or path.stem[:2] <= LAST_OF_CORE]
    if only is None:
        with executors.opened(executor, address, study.resources) as opened:
            ensure_arms(study_runs(studies.full(study) if full else study), jobs, executor=opened)
    elif executor != "local":
        raise ConfigError(
            f"Notebooks make their runs on this machine: leave --only out, or --executor {executor}."
        )
    values = {"profile": profile} | overrides | ({} if jobs is None else {"jobs": jobs})
    folder = OUTPUTS / profile
    folder.mkdir(parents=True, exist_ok=True)
    notebooks = _Notebooks(chosen, folder, values)
    # Those that may have runs to make use all cores for them.
    places = 1 if only is not None else min(len(chosen), jobs or executors.LOCAL.places)
    _work_through(notebooks, [executors.LOCAL.place() for _ in range(places)])
    if notebooks.failed:
        raise RunError(notebooks.failed)
    return [folder / path.name for path in chosen]


@dataclass(frozen=True)
class Notebook:
    """One to be run, where to, and the values of its parameters."""

    source: str
    output: str
    values: dict

    @property
    def name(self) -> str:
        return Path(self.source).stem


class _Notebooks:
    """They are handed out in order; after one that failed, no more."""

    def __init__(self, chosen: list[Path], folder: Path, values: dict[str, Any]):
        self.store, self.folder, self.failed = RunStore(), folder, ""
        self.waiting = [Notebook(str(path), str(folder / path.name), _known(path, values)) for path in chosen]
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
        return spelled(notebook) | {
            "work": "zs_lib.reproduce:execute",
            "seed": 0,
            "store": str(self.store.root),
            "log": str(log),
        }

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


def execute(notebook: Notebook, seed: int, store: RunStore) -> None:
    """`run_notebook` as a worker's job (seed and store are the notebook's own business)."""
    run_notebook(Path(notebook.source), Path(notebook.output), notebook.values)


def _known(notebook: Path, values: dict[str, Any]) -> dict[str, Any]:
    """Those of the values that the notebook has a parameter for; the profile always, so that who lacks it is told."""
    names = parameters(notebook)
    return {name: value for name, value in values.items() if name in names or name == "profile"}


def parameters(notebook: Path) -> list[str]:
    """The names in a notebook's parameters cell."""
    import papermill

    return list(papermill.inspect_notebook(str(notebook)))


def run_notebook(source: Path, output: Path, values: dict[str, Any]) -> Path:
    """Run one notebook in the Python that runs this; ConfigError on a parameter that it does not have."""
    import papermill

    reject_unknown(f"parameter of {source.name}", values, parameters(source))
    os.environ.setdefault(
        "JUPYTER_PREFER_ENV_PATH", "1"
    )  # this environment's kernel, not one in the user's home
    try:
        papermill.execute_notebook(
            str(source),
            str(output),
            values,
            kernel_name="python3",
            cwd=str(source.parent),
            progress_bar=False,
            start_timeout=KERNEL_START_S,
        )
    except papermill.PapermillExecutionError as error:
        raise RunError(
            f"{source.name}, cell {error.cell_index + 1}: {error.ename}: {error.evalue} (see {output})"
        ) from error
    return output


def store_outputs(profile: str = "tiny") -> list[Path]:
    """Put the outputs of outputs/<profile>/ into the notebooks themselves, for visitors; the maintainers' step.

    Only outputs and their numbers: what papermill adds (paths, times, a cell of values) stays out. Notebooks that
    were not executed keep what they have.

    Raises:
        RunError: no notebook was executed, or one has changed since.
    """
    import nbformat

    sources = [source for source in choose() if (OUTPUTS / profile / source.name).exists()]
    if not sources:
        raise RunError(
            f"{OUTPUTS / profile} has no executed notebook: `zs reproduce --profile {profile}` makes them."
        )
    for source in sources:
        executed = OUTPUTS / profile / source.name
        stored = nbformat.read(source, 4)
        done = {cell.id: cell for cell in nbformat.read(executed, 4).cells}
        for cell in stored.cells:
            if cell.cell_type != "code":
                continue
            if cell.id not in done or done[cell.id].source != cell.source:
                raise RunError(
                    f"{executed} was made from other cells: `zs reproduce --profile {profile}` makes it again."
                )
            cell.outputs, cell.execution_count = done[cell.id].outputs, done[cell.id].execution_count
        nbformat.write(stored, source)
    return sources


def choose(only: Iterable[str] | None = None) -> list[Path]:
    """The notebooks of these numbers ("02") or names, all by default, in order.

    Raises:
        ConfigError: an unknown one. DataError: there are none here.
    """
    found = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    if not found:
        raise DataError(f"There are no notebooks in {NOTEBOOKS}: run from a checkout of the repository.")
    if only is None:
        return found
    only = list(only)
    names = {path.stem[:2]: path for path in found} | {path.stem: path for path in found}
    reject_unknown("notebook", only, names)
    return sorted({names[name] for name in only})


def _durations(folder: Path) -> dict[str, float]:
    try:
        return read_json(folder / "durations.json", "")
    except RunError:  # they are but a guess for the time left
        return {}
