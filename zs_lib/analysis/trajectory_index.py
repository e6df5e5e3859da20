"""A run's trajectories, indexed once and read where asked for: filters, groups, watched questions."""

from __future__ import annotations

import json
import math
import os
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from zs_lib.analysis.results import RECORDS
from zs_lib.errors import RunError
from zs_lib.evaluation.evaluate import PREDICTIONS_FILE
from zs_lib.runs import Run
from zs_lib.runs.files import Log, write_text

LOG = "trajectories.jsonl"
LOGS = {
    "policy": (LOG, {"step": int}),
    "evaluation": (PREDICTIONS_FILE, {"id": str}),
    "file": ("", {"who": str, "record": dict}),
}
"""Kind of run → its file of trajectories, and what each line of it has."""


@dataclass(frozen=True)
class Predictions:
    """A file that `zs eval` wrote, in the place of a run."""

    path: Path
    kind, seed, running, config = "file", 0, False, {}
    cure = "make it anew by `zs eval` (of a file of an older version: under another name)"

    @property
    def label(self) -> str:
        """Whose predictions they are: model, method and engine."""
        with self.path.open("rb") as file:
            return Log(self.path, self.cure, who=str).parse(file.readline(), 1)["who"]

    def file(self, name: str) -> Path:
        return self.path / name


@dataclass(frozen=True)
class Entry:
    """One logged trajectory in the index."""

    place: int
    """Offset of its line in the log, in bytes."""
    step: int
    question: str
    group: int
    """See `rl.trajectory.to_record`; 0 if it was not logged."""
    reward: float | None
    """In [0, 1]; None if the engine failed."""
    turns: int
    stop_reason: str
    noisy: bool
    """Whether one of its searches requested noisy documents."""
    watched: bool
    """See `rl.trajectory.to_record`."""


class TrajectoryLog:
    """The trajectories of a training, an evaluation or a file: indexed once, each record read on demand.

    Only those of a training have a step; the others have 0.

    Raises:
        RunError: there is no such run, it is of another kind, or a line is damaged (also from `refresh`).
    """

    def __init__(self, run: Run | Predictions):
        if run.kind not in LOGS or not (run.path.is_file() or (run.path / "run.json").exists()):
            what = "is not there" if run.kind in LOGS else "has no trajectories"
            raise RunError(
                f"The run {run.path} {what}: choose a policy or an evaluation of `zs runs list`, or make one "
                "with `zs reproduce`."
            )
        self.run, self.entries = run, []
        self.name, kinds = LOGS[run.kind]
        self._log = Log(run.path / self.name, run.cure, **kinds)
        self._file = self._inode = None
        self._end = self._lines = 0
        self._search: tuple[str, int, set[int]] = ("", 0, set())
        self.refresh()

    def refresh(self) -> bool:
        """Index what was logged since the last call; True if anything was. A restarted run is read anew."""
        try:
            found = (self.run.path / self.name).stat()
        except FileNotFoundError:
            if not self.run.path.is_dir():
                raise RunError(f"{self.run.path} is gone: choose another run.") from None
            return False
        if found.st_ino != self._inode or found.st_size < self._end:
            self._open()
        elif found.st_size == self._end:
            return False
        self._file.seek(self._end)
        before = len(self.entries)
        for line in self._file:  # one by one: a log may be larger than memory
            if not line.endswith(b"\n"):  # half written
                break
            self.entries.append(self._entry(line[:-1]))
            self._end, self._lines = self._end + len(line), self._lines + 1
        return len(self.entries) > before

    def read(self, entries: Iterable[Entry]) -> list[dict]:
        """Read the records of these entries."""
        records = []
        for entry in entries:
            self._file.seek(entry.place)
            records.append(_trajectory(json.loads(self._file.readline())))
        return records

    def holding(self, text: str) -> set[int]:
        """Find the places of the trajectories that hold a text: their question, turns, documents or answer.

        Case does not matter. Each record is searched once for the same text, however the log grows.
        """
        wanted, searched, found = self._search
        if wanted != text:
            searched, found = 0, set()
        new, low = self.entries[searched:], text.casefold()
        for entry in new:
            (record,) = self.read([entry])
            said = [record["question"], *(turn["text"] for turn in record["turns"])]
            said += [document for turn in record["turns"] for document in turn["documents"]]
            if low in "\n".join(said).casefold():
                found.add(entry.place)
        self._search = text, searched + len(new), found
        return found

    def line(self, entry: Entry) -> int:
        """Return the number of an entry's line in the log, from 1."""
        return bisect_left(self.entries, entry.place, key=attrgetter("place")) + 1

    def close(self) -> None:
        if self._file:
            self._file.close()

    def _open(self) -> None:
        self.close()
        # Kept open: the records read are those that were indexed, even if the file is replaced.
        self._file = self.run.file(self.name).open("rb")
        self._inode = os.fstat(self._file.fileno()).st_ino
        self.entries, self._end, self._lines = [], 0, 0
        self._search = ("", 0, set())

    def _entry(self, line: bytes) -> Entry:
        record = _trajectory(self._log.parse(line, self._lines + 1))
        try:
            return Entry(
                self._end,
                record["step"] if self.run.kind == "policy" else 0,
                record["question"],
                record.get("group", 0),
                record["reward"],
                len(record["turns"]),
                record["stop_reason"],
                any(turn["noisy"] for turn in record["turns"]),
                record.get("watched", False),
            )
        except (KeyError, TypeError) as error:
            raise RunError(
                f"{self._log.path}, line {self._lines + 1}, is no trajectory ({error}): {self.run.cure}."
            ) from None


