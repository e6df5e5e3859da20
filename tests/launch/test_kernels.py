"""Kernels that are forked: as fresh as others, with what is imported, and none outlives who started it."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
import torch
from nbformat.v4 import new_code_cell, new_notebook

from zs_lib.errors import RunError
from zs_lib.launch import worker
from zs_lib.launch.notebooks import Notebook, run_notebook

ABOUT = """
import json, os, sys
imported = "torch" in sys.modules
import matplotlib.pyplot as plt, torch
plt.plot([1, 2])
leads = os.getpid() == os.getpgid(0)
print(json.dumps([imported, leads, torch.get_num_threads(), os.environ["MARK"], state]))
"""


def written(folder: Path, *cells: str) -> Notebook:
    parameters = new_code_cell("profile = 'tiny'\nstate = 0", metadata={"tags": ["parameters"]})
    path = folder / "source.ipynb"
    python = {"kernelspec": {"name": "python3", "language": "python", "display_name": "Python 3"}}
    nbformat.write(new_notebook(cells=[parameters, *map(new_code_cell, cells)], metadata=python), path)
    return Notebook(str(path), str(folder / "executed.ipynb"), {"profile": "tiny"})


def test_a_kernel_has_its_imports_and_nothing_of_the_kernel_before(tmp_path, monkeypatch):
    for mark in ("one", "two"):
        monkeypatch.setenv("MARK", mark)  # set after the server was started
        notebook = written(tmp_path, ABOUT, "state += 1; torch.manual_seed(1); os.environ['MARK'] = 'spoilt'")
        run_notebook(notebook)
        cell = nbformat.read(notebook.output, 4).cells[-2]
        printed = next(output.text for output in cell.outputs if output.output_type == "stream")
        imported, leads, threads, seen, state = json.loads(printed)
        assert imported and leads and (seen, state) == (mark, 0)
        assert threads == torch.get_num_threads()
        assert any("image/png" in output.get("data", {}) for output in cell.outputs)  # figures are shown


def test_a_kernel_that_dies_is_an_error(tmp_path):
    with pytest.raises(RunError, match="source.ipynb: its kernel was killed"):
        run_notebook(written(tmp_path, "import os; os.kill(os.getpid(), 9)"))


def test_no_kernel_outlives_a_killed_worker(tmp_path):
    note = tmp_path / "pids"
    text = "f'{os.getpid()} {os.getppid()}'"
    notebook = written(tmp_path, f"import os, time\nopen({str(note)!r}, 'w').write({text})\ntime.sleep(300)")
    command = [sys.executable, "-m", "zs_lib.launch.worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, env=worker.environment())
    process.stdin.write(json.dumps(worker.to_job(notebook) | {"log": str(tmp_path / "log")}) + "\n")
    process.stdin.flush()
    until = time.monotonic() + 60
    while not (note.exists() and note.read_text().count(" ")) and time.monotonic() < until:
        time.sleep(0.1)
    pids = [int(pid) for pid in note.read_text().split()]
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    try:
        while any(map(alive, pids)) and time.monotonic() < until:
            time.sleep(0.1)
        assert not any(map(alive, pids))
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
