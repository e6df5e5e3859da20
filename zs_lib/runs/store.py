"""The run store: one folder for each arm and seed (`runs.run`), shared by any number of processes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from zs_lib.config import paths
from zs_lib.config.values import digest, identity
from zs_lib.errors import RunError
from zs_lib.runs import distributed
from zs_lib.runs.run import FOLDER, Run
from zs_lib.runs.tracking import Tracker

PROGRESS_AFTER_S = 3.0
"""Seconds after which `verify` shows a progress bar."""
DISK_ERRORS = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Error numbers of a disk that is full, read-only or failing; other errors are raised as they are."""


class RunStore:
    """All runs under one folder: `root`, else the environment's ZS_RUNS, else data/runs.

    Raises:
        ConfigError: that is no folder, and cannot become one.
    """

    def __init__(self, root: Path | str | None = None):
        named = os.environ.get("ZS_RUNS")
        what = "The run store's folder" if root or not named else "ZS_RUNS"
        self.root = paths.check_folder(root or named or paths.ROOT / "data" / "runs", what).resolve()

    def path(self, arm: Any, seed: int) -> Path:
        """Return the folder of the run of this arm and seed, existing or not."""
        return self.root / f"{kind_of(arm)}-{digest(arm)}-s{seed}"

    def get(self, arm: Any, seed: int) -> Run | None:
        """Find the run of this arm and seed, finished or not; None if it was never begun."""
        run = Run(self.path(arm, seed))
        return run if run.begun else None

    def complete(self, arm: Any, seed: int, work: Callable[[Run], dict], together: bool = False) -> Run:
        """Find the finished run of this arm and seed, or finish it by `work(run)`, which returns its summary.

        `work` asks `run.checkpoint()` where to begin (None: at the beginning); lines logged after the
        checkpoint are gone by then. Another process that wants the same run waits here, and then finds it
        finished.

        Where several processes make a run together (`distributed`), the main one decides, locks and writes;
        the others call `work` too if it is made for that (`together`), else they wait. All need the store on
        a shared disk. Metrics go to the arm's tracker too, if it has one.

        Raises:
            ConfigError: the tracker is not installed or does not start.
            RunError: the run is damaged, another process has held its lock for longer than LOCK_WAIT_S, or
                the disk cannot be written (full, read-only); what was there before stays.
        """
        run = Run(self.path(arm, seed))
        if distributed.all_gather(run.finished)[0]:
            run.check_record()
            return run
        if not distributed.is_main():
            return _work_along(run, work if together else None)
        try:
            run.refuse_links()
            run.path.mkdir(parents=True, exist_ok=True)
            with run.exclusively():
                if distributed.all_gather(not run.finished)[0]:
                    with closing(self._tracker(arm, run)) as run.tracker:
                        run.begin(arm, seed)
                        distributed.all_gather("begun")
                        with nullcontext() if together else distributed.main_process_only():
                            summary = work(run)
                        run.finish(summary)
        except (OSError, SafetensorError) as error:  # safetensors tells the system's error in words only
            if getattr(error, "errno", errno.EIO) not in DISK_ERRORS:
                raise
            raise RunError(
                f"{run.path} cannot be read or written ({error}): make room, mend its rights, or point "
                "ZS_RUNS to another folder, and start again; it goes on from its last checkpoint."
            ) from error
        distributed.all_gather("finished")
        return run

    def _tracker(self, arm: Any, run: Run) -> Tracker:
        kind, config = getattr(arm, "tracker", "none"), identity(arm, labels=True) | {"seed": run.seed}
        return Tracker(kind, run.path.name, self.root / "tensorboard", config)

    def list(self) -> list[Run]:
        """List all runs that were begun, by folder name; damaged ones too, whose parts raise RunError."""
        names = sorted(os.listdir(self.root)) if self.root.is_dir() else []
        runs = [Run(self.root / name) for name in names if FOLDER.fullmatch(name)]
        return [run for run in runs if run.begun]

    def verify(self) -> list[RunError]:
        """Look for damage in the store, with a progress bar. Unfinished runs are not errors; they resume."""
        from tqdm import tqdm

        runs = tqdm(self.list(), desc="verify", unit="run", leave=False, delay=PROGRESS_AFTER_S, disable=None)
        return [error for run in runs for error in run.verify()]


def _work_along(run: Run, work: Callable[[Run], dict] | None) -> Run:
    """`complete` in a process that is not the main one: the same collective calls, and `work` if given."""
    if distributed.all_gather(None)[0]:  # not finished by someone else meanwhile
        distributed.all_gather("begun")
        if not (run.path / "run.json").exists():
            raise RunError(
                f"{run.path} is not the main process's: point ZS_RUNS to a folder that all machines share."
            )
        if work:
            work(run)
    distributed.all_gather("finished")
    return run


def kind_of(arm: Any) -> str:
    """Name the kind of an arm's runs: "policy" for a PolicyArm."""
    return type(arm).__name__.lower().removesuffix("arm")
