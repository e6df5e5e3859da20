"""Things to use in JupyterLab: an explorer of trajectories, a playground of search engines, a training monitor, a board, a
calculator of costs.

Each is one call. Where somebody sits at the notebook it returns a widget; where a program executes it (papermill), the
same call returns the view as HTML, which stays in the stored notebook. All read the run store, so a run may be trained
by any process, and nothing is lost with the browser. Timers run on the kernel's event loop, and end with what they
watch or with the widget.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import ipywidgets
from IPython.display import HTML

from zs_lib import studies
from zs_lib.analysis import cost, roofline
from zs_lib.config import Profile
from zs_lib.config.engines import simulates
from zs_lib.config.values import reject_unknown
from zs_lib.errors import RunError, ZeroSearchError
from zs_lib.launch import background, progress
from zs_lib.rl import trajectory_log
from zs_lib.rl.trajectory_log import Entry, TrajectoryLog
from zs_lib.runs import Run, RunStore
from zs_lib.ui import render
from zs_lib.ui.playground import choices, compare

REFRESH_S = 3.0
"""Seconds between two looks at the store."""
SHORT = {"width": "300px", "max_width": "98%"}
LONG = {"width": "604px", "max_width": "98%"}
"""Layouts of controls, LONG for a sentence: with the margins of 2 px as wide as two short ones, so that rows form columns."""
SETS = {"the group of a step": False, "a question through training": True}
NOISE = {"any": None, "noisy documents": True, "none noisy": False}
"""Name → what `trajectories.select` takes. (A drop-down whose value is None shows nothing.)"""
NONE_LOGGED, NONE_LEFT, NONE_WATCHED = map(
    render.error,
    (
        "Nothing is logged yet.",
        "No trajectory of this run passes the filters.",
        "This run asked no question again: it is older, or has just begun.",
    ),
)


def attended() -> bool:
    """Whether somebody may answer this kernel: a front end offers its keyboard with every cell that it sends, a program
    that executes notebooks does not."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    kernel = getattr(shell, "kernel", None)
    return kernel is not None and bool(kernel.get_parent().get("content", {}).get("allow_stdin"))


def explore(
    run: Run | str | None = None, watch: bool = False, store: RunStore | None = None
) -> Explorer | HTML:
    """Trajectories of the stored policies, beginning with `run` (a run or the beginning of its name; by default the first):
    by step and question, filtered, a group side by side; or, where `watch` begins, one question through training.

    Raises:
        RunError: there is no such run, none that logged trajectories, or its log is damaged.
    """
    store = store or RunStore()
    runs = [
        one
        for one in store.list()
        if one.kind == "policy"
        and (one.path / trajectory_log.LOG).exists()
        and progress.run_state(one) != "damaged"
    ]
    run = store.find(run) if isinstance(run, str) else run
    if run is None and not runs:
        raise RunError(f"No policy in {store.root} has logged trajectories: notebook 03 trains one.")
    if attended():
        return Explorer(runs, run or runs[0], watch)
    index = TrajectoryLog(run or runs[0])
    if watch:
        return HTML(
            "".join(
                _watched_page(index, entries) for entries in trajectory_log.watched(index.entries).values()
            )
            or NONE_WATCHED
        )
    groups = trajectory_log.groups(index.entries)
    return HTML(_group_page(index, groups, list(groups)[-1]) if groups else NONE_LOGGED)


def playground(
    study: Profile,
    query: str = "",
    question: str = "",
    answer: str = "",
    engines: Sequence[str] = (),
    judge: bool = False,
    store: RunStore | None = None,
) -> Playground | HTML:
    """What several engines find for one query, side by side; by default the good query of a training question, asked of BM25
    and of the study's main simulator, useful and noisy. `engines`: names of `playground.choices`, else ConfigError."""
    store = store or RunStore()
    known = choices(study, store)
    reject_unknown("engine", engines, known)
    if not query:
        from zs_lib.ui import examples  # torch, which the other panels do without

        sample = examples.training_questions(1)[0]
        query = sample.hops[-1].query
        question, answer = question or sample.question, answer or sample.golden_answers[0]
    main = next((arm.simulator.label for arm in study.policies if arm.simulator), "")
    engines = engines or [name for name in known if name == "bm25" or name.startswith(f"{main}, ")]
    if attended():
        return Playground(study, store, known, query, question, answer, engines, judge)
    return HTML(compare(study, store, query, question, answer, engines, judge))


