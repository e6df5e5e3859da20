"""The training monitor and the study board."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ipywidgets
from IPython.display import HTML

from zs_lib import studies
from zs_lib.analysis.find import find_run
from zs_lib.config import Profile, Resources
from zs_lib.errors import ZeroSearchError
from zs_lib.launch import background, progress
from zs_lib.runs import Run, RunStore
from zs_lib.ui import render
from zs_lib.ui.widgets.panel import Panel, attended

NONE_TRAINS = render.error(
    "No policy trains now. Start one (notebook 03, or a board's button), then run this cell again; or "
    "name a finished run (`zs runs list`)."
)
MAKING = "· made in the background, also when this notebook is closed"


def monitor(*runs: Run | str, store: RunStore | None = None) -> Monitor | HTML:
    """Show curves and early warnings of training runs, updated while they train. Never raises.

    `runs`: runs of policies, or their names (`find_run`); by default all that train now, by any process.
    If none does, or what is named is no policy or cannot be read, the view says so.
    """
    try:
        store = store or RunStore()
        found = [find_run(store, run, "policy") if isinstance(run, str) else run for run in runs]
        found = found or [run for run in store.list() if run.kind == "policy" and run.running]
    except Exception as problem:
        return HTML(render.error(problem))
    if not found:
        return HTML(NONE_TRAINS)
    if other := next((run for run in found if run.kind != "policy"), None):
        return HTML(render.error(f"{other.path.name} is no policy: name a run of a policy (`zs runs list`)."))
    return Monitor(found) if attended() else HTML(_page(found))


def board(study: Profile, jobs: int | None = None, store: RunStore | None = None) -> StudyBoard | HTML:
    """Show the state of every arm of a study, with a button to make the missing runs in the background."""
    wanted, store = studies.study_runs(study), store or RunStore()
    if attended():
        return StudyBoard(wanted, jobs, store, study.resources)
    return HTML(render.board(progress.arm_states(wanted, store)))


class Monitor(Panel):
    """Curves of training runs, redrawn whenever a step is logged."""

    def __init__(self, runs: Sequence[Run]):
        super().__init__()
        self.runs, self._seen = runs, None
        if self.refresh():
            self._keep_fresh(self.refresh)

    def refresh(self) -> bool:
        """Redraw if anything was logged; whether any of the runs is still running. Never raises."""
        running = [True]
        try:
            # Read before the logs, so that their last lines are not missed.
            running = [run.running for run in self.runs]
            seen = running, [_size(run.path / "metrics.jsonl") for run in self.runs]
            if seen != self._seen:
                self.view.value, self._seen = _page(self.runs), seen
            self.tell("")
        except Exception as problem:  # e.g. of the disk: the next look may succeed
            self.tell(render.error(problem))
        return any(running)


def _page(runs: Sequence[Run]) -> str:
    """Curves of the runs, below an error for each that cannot be read."""
    errors, sound = [], []
    for run in runs:
        try:
            _ = run.label, run.metrics(), run.timing()
            sound.append(run)
        except Exception as problem:
            errors.append(render.error(problem))
    return "".join(errors) + (render.training(sound) if sound else "")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


class StudyBoard(Panel):
    """State of every arm, and buttons to make the missing runs."""

    def __init__(
        self, wanted: Sequence[tuple], jobs: int | None, store: RunStore, resources: Resources | None = None
    ):
        self.wanted, self.jobs, self.store, self.resources = wanted, jobs, store, resources
        self.start = ipywidgets.Button(
            description="Start or resume",
            button_style="primary",
            tooltip="makes the missing runs in the background",
        )
        self.stop = ipywidgets.Button(description="Stop", tooltip="the last checkpoints are kept")
        self.reload = ipywidgets.Button(description="Refresh")
        self._busy = False
        super().__init__(self.start, self.stop, self.reload)
        self.start.on_click(self._start)
        self.stop.on_click(self._stop)
        self.reload.on_click(self._follow)
        self._follow()

    def refresh(self) -> bool:
        """Show the current state; whether any run is in progress."""
        return self.show(self._render) and self._busy

    def _render(self) -> str:
        states, pid = progress.arm_states(self.wanted, self.store), background.process_id(self.store)
        self.start.disabled, self.stop.disabled = pid is not None, pid is None
        self._busy = pid is not None or any(state.state == "running" for state in states)
        note = f"{MAKING} (process {pid})" if pid else background.last_output(self.store)
        return render.board(states, note)

    def _follow(self, _: object = None) -> None:
        if self.refresh():
            self._keep_fresh(self.refresh)

    def _start(self, _: object) -> None:
        self.start.disabled = True
        self.tell(render.note("Starting a process in the background …"))
        try:
            background.start(self.wanted, self.store, self.jobs, self.resources)
        except ZeroSearchError as error:
            self.start.disabled = False
            self.tell(render.error(error))
        else:
            self._follow()

    def _stop(self, _: object) -> None:
        self.tell(render.note("Stopping: the runs save their checkpoints …"))
        background.stop(self.store)
        self._follow()
