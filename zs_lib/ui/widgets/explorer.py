"""The trajectory explorer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import ipywidgets
from IPython.display import HTML

from zs_lib.analysis import trajectory_index
from zs_lib.analysis.find import find_run
from zs_lib.analysis.trajectory_index import Entry, TrajectoryLog
from zs_lib.config.engines import simulates
from zs_lib.launch import progress
from zs_lib.runs import Run, RunStore
from zs_lib.ui import render
from zs_lib.ui.widgets.panel import LONG, SHORT, Panel, attended

SETS = {"the group of a step": False, "a question through training": True}
"""Name → whether one watched question is shown through training."""
NOISE = {"any": None, "noisy documents": True, "none noisy": False}
"""Name → argument of `trajectory_index.select`. (A drop-down whose value is None shows nothing.)"""
NONE_LOGGED, NONE_LEFT, NONE_WATCHED, NONE_STORED = map(
    render.error,
    (
        "Nothing is logged yet.",
        "No trajectory of this run passes the filters.",
        "This run has asked no question again: it has only just started, or its code was older.",
        "No policy in the run store has logged trajectories: notebook 03 trains one.",
    ),
)


def explore(
    run: Run | str | None = None, watch: bool = False, store: RunStore | None = None
) -> Explorer | HTML:
    """Explore the trajectories of policy runs by step and question, a group side by side, with filters.

    `run`: the one to show first (a run, or its name, as for `find_run`); by default the first of the store.
    If none has logged trajectories, the view says so. `watch`: show one question through training first.

    Raises:
        RunError: there is no such run, or its log is damaged.
    """
    store = store or RunStore()
    runs = [one for one in store.list() if _has_trajectories(one)]
    run = find_run(store, run, "policy") if isinstance(run, str) else run
    if run is None and not runs:
        return HTML(NONE_STORED)
    if attended():
        return Explorer(runs, run or runs[0], watch)
    index = TrajectoryLog(run or runs[0])
    if watch:
        watched = trajectory_index.watched(index.entries)
        pages = [_watched_page(index, entries) for entries in watched.values()]
        return HTML("".join(pages) or NONE_WATCHED)
    groups = trajectory_index.groups(index.entries)
    return HTML(_group_page(index, groups, list(groups)[-1]) if groups else NONE_LOGGED)


def _has_trajectories(run: Run) -> bool:
    logged = run.kind == "policy" and (run.path / trajectory_index.LOG).exists()
    return logged and progress.run_state(run) != "damaged"


class Explorer(Panel):
    """Choose a run, a step and a question, and see the rollouts of the group.

    The log is indexed once; only the records that are shown are read.
    """

    def __init__(self, runs: Sequence[Run], run: Run, watch: bool = False):
        by_name = {one.path.name: one for one in (*runs, run)}
        labels = [(f"{one.label} s{one.seed} ({name})", one) for name, one in by_name.items()]
        stops = [("any", ""), *((why, name) for name, why in render.STOPS.items())]
        shades = [(name, shade) for shade, name in render.SHADES.items()]
        menu = partial(ipywidgets.Dropdown, layout=SHORT)
        # Sent when the handle is released: each value that is sent redraws the view.
        released = {"continuous_update": False, "layout": SHORT}
        self.run = menu(options=labels, value=run, description="run", layout=LONG)
        self.what = menu(options=list(SETS.items()), value=watch, description="show")
        self.step = ipywidgets.SelectionSlider(options=[0], description="step", **released)
        self.question = menu(description="question", layout=LONG)
        self.reward = ipywidgets.FloatRangeSlider(
            value=(0, 1), min=0, max=1, step=0.1, description="reward", readout_format=".1f", **released
        )
        self.turns = ipywidgets.IntRangeSlider(value=(1, 1), min=1, max=1, description="turns", **released)
        self.stop = menu(options=stops, description="stop")
        self.noise = menu(options=list(NOISE), description="noise")
        self.shade = menu(options=shades, description="shade by")
        controls = (
            *(self.run, self.what, self.step, self.question, self.reward),
            *(self.turns, self.stop, self.noise, self.shade),
        )
        super().__init__(*controls)
        self.index, self._updating = None, False
        for control in controls:
            control.observe(self.update, "value")
        self._open(run)
        self.update()

    def close(self) -> None:
        if self.index:
            self.index.close()
        super().close()

    def update(self, change: dict | None = None) -> None:
        """Update controls and view after a choice."""
        if self._updating:  # this method itself has set a control
            return
        self._updating = True
        try:
            self.show(self._render)
        finally:
            self._updating = False

    def _render(self) -> str:
        if self.index.run is not self.run.value:
            self._open(self.run.value)
        chosen = trajectory_index.select(
            self.index.entries, self.reward.value, self.turns.value, self.stop.value, NOISE[self.noise.value]
        )
        self.step.layout.display = "none" if self.what.value else None  # one question is shown at all steps
        return self._through_training(chosen) if self.what.value else self._group(chosen)

    def _open(self, run: Run) -> None:
        opened = TrajectoryLog(run)  # if this fails, the log before stays open
        if self.index:
            self.index.close()
        self.index = opened
        self._widen()
        self._to_end()
        if run.running:
            self._keep_fresh(self._grow)
        else:
            self._end_timer()

    def _grow(self) -> bool:
        """Index what was logged since the last call; the chosen step stays, unless it was the last one."""

        def update() -> str:
            at_end = self.step.value == self.step.options[-1]
            if self.index.refresh():
                self._widen()
                if at_end:
                    self._to_end()
            return self._render()

        self._updating = True
        running = self.run.value.running  # read before the log, so that its last lines are not missed
        try:
            return self.show(update) and running
        finally:
            self._updating = False

    def _to_end(self) -> None:
        last = self.index.entries[-1].step if self.index.entries else 0
        _offer(self.step, [last], last)

    def _widen(self) -> None:
        """Extend the turns' slider to the largest number logged."""
        unlimited = self.turns.value[1] == self.turns.max
        self.turns.max = max([self.turns.max, *(entry.turns for entry in self.index.entries)])
        if unlimited:
            self.turns.value = (self.turns.value[0], self.turns.max)

    def _group(self, chosen: list[Entry]) -> str:
        groups = trajectory_index.groups(chosen)
        if not groups:
            return NONE_LEFT if self.index.entries else NONE_LOGGED
        steps = list(dict.fromkeys(step for step, *_ in groups))
        now = min(steps, key=lambda step: abs(step - self.step.value))
        _offer(self.step, steps, now)
        _offer(self.question, [(key[2], key[1:]) for key in groups if key[0] == now], self.question.value)
        return _group_page(self.index, groups, (now, *self.question.value), self.shade.value)

    def _through_training(self, chosen: list[Entry]) -> str:
        watched = trajectory_index.watched(chosen)
        if not watched:
            return NONE_LEFT if trajectory_index.watched(self.index.entries) else NONE_WATCHED
        _offer(self.question, [(question, (0, question)) for question in watched], self.question.value)
        return _watched_page(self.index, watched[self.question.value[1]], self.shade.value)


def _group_page(index: TrajectoryLog, groups: dict[tuple, list[Entry]], key: tuple, shade: str = "") -> str:
    """The chosen rollouts of a group side by side, numbered as in the whole group."""
    whole = [entry.place for entry in trajectory_index.groups(index.entries)[key]]
    titles = [f"rollout {whole.index(entry.place) + 1} of {len(whole)}" for entry in groups[key]]
    return render.group(index.read(groups[key]), shade, _simulated(index.run), titles)


def _watched_page(index: TrajectoryLog, entries: list[Entry], shade: str = "") -> str:
    """The trajectories of a watched question through training, side by side."""
    titles = [f"after step {entry.step}" for entry in entries]
    return render.group(index.read(entries), shade, _simulated(index.run), titles)


def _offer(control: ipywidgets.Widget, options: list, value: object) -> None:
    """Set a control's options, and its value if that is one of them, else the first."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    if tuple(control.options) != tuple(options):
        control.options = options
    control.value = value if value in values else values[0]


def _simulated(run: Run) -> bool:
    return simulates(str(run.config.get("engine")))
