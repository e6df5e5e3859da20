"""Tables that are shipped in data/: the paper's own, quoted prices, data sheets, predictions."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import pandas as pd

from zs_lib.config import paths
from zs_lib.errors import DataError


def read_shipped(name: str) -> pd.DataFrame:
    """Read data/<name>.csv.

    Raises:
        DataError: the file is damaged.
    """
    with _restorable(f"{name}.csv") as path:
        return _read(path).copy()


@lru_cache  # a figure asks for the same prices hundreds of times
def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)


@lru_cache
def read_predictions() -> dict:
    """Read data/predictions.toml: `margins` by measure; `claims`, each with prediction, test and because.

    Raises:
        DataError: the file is damaged.
    """
    with _restorable("predictions.toml") as path:
        return tomllib.loads(path.read_text(encoding="utf-8"))


@contextmanager
def _restorable(name: str) -> Iterator[Path]:
    """Give the path of a file in data/ to read; DataError if that fails."""
    try:
        yield paths.ROOT / "data" / name
    except (OSError, ValueError) as error:
        raise DataError(f"data/{name} cannot be read ({error}): restore it with `git checkout`.") from error
