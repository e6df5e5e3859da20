"""Rows of data sets: JSON lines, a JSON array, CSV, TSV (each also gzipped), parquet, or a set of the hub."""

from __future__ import annotations

import ast
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from zs_lib.errors import DataError

LONGEST_LINE, LARGEST_ARRAY = 1 << 26, 1 << 30
"""Characters of one line, and of a JSON array, which is read whole: more is a damaged or hostile file."""
BOMB_BYTES, BOMB_RATIO = 1 << 30, 200
"""A packed file that unpacks to more bytes than both BOMB_BYTES and BOMB_RATIO times its size is refused."""
BATCH = 10_000
"""Rows of a parquet file that are decoded at once."""
UNUSED = ("prompt", "reward_model", "extra_info", "ability", "metadata")
"""Columns of the hub's sets that repeat `question` and `golden_answers`, or are large."""
SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_rows(source: Path | str, cure: str) -> Iterable[tuple[int, dict]]:
    """Read the rows of a file or a set of the hub, each with the number of its line.

    The ending tells the form: .parquet, .csv, .tsv, anything else is JSON; .gz may follow. A byte-order mark,
    blank lines and Windows' line ends are no matter. CSV and TSV need a header, except for the two headless
    forms that are in use: question and list of answers (DPR), number and passage (MS MARCO).

    Raises:
        DataError: the source cannot be read, or a line is no row; it ends in `cure`, where that may help.
    """
    path = Path(source)
    ending = path.suffixes[-2:-1] if path.suffix == ".gz" else path.suffixes[-1:]
    if path.suffix == ".parquet":
        return enumerate(_parquet_rows(path), 1)
    if isinstance(source, str) and source.count("/") == 1 and not path.exists() and not path.suffix:
        name, config, split = (*source.split(":"), "", "")[:3]
        return enumerate(_hub_rows(source, name, config or None, split or "test"), 1)
    if ending and (separator := SEPARATORS.get(ending[0].lower())):
        return _separated(path, separator, cure)
    return _json_rows(path, cure)


def _parquet_rows(path: Path) -> Iterator[dict]:
    """Rows of a parquet file, decoded batch by batch."""
    import pyarrow
    from pyarrow import parquet

    try:
        file, unpacked = parquet.ParquetFile(path), 0
        columns = _used(file.schema_arrow.names)
        for packed in file.iter_batches(BATCH, columns=columns):
            parts = [c.dictionary_decode() if hasattr(c, "dictionary") else c for c in packed.columns]
            batch = pyarrow.RecordBatch.from_arrays(parts, packed.schema.names)
            unpacked += batch.nbytes
            _refuse_bomb(path, unpacked)
            yield from batch.to_pylist()
    except (OSError, pyarrow.ArrowException) as error:
        raise _unreadable(path.name, error) from error


def _hub_rows(source: str, name: str, config: str | None, split: str) -> list[dict]:
    """Rows of a set of the hub, as `datasets` reads it."""
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(name, config, split=split)
        return rows.select_columns(_used(rows.column_names)).to_list()
    except Exception as error:  # of the library's own, the hub's, arrow's and the network's, by source
        raise _unreadable(source, error) from error


def _used(names: list[str]) -> list[str]:
    """The columns to read: not UNUSED, where the others suffice."""
    unused = UNUSED if {"question", "golden_answers"} <= set(names) else ()
    return [name for name in names if name not in unused]


def _unreadable(name: str, error: Exception) -> DataError:
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return DataError(
        f"{name} cannot be read ({cause}): name a file, or a set of the hub as owner/name:config:split"
    )


def _refuse_bomb(path: Path, unpacked: int) -> None:
    """DataError if a file has unpacked to so many bytes that it can only be damaged or hostile."""
    if unpacked > max(BOMB_BYTES, BOMB_RATIO * path.stat().st_size):
        raise DataError(
            f"{path.name} unpacks to more than {BOMB_RATIO} times its size and {BOMB_BYTES:,} bytes: it is "
            "damaged or hostile; if it is yours, unpack it first"
        )