def monitor(*runs: Run | str, store: RunStore | None = None) -> Monitor | HTML:
    """The curves and early warnings of trainings (runs, or beginnings of their names; by default whatever policies train
    now, wherever), kept up to date while they go on.

    Raises:
        RunError: there is no such run, it is no policy, or its log is damaged; no policy trains now.
    """
    store = store or RunStore()
    found = [store.find(run) if isinstance(run, str) else run for run in runs]
    found = found or [run for run in store.list() if run.kind == "policy" and run.running]
    if not found or any(run.kind != "policy" for run in found):
        what = "One of these runs is no policy's" if found else f"No policy trains now in {store.root}"
        raise RunError(f"{what}: name a run of a policy (`zs runs list`).")
    return Monitor(found) if attended() else HTML(render.training(found))


def board(study: Profile, jobs: int | None = None, store: RunStore | None = None) -> StudyBoard | HTML:
    """How every arm of a study stands, with a button that makes what is missing in a process that outlives the notebook."""
    wanted, store = studies.study_runs(study), store or RunStore()
    return (
        StudyBoard(wanted, jobs, store)
        if attended()
        else HTML(render.board(progress.arm_states(wanted, store)))
    )


def calculator(model: str = "14B", gpu: str = cost.CARD) -> Calculator | HTML:
    """What a simulator of this size on these cards costs one training, and what it saves against search engines; with controls
    for a card's price, searches a rollout (its turns, less the answer's) and group size. ConfigError for an unknown name."""
    reject_unknown("simulator", [model], roofline.MODELS)
    reject_unknown("GPU", [gpu], cost.hourly())
    if attended():
        return Calculator(model, gpu)
    training = cost.papers_training()
    return HTML(_costs(model, gpu, None, training.searches, training.group))


