"""A run: one arm with one seed, as a folder that survives being killed.

    policy-3fa0c1d2e4b5-s0/
        run.json            configuration, seed, package and code versions, machine; written first
        metrics.jsonl       one line a step: bit-identical however often the run was killed
        trajectories.jsonl  some trajectories of each step
        groups.jsonl        each question that was asked, with its rewards
        timing.jsonl        seconds: the only thing that two equal runs differ in
        checkpoint-…/       the last checkpoint: tensors.safetensors, state.json, sha256.json
        model/              what a finished run leaves: a transformers folder
        sha256.json         the digests of all other files: whoever reads one of them checks it
        summary.json        written last, atomically: a run is finished when it has one

Whoever works on a run holds a lock on its folder; when the process dies, however it dies, the lock is gone.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from zs_lib.config.contents import contents_of, file_digest, read_digest, refuse_unreadable
from zs_lib.config.values import digest, identity
from zs_lib.errors import RunError
from zs_lib.runs import checkpoints, files
from zs_lib.runs.checkpoints import Checkpoint
from zs_lib.runs.distributed import on_main_process
from zs_lib.runs.files import DIGESTS, TRANSIENT, Log, check_digest
from zs_lib.runs.provenance import provenance
from zs_lib.runs.tracking import Tracker

if TYPE_CHECKING:
    import pandas as pd
    import torch


LOCK_WAIT_S = 12 * 3600
"""Seconds to wait for another process's lock."""
LOCK_POLL_S = 0.2
FOLDER = re.compile(r"(?P<kind>[a-z]+)-(?P<digest>[0-9a-f]{12})-s(?P<seed>\d+)")
LOGS = ("metrics.jsonl", "trajectories.jsonl", "groups.jsonl", "timing.jsonl")

StepCallback = Callable[[int, int, dict], None]
"""Called after each training step with its number, the number of steps, and the step's metrics."""


