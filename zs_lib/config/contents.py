"""Digests of the files that a configuration names, each file read once while it does not change."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from zs_lib.config import paths
from zs_lib.errors import UnreadableError

SETTLED_NS = 100_000_000
"""A file younger than this may change again within one tick of its clock: its digest is not kept."""
READ_OF_MODELS = (".safetensors", ".json", ".model", ".txt", ".jinja")
"""Endings of the files of a model folder that decide what it generates: weights, settings, tokenizer."""
MODELS = ("backbone", "collector", "judge")
"""Fields of arms that name a model."""


def read_digest(path: Path) -> str:
    """Hash a file (sha256 in hex).

    Raises:
        FileNotFoundError: there is no such file. UnreadableError: it cannot be read.
    """
    with refuse_unreadable(path), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_digest(path: Path) -> str:
    """Hash a file as `read_digest` does, reading it again only if its size, inode or times have changed."""
    path = Path(os.path.abspath(path))
    with refuse_unreadable(path):
        found = path.stat()
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < SETTLED_NS:
        return read_digest(path)
    return _digest_of(path, found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


@functools.lru_cache(maxsize=100_000)
def _digest_of(path: Path, *stamp: int) -> str:
    return read_digest(path)


@contextmanager
def refuse_unreadable(path: Path) -> Iterator[None]:
    """Raise UnreadableError where reading a file fails, unless it does not exist."""
    try:
        yield
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(unreadable(path, error)) from error


def unreadable(path: Path, error: Exception) -> str:
    """Say that a file cannot be read for a fault of rights, disk or network, which loses nothing."""
    return f"{path} cannot be read ({error}): check its rights, its disk and the network; it may be sound."


def model_digest(folder: Path) -> str:
    """Hash what decides the output of a model folder: names and contents of READ_OF_MODELS, not its place."""
    files = []
    for path in sorted(folder.rglob("*")):
        passed = any(part.startswith((".", "checkpoint-")) for part in path.relative_to(folder).parts[:-1])
        if path.suffix in READ_OF_MODELS and not passed and path.is_file():
            files.append(path)
    return _joint_digest(files, folder)


def _joint_digest(files: list[Path], folder: Path) -> str:
    """Hash files with their names within a folder."""
    digests = {str(path.relative_to(folder)): file_digest(path) for path in files}
    return hashlib.sha256(json.dumps(digests).encode()).hexdigest()


def contents_of(plain: Any, key: str = "") -> dict[str, str]:
    """Hash the local files and model folders that an arm's `values.identity` names: name -> digest.

    The embedded benchmark and the shipped backbones are files, too: built anew they make other runs.
    """
    if isinstance(plain, (dict, list)):
        parts = plain.items() if isinstance(plain, dict) else (("", item) for item in plain)
        return {name: digest for key, part in parts for name, digest in contents_of(part, key).items()}
    digest = _content(key, plain)
    return {plain: digest} if digest else {}


def _content(key: str, value: Any) -> str | None:
    """The digest of the file or folder that a field names; None if it names none."""
    if not isinstance(value, str):
        return None
    kind, _, address = value.partition(":")
    if key == "benchmark" and kind == "embedded":
        return _joint_digest(sorted(paths.BENCHMARK.glob("*.jsonl")), paths.BENCHMARK)
    if key == "benchmark":
        return file_digest(Path(value)) if kind != "hub" and os.path.isfile(value) else None
    model = value if key in MODELS else address if (key, kind) == ("engine", "dense") else ""
    folders = (paths.BACKBONES / model, Path(model)) if model else ()
    found = next((folder for folder in folders if (folder / "config.json").is_file()), None)
    return model_digest(found) if found else None


def pinned(plain: Any, contents: dict[str, str], key: str = "") -> Any:
    """Name the files and folders in an `identity` by their `contents`, wherever they lie."""
    if isinstance(plain, list):
        return [pinned(item, contents) for item in plain]
    if isinstance(plain, dict):
        return {key: pinned(value, contents, key) for key, value in plain.items()}
    named = key in ("benchmark", "engine", *MODELS) and isinstance(plain, str) and plain in contents
    return f"sha256:{contents[plain]}" if named else plain
