"""Where the checkout keeps its files."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from zs_lib.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
"""The checkout: notebooks/, data/ and figures/ lie here."""
PROFILES = Path(__file__).resolve().parent / "profiles"
BENCHMARK = ROOT / "data" / "benchmark"
BACKBONES = ROOT / "data" / "backbones"

LONGEST_NAME, LONGEST_PATH = 255, 4095 - 256
"""Bytes of a name, and of a folder's path: Linux's limits, less space for the files in it."""


def check_folder(path: Path | str, what: str, write: bool = False) -> Path:
    """Check that a folder exists or can be made; its absolute path. `what` names its source ("ZS_RUNS").

    Raises:
        ConfigError: it is a file, below a file, too long, a loop of links, or (with `write`) is read-only.
    """
    try:
        path = Path(os.path.abspath(path))
        found = next(place for place in (path, *path.parents) if os.path.lexists(place))
        if not stat.S_ISDIR(os.stat(found).st_mode):
            raise NotADirectoryError(f"{found} is no folder")
        if max(len(os.fsencode(part)) for part in path.parts) > LONGEST_NAME or len(str(path)) > LONGEST_PATH:
            raise OSError(f"{str(path)[:60]}… is too long")
        if write and not os.access(found, os.W_OK | os.X_OK):
            raise PermissionError(f"{found} may not be written")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what} names no folder that can be used ({error}): name another.") from error
    return path