class Run:
    """One arm, one seed, on disk. Made by `RunStore`; everything is read from the folder when asked for."""

    def __init__(self, path: Path):
        self.path = path
        parts = FOLDER.fullmatch(path.name)
        if parts is None:
            raise RunError(f"{path} is no run: the folder's name must be like policy-0123456789ab-s0.")
        self.kind, self.digest, self.seed = parts["kind"], parts["digest"], int(parts["seed"])
        self.cure = f"delete the folder {path}, and the run is made again"
        self.tracker: Tracker | None = None
        self._as_written = ""  # the sha256 of a list of digests that was found so
        self.steps: int | None = None  # of the arm that is being trained, if it has steps

    def __repr__(self) -> str:
        return f"Run({self.path.name}, {'finished' if self.finished else 'unfinished'})"

    @property
    def begun(self) -> bool:
        """Whether it holds more than a process leaves that was killed before it wrote run.json."""
        try:
            return not set(os.listdir(self.path)) <= {*TRANSIENT, "run.json.tmp"}
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:  # something that cannot be looked into: reading its parts tells why
            return True

    @property
    def finished(self) -> bool:
        return os.path.exists(f"{self.path}/summary.json")

    @property
    def running(self) -> bool:
        """Whether a process works on it at this moment."""
        try:
            with (self.path / "lock").open() as file:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # shared: who asks is not seen by others
                return False
        except BlockingIOError:
            return True
        except (FileNotFoundError, PermissionError):
            return False

    @property
    def record(self) -> dict:
        """run.json: label, seed, config, packages, code, machine."""
        record, found = files.read_checked_json(self.path / "run.json", self.cure)
        if not isinstance(record.get("config"), dict) or not isinstance(record.get("label"), str):
            raise self._error("run.json", "lacks label or config (damaged, or of another version)")
        self._check_read("run.json", found)
        return record

    @property
    def config(self) -> dict:
        """The arm's `values.identity`."""
        return self.record["config"]

    @property
    def contents(self) -> dict[str, str]:
        """Digests of the local files and model folders in `config`, as they were when it was begun."""
        contents = self.record.get("contents", {})
        return contents if isinstance(contents, dict) else {}

    @property
    def label(self) -> str:
        """The arm's name when the run was begun."""
        return self.record["label"]

    @property
    def summary(self) -> dict:
        """The summary that the work returned; RunError if the run is not finished."""
        if not self.finished:
            self.file("summary.json")  # one that cannot be read may be there
            raise RunError(
                f"The run {self.path.name} is not finished: run its notebook or `zs reproduce` again."
            )
        summary, found = files.read_checked_json(self.path / "summary.json", self.cure)
        self._check_read("summary.json", found)
        return summary

    @property
    def model_dir(self) -> Path:
        """The finished run's transformers folder, checked (not every kind of run leaves one)."""
        if not self.finished:
            return self.file("model")
        self._check_files(file_digest, "model/")
        return self.path / "model"

    def file(self, name: str) -> Path:
        """Return the path of one of the run's files, to be read; a finished run's are checked first.

        Raises:
            RunError: it is damaged or missing; names file and cure. UnreadableError: it cannot be read.
        """
        path = self.path / name
        self.refuse_links()
        with suppress(FileNotFoundError), refuse_unreadable(path):
            path.stat()
        if self.finished:
            check_digest(path, self._digests().get(name), self.cure, file_digest)
        return path

    @on_main_process
    def log(self, step: int, **metrics: Any) -> None:
        """Append one line of metrics; numbers that are not finite become null. Times go to `log_timing`."""
        self.logged("metrics.jsonl").append([{"step": step, **metrics}])
        if self.tracker:
            self.tracker.log(step, metrics)
        if self.steps:
            self.progress("training", step, self.steps)

    @on_main_process
    def log_timing(self, step: int, **seconds: float) -> None:
        """Append one line of wall-clock seconds by phase."""
        self.logged("timing.jsonl").append([{"step": step, **seconds}])

    @on_main_process
    def log_trajectories(self, step: int, trajectories: list[dict]) -> None:
        """Append trajectories as JSON objects for people."""
        self.logged("trajectories.jsonl").append([{"step": step, **one} for one in trajectories])

    @on_main_process
    def log_groups(self, step: int, groups: list[dict]) -> None:
        """Append each question of a step with its rewards (`rl.train.Group.record`)."""
        self.logged("groups.jsonl").append([{"step": step, **one} for one in groups])

    @on_main_process
    def progress(self, stage: str, step: int, steps: int) -> None:
        """Publish how far the run is; `log` does so by itself for arms that have `steps`."""
        temporary = self.path / "progress.tmp"
        temporary.write_text(json.dumps({"stage": stage, "step": step, "steps": steps}))
        temporary.replace(self.path / "progress.json")

    @on_main_process
    def save(self, step: int, tensors: dict[str, torch.Tensor]) -> None:
        """Save everything needed to resume after `step`, replacing the checkpoint before.

        A process killed here leaves the old checkpoint valid.
        """
        for name in LOGS:  # what was logged up to this step must not be lost after it
            if (self.path / name).exists():
                files.sync(self.path / name)
        logs = {name: self._digest_up_to(step, name) for name in LOGS}
        folder = self.path / f"checkpoint-{step:08d}"
        checkpoints.save_checkpoint(folder, Checkpoint(step, tensors, logs=logs))
        for older in self.checkpoint_folders()[:-1]:
            shutil.rmtree(older)

    def checkpoint_folders(self) -> list[Path]:
        """List the folders of the complete checkpoints, named by their step, oldest first."""
        return sorted(self.path.glob("checkpoint-*[0-9]"))

    def checkpoint(self) -> Checkpoint | None:
        """Load the last checkpoint; None if there is none.

        Raises:
            RunError: it is damaged, or what was logged up to it; names file and cure.
        """
        folders = self.checkpoint_folders()
        if not folders:
            return None
        found = checkpoints.load_checkpoint(folders[-1])
        for name, digest_then in found.logs.items():
            if self._digest_up_to(found.step, name) != digest_then:
                raise self._error(name, f"is damaged (its lines up to step {found.step} have changed)")
        return found

    def logged(self, name: str) -> Log:
        """Open one of LOGS."""
        return Log(self.path / name, self.cure, step=int)

    def metrics(self) -> pd.DataFrame:
        """Read the logged metrics, one row a line; empty (with a `step` column) before the first."""
        return self._frame("metrics.jsonl")

    def timing(self) -> pd.DataFrame:
        """Read the logged seconds, one row a line."""
        return self._frame("timing.jsonl")

    def trajectories(self) -> list[dict]:
        """Read the logged trajectories, each with its `step`."""
        self.file("trajectories.jsonl")
        return self.logged("trajectories.jsonl").rows()

    def groups(self) -> list[dict]:
        """Read the logged groups (`rl.train.Group.record`), each with its `step`."""
        self.file("groups.jsonl")
        return self.logged("groups.jsonl").rows()

    def verify(self) -> list[RunError]:
        """Look for damage in this run: an error for each, which names file and cure."""
        parts: list[Callable[[], Any]] = [self.check_record, *(self.logged(name).rows for name in LOGS)]
        if self.finished:
            parts += [lambda: self.summary, lambda: self._check_files(read_digest)]
        elif not self.running:
            parts += [self.checkpoint]
        found = []
        for part in parts:
            try:
                part()
            except RunError as error:
                found.append(error)
        return found

    def exclusively(self) -> AbstractContextManager:
        """Hold the run's lock; wait for another holder, up to LOCK_WAIT_S."""
        path = self.path / "lock"
        path.touch()  # with the rights of the umask, for a store that a group shares
        lock = FileLock(path, fallback_to_soft=False)  # a soft one would outlive a killed process
        try:
            return lock.acquire(timeout=LOCK_WAIT_S, poll_interval=LOCK_POLL_S)
        except Timeout:
            what = f"Another process still works on {self.path.name}"
            raise RunError(f"{what} after {LOCK_WAIT_S / 3600:.0f} h: end it.") from None

    def begin(self, arm: Any, seed: int) -> None:
        """Write run.json of a new run; of one that was cut off, drop what was logged after its checkpoint."""
        self.steps = getattr(arm, "steps", None)
        if (self.path / "run.json").exists():
            self.check_record()
            checkpoint = self.checkpoint()
            last = checkpoint.step if checkpoint else -math.inf
            for name in LOGS:
                self.logged(name).cut(lambda row: row["step"] <= last)
            return
        if self.begun:
            raise self._error("run.json", "is missing beside the run's other files")
        record = {"label": getattr(arm, "name", ""), "seed": seed, "config": identity(arm)}
        if contents := contents_of(record["config"]):
            record["contents"] = contents
        files.write_json(self.path / "run.json", record | provenance())

    def finish(self, summary: dict) -> None:
        """Seal the files by their digests, write summary.json, and drop the checkpoint."""
        text = files.to_json(summary, indent=1)
        files.write_json(self.path / DIGESTS, files.hashes(self.path) | {"summary.json": _sha256(text)})
        files.write_text(self.path / "summary.json", text)
        for folder in self.path.glob("checkpoint*"):  # only an unfinished run needs them
            shutil.rmtree(folder)

    def refuse_links(self) -> None:
        """Raise RunError if the run's folder, or a file that its work would write, is a link elsewhere."""
        links = [self.path] if os.path.islink(str(self.path)) else []
        with suppress(OSError):  # not there, or not to be read: whoever reads it tells
            links += [] if self.finished else [path for path in self.path.iterdir() if path.is_symlink()]
        if links:
            raise RunError(
                f"{links[0]} is a link: put what it names into its place, for a run is written nowhere else."
            )

    def check_record(self) -> None:
        """Raise RunError if run.json does not hold the configuration that names the folder."""
        try:
            found = digest(self.config, self.contents)
        except (ValueError, RecursionError):  # NaN, a thousand brackets
            found = ""
        if found != self.digest:
            raise self._error("run.json", f"does not hold the configuration {self.digest}")

    def _error(self, name: str, what: str) -> RunError:
        return RunError(f"{self.path / name} {what}: {self.cure}.")

    def _digest_up_to(self, step: int, name: str) -> str:
        """Digest of a log's lines up to `step`."""
        return _sha256(self.logged(name).text(lambda row: row["step"] <= step))

    def _frame(self, name: str) -> pd.DataFrame:
        import pandas as pd

        self.file(name)
        rows = self.logged(name).rows()
        frame = pd.DataFrame(rows) if rows else pd.DataFrame({"step": []}, dtype=int)
        return frame.apply(lambda c: pd.to_numeric(c) if c.isna().all() else c)  # all null: NaN, not objects

    def _digests(self) -> dict[str, str]:
        """The digests of a finished run's files; RunError if a byte of them was cut, added or changed."""
        digests, found = files.read_checked_json(self.path / DIGESTS, self.cure)
        if found != self._as_written and found != _sha256(files.to_json(digests, indent=1)):
            raise self._error(DIGESTS, "is damaged (not as it was written)")
        self._as_written = found
        return digests

    def _check_read(self, name: str, found: str) -> None:
        """Raise RunError if a file that was just read, with this sha256, is not the finished run's."""
        self.refuse_links()
        if self.finished and found != self._digests().get(name):
            raise self._error(name, "is damaged (its sha256 has changed)")

    def _check_files(self, read: Callable[[Path], str], below: str = "") -> None:
        """Check the files whose relative paths begin so, those that should be there and those that are."""
        digests = self._digests()
        needed = {"run.json", "summary.json"}  # a list that lacks even these is none
        for name in {*needed, *digests, *files.listed(self.path)}:
            if name.startswith(below):
                check_digest(self.path / name, digests.get(name), self.cure, read)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
