"""Benchmark waiting times: imports, help, figures, a notebook with finished runs, and the whole study."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from zs_lib import config
from zs_lib.config import paths
from zs_lib.tools.bench.machine import row, seconds

NOTEBOOK = paths.ROOT / "notebooks" / "04_real_and_simulated.ipynb"
"""The notebook of the core that shows most runs."""


def measure(small: bool = False) -> Iterator[dict]:
    """Time new processes, the best of several; the notebook only if the store (ZS_RUNS) has all its runs."""
    took = seconds(lambda: _run([sys.executable, "-c", "import zs_lib"]), 5)
    yield row("import zs_lib", "time", took, "s")
    yield row("zs --help", "time", seconds(lambda: zs("--help"), 5), "s")
    if small:
        return
    with tempfile.TemporaryDirectory(prefix="zs-bench-") as folder:
        yield row("zs figures", "time", seconds(lambda: zs("figures", "--out", folder)), "s")
        if not _filled():
            return
        papermill = [sys.executable, "-m", "papermill", "-p", "profile", "tiny"]
        command = [*papermill, str(NOTEBOOK), f"{folder}/{NOTEBOOK.name}"]
        case = f"notebook {NOTEBOOK.stem[:2]} on a filled store"
        yield row(case, "time", seconds(lambda: _run(command)), "s")


def whole(small: bool = False) -> Iterator[dict]:
    """Time the study on an empty store: the smoke run of all notebooks, and `make reproduce`.

    Both write to outputs/.
    """
    with tempfile.TemporaryDirectory(prefix="zs-bench-") as folder:
        settings = {"ZS_RUNS": folder, "OMP_NUM_THREADS": "1"}
        took = seconds(lambda: zs("reproduce", "--profile", "smoke", "--full", **settings))
        yield row("smoke run of all notebooks", "time", took, "s")
        if not small:
            took = seconds(lambda: zs("reproduce", **settings))
            yield row("make reproduce, after set-up", "time", took, "s")


def _filled() -> bool:
    from zs_lib import studies
    from zs_lib.runs import RunStore

    found = [RunStore().get(arm, seed) for arm, seed in studies.study_runs(config.load_profile("tiny"))]
    return all(run is not None and run.finished for run in found)


def zs(*arguments: str, **environment: str) -> None:
    """Run a `zs` command in a new process, and discard its output."""
    _run([sys.executable, "-m", "zs_lib", *arguments], **environment)


def _run(command: list[str], **environment: str) -> None:
    subprocess.run(
        command,
        env=os.environ | environment,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