class _Panel(ipywidgets.VBox):
    """Controls above a view that is HTML."""

    _timer: asyncio.Task | None = None

    def __init__(self, *controls: ipywidgets.Widget):
        self.view = ipywidgets.HTML()
        super().__init__([ipywidgets.Box(controls, layout={"flex_flow": "row wrap"}), self.view])

    def close(self) -> None:
        """Remove the widget, and end its timer."""
        self._end_timer()
        super().close()

    def show(self, make: Callable[[], str]) -> bool:
        """Show what `make` returns, or what was wrong; whether all was well."""
        try:
            self.view.value = make()
            return True
        except ZeroSearchError as error:
            self.view.value = render.error(error)
            return False

    def _keep_fresh(self, refresh: Callable[[], bool]) -> None:
        """Call `refresh` every REFRESH_S until it returns False; in a script, which has no event loop, not at all."""

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
    """Runs → steps → questions → the rollouts of a group. The log is indexed once; only what is shown is read."""

    def __init__(self, runs: Sequence[Run], run: Run, watch: bool = False):
        by_name = {one.path.name: one for one in (*runs, run)}
        options = [(f"{one.label} s{one.seed} ({name})", one) for name, one in by_name.items()]
        self.run = ipywidgets.Dropdown(options=options, value=run, description="run", layout=LONG)
        self.what = ipywidgets.Dropdown(
            options=list(SETS.items()), value=watch, description="show", layout=SHORT
        )
        self.step = ipywidgets.SelectionSlider(
            options=[0], description="step", continuous_update=False, layout=SHORT
        )
        self.question = ipywidgets.Dropdown(description="question", layout=LONG)
        self.reward = ipywidgets.FloatRangeSlider(
            value=(0, 1),
            min=0,
            max=1,
            step=0.1,
            description="reward",
            readout_format=".1f",
            continuous_update=False,
            layout=SHORT,
        )
        self.turns = ipywidgets.IntRangeSlider(
            value=(1, 1), min=1, max=1, description="turns", continuous_update=False, layout=SHORT
        )
        self.stop = ipywidgets.Dropdown(
            options=[("any", ""), *((why, name) for name, why in render.STOPS.items())],
            description="stop",
            layout=SHORT,
        )
        self.noise = ipywidgets.Dropdown(options=list(NOISE), description="noise", layout=SHORT)
        self.shade = ipywidgets.Dropdown(
            options=[(name, shade) for shade, name in render.SHADES.items()],
            description="shade by",
            layout=SHORT,
        )
        controls = (
            self.run,
            self.what,
            self.step,
            self.question,
            self.reward,
            self.turns,
            self.stop,
            self.noise,
            self.shade,
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
        """Bring controls and view in line with what was chosen."""
        if self._updating:  # a control that this method itself has set
            return
        self._updating = True
        try:
            self.show(self._render)
        finally:
            self._updating = False

    def _render(self) -> str:
        if self.index.run is not self.run.value:
            self._open(self.run.value)
        chosen = trajectory_log.select(
            self.index.entries, self.reward.value, self.turns.value, self.stop.value, NOISE[self.noise.value]
        )
        self.step.layout.display = "none" if self.what.value else None  # all steps are shown
        return self._through_training(chosen) if self.what.value else self._group(chosen)

    def _open(self, run: Run) -> None:
        opened, before = (
            TrajectoryLog(run),
            self.index,
        )  # if it cannot be opened, the one before can still be returned to
        self.index = opened
        if before:
            before.close()
        self._widen()
        self._to_end()
        if run.running:
            self._keep_fresh(self._grow)
        else:
            self._end_timer()

    def _grow(self) -> bool:
        """Take in what was logged since; the step stays, unless it was the last."""

        def render() -> str:
            at_end = self.step.value == self.step.options[-1]
            if self.index.refresh():
                self._widen()
                if at_end:
                    self._to_end()
            return self._render()

        self._updating, going = (
            True,
            self.run.value.running,
        )  # asked first, so that the last lines are not missed
        try:
            return self.show(render) and going
        finally:
            self._updating = False

    def _to_end(self) -> None:
        last = self.index.entries[-1].step if self.index.entries else 0
        _offer(self.step, [last], last)

    def _widen(self) -> None:
        """Let the turns' range hold all that were logged."""
        most, everything = (
            max((entry.turns for entry in self.index.entries), default=1),
            self.turns.value[1] == self.turns.max,
        )
        self.turns.max = max(most, self.turns.max)
        if everything:
            self.turns.value = (self.turns.value[0], self.turns.max)

    def _group(self, chosen: list[Entry]) -> str:
        groups = trajectory_log.groups(chosen)
        if not groups:
            return NONE_LEFT if self.index.entries else NONE_LOGGED
        steps = list(dict.fromkeys(step for step, *_ in groups))
        now = (
            self.step.value
            if self.step.value in steps
            else min(steps, key=lambda step: abs(step - self.step.value))
        )
        _offer(self.step, steps, now)
        _offer(self.question, [(key[2], key[1:]) for key in groups if key[0] == now], self.question.value)
        return _group_page(self.index, groups, (now, *self.question.value), self.shade.value)

    def _through_training(self, chosen: list[Entry]) -> str:
        watched = trajectory_log.watched(chosen)
        if not watched:
            return NONE_LEFT if trajectory_log.watched(self.index.entries) else NONE_WATCHED
        _offer(self.question, [(question, (0, question)) for question in watched], self.question.value)
        return _watched_page(self.index, watched[self.question.value[1]], self.shade.value)


def _group_page(index: TrajectoryLog, groups: dict[tuple, list[Entry]], key: tuple, shade: str = "") -> str:
    """What of a group is chosen, side by side, numbered by its place in the whole group."""
    whole = [entry.place for entry in trajectory_log.groups(index.entries)[key]]
    titles = [f"rollout {whole.index(entry.place) + 1} of {len(whole)}" for entry in groups[key]]
    return render.group(index.read(groups[key]), shade, _simulated(index.run), titles)


def _watched_page(index: TrajectoryLog, entries: list[Entry], shade: str = "") -> str:
    """A watched question each time that it was asked again."""
    return render.group(
        index.read(entries), shade, _simulated(index.run), [f"after step {entry.step}" for entry in entries]
    )


def _offer(control: ipywidgets.Widget, options: list, value: object) -> None:
    """Set a control's options; its value stays if it is among them, else it is the first."""
    values = [option[1] if isinstance(option, tuple) else option for option in options]
    if tuple(control.options) != tuple(options):
        control.options = options
    control.value = value if value in values else values[0]


def _simulated(run: Run) -> bool:
    return simulates(str(run.config.get("engine")))


class Playground(_Panel):
    """A query, what it is asked for, the engines, and a button."""

    def __init__(
        self,
        study: Profile,
        store: RunStore,
        known: Sequence[str],
        query: str,
        question: str,
        answer: str,
        engines: Sequence[str],
        judge: bool,
    ):
        self.study, self.store = study, store
        # Sent when they are left, not key by key: what is sent late would miss the search.
        field = partial(ipywidgets.Text, continuous_update=False)
        self.query = field(query, description="query", layout=LONG)
        self.question = field(
            question, description="question", layout=LONG, placeholder="a simulator is told it"
        )
        self.answer = field(
            answer, description="answer", layout=SHORT, placeholder="known for benchmark questions"
        )
        # No list: JupyterLab takes its arrow keys for itself, and moves to the next cell.
        self.engines = [
            ipywidgets.Checkbox(name in engines, description=name, indent=False, layout=SHORT)
            for name in known
        ]
        self.judge = ipywidgets.Checkbox(judge, description="ask the LLM judge", layout=SHORT)
        self.button = ipywidgets.Button(description="Search", button_style="primary")
        self.button.on_click(self.search)
        super().__init__(self.query, self.answer, self.question, self.judge, *self.engines, self.button)
        self.search()

    def search(self, _: object = None) -> None:
        """Ask the chosen engines, and show what they find."""
        self.show(
            lambda: compare(
                self.study,
                self.store,
                self.query.value,
                self.question.value,
                self.answer.value,
                [box.description for box in self.engines if box.value],
                self.judge.value,
            )
        )


class Monitor(_Panel):
    """Curves of trainings that any process works on, drawn anew when something was logged."""

    def __init__(self, runs: Sequence[Run]):
        super().__init__()
        self.runs, self._seen = runs, None
        if self.refresh():
            self._keep_fresh(self.refresh)

    def refresh(self) -> bool:
        """Show what is new; whether any of the runs goes on."""
        going = [
            run.running for run in self.runs
        ]  # before the logs are read, so that the last line is not missed
        seen = going, [_size(run.path / "metrics.jsonl") for run in self.runs]
        well = seen == self._seen or self.show(lambda: render.training(self.runs))
        self._seen = seen
        return well and any(going)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


class StudyBoard(_Panel):
    """Every arm's state, and buttons to make what is missing."""

    def __init__(self, wanted: Sequence[tuple], jobs: int | None, store: RunStore):
        self.wanted, self.jobs, self.store = wanted, jobs, store
        self.start = ipywidgets.Button(
            description="Start or resume",
            button_style="primary",
            tooltip="makes what is missing, in the background",
        )
        self.stop = ipywidgets.Button(
            description="Stop", tooltip="what was done up to the last checkpoints is kept"
        )
        self.look = ipywidgets.Button(description="Refresh")
        super().__init__(self.start, self.stop, self.look)
        self.start.on_click(self._start)
        self.stop.on_click(self._stop)
        self.look.on_click(self._follow)
        self._follow()

    def refresh(self) -> bool:
        """Show the present state; whether it may change by itself."""
        states, pid = progress.arm_states(self.wanted, self.store), background.working(self.store)
        self.start.disabled, self.stop.disabled = pid is not None, pid is None
        said = "" if pid else background.said(self.store)
        return self.show(lambda: render.board(states, said)) and (
            pid is not None or any(state.state == "running" for state in states)
        )

    def _follow(self, _: object = None) -> None:
        if self.refresh():
            self._keep_fresh(self.refresh)

    def _start(self, _: object) -> None:
        if self.show(lambda: str(background.start(self.wanted, self.store, self.jobs))):
            self._follow()

    def _stop(self, _: object) -> None:
        background.stop(self.store)
        self._follow()


class Calculator(_Panel):
    """What a simulator costs, anew with each choice; another GPU brings its quoted price with it."""

    def __init__(self, model: str, gpu: str):
        training = cost.papers_training()
        self.model = ipywidgets.Dropdown(options=list(roofline.MODELS), value=model, description="simulator")
        self.gpu = ipywidgets.Dropdown(options=list(cost.hourly()), value=gpu, description="GPU")
        self.price = ipywidgets.BoundedFloatText(
            cost.hourly()[gpu], min=0.01, max=100, step=0.1, description="$ an hour"
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
        """Show what the choices cost."""
        self.show(
            lambda: _costs(
                self.model.value, self.gpu.value, self.price.value, self.searches.value, self.group.value
            )
        )

    def _price(self, change: dict) -> None:
        self.price.value = cost.hourly()[self.gpu.value]


def _costs(model: str, gpu: str, usd_hour: float | None, searches: float, group: int) -> str:
    training = replace(cost.papers_training(), searches=searches, group=group)
    ways = cost.ways(training, model, gpu, usd_hour)
    said = (
        f"{training.queries:,.0f} queries ({training.steps} steps of {training.prompts} prompts x {group} rollouts x "
        f"{searches:.1f} searches) in {training.hours:.0f} hours, or as many as the cards need. Modelled, at quoted prices."
    )
    return render.costs(ways, cost.saved(ways["usd"], training.queries), said)
