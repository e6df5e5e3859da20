"""What is going on, for people who wait: one line a run, read from the run store, whoever works on it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from zs_lib.config.values import digest
from zs_lib.errors import RunError
from zs_lib.runs import Progress, Run, RunStore, kind_of

REFRESH_S = 1.0
LOG_S = 30.0
"""Where lines cannot be written over (a file, CI), they are written this often."""


class Board:
    """Lines of text that are kept up to date in a terminal, in a notebook, or now and then in a log."""

    def __init__(self, store: RunStore, headline: Callable[[], str]):
        self.store, self.headline = store, headline
        self.begun: dict[
            tuple[str, str], tuple[float, int]
        ] = {}  # (run, stage) → first seen when, at which step
        self.lines_shown, self.shown_at, self.display = 0, 0.0, None
        self.notebook = _in_notebook()
        self.interval = REFRESH_S if self.notebook or sys.stderr.isatty() else LOG_S

    def refresh(self, *, last: bool = False) -> None:
        """Show the present state, unless it has only just been shown; the last one is the headline alone."""
        now = time.monotonic()
        if not last and now - self.shown_at < self.interval:
            return
        self.shown_at = now
        runs = [] if last else [run for run in self.store.list() if not run.finished and run.running]
        self._show([self.headline(), *filter(None, (self._line(run, now) for run in runs))])

    def _line(self, run: Run, now: float) -> str | None:
        if not (run.path / "run.json").exists():  # begun this very moment
            return None
        at: Progress | None = run.read_progress()
        if at is None:
            return f"  {run.kind} {run.label} s{run.seed}, beginning"
        since, first = self.begun.setdefault((run.path.name, at.stage), (now, at.step))
        title = f"  {run.kind} {run.label} s{run.seed}, {at.stage}"
        return tqdm.format_meter(
            at.step,
            at.steps,
            now - since,
            initial=first,
            unit=" steps",
            ncols=100,
            bar_format=title.ljust(44) + "{n_fmt}/{total_fmt} |{bar}| {remaining} left",
        )

    def _show(self, lines: list[str]) -> None:
        text = "\n".join(lines)
        if self.notebook:
            from IPython.display import display

            if self.display is None:
                self.display = display({"text/plain": text}, raw=True, display_id=True)
            else:
                self.display.update({"text/plain": text}, raw=True)
            return
        over = f"\x1b[{self.lines_shown}A\x1b[J" if self.lines_shown and sys.stderr.isatty() else ""
        print(over + text, file=sys.stderr, flush=True)
        self.lines_shown = len(lines)


@dataclass(frozen=True)
class ArmState:
    """How the runs of one arm stand, over its seeds."""

    kind: str
    """Of its runs: "policy", "simulator", "fidelity" or "evaluation"."""
    name: str
    state: str
    """"finished" (all of them); else the liveliest of its runs: "running", "damaged", "unfinished" or "missing"."""
    done: int
    """Finished runs."""
    wanted: int
    progress: Progress | None
    """Of the first run that is under way."""
    seconds_left: float | None
    """Of that run, by its last steps; None if it does not log its seconds."""
    score: float | None
    """The last there is: of the last seed that has one."""
    score_name: str


SCORES = {
    "policy": ("reward", "last_reward"),
    "simulator": ("loss", "final_loss"),
    "fidelity": ("answer rate", "answer_good"),
}
"""Kind of run → what its score is called, and its key in the summary (an evaluation's lies deeper)."""
RECENT = 10
"""Steps whose mean a running policy's score and pace are."""


def arm_states(wanted: Iterable[tuple[Any, int]], store: RunStore) -> list[ArmState]:
    """One state an arm of these (arm, seed) pairs, in their order."""
    arms: dict[str, list[tuple[Any, int]]] = {}
    for arm, seed in wanted:
        arms.setdefault(digest(arm), []).append((arm, seed))
    return [_arm_state(pairs[0][0], [store.get(arm, seed) for arm, seed in pairs]) for pairs in arms.values()]


def _arm_state(arm: Any, runs: list[Run | None]) -> ArmState:
    states = ["missing" if run is None else run_state(run) for run in runs]
    first = next(
        (state for state in ("running", "damaged", "unfinished", "missing") if state in states), "finished"
    )
    going = next(
        (run for run, state in zip(runs, states, strict=True) if run and state in ("running", "unfinished")),
        None,
    )
    scores = [
        score
        for run, state in zip(runs, states, strict=True)
        if run and state != "damaged" and (score := _score(run)) is not None
    ]
    kind = kind_of(arm)
    name = f"{arm.name}, {arm.questions_from}" if kind == "fidelity" else arm.name
    return ArmState(
        kind,
        name,
        first,
        states.count("finished"),
        len(runs),
        going and going.read_progress(),
        seconds_left(going) if first == "running" else None,
        scores[-1] if scores else None,
        SCORES.get(kind, ("F1", ""))[0],
    )


def run_state(run: Run) -> str:
    """ "finished", "running", "unfinished", or "damaged" where what tells of it cannot be read."""
    try:
        _ = run.record, run.summary if run.finished else (run.metrics(), run.timing())
    except RunError:
        return "damaged"
    return "finished" if run.finished else "running" if run.running else "unfinished"


def seconds_left(run: Run) -> float | None:
    """By the pace of its last steps; None before the first, and for runs that do not log their seconds."""
    at, seconds = run.read_progress(), run.timing().drop(columns="step")
    return (
        float(seconds.tail(RECENT).sum(axis=1).mean() * (at.steps - at.step)) if at and len(seconds) else None
    )


def _score(run: Run) -> float | None:
    if run.finished:
        summary = run.summary
        return (
            summary["mean"]["f1"]
            if run.kind == "evaluation"
            else summary.get(SCORES.get(run.kind, ("", ""))[1])
        )
    log = run.metrics()
    return float(log["reward"].tail(RECENT).mean()) if "reward" in log else None


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    return tqdm.format_interval(seconds)


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")
