"""Logs: JSON objects, one a line, appended by one process and read by any.

Whole however often the writer is killed: a last line without its end was being written, and does not count.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from zs_lib.errors import RunError
from zs_lib.files import to_json, write_text


class Log:
    """A log file, which need not be there yet. Each of its objects has a value of this type under each key of `kinds`;
    reading a line that is damaged is a RunError, which names the line and `cure`."""

    def __init__(self, path: Path, cure: str, **kinds: type):
        self.path, self.cure, self.kinds = path, cure, kinds

    def append(self, rows: list[dict]) -> None:
        """Add objects (`files.plain` values)."""
        # One write a call: a reader, or a kill, finds whole lines and at most one broken one at the end.
        text = "".join(map(to_json, rows))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def rows(self) -> list[dict]:
        return [row for row, _ in self._lines()]

    def text(self, keep: Callable[[dict], bool]) -> str:
        """The lines of the objects that `keep` accepts, as they stand."""
        return "".join(line for row, line in self._lines() if keep(row))

    def cut(self, keep: Callable[[dict], bool] = lambda row: True) -> None:
        """Leave only the whole lines whose objects `keep` accepts, so that appending can go on."""
        if self.path.exists():
            write_text(self.path, self.text(keep))

    def parse(self, line: bytes, number: int) -> dict:
        """The object in this line, which is the file's `number`-th."""
        try:
            row = json.loads(line.decode())
            for key, kind in self.kinds.items():
                if type(row[key]) is not kind:
                    raise ValueError(f"its {key} is no {kind.__name__}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{self.path} is damaged in line {number} ({error}): {self.cure}.") from error
        return row

    def _lines(self) -> Iterator[tuple[dict, str]]:
        whole = self.path.read_bytes().split(b"\n")[:-1] if self.path.exists() else []
        for number, line in enumerate(whole, 1):
            yield self.parse(line, number), line.decode() + "\n"
