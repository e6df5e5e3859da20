"""`make test-large`: a million questions of one's own are read in bounded memory and with progress.

Each file is read by a process of its own, whose standard error is a terminal and whose largest memory is
asked of the kernel.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import pty
import subprocess
import sys
import termios
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from zs_lib.config.paths import ROOT

ROWS = 1_000_000
MEGABYTES, CPU_SECONDS = 700, 90
"""Bounds, imports included; measured on 2 CPU cores: 508 to 623 MB, 8 to 19 s."""
READ = """
import json, resource, sys, time
from pathlib import Path
from zs_lib import qa
questions = qa.load_questions(Path(sys.argv[1]))
used = {"rows": len(questions), "last": questions[-1].golden_answers, "cpu_s": time.process_time()}
print(json.dumps(used | {"mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def rows() -> Iterator[dict]:
    for i in range(ROWS):
        answers = [f"city {i}", f"town {i}"]
        yield {
            "id": f"q{i}",
            "question": f"what is the capital of land number {i}?",
            "golden_answers": answers,
        }


def write_lines(path: Path) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows())


def write_packed_table(path: Path) -> None:
    with gzip.open(path, "wt", compresslevel=1) as file:
        file.write("id\tquestion\tgolden_answers\n")
        file.writelines(f"{row['id']}\t{row['question']}\t{row['golden_answers']}\n" for row in rows())


def write_parquet(path: Path) -> None:
    """One group of rows; made in parts, for the reader inherits the writer's largest memory."""
    left = rows()
    parts = iter(lambda: list(islice(left, 10_000)), [])
    parquet.write_table(pyarrow.concat_tables(map(pyarrow.Table.from_pylist, parts)), path)


@pytest.mark.parametrize(
    ("name", "write"),
    [("mine.jsonl", write_lines), ("mine.tsv.gz", write_packed_table), ("mine.parquet", write_parquet)],
)
def test_a_million_questions_are_read_in_bounded_memory_and_with_progress(name, write, tmp_path):
    write(tmp_path / name)
    terminal, error = pty.openpty()
    termios.tcsetwinsize(terminal, (24, 80))
    bar = b""
    with subprocess.Popen(
        [sys.executable, "-c", READ, tmp_path / name],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=error,
    ) as reader:
        os.close(error)
        with contextlib.suppress(OSError):  # once the reader has ended
            while part := os.read(terminal, 4096):
                bar += part
        out = reader.stdout.read()
    os.close(terminal)
    assert reader.returncode == 0, bar.decode()
    used = json.loads(out)
    print(name, used)
    assert used["rows"] == ROWS and used["last"] == [f"city {ROWS - 1}", f"town {ROWS - 1}"]
    assert used["mb"] < MEGABYTES and used["cpu_s"] < CPU_SECONDS
    assert f"reading {name}: " in bar.decode() and b" rows" in bar