class _Unpacked(io.RawIOBase):
    """A gzip file as a stream of bytes that is refused if it is a bomb."""

    def __init__(self, path: Path):
        self.path, self.file, self.total = path, gzip.open(path), 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self.file.readinto(buffer)
        self.total += count
        _refuse_bomb(self.path, self.total)
        return count

    def close(self) -> None:
        self.file.close()
        super().close()


def _separated(path: Path, separator: str, cure: str) -> Iterator[tuple[int, dict]]:
    """Rows of a CSV or TSV file, every cell a text."""
    import pandas as pd

    how = {"sep": separator, "dtype": str, "keep_default_na": False, "encoding": "utf-8-sig"}
    try:
        with _bytes_of(path) as file:
            first = pd.read_csv(file, header=None, nrows=1, **how).iloc[0].tolist()
        names = _headless(first)
        with _bytes_of(path) as file:
            table = pd.read_csv(file, header=None if names else 0, names=names, **how)
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {cure}") from None
    except pd.errors.EmptyDataError:
        raise DataError(f"{path.name} is empty: {cure}") from None
    except (OSError, EOFError, zlib.error, ValueError) as error:
        cause = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DataError(f"{path} cannot be read as a table of UTF-8 text ({cause}): {cure}") from None
    if table.empty:
        raise DataError(f"{path.name} has a header and no rows: {cure}")
    yield from enumerate(table.to_dict("records"), 1 if names else 2)


def _headless(first: list[str]) -> list[str] | None:
    """The columns of a file without a header, if its first row is one of a known form."""
    if len(first) == 2 and as_list(first[1]):
        return ["question", "answers"]
    return ["id", "text"] if len(first) == 2 and first[0].isdecimal() else None


def as_list(text: str) -> list | None:
    """The list that a text spells, in JSON or as Python writes it; None if it spells none."""
    if not (text.startswith("[") and text.endswith("]")):
        return None
    for read in (json.loads, ast.literal_eval):
        try:
            value = read(text)
            return value if isinstance(value, list) else None
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            pass
    return None


def _json_rows(path: Path, cure: str) -> Iterator[tuple[int, dict]]:
    """Objects of a file of JSON lines, or of one JSON array."""
    found = False
    try:
        with _opened(path) as lines:
            for number, value in _values(lines, path, cure):
                if not isinstance(value, dict):
                    raise DataError(f"{path.name}, line {number} is no JSON object: {cure}")
                found = True
                yield number, value
    except FileNotFoundError:
        raise DataError(f"{path} is missing: {cure}") from None
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as UTF-8 text ({error}): {cure}") from None
    if not found:
        raise DataError(f"{path.name} is empty: {cure}")


def _bytes_of(path: Path) -> IO[bytes]:
    with path.open("rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    return io.BufferedReader(_Unpacked(path)) if packed else path.open("rb")


def _opened(path: Path) -> IO[str]:
    # JSON may hold other line ends in texts
    return io.TextIOWrapper(_bytes_of(path), encoding="utf-8-sig", newline="\n")


def _values(lines: IO[str], path: Path, cure: str) -> Iterator[tuple[int, object]]:
    """The JSON value of each line that is not blank, or of each item of an array that the first opens."""
    number, begun = 0, False
    while line := lines.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise DataError(f"{path.name}, line {number} is longer than {LONGEST_LINE:,} characters: {cure}")
        if not begun and line.lstrip().startswith("["):
            text = line + lines.read(LARGEST_ARRAY)
            if lines.read(1):
                raise DataError(f"{path.name} is too large for one JSON array: give it as JSON lines")
            yield from enumerate(_parsed(text, path, number, cure), 1)
        elif line.strip():
            yield number, _parsed(line, path, number, cure)
        begun = begun or bool(line.strip())


def _parsed(text: str, path: Path, number: int, cure: str):
    try:
        return json.loads(text)
    # Not JSON, a number of thousands of digits, endless brackets.
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path.name}, line {number} is not JSON ({error}): {cure}") from None
