"""The training monitor and the study board."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import ipywidgets
from IPython.display import HTML

from zs_lib import studies
from zs_lib.analysis.find import find_run
from zs_lib.config import Profile, Resources
from zs_lib.errors import RunError
from zs_lib.launch import background, progress
from zs_lib.runs import Run, RunStore
from zs_lib.ui import render
from zs_lib.ui.widgets.panel import Panel, attended

NONE_TRAINS = render.error(
    "No policy trains now. Start one (notebook 03, or a board's button), then run this cell again; or "
    "name a finished run (`zs runs list`)."
)


def monitor(*runs: Run | str, store: RunStore | None = None) -> Monitor | HTML:
    """Show curves and early warnings of training runs, updated while they train.

    `runs`: runs of policies, or the beginnings of their names; by default all that train now, by any process;
    if none does, the view says so.

    Raises:
        RunError: there is no such run, it is not a policy's, or its log is damaged.
    """
    store = store or RunStore()
    found = [find_run(store, run) if isinstance(run, str) else run for run in runs]
    found = found or [run for run in store.list() if run.kind == "policy" and run.running]
    if not found:
        return HTML(NONE_TRAINS)
    if any(run.kind != "policy" for run in found):
        raise RunError("One of these runs is not a policy's: name a run of a policy (`zs runs list`).")
    return Monitor(found) if attended() else HTML(render.training(found))


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
        """Redraw if anything was logged; whether any of the runs is still running."""
        running = [run.running for run in self.runs]  # read before the logs, so that no last line is missed
        seen = running, [_size(run.path / "metrics.jsonl") for run in self.runs]
        shown = seen == self._seen or self.show(lambda: render.training(self.runs))
        self._seen = seen
        return shown and any(running)


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
        super().__init__(self.start, self.stop, self.reload)
        self.start.on_click(self._start)
        self.stop.on_click(self._stop)
        self.reload.on_click(self._follow)
        self._follow()

    def refresh(self) -> bool:
        """Show the current state; whether any run is in progress."""
        states, pid = progress.arm_states(self.wanted, self.store), background.process_id(self.store)
        self.start.disabled, self.stop.disabled = pid is not None, pid is None
        note = "" if pid else background.last_output(self.store)
        shown = self.show(lambda: render.board(states, note))
        return shown and (pid is not None or any(state.state == "running" for state in states))

    def _follow(self, _: object = None) -> None:
        if self.refresh():
            self._keep_fresh(self.refresh)

    def _start(self, _: object) -> None:
        if self.show(lambda: str(background.start(self.wanted, self.store, self.jobs, self.resources))):
            self._follow()

    def _stop(self, _: object) -> None:
        background.stop(self.store)
        self._follow()
