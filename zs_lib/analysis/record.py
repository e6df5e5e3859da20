"""Folders of recorded tables as CSV, each replaced as a whole, however the writer is killed."""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

import pandas as pd

from zs_lib.analysis.old_names import with_new_names
from zs_lib.errors import DataError
from zs_lib.runs.files import sync

LONG = ("training", "evaluation", "fidelity_queries")
"""Tables recorded with gzip: one row per step, question or query of every run."""
NEW = "new"
"""Folder in a record: the tables that take the place of the recorded ones, all of them."""
Tables = dict[str, pd.DataFrame]


def file_of(folder: Path, name: str) -> Path:
    """Return the path of a table's file."""
    return folder / (f"{name}.csv.gz" if name in LONG else f"{name}.csv")


def read(
    folder: Path,
    names: Iterable[str],
    optional: Iterable[str] = (),
    needed: Mapping[str, tuple[str, ...]] | None = None,
) -> Tables:
    """Read tables by name; an `optional` one that is not there is empty. `needed`: columns by name.

    Raises:
        DataError: a file is missing or damaged, or lacks a needed column.
    """
    _settle(folder)
    paths, needed = {name: file_of(folder, name) for name in names}, needed or {}
    return {
        name: pd.DataFrame()
        if name in optional and not path.exists()
        else read_table(path, needed.get(name, ()))
        for name, path in paths.items()
    }


def read_table(path: Path, needed: tuple[str, ...] = ()) -> pd.DataFrame:
    """Read one table's file.

    Raises:
        DataError: as of `read`.
    """
    try:
        table = pd.read_csv(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path.name} of the recorded results cannot be read ({error}): "
            "restore it with `git checkout`, or record it again."
        ) from error
    if lacking := [column for column in needed if column not in table]:
        raise DataError(
            f"{path.name} was recorded by another version (it lacks the column {lacking[0]!r}): "
            "record it again with `zs runs record`."
        )
    return with_new_names(table)


def write(folder: Path, tables: Tables, shrink: bool = False) -> None:
    """Print how the record changes, and replace all its tables or none.

    Raises:
        DataError: without `shrink`, it would become poorer (`changes`).
    """
    before = {}
    for name in tables:
        with suppress(DataError):  # a damaged file holds nothing to lose
            before |= read(folder, [name], tables)
    changed = changes(before, tables)
    for line in changed["file"] + ": " + changed["change"]:
        print(line)
    if changed["poorer"].any() and not shrink:
        raise DataError(
            f"The record {folder.parent.name}/{folder.name} would lose rows, arms or seeds, as told above: "
            "make those runs first, or give --shrink to lose them."
        )
    unfinished = folder / f"{NEW}.tmp"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    for name, table in tables.items():
        # no time stamp, so that equal tables are equal files
        compression = {"method": "gzip", "mtime": 0} if name in LONG else None
        path, exact = file_of(unfinished, name), {"float_format": "%.6g", "lineterminator": "\n"}
        table.to_csv(path, index=False, compression=compression, **exact)
        sync(path)
    unfinished.replace(folder / NEW)
    _settle(folder)


def _settle(folder: Path) -> None:
    """Put new tables in the place of the recorded ones, if all of them had been written."""
    new = folder / NEW
    with suppress(FileNotFoundError):  # another process was faster
        for path in list(new.iterdir()):
            with suppress(FileNotFoundError):
                path.replace(folder / path.name)
        sync(folder)
        new.rmdir()


def changes(before: Tables, after: Tables) -> pd.DataFrame:
    """Tabulate by table how a record changes: file, change in words, and whether it becomes poorer.

    Poorer: fewer rows, an arm (or simulator) that is missing, or has fewer seeds. Equal sizes are left out.
    """
    rows = []
    for name, new in after.items():
        old = before.get(name, pd.DataFrame())
        told = [] if len(old) == len(new) else [f"rows {len(old)} → {len(new)}"]
        seeds = [_seeds(old), _seeds(new)]
        for arm in dict.fromkeys([*seeds[0], *seeds[1]]):
            counts = [each.get(arm, 0) for each in seeds]
            told += [] if counts[0] == counts[1] else [f"{arm} {counts[0]} → {counts[1]} seed(s)"]
        poorer = len(new) < len(old) or any(seeds[1].get(arm, 0) < count for arm, count in seeds[0].items())
        if told:
            rows.append((file_of(Path(), name).name, ", ".join(told), poorer))
    return pd.DataFrame(rows, columns=["file", "change", "poorer"])


def _seeds(table: pd.DataFrame) -> dict[str, int]:
    """Number of seeds by arm or simulator; 1 where a table has no seeds."""
    by = next((column for column in ("arm", "simulator") if column in table), "")
    if not by:
        return {}
    return table.assign(seed=table.get("seed", 0)).groupby(by, sort=False)["seed"].nunique().to_dict()