def _trajectory(row: dict) -> dict:
    """The record in a line of a log; a file's has scores beside it."""
    return row.get("record", row)


def select(
    entries: Iterable[Entry],
    reward: tuple[float, float] = (0.0, 1.0),
    turns: tuple[float, float] = (0, math.inf),
    stop_reason: str = "",
    noisy: bool | None = None,
) -> list[Entry]:
    """Select entries by reward, number of turns (limits included), stop reason and noisy documents.

    A reward below 0 or above 1 (of a sum) counts as 0 or 1. `stop_reason` "" is any, `noisy` None either. An
    entry without a reward passes only if every reward does.
    """
    low, high = reward
    return [
        entry
        for entry in entries
        if (low <= 0 and high >= 1 if entry.reward is None else low <= min(max(entry.reward, 0), 1) <= high)
        and turns[0] <= entry.turns <= turns[1]
        and stop_reason in ("", entry.stop_reason)
        and noisy in (None, entry.noisy)
    ]


def groups(entries: Sequence[Entry]) -> dict[tuple[int, int, str], list[Entry]]:
    """Group entries by (step, group, question), in the order of the log."""
    found: dict[tuple[int, int, str], list[Entry]] = {}
    for entry in entries:
        if not entry.watched:
            found.setdefault((entry.step, entry.group, entry.question), []).append(entry)
    return found


def watched(entries: Sequence[Entry]) -> dict[str, list[Entry]]:
    """Group the watched entries by question: its greedy trajectories by step; empty if none were logged."""
    found: dict[str, list[Entry]] = {}
    for entry in entries:
        if entry.watched:
            found.setdefault(entry.question, []).append(entry)
    return found


def sample(run: Run) -> list[dict]:
    """Read the watched questions through training and the groups of the first, middle and last step.

    Without tokens; each record names its run.
    """
    index = TrajectoryLog(run)
    steps = sorted({entry.step for entry in index.entries})
    shown = {steps[0], steps[len(steps) // 2], steps[-1]} if steps else set()
    chosen = index.read(entry for entry in index.entries if entry.watched or entry.step in shown)
    index.close()
    return [{"run": run.path.name} | {k: v for k, v in one.items() if k != "tokens"} for one in chosen]


def record_sample(profile: str, run: Run) -> None:
    """Write the sample of a run to `data/results/PROFILE/`: what README and the website show."""
    lines = [json.dumps(record, ensure_ascii=False) + "\n" for record in sample(run)]
    write_text(RECORDS / profile / LOG, "".join(lines))


def load_sample(profile: str) -> list[dict]:
    """Read the recorded trajectories of a profile; none if it has no record of them."""
    path = RECORDS / profile / LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines]
