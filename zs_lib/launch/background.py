"""Runs made in a process of their own, which outlives the cell, the notebook and the kernel that started it.

One a store: it holds a lock on `background.log` in the store's folder, where it also writes what it says. However it
ends, the lock is gone, and its runs go on from their checkpoints when they are asked for again.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from zs_lib.errors import RunError, ZeroSearchError
from zs_lib.launch import scheduler, worker
from zs_lib.runs import RunStore

LOG = "background.log"
START_S = 60
"""So long it may take until the process holds its lock."""


def start(wanted: Iterable[tuple[Any, int]], store: RunStore, jobs: int | None = None) -> int:
    """Begin to make what is missing of these (arm, seed) pairs (`scheduler.make_runs`), and return the process's id.

    Raises:
        RunError: the store's background process works already, or the new one did not start.
    """
    if pid := working(store):
        raise RunError(f"Process {pid} makes runs in {store.root} already: wait for it, or stop it.")
    pairs = [worker.to_job(arm) | {"seed": seed} for arm, seed in wanted]
    store.root.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "zs_lib.launch.background", str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        start_new_session=True,  # a kernel that ends takes its group along
        env=worker.environment(),
    )
    process.stdin.write(json.dumps({"jobs": jobs, "pairs": pairs}))
    process.stdin.close()
    deadline = time.monotonic() + START_S
    while working(store) != process.pid and process.poll() is None:
        if time.monotonic() > deadline:
            process.kill()
            raise RunError(
                f"The background process did not start within {START_S} s: see {store.root / LOG}."
            )
        time.sleep(0.05)
    if process.returncode:
        raise RunError(
            f"The background process ended at once (exit code {process.returncode}): see {store.root / LOG}."
        )
    return process.pid


def working(store: RunStore) -> int | None:
    """The id of the process that makes runs of this store in the background; None if there is none."""
    try:
        with (store.root / LOG).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        first = (store.root / LOG).read_text(encoding="utf-8").split("\n")[0]
        return int(first) if first.isdigit() else None  # not yet written: it begins this very moment


def stop(store: RunStore) -> None:
    """End the background process, if there is one; its workers end with it."""
    if pid := working(store):
        os.kill(pid, signal.SIGTERM)


def said(store: RunStore) -> str:
    """The last line that the last background process wrote; empty if there was none."""
    try:
        lines = (store.root / LOG).read_text(encoding="utf-8").splitlines()[1:]
    except FileNotFoundError:
        return ""
    return lines[-1] if lines else ""


def main() -> int:
    """Read the pairs from stdin, and make their runs in the store that is the one argument."""
    job, store = json.load(sys.stdin), RunStore(Path(sys.argv[1]))
    with (store.root / LOG).open("a+", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 1  # another was faster
        log.truncate(0)
        print(os.getpid(), file=log, flush=True)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            scheduler.make_runs(
                [(worker.from_job(pair), pair["seed"]) for pair in job["pairs"]], job["jobs"], store
            )
        except ZeroSearchError as error:
            print(error, flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
