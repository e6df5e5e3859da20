"""Tables that are shipped in data/: the paper's own, quoted prices, data sheets, predictions."""

from __future__ import annotations

import tomllib
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
    try:
        return _read(paths.ROOT / "data" / f"{name}.csv").copy()
    except (OSError, ValueError) as error:
        cure = "restore it with `git checkout`"
        raise DataError(f"data/{name}.csv cannot be read ({error}): {cure}.") from error


@lru_cache  # a figure asks for the same prices hundreds of times
def _read(path: Path) -> pd.DataFrame:
    return pd.read_csv(path)


@lru_cache
def read_predictions() -> dict:
    """Read data/predictions.toml: `margins` by measure; `claims`, each with prediction, test and because.

    Raises:
        DataError: the file is damaged.
    """
    try:
        return tomllib.loads((paths.ROOT / "data" / "predictions.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        cure = "restore it with `git checkout`"
        raise DataError(f"data/predictions.toml cannot be read ({error}): {cure}.") from error
