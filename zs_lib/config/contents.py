"""Digests of the files that a configuration names, each file read once while it does not change."""

from __future__ import annotations

import hashlib
import json
import os
import time
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
_Known = tuple[tuple[int, ...], str]
"""Device, inode, size and two times of a file, and its digest then."""
_known: dict[Path, _Known] = {}


def read_digest(path: Path) -> str:
    """Hash a file (sha256 in hex).

    Raises:
        FileNotFoundError: there is no such file. UnreadableError: it cannot be read.
    """
    return _stamp_and_digest(path, None)[1]


def file_digest(path: Path) -> str:
    """As `read_digest`, but the file is read again only if its size, inode or times have changed."""
    path = Path(os.path.abspath(path))
    stamp, digest = _stamp_and_digest(path, _known.get(path))
    if time.time_ns() - max(stamp[-2:]) > SETTLED_NS:
        _known[path] = stamp, digest
    return digest


def _stamp_and_digest(path: Path, known: _Known | None) -> _Known:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno())
            stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
            if known and known[0] == stamp:
                return known
            return stamp, hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UnreadableError(unreadable(path, error)) from error


def unreadable(path: Path, error: Exception) -> str:
    """Say that a file cannot be read for a fault of rights, disk or network, which loses nothing."""
    return f"{path} cannot be read ({error}): check its rights, its disk and the network; it may be sound."


def model_digest(folder: Path) -> str:
    """Hash what decides the output of a model folder: names and contents of READ_OF_MODELS, not its place."""
    files = sorted(path for path in folder.rglob("*") if _is_read(path, folder))
    names = {str(path.relative_to(folder)): file_digest(path) for path in files}
    return hashlib.sha256(json.dumps(names).encode()).hexdigest()


def _is_read(path: Path, folder: Path) -> bool:
    inner = path.relative_to(folder).parts[:-1]
    passed = any(part.startswith((".", "checkpoint-")) for part in inner)
    return path.suffix in READ_OF_MODELS and not passed and path.is_file()


def contents_of(plain: Any) -> dict[str, str]:
    """The files and model folders of this machine that an arm's `values.identity` names: name -> digest."""
    if isinstance(plain, list):
        return {name: digest for item in plain for name, digest in contents_of(item).items()}
    if not isinstance(plain, dict):
        return {}
    own = {value: digest for key, value in plain.items() if (digest := _content(key, value))}
    return own | contents_of(list(plain.values()))


def _content(key: str, value: Any) -> str | None:
    """The digest of the file or folder that a field names; None if it names none."""
    if not isinstance(value, str):
        return None
    if key == "benchmark" and value.partition(":")[0] not in ("embedded", "hub") and os.path.isfile(value):
        return file_digest(Path(value))
    kind, _, model = ("", "", value) if key in MODELS else value.partition(":")
    if kind and (key, kind) != ("engine", "dense") or not model:
        return None
    shipped = not os.path.isabs(model) and os.path.isfile(paths.BACKBONES / model / "config.json")
    own = not shipped and os.path.isfile(os.path.join(model, "config.json"))
    return model_digest(Path(model)) if own else None


def pinned(plain: Any, contents: dict[str, str]) -> Any:
    """An `identity` that names its files and folders by their `contents`, wherever they lie."""
    if isinstance(plain, list):
        return [pinned(item, contents) for item in plain]
    if not isinstance(plain, dict):
        return plain

    def of(key: str, value: Any) -> Any:
        named = key in ("benchmark", "engine", *MODELS) and isinstance(value, str) and value in contents
        return f"sha256:{contents[value]}" if named else pinned(value, contents)

    return {key: of(key, value) for key, value in plain.items()}
