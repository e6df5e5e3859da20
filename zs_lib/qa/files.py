"""Rows of data sets: JSON lines, a JSON array, CSV, TSV (each also gzipped), parquet, or a set of the hub."""

from __future__ import annotations

import ast
import contextlib
import gzip
import io
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from zs_lib.errors import DataError

LONGEST_LINE, LARGEST_ARRAY = 1 << 26, 1 << 30
"""Characters of one line, and of a JSON array, which is read whole: more is a damaged or hostile file."""
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200
"""A packed file that unpacks to more bytes than both BOMB_BYTES and BOMB_RATIO times its size is refused."""
BATCH = 10_000
"""Rows of a table that are decoded at once."""
UNUSED = ("prompt", "reward_model", "extra_info", "ability", "metadata")
"""Columns of the hub's sets that repeat `question` and `golden_answers`, or are large."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}
Rows = Iterator[tuple[int, dict]]
"""Rows, each with the number of its line."""


def read_rows(source: Path | str, cure: str) -> Rows:
    """Read the rows of a file or a set of the hub one by one, with a progress bar if that takes long.

    The ending tells the form: .parquet, .csv, .tsv, anything else is JSON; .gz may follow. A byte-order mark,
    blank lines and Windows' line ends are no matter. CSV and TSV need a header, except for the two headless
    forms that are in use: question and list of answers (DPR), number and passage (MS MARCO).

    Raises:
        DataError: the source cannot be read, or a line is no row; it ends in `cure`, where that may help.
    """
    from tqdm import tqdm  # help and profiles, which import this module, come at once without

    path, form, empty = Path(source), "UTF-8 text", True
    if path.suffix == ".parquet":
        rows = _arrow_rows(_parquet_batches(path), path.name)
    elif isinstance(source, str) and source.count("/") == 1 and not path.exists() and not path.suffix:
        rows = _arrow_rows(_hub_batches(source), source)
    elif separator := SEPARATORS.get(Path(path.name.removesuffix(".gz")).suffix.lower()):
        rows, form = _table_rows(path, separator), "a table of UTF-8 text"
    else:
        rows = _json_rows(path, cure)
    try:
        for row in tqdm(rows, f"reading {path.name}", unit=" rows", delay=2, leave=False, disable=None):
            yield row
            empty = False
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {cure}") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path} cannot be read as {form} ({_cause(error)}): {cure}") from None
    if empty:
        raise DataError(f"{path.name} is empty, it has no rows: {cure}")


def _cause(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _arrow_rows(batches: Iterator, name: str) -> Rows:
    """Rows of batches of arrow's."""
    try:
        yield from enumerate((row for batch in batches for row in batch.to_pylist()), 1)
    except DataError:
        raise
    except Exception as error:  # of `datasets`, the hub, arrow and the network, by source
        raise DataError(
            f"{name} cannot be read ({_cause(error)}): name a file, or a set of the hub as "
            "owner/name:config:split"
        ) from error


def _parquet_batches(path: Path) -> Iterator:
    import pyarrow
    from pyarrow import parquet

    file, unpacked = parquet.ParquetFile(path), 0
    columns = _used(file.schema_arrow.names)
    for packed in file.iter_batches(BATCH, columns=columns):
        parts = [c.dictionary_decode() if hasattr(c, "dictionary") else c for c in packed.columns]
        batch = pyarrow.RecordBatch.from_arrays(parts, packed.schema.names)
        unpacked += batch.nbytes
        _refuse_bomb(path, unpacked)
        yield batch


def _hub_batches(source: str) -> Iterator:
    import datasets

    datasets.disable_progress_bars()
    name, config, split = (*source.split(":"), "", "")[:3]
    rows = datasets.load_dataset(name, config or None, split=split or "test")
    yield from rows.select_columns(_used(rows.column_names)).with_format("arrow").iter(BATCH)


def _used(names: list[str]) -> list[str]:
    """The columns to read: not UNUSED, where the others suffice."""
    unused = UNUSED if {"question", "golden_answers"} <= set(names) else ()
    return [name for name in names if name not in unused]


def _table_rows(path: Path, separator: str) -> Rows:
    """Rows of a CSV or TSV file, every cell a text."""
    import pandas as pd

    names = None
    how = {"sep": separator, "header": None, "dtype": str, "na_filter": False, "chunksize": BATCH}
    with _opened(path) as file, contextlib.suppress(pd.errors.EmptyDataError):
        for number, *cells in (row for table in pd.read_csv(file, **how) for row in table.itertuples()):
            if names or (names := _headless(cells)):
                yield number + 1, dict(zip(names, cells, strict=True))
            else:
                names = cells


def _headless(first: list[str]) -> list[str] | None:
    """The columns of a file without a header, if its first row is one of a known form."""
    if len(first) == 2 and as_list(first[1]):
        return ["question", "answers"]
    return ["id", "text"] if len(first) == 2 and first[0].isdecimal() else None


def as_list(text: str) -> list | None:
    """Read the list that a text spells, in JSON or as Python writes it; None if it spells none."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
            return value if isinstance(value, list) else None
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass
    return None


def _json_rows(path: Path, cure: str) -> Rows:
    """Objects of JSON lines, or of a JSON array, which the first line that is not blank opens."""
    begun = False
    with _opened(path) as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), ""), 1):
            where = f"{path.name}, line {number}"
            if len(line) == LONGEST_LINE:
                raise DataError(f"{where} is longer than {LONGEST_LINE:,} characters: {cure}")
            if not line.strip():
                continue
            is_array, begun = not begun and line.lstrip().startswith("["), True
            if is_array:
                line += file.read(LARGEST_ARRAY)
                if file.read(1):
                    raise DataError(f"{path.name} is too large for one JSON array: give it as JSON lines")
            try:
                value = json.loads(line)
            # Not JSON, a number of thousands of digits, endless brackets.
            except (ValueError, RecursionError) as error:
                raise DataError(f"{where} is not JSON ({error}): {cure}") from None
            for place, row in enumerate(value, 1) if is_array else [(number, value)]:
                if not isinstance(row, dict):
                    raise DataError(f"{path.name}, line {place} is no JSON object: {cure}")
                yield place, row


def _opened(path: Path) -> IO[str]:
    """A file of UTF-8 text, which may be packed."""
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    # JSON may hold other line ends in texts
    return io.TextIOWrapper(
        _Unpacked(path) if packed else path.open("rb"), encoding="utf-8-sig", newline="\n"
    )


class _Unpacked(gzip.GzipFile):
    """A gzip file that is refused if it is a bomb."""

    def read1(self, size: int = -1) -> bytes:
        part = super().read1(size)
        _refuse_bomb(Path(self.name), self.tell())
        return part


def _refuse_bomb(path: Path, unpacked: int) -> None:
    """DataError if a file has unpacked to so many bytes that it can only be damaged or hostile."""
    if unpacked > max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size):
        raise DataError(
            f"{path.name} unpacks to more than {BOMB_RATIO} times its size and {BOMB_BYTES:,} bytes: it is "
            "damaged or hostile; if it is yours, unpack it first"
        )
