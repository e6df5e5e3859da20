"""Make runs in a background process, which outlives the cell, the notebook and the kernel that started it.

There is one such process for each store. It holds a lock on `background.log` in the store's folder, to which
its output goes. The lock ends with the process, and its unfinished runs resume from their checkpoints when
next requested.
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

from zs_lib.config import Resources
from zs_lib.config.contents import unreadable
from zs_lib.config.values import from_identity, identity
from zs_lib.errors import RunError, UnreadableError, ZeroSearchError
from zs_lib.launch import executors, scheduler, worker
from zs_lib.runs import RunStore

LOG = "background.log"
START_S = 60
"""Seconds within which the new process must hold its lock."""


def start(
    wanted: Iterable[tuple[Any, int]],
    store: RunStore,
    jobs: int | None = None,
    resources: Resources | None = None,
) -> int:
    """Start a process that makes the missing runs of these (arm, seed) pairs; its process id.

    `jobs` and `resources` bound what runs at once (`scheduler.make_runs`, `executors.local`).

    Raises:
        RunError: the store has a background process already or cannot be written, or the new one did not
            start.
    """
    if pid := process_id(store):
        raise RunError(f"Process {pid} makes runs in {store.root} already: wait for it, or stop it.")
    pairs = [worker.to_job(arm) | {"seed": seed} for arm, seed in wanted]
    try:
        store.root.mkdir(parents=True, exist_ok=True)
        (store.root / LOG).open("a").close()
    except OSError as error:
        raise RunError(
            f"{store.root} cannot be written ({error}): point ZS_RUNS to another folder."
        ) from error
    process = subprocess.Popen(
        [sys.executable, "-m", "zs_lib.launch.background", str(store.root)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        encoding="utf-8",
        # A kernel that ends also ends its process group.
        start_new_session=True,
        env=worker.environment(),
    )
    process.stdin.write(json.dumps({"jobs": jobs, "pairs": pairs, "resources": identity(resources)}))
    process.stdin.close()
    deadline = time.monotonic() + START_S
    while process_id(store) != process.pid and process.poll() is None:
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


def process_id(store: RunStore) -> int | None:
    """Return the id of this store's background process; None if there is none."""
    try:
        with (store.root / LOG).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return None
    except FileNotFoundError:
        return None
    except BlockingIOError:
        first = (store.root / LOG).read_text(encoding="utf-8").split("\n")[0]
        return int(first) if first.isdigit() else None  # it has the lock, and is about to write its id
    except OSError as error:
        raise UnreadableError(unreadable(store.root / LOG, error)) from error


def stop(store: RunStore) -> None:
    """Stop the background process, if there is one, and its workers."""
    if pid := process_id(store):
        os.kill(pid, signal.SIGTERM)


def last_output(store: RunStore) -> str:
    """Read the last line of output of the last background process; empty if there was none."""
    try:
        lines = (store.root / LOG).read_text(encoding="utf-8").splitlines()[1:]
    except FileNotFoundError:
        return ""
    return lines[-1] if lines else ""


def main() -> int:
    """Read (arm, seed) pairs from stdin, and make their runs in the store whose folder is the argument."""
    job, store = json.load(sys.stdin), RunStore(Path(sys.argv[1]))
    sys.stdout.reconfigure(encoding="utf-8", errors="backslashreplace")  # it goes to the log, too
    with (store.root / LOG).open("a+", encoding="utf-8") as log:
        try:
            fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return 1  # another process has the lock
        log.truncate(0)
        print(os.getpid(), file=log, flush=True)
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
        try:
            wanted = [(worker.from_job(pair), pair["seed"]) for pair in job["pairs"]]
            executor = executors.local(job["resources"] and from_identity(Resources, job["resources"]))
            scheduler.make_runs(wanted, job["jobs"], store, executor=executor)
        except ZeroSearchError as error:
            print(error, flush=True)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
