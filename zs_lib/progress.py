"""What is going on, for people who wait: one line a run, read from the run store, whoever works on it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from tqdm import tqdm

from zs_lib.runs import Progress, Run, RunStore

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
            at.step, at.steps, now - since, initial=first, unit=" steps", ncols=100,
            bar_format=title.ljust(44) + "{n_fmt}/{total_fmt} |{bar}| {remaining} left",
        )  # fmt: skip

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


@contextmanager
def watching(board: Board) -> Iterator[None]:
    """Keep the board up to date in a thread, while something else has this one."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(REFRESH_S):
            board.refresh()

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        board.refresh(last=True)


def clock(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss."""
    return tqdm.format_interval(seconds)


def _in_notebook() -> bool:
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    return shell is not None and hasattr(shell, "kernel")
