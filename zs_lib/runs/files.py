"""Atomic and durable files, their digests, and append-only logs of JSON lines."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from zs_lib.config.contents import read_digest, refuse_unreadable
from zs_lib.errors import RunError

TRANSIENT = ("lock", "progress.json", "worker.log")
"""Files about a run's progress, not its content; nothing checks them."""
DIGESTS = "sha256.json"
"""The digests of the other files of a folder; it has none itself."""


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically and durably: after a crash it is the new one or the old one, whole."""
    write_text(path, to_json(value, indent=1))


def to_json(value: Any, indent: int | None = None) -> str:
    """Encode a value as JSON with a line end; lone surrogates, which no file can hold, as escapes."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically and durably."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically and durably."""
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(value: Any) -> Any:
    """Convert to JSON values: numbers of numpy and torch to Python's, those that are not finite to None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, cure: str) -> dict:
    """Read a JSON object.

    Raises:
        RunError: it is missing or damaged; names the file and `cure`. UnreadableError: it cannot be read.
    """
    return read_checked_json(path, cure)[0]


def read_checked_json(path: Path, cure: str) -> tuple[dict, str]:
    """Read a JSON object as `read_json` does, and the sha256 of what was read."""
    try:
        with refuse_unreadable(path), open(path, "rb") as file:
            content = file.read()
        value = json.loads(content.decode())
    except FileNotFoundError:
        raise RunError(f"{path} is missing: {cure}.") from None
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}): {cure}.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged (no JSON object): {cure}.")
    return value, hashlib.sha256(content).hexdigest()


def check_digest(
    path: Path, expected: str | None, cure: str, read: Callable[[Path], str] = read_digest
) -> None:
    """Refuse a file whose sha256 is not the one expected, or that exists where none is (None).

    It is read now, or once while it does not change (`file_digest` as `read`).

    Raises:
        RunError: it is damaged or missing; names the file and `cure`. UnreadableError: it cannot be read.
    """
    try:
        found = read(path)
    except FileNotFoundError:
        if expected is None:
            return
        raise RunError(f"{path} is missing: {cure}.") from None
    except ValueError as error:  # no name that a file can have
        raise RunError(f"{path} cannot be a file ({error}): {cure}.") from error
    if found != expected:
        raise RunError(f"{path} is damaged (its sha256 has changed): {cure}.")


def hashes(folder: Path) -> dict[str, str]:
    """Hash each file that is `listed` below `folder`: relative path -> sha256."""
    return {name: read_digest(folder / name) for name in listed(folder)}


def listed(folder: Path) -> list[str]:
    """List the relative paths of the files below `folder`, in order.

    Left out: TRANSIENT, DIGESTS, hidden files, files still being written, and checkpoints, which carry their
    own digests.
    """
    files = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if path.is_file()]
    names = [str(path) for path in files if path.suffix != ".tmp"]
    passed = (".", "checkpoint")
    return [name for name in names if name not in (*TRANSIENT, DIGESTS) and not name.startswith(passed)]


class Log:
    """A file of JSON objects, one a line, appended by one process and read by any; it need not exist yet.

    Whole however often the writer is killed: a last line without its end was being written, and does not
    count. Each object has a value of this type under each key of `kinds`. Reading a damaged line is a
    RunError, which names the line and `cure`; a file that may not be read is an UnreadableError.
    """

    def __init__(self, path: Path, cure: str, **kinds: type):
        self.path, self.cure, self.kinds = path, cure, kinds

    def append(self, rows: list[dict]) -> None:
        """Append objects, as `plain` values."""
        # One write a call: a reader, or a kill, finds whole lines and at most one broken one at the end.
        text = "".join(map(to_json, rows))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(text)

    def rows(self) -> list[dict]:
        """Read all objects, in order."""
        return [row for row, _ in self._lines()]

    def text(self, keep: Callable[[dict], bool]) -> str:
        """Read the lines of the objects that `keep` accepts, unchanged."""
        return "".join(line for row, line in self._lines() if keep(row))

    def cut(self, keep: Callable[[dict], bool] = lambda row: True) -> None:
        """Keep only whole lines whose objects `keep` accepts, so that appending can go on."""
        if self.path.exists():
            write_text(self.path, self.text(keep))

    def parse(self, line: bytes, number: int) -> dict:
        """Decode the file's `number`-th line."""
        try:
            row = json.loads(line.decode())
            for key, kind in self.kinds.items():
                if type(row[key]) is not kind:
                    raise ValueError(f"its {key} is no {kind.__name__}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise RunError(f"{self.path} is damaged in line {number} ({error}): {self.cure}.") from error
        return row

    def _lines(self) -> Iterator[tuple[dict, str]]:
        try:
            with refuse_unreadable(self.path):
                whole = self.path.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return
        for number, line in enumerate(whole, 1):
            yield self.parse(line, number), line.decode() + "\n"
