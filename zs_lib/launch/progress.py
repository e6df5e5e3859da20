"""Progress of runs, read from the run store: lines for a terminal, and the state of each arm."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from zs_lib.config.values import digest, from_dict
from zs_lib.errors import RunError, UnreadableError, ZeroSearchError
from zs_lib.runs import Run, RunStore, kind_of
from zs_lib.runs.files import read_json

REFRESH_S = 1.0
"""Seconds between two updates in a terminal or notebook."""
LOG_S = 30.0
"""Seconds between two updates where lines cannot be overwritten (a file, CI)."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run: `step` of `steps` in its current stage."""

    stage: str
    step: int
    steps: int


def read_progress(run: Run) -> Progress | None:
    """Read the progress that a run has published; None before the first, or if the file is damaged."""
    try:
        return from_dict(Progress, read_json(run.path / "progress.json", ""), "progress.json")
    except ZeroSearchError:
        return None


class Board:
    """A headline and a line for each run in progress (of `mine`), in a terminal, a notebook or a log."""

    def __init__(
        self, store: RunStore, headline: Callable[[], str], mine: Callable[[Run], bool] = lambda run: True
    ):
        self.store, self.headline, self.mine = store, headline, mine
        # (run, stage) → when it was first seen, and at which step.
        self.first_seen: dict[tuple[str, str], tuple[float, int]] = {}
        self.lines_shown, self.shown_at, self.display = 0, 0.0, None
        self.notebook = hasattr(ipython_shell(), "kernel")
        self.interval = REFRESH_S if self.notebook or sys.stderr.isatty() else LOG_S

    def refresh(self, *, last: bool = False) -> None:
        """Show the current state, unless it was shown a moment ago; the last time, the headline alone."""
        now = time.monotonic()
        if not last and now - self.shown_at < self.interval:
            return
        self.shown_at = now
        runs = [] if last else [run for run in self.store.list() if self.mine(run) and not run.finished]
        lines = (self._line(run, now) for run in runs if run.running)
        self._show([self.headline(), *filter(None, lines)])

    def _line(self, run: Run, now: float) -> str | None:
        if not (run.path / "run.json").exists():  # its folder has only just been made
            return None
        at = read_progress(run)
        title = f"  {run.kind} {run.label} s{run.seed}, {at.stage if at else 'starting'}"
        if at is None:
            return title
        since, first = self.first_seen.setdefault((run.path.name, at.stage), (now, at.step))
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
    """State of the runs of one arm, over its seeds."""

    kind: str
    """Kind of its runs, e.g. "policy", "simulator", "fidelity", "evaluation"."""
    name: str
    state: str
    """"finished" if all runs are; else the first of UNFINISHED_STATES that any of them has."""
    done: int
    """Number of finished runs."""
    wanted: int
    """Number of runs."""
    progress: Progress | None
    """Progress of the first run that is running or unfinished."""
    seconds_left: float | None
    """Estimate for that run, by its last steps; None if it does not log its seconds."""
    score: float | None
    """Latest score of the last seed that has one."""
    score_name: str


SCORES = {
    "policy": ("reward", "last_reward"),
    "simulator": ("loss", "final_loss"),
    "fidelity": ("answer rate", "answer_good"),
}
"""Kind of run → name of its score, and its key in the summary (an evaluation's is nested)."""
RECENT = 10
"""Number of last steps over which a running policy's score and pace are averaged."""
UNFINISHED_STATES = ("running", "damaged", "unreadable", "unfinished", "missing")
"""States of an arm that is not finished, most telling first."""


def arm_states(wanted: Iterable[tuple[Any, int]], store: RunStore) -> list[ArmState]:
    """Return one state per arm of these (arm, seed) pairs, in their order."""
    arms: dict[str, list[tuple[Any, int]]] = {}
    for arm, seed in wanted:
        arms.setdefault(digest(arm), []).append((arm, seed))
    return [_arm_state(pairs[0][0], [store.get(arm, seed) for arm, seed in pairs]) for pairs in arms.values()]


def _arm_state(arm: Any, runs: list[Run | None]) -> ArmState:
    states = ["missing" if run is None else run_state(run) for run in runs]
    state = next((state for state in UNFINISHED_STATES if state in states), "finished")
    found = [(run, state) for run, state in zip(runs, states, strict=True) if run]
    current = next((run for run, state in found if state in ("running", "unfinished")), None)
    scores = [_score(run) for run, state in found if state not in ("damaged", "unreadable")]
    kind = kind_of(arm)
    return ArmState(
        kind=kind,
        name=f"{arm.name}, {arm.questions_from}" if kind == "fidelity" else arm.name,
        state=state,
        done=states.count("finished"),
        wanted=len(runs),
        progress=current and read_progress(current),
        seconds_left=seconds_left(current) if state == "running" else None,
        score=next((score for score in reversed(scores) if score is not None), None),
        score_name=SCORES.get(kind, ("F1", ""))[0],
    )


def run_state(run: Run) -> str:
    """Return "finished", "running", "unfinished", "damaged", or "unreadable" (a fault of rights or disk)."""
    return state_and_label(run)[0]


def state_and_label(run: Run) -> tuple[str, str]:
    """Return a run's state and its label, read once; the label of one that cannot be read is "?"."""
    try:
        label, finished = run.label, run.finished
        _ = run.summary if finished else (run.metrics(), run.timing())
    except UnreadableError:
        return "unreadable", "?"
    except RunError:
        return "damaged", "?"
    return "finished" if finished else "running" if run.running else "unfinished", label


def seconds_left(run: Run) -> float | None:
    """Estimate a run's remaining seconds by the pace of its last steps; None if it has logged no seconds."""
    progress, seconds = read_progress(run), run.timing().drop(columns="step")
    if progress is None or seconds.empty:
        return None
    return float(seconds.tail(RECENT).sum(axis=1).mean() * (progress.steps - progress.step))


def _score(run: Run) -> float | None:
    if run.finished:
        if run.kind == "evaluation":
            return run.summary["mean"]["f1"]
        return run.summary.get(SCORES.get(run.kind, ("", ""))[1])
    log = run.metrics()
    return float(log["reward"].tail(RECENT).mean()) if "reward" in log else None


def clock(seconds: float) -> str:
    """Format seconds as m:ss or h:mm:ss."""
    return tqdm.format_interval(seconds)


def ipython_shell() -> Any:
    """Return the IPython shell that runs this process; None outside IPython, which is then not imported."""
    return sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
