"""Widgets for JupyterLab: trajectory explorer, playground, training monitor, study board, cost calculator.

Each is one call. In an interactive notebook it returns a widget; in one that a program executes (papermill)
it returns the same view as HTML, which is stored in the notebook. All read the run store, so any process may
train the runs, and nothing is lost with the browser. Timers run on the kernel's event loop; they end with the
run that they watch, or with the widget.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import ipywidgets
from IPython.display import HTML

from zs_lib import studies
from zs_lib.analysis import cost, roofline, trajectory_index
from zs_lib.analysis.find import find_run
from zs_lib.analysis.trajectory_index import Entry, TrajectoryLog
from zs_lib.config import Profile, Resources
from zs_lib.config.engines import simulates
from zs_lib.config.values import reject_unknown
from zs_lib.errors import RunError, ZeroSearchError
from zs_lib.launch import background, progress
from zs_lib.runs import Run, RunStore
from zs_lib.ui import render
from zs_lib.ui.playground import Inputs, choices, compare

REFRESH_S = 3.0
"""Seconds between two reads of the store."""
SHORT = {"width": "300px", "max_width": "98%"}
LONG = {"width": "604px", "max_width": "98%"}
"""Layouts of controls; a LONG one, for a sentence, is as wide as two short ones with margins of 2 px."""
SETS = {"the group of a step": False, "a question through training": True}
"""Name → whether one watched question is shown through training."""
NOISE = {"any": None, "noisy documents": True, "none noisy": False}
"""Name → argument of `trajectory_index.select`. (A drop-down whose value is None shows nothing.)"""
NONE_LOGGED, NONE_LEFT, NONE_WATCHED, NONE_STORED, NONE_TRAINS = map(
    render.error,
    (
        "Nothing is logged yet.",
        "No trajectory of this run passes the filters.",
        "This run has asked no question again: it has only just started, or its code was older.",
        "No policy in the run store has logged trajectories: notebook 03 trains one.",
        "No policy trains now. Start one (notebook 03, or a board's button), then run this cell again; or "
        "name a finished run (`zs runs list`).",
    ),
)


def attended() -> bool:
    """Tell whether a person may use this kernel: front ends allow input with each cell, programs do not."""
    kernel = getattr(progress.ipython_shell(), "kernel", None)
    return kernel is not None and bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


def explore(
    run: Run | str | None = None, watch: bool = False, store: RunStore | None = None
) -> Explorer | HTML:
    """Explore the trajectories of policy runs by step and question, a group side by side, with filters.

    `run`: the one to show first (a run, or the beginning of its name); by default the first of the store. If
    none has logged trajectories, the view says so. `watch`: show one question through training first.

    Raises:
        RunError: there is no such run, or its log is damaged.
    """
    store = store or RunStore()
    runs = [one for one in store.list() if _has_trajectories(one)]
    run = find_run(store, run) if isinstance(run, str) else run
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


def playground(
    study: Profile,
    query: str = "",
    question: str = "",
    answer: str = "",
    engines: Sequence[str] = (),
    judge: bool = False,
    store: RunStore | None = None,
) -> Playground | HTML:
    """Compare what several engines find for one query, by default the good query of a training question.

    `engines`: names of `playground.choices`, by default BM25 and the study's main simulator, useful and
    noisy. `judge`: let the LLM judge read the documents.

    Raises:
        ConfigError: there is no such engine, or the judge lacks the right answer.
    """
    store = store or RunStore()
    known = choices(study, store)
    reject_unknown("engine", engines, known)
    if not query:
        from zs_lib.ui import examples  # imports torch, which the other panels do not need

        sample = examples.training_questions(1)[0]
        query = sample.hops[-1].query
        question, answer = question or sample.question, answer or sample.golden_answers[0]
    main = next((arm.simulator.name for arm in study.policies if arm.simulator), "")
    engines = engines or [name for name in known if name == "bm25" or name.startswith(f"{main}, ")]
    inputs = Inputs(query, question, answer, tuple(engines), judge)
    if attended():
        return Playground(study, store, known, inputs)
    return HTML(compare(study, store, inputs))


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


def calculator(model: str = "14B", gpu: str = cost.CARD) -> Calculator | HTML:
    """Show what a simulator costs per training run, and what it saves against search engines.

    The widget has controls for the GPU's price, searches per rollout and group size.

    Raises:
        ConfigError: the simulator's size or the GPU is unknown.
    """
    reject_unknown("simulator", [model], roofline.MODELS)
    reject_unknown("GPU", [gpu], cost.hourly())
    if attended():
        return Calculator(model, gpu)
    training = cost.paper_load()
    return HTML(_costs(model, gpu, None, training.searches, training.group))


class _Panel(ipywidgets.VBox):
    """Base of the widgets: controls above a view of HTML."""

    _timer: asyncio.Task | None = None

    def __init__(self, *controls: ipywidgets.Widget):
        self.view = ipywidgets.HTML()
        super().__init__([ipywidgets.Box(controls, layout={"flex_flow": "row wrap"}), self.view])

    def close(self) -> None:
        """Remove the widget, and end its timer."""
        self._end_timer()
        super().close()

    def show(self, make: Callable[[], str]) -> bool:
        """Show what `make` returns, or its error; whether it succeeded."""
        try:
            self.view.value = make()
            return True
        except ZeroSearchError as error:
            self.view.value = render.error(error)
            return False

    def _keep_fresh(self, refresh: Callable[[], bool]) -> None:
        """Call `refresh` every REFRESH_S seconds until it returns False; never without an event loop."""

        async def tick() -> None:
            await asyncio.sleep(REFRESH_S)
            while refresh():
                await asyncio.sleep(REFRESH_S)

        self._end_timer()
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._timer = loop.create_task(tick())

    def _end_timer(self) -> None:
        if self._timer:
            self._timer.cancel()
            self._timer = None


class Explorer(_Panel):
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


class Playground(_Panel):
    """A query, what is known about it, a box for each engine, and a button."""

    def __init__(self, study: Profile, store: RunStore, known: Sequence[str], inputs: Inputs):
        self.study, self.store = study, store
        # Sent when the field is left, not key by key: a value that is sent late would miss the search.
        field = partial(ipywidgets.Text, continuous_update=False)
        self.query = field(inputs.query, description="query", layout=LONG)
        self.question = field(
            inputs.question, description="question", layout=LONG, placeholder="part of a simulator's prompt"
        )
        self.answer = field(
            inputs.answer, description="answer", layout=SHORT, placeholder="known for benchmark questions"
        )
        # Boxes instead of a list, since JupyterLab takes a list's arrow keys for moving to the next cell.
        self.engines = [
            ipywidgets.Checkbox(name in inputs.engines, description=name, indent=False, layout=SHORT)
            for name in known
        ]
        self.judge = ipywidgets.Checkbox(inputs.judge, description="ask the LLM judge", layout=SHORT)
        self.button = ipywidgets.Button(description="Search", button_style="primary")
        self.button.on_click(self.search)
        super().__init__(self.query, self.answer, self.question, self.judge, *self.engines, self.button)
        self.search()

    def search(self, _: object = None) -> None:
        """Search with the chosen engines, and show what they find."""
        chosen = tuple(box.description for box in self.engines if box.value)
        inputs = Inputs(self.query.value, self.question.value, self.answer.value, chosen, self.judge.value)
        self.show(lambda: compare(self.study, self.store, inputs))


class Monitor(_Panel):
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


class StudyBoard(_Panel):
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


class Calculator(_Panel):
    """Costs of a simulator, recomputed with each choice; choosing a GPU also sets its quoted price."""

    def __init__(self, model: str, gpu: str):
        training = cost.paper_load()
        self.model = ipywidgets.Dropdown(options=list(roofline.MODELS), value=model, description="simulator")
        self.gpu = ipywidgets.Dropdown(options=list(cost.hourly()), value=gpu, description="GPU")
        self.price = ipywidgets.BoundedFloatText(
            cost.hourly()[gpu], min=0.01, max=100, step=0.1, description="$ per hour"
        )
        self.searches = ipywidgets.FloatSlider(
            training.searches, min=0.5, max=5, step=0.1, description="searches"
        )
        self.group = ipywidgets.IntSlider(training.group, min=1, max=16, description="group size")
        super().__init__(self.model, self.gpu, self.price, self.searches, self.group)
        self.gpu.observe(self._price, "value")
        for control in (self.model, self.gpu, self.price, self.searches, self.group):
            control.observe(self.update, "value")
        self.update()

    def update(self, change: dict | None = None) -> None:
        """Show the costs of the current choices."""
        chosen = [control.value for control in (self.model, self.gpu, self.price, self.searches, self.group)]
        self.show(lambda: _costs(*chosen))

    def _price(self, change: dict) -> None:
        self.price.value = cost.hourly()[self.gpu.value]


def _costs(model: str, gpu: str, usd_hour: float | None, searches: float, group: int) -> str:
    training = replace(cost.paper_load(), searches=searches, group=group)
    ways = cost.ways(training, model, gpu, usd_hour)
    work = (
        f"{training.steps} steps of {training.prompts} prompts x {group} rollouts x {searches:.1f} searches"
    )
    caption = (
        f"{training.queries:,.0f} queries ({work}) in {training.hours:.0f} hours, or in more if the GPUs "
        "need them. Modelled, at quoted prices."
    )
    return render.costs(ways, cost.savings(ways["usd"], training.queries), caption)
