"""Files that are there as a whole or not at all, and that tell when they were damaged."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

from zs_lib.errors import RunError


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically and durably: it is there as a whole, or as it was before."""
    write_text(path, to_json(value, indent=1))


def to_json(value: Any, indent: int | None = None) -> str:
    """`plain` as JSON, with a line end. Half a character, which no file can hold, is written as its escape."""
    text = json.dumps(plain(value), indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode("utf-8", "backslashreplace").decode() + "\n"


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_bytes(content)
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def plain(value: Any) -> Any:
    """JSON values: numbers of numpy and torch become Python's, those that are not finite become None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path, cure: str) -> dict:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing: {cure}.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} is damaged ({error}): {cure}.") from error
    if not isinstance(value, dict):
        raise RunError(f"{path} is damaged (no JSON object): {cure}.")
    return value


def hash_file(path: Path, cure: str) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise RunError(f"{path} is missing: {cure}.") from None
    except (OSError, ValueError) as error:  # ValueError: no name that a file can have
        raise RunError(f"{path} cannot be read ({error}): {cure}.") from error


def hashes(folder: Path, leave_out: Collection[str] = ()) -> dict[str, str]:
    """The sha256 of each file below `folder`, by relative path; not of what is named in `leave_out`, of files still
    being written, or of checkpoints, which carry their own."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".tmp")
    names = {path: path.relative_to(folder) for path in files}
    kept = (
        path
        for path in files
        if path.name not in leave_out and not names[path].parts[0].startswith("checkpoint")
    )
    return {str(names[path]): hash_file(path, "") for path in kept}
