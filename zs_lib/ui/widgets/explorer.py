"""The trajectory explorer: a group of rollouts side by side, or two runs or steps on one question."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import ipywidgets
from IPython.display import HTML

from zs_lib.analysis import trajectory_index
from zs_lib.analysis.find import find_run
from zs_lib.analysis.trajectory_index import Entry, Predictions, TrajectoryLog
from zs_lib.config.engines import simulates
from zs_lib.errors import RunError
from zs_lib.launch import progress
from zs_lib.runs import Run, RunStore
from zs_lib.ui import render
from zs_lib.ui.widgets.panel import LONG, SHORT, Panel, attended

SETS = {"the group of a step": False, "a watched question": True}
"""Name → whether one watched question is shown through training."""
NOISE = {"any": None, "noisy documents": True, "none noisy": False}
"""Name → argument of `trajectory_index.select`. (A drop-down whose value is None shows nothing.)"""
ALL_STEPS = "all, as watched"
_LINK = re.compile(r"(.+):(\d+)")
NONE_LOGGED, NONE_LEFT, NONE_WATCHED, NONE_STORED, NONE_ASKED = map(
    render.error,
    (
        "Nothing is logged yet.",
        "No trajectory of this run passes the filters.",
        "This run has asked no question again: it has only just started, or its code was older.",
        "No policy in the run store has logged trajectories: notebook 03 trains one.",
        "It was not asked this question: choose another, or a run of the same seed, which has the same ones.",
    ),
)


def explore(
    run: Run | str | Path | None = None, watch: bool = False, store: RunStore | None = None
) -> Explorer | HTML:
    """Explore the trajectories of trainings, by step and question, and of evaluations, with filters.

    `run`: the one to show first (a run, or its name, as for `find_run`, or a file that `zs eval` wrote); by
    default the first of the store. If none has logged trajectories, the view says so. NAME:LINE is one
    trajectory, as the explorer names it below each. `watch`: show one question through training first.

    Raises:
        RunError: there is no such run or trajectory, or its log is damaged.
    """
    store, line = store or RunStore(), 0
    runs = [one for one in store.list() if _has_trajectories(one)]
    runs.sort(key=lambda one: one.kind != "policy")  # else as listed
    if isinstance(run, (str, Path)):
        run = str(run)
        if linked := _LINK.fullmatch(run):
            run, line = linked[1], int(linked[2])
        run = Predictions(Path(run)) if os.path.isfile(run) else find_run(store, run, "policy")
    if run is None and not runs:
        return HTML(NONE_STORED)
    run = run or runs[0]
    if attended():
        return Explorer(runs, run, watch, line)
    index = TrajectoryLog(run)
    if line:
        (record,) = index.read([_linked(index, line)])
        return HTML(render.trajectory(record, simulated=_simulated(index)))
    if watch:
        watched = trajectory_index.watched(index.entries)
        return HTML("".join(map(_Page(index).watched, watched.values())) or NONE_WATCHED)
    groups = trajectory_index.groups(index.entries)
    return HTML(_Page(index).group([*groups.values()][-1]) if groups else NONE_LOGGED)


def _has_trajectories(run: Run) -> bool:
    name, _ = trajectory_index.LOGS.get(run.kind, ("no log", {}))
    return (run.path / name).exists() and progress.run_state(run) != "damaged"


class Explorer(Panel):
    """Choose a run, a step and a question, and see the rollouts of the group; beside another run or step.

    Each log is indexed once; only the records that are shown, or searched for a text, are read.
    """

    def __init__(self, runs: Sequence[Run], run: Run | Predictions, watch: bool = False, line: int = 0):
        by_name = {one.path.name: one for one in (*runs, run)}
        labels = [(f"{one.label}@{one.seed} ({name})", one) for name, one in by_name.items()]
        stops = [("any", ""), *((why, name) for name, why in render.STOPS.items())]
        shades = [(name, shade) for shade, name in render.SHADES.items()]
        menu = partial(ipywidgets.Dropdown, layout=SHORT)
        # Sent when the handle is released: each value that is sent redraws the view.
        released = {"continuous_update": False, "layout": SHORT}
        self.run = menu(options=labels, value=run, description="run", layout=LONG)
        self.what = menu(options=list(SETS.items()), value=watch, description="show")
        self.question = menu(description="question", layout=LONG)
        self.step = ipywidgets.SelectionSlider(options=[0], description="step", **released)
        self.beside = menu(options=[("nothing", ""), *labels], description="beside", layout=LONG)
        self.its_step = menu(options=[("–", -2)], description="its step")
        self.text = ipywidgets.Text(description="find", placeholder="text, then Enter", **released)
        self.shade = menu(options=shades, description="shade by")
        self.more = ipywidgets.ToggleButton(description="more filters", layout=SHORT)
        self.reward = ipywidgets.FloatRangeSlider(
            value=(0, 1), min=0, max=1, step=0.1, description="reward", readout_format=".1f", **released
        )
        self.turns = ipywidgets.IntRangeSlider(value=(1, 1), min=1, max=1, description="turns", **released)
        self.stop = menu(options=stops, description="stop")
        self.noise = menu(options=list(NOISE), description="noise")
        self.filters = (self.reward, self.turns, self.stop, self.noise)
        controls = (
            *(self.run, self.what, self.question, self.step, self.beside, self.its_step),
            *(self.text, self.shade, self.more, *self.filters),
        )
        super().__init__(*controls)
        self.index = self.other = self.linked = None
        self._updating = False
        for control in controls:
            control.observe(self.update, "value")
        self._open(run)
        if line:
            self._go_to(_linked(self.index, line))
        self.update()

    def close(self) -> None:
        for index in filter(None, (self.index, self.other)):
            index.close()
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
        _show_if(self.more.value, *self.filters)
        trained = self.run.value.kind == "policy"
        _show_if(trained and not self.what.value, self.step)  # one question is shown at all steps
        _show_if(self.beside.value, self.its_step)
        chosen = trajectory_index.select(
            self.index.entries, self.reward.value, self.turns.value, self.stop.value, NOISE[self.noise.value]
        )
        if self.text.value:
            holding = self.index.holding(self.text.value)
            chosen = [entry for entry in chosen if entry.place in holding]
        shown = self._through_training(chosen) if self.what.value else self._group(chosen)
        return self._with_other(shown) if self.beside.value and self.question.value else shown

    def _open(self, run: Run | Predictions) -> None:
        opened = TrajectoryLog(run)  # if this fails, the log before stays open
        if self.index:
            self.index.close()
        self.index, self.linked = opened, None
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

    def _go_to(self, entry: Entry) -> None:
        """Choose the step and the question of a trajectory."""
        self.linked, self._updating = entry, True
        self.what.value = entry.watched
        _offer(self.step, [entry.step], entry.step)
        _offer(self.question, [(entry.question, _key(entry))], _key(entry))
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
        return self._page(self.index).group(groups[(now, *self.question.value)])

    def _through_training(self, chosen: list[Entry]) -> str:
        watched = trajectory_index.watched(chosen)
        if not watched:
            return NONE_LEFT if trajectory_index.watched(self.index.entries) else NONE_WATCHED
        _offer(self.question, [(question, (0, question)) for question in watched], self.question.value)
        return self._page(self.index).watched(watched[self.question.value[1]])

    def _with_other(self, shown: str) -> str:
        """Put what is shown beside another run's answers to the question, or this one's at another step."""
        run = self.beside.value
        if self.other is None or self.other.run is not run:
            opened = TrajectoryLog(run)
            if self.other:
                self.other.close()
            self.other = opened
        self.other.refresh()
        asked = [entry for entry in self.other.entries if entry.question == self.question.value[1]]
        watched = [entry for entry in asked if entry.watched]
        steps = dict.fromkeys(entry.step for entry in asked if not entry.watched)
        steps = [(_at(run, step), step) for step in steps]
        here, there = (f"{one.label}@{one.seed}" for one in (self.index.run, run))
        if not self.what.value:
            here += f", {_at(self.index.run, self.step.value)}"
        if not asked:
            return render.beside({here: shown, f"{there} ": NONE_ASKED})
        steps += [(ALL_STEPS, -1)] if watched else []
        _offer(self.its_step, steps, self._nearest([step for _, step in steps]))
        page, step = self._page(self.other), self.its_step.value
        if step == -1:
            return render.beside({here: shown, f"{there}, {ALL_STEPS}": page.watched(watched)})
        group = [entry for entry in asked if entry.step == step and not entry.watched]
        return render.beside({here: shown, f"{there}, {_at(run, step)} ": page.group(group)})

    def _nearest(self, steps: list[int]) -> int:
        """The step that is chosen beside, or else the one like what is shown, or nearest to it."""
        if self.its_step.value in steps:
            return self.its_step.value
        wanted = -1 if self.what.value else self.step.value
        others = [step for step in steps if step != wanted or self.beside.value is not self.run.value]
        return min(others or steps, key=lambda step: (abs(step - wanted), step))

    def _page(self, index: TrajectoryLog) -> _Page:
        return _Page(index, self.shade.value, self.linked if index is self.index else None, links=True)


@dataclass(frozen=True)
class _Page:
    """Pages of trajectories of one log."""

    index: TrajectoryLog
    shade: str = ""
    linked: Entry | None = None
    """The one that was asked for."""
    links: bool = False
    """Whether each can be saved."""

    def group(self, entries: list[Entry]) -> str:
        """The chosen rollouts of a group side by side, numbered as in the whole group."""
        keys = {(entry.step, *_key(entry)) for entry in entries}
        groups = trajectory_index.groups(self.index.entries)
        whole = [entry.place for key in sorted(keys) for entry in groups[key]]
        return self._show(entries, [f"rollout {whole.index(e.place) + 1} of {len(whole)}" for e in entries])

    def watched(self, entries: list[Entry]) -> str:
        """The trajectories of a watched question through training, side by side."""
        return self._show(entries, [f"after step {entry.step}" for entry in entries])

    def _show(self, entries: list[Entry], titles: list[str]) -> str:
        records, run = self.index.read(entries), self.index.run
        name = str(run.path) if isinstance(run, Predictions) else run.path.name
        pairs = zip(titles, entries, strict=True)
        titles = [f"▶ {title}" if entry == self.linked else title for title, entry in pairs]
        feet = [
            render.save_links(record, f"{name}:{self.index.line(entry)}")
            for record, entry in zip(records, entries, strict=True)
            if self.links
        ]
        return render.group(records, self.shade, _simulated(self.index), titles, feet)


def _at(run: Run | Predictions, step: int) -> str:
    return f"step {step}" if run.kind == "policy" else "evaluated"


def _linked(index: TrajectoryLog, line: int) -> Entry:
    if not 1 <= line <= len(index.entries):
        raise RunError(f"{index.run.path.name} has {len(index.entries)} trajectories, and no line {line}.")
    return index.entries[line - 1]


def _key(entry: Entry) -> tuple[int, str]:
    """The value of the question's control for an entry's."""
    return (0, entry.question) if entry.watched else (entry.group, entry.question)


def _show_if(wanted: object, *controls: ipywidgets.Widget) -> None:
    for control in controls:
        control.layout.display = None if wanted else "none"


def _offer(control: ipywidgets.Widget, options: list, value: object) -> None:
    """Set a control's options, and its value if that is one of them, else the first."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    if tuple(control.options) != tuple(options):
        control.options = options
    control.value = value if value in values else values[0]


def _simulated(index: TrajectoryLog) -> bool:
    return simulates(str(index.run.config.get("engine")))
