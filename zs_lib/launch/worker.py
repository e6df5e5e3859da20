"""A worker process: read one job per line from stdin, write one answer per line to stdout.

A job is a run to make (an arm and a seed) or a notebook to execute. The process ends when its stdin is
closed, so it cannot outlive the process that started it, however that one dies. A run interrupted like this
resumes from its checkpoint.
"""

from __future__ import annotations

import importlib
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import traceback
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from zs_lib import pipeline
from zs_lib.config.paths import ROOT
from zs_lib.config.values import from_identity, identity
from zs_lib.errors import ZeroSearchError
from zs_lib.launch.notebooks import Notebook, run_notebook
from zs_lib.runs import RunStore, interrupts


def to_job(task: Any) -> dict:
    """Encode an arm or a `Notebook` as JSON values, for another process."""
    return {"type": f"{type(task).__module__}:{type(task).__name__}", "config": identity(task, labels=True)}


def from_job(job: dict) -> Any:
    """Decode the arm or notebook that `to_job` encoded."""
    module, name = job["type"].split(":")
    return from_identity(getattr(importlib.import_module(module), name), job["config"])


def environment() -> dict[str, str]:
    """Return this process's environment, with the library's folder on PYTHONPATH."""
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def settings(threads: int, gpus: Sequence[str] | None = None) -> dict[str, str]:
    """Return environment variables for a process that computes with so many threads, and on these GPUs alone.

    More threads than cores are many times slower. The memory settings let glibc keep what one training step
    frees for the next, instead of returning it to the system: that took 30% of the time of fine-tuning
    `tiny-S`.
    """
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    memory = {"MALLOC_MMAP_THRESHOLD_": str(32 << 20), "MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    devices = {} if gpus is None else {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}
    return dict.fromkeys(names, str(threads)) | {"TOKENIZERS_PARALLELISM": "false"} | memory | devices


def launcher(processes: int, sharding: str) -> list[str]:
    """Return the command that starts so many processes of a module for one run: torchrun, or accelerate's."""
    if sharding == "none":
        return [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            f"--nproc_per_node={processes}",
        ]
    settings = ["--config_file", str(Path(__file__).with_name(f"{sharding}.yaml"))]
    return [sys.executable, "-m", "accelerate.commands.launch", *settings, f"--num_processes={processes}"]


def _do_together(job: dict) -> str | None:
    """Do a job in several processes, each on a GPU of its own; its error, if it failed."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, interrupts.end)  # so that the processes save a checkpoint
    number = job["processes"]
    threads = max(1, int(os.environ.get("OMP_NUM_THREADS", number)) // number)
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "error")
        alone = json.dumps(job | {"processes": 1, "answer": str(answer)})
        command = [*launcher(number, job["sharding"]), "-m", "zs_lib.launch.worker", alone]
        # They end when their stdin is closed, so they cannot outlive this process.
        process = subprocess.Popen(command, stdin=subprocess.PIPE, env=environment() | settings(threads))
        try:
            code = process.wait()
        finally:
            process.terminate()
            process.wait()
        if code:
            return answer.read_text() if answer.exists() else f"its processes ended with exit code {code}"
    return None


def _do_part(job: dict) -> None:
    """Do a job as one of several processes; the first that fails leaves the error."""
    threading.Thread(target=_read, args=(queue.Queue(),), daemon=True).start()
    if error := do(job):
        with suppress(FileExistsError), open(job["answer"], "x", encoding="utf-8") as file:
            file.write(error)
        sys.exit(1)


def main() -> None:
    """Do jobs until stdin is closed; output of the work goes to stderr, since stdout carries the answers."""
    if len(sys.argv) > 1:
        _do_part(json.loads(sys.argv[1]))
        return
    # Ctrl-C reaches the whole process group; the parent stops its workers itself.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)
    jobs: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_read, args=(jobs,), daemon=True).start()
    while True:
        print(json.dumps({"error": do(json.loads(jobs.get()))}), file=answers)


def _read(jobs: queue.Queue[str]) -> None:
    for line in sys.stdin:
        jobs.put(line)
    os._exit(0)


def do(job: dict) -> str | None:
    """Do one job, on any machine; its error, if it failed."""
    try:
        task = from_job(job)
        if isinstance(task, Notebook):
            run_notebook(task)
        elif job.get("processes", 1) > 1 and pipeline.MAKERS[type(task)].together:
            return _do_together(job)
        else:
            pipeline.ensure(task, job["seed"], RunStore(job["store"]))
    except ZeroSearchError as error:
        return str(error)
    except Exception as error:
        path = Path(job["log"])
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(traceback.format_exc(), encoding="utf-8")
        return f"{type(error).__name__}: {error} (traceback: {path})"
    return None


if __name__ == "__main__":
    main()
