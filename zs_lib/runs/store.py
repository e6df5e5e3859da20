"""The run store: one folder for each arm and seed, atomic, resumable, shared by any number of processes.

    policy-3fa0c1d2e4b5-s0/
        run.json            configuration, seed, package and code versions, machine; written first
        metrics.jsonl       one line a step: bit-identical however often the run was killed
        trajectories.jsonl  some trajectories of each step
        timing.jsonl        seconds: the only thing that two equal runs differ in
        checkpoint-…/       the last checkpoint: tensors.safetensors, state.json, sha256.json
        model/              what a finished run leaves: a transformers folder
        sha256.json         the digests of all other files: whoever reads one of them checks it
        summary.json        written last, atomically: a run is finished when it has one

Whoever works on a run holds a lock on its folder; when the process dies, however it dies, the lock is gone.
"""

from __future__ import annotations

import errno
import fcntl
import functools
import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from zs_lib.config import paths
from zs_lib.config.contents import contents_of, file_digest, read_digest, unreadable
from zs_lib.config.values import digest, from_dict, identity
from zs_lib.errors import RunError, UnreadableError, ZeroSearchError
from zs_lib.runs import checkpoints, distributed
from zs_lib.runs.checkpoints import Checkpoint
from zs_lib.runs.files import Log, hash_file, hashes, listed, read_json, sync, to_json, write_json, write_text
from zs_lib.runs.provenance import provenance
from zs_lib.runs.tracking import Tracker

if TYPE_CHECKING:
    import pandas as pd
    import torch


LOCK_WAIT_S = 12 * 3600
"""Seconds to wait for another process's lock."""
LOCK_POLL_S = 0.2
PROGRESS_AFTER_S = 3.0
"""Seconds after which the check of a store shows how far it is."""
FOLDER = re.compile(r"(?P<kind>[a-z]+)-(?P<digest>[0-9a-f]{12})-s(?P<seed>\d+)")
LOGS = ("metrics.jsonl", "trajectories.jsonl", "timing.jsonl")
PASSING = ("lock", "progress.json", "worker.log")
"""Files about a run's progress, not its content; `verify` ignores them."""
RIGHTS = "check the rights of the file, its disk and the network, then look again"
"""The cure where a file cannot be read; it may be sound."""
OF_DISK = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO)
"""Errors of a disk that is full, read-only or failing; others are raised as they are."""


@dataclass(frozen=True)
class Progress:
    """Progress of a run: `step` of `steps` in its current stage."""

    stage: str
    step: int
    steps: int


@dataclass(frozen=True)
class Problem:
    """A finding of `verify`: where, what, and the cure."""

    path: Path
    what: str
    cure: str


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
        """The folder of the run of this arm and seed, existing or not."""
        return self.root / f"{kind_of(arm)}-{digest(arm)}-s{seed}"

    def get(self, arm: Any, seed: int) -> Run | None:
        """The run of this arm and seed, finished or not; None if it was never begun."""
        run = Run(self.path(arm, seed))
        return run if _begun(run.path) else None

    def complete(self, arm: Any, seed: int, work: Callable[[Run], dict], together: bool = False) -> Run:
        """Find the finished run of this arm and seed, or finish it by `work(run)`, which returns its summary.

        `work` asks `run.checkpoint()` where to begin (None: at the beginning); lines logged after the
        checkpoint are gone by then. Another process that wants the same run waits here, and then finds it
        finished.

        Where several processes make a run together (`distributed`), the main one decides, locks and writes;
        the others call `work` too if it is made for that (`together`), else they wait. All need the store on
        a shared disk.

        Metrics go to the arm's tracker too, if it has one: TensorBoard's files lie in the store's folder
        "tensorboard".

        Raises:
            ConfigError: the tracker is not installed or does not start.
            RunError: the run is damaged, another process has held its lock for longer than LOCK_WAIT_S, or
                the disk cannot be written (full, read-only); what was there before stays.
        """
        run = Run(self.path(arm, seed))
        if distributed.all_gather(run.finished)[0]:
            run._check_record()
            return run
        if not distributed.is_main():
            return _work_along(run, work if together else None)
        try:
            run._refuse_links()
            run.path.mkdir(parents=True, exist_ok=True)
            with run._exclusively():
                if distributed.all_gather(not run.finished)[0]:
                    with closing(self._tracker(arm, run)) as run.tracker:
                        run._begin(arm, seed)
                        distributed.all_gather("begun")
                        with nullcontext() if together else distributed.main_process_only():
                            summary = work(run)
                        run._finish(summary)
        except (OSError, SafetensorError) as error:  # safetensors tells the system's error in words only
            if getattr(error, "errno", errno.EIO) not in OF_DISK:
                raise
            raise RunError(
                f"{run.path} cannot be read or written ({error}): make room, mend its rights, or point "
                "ZS_RUNS to another folder, and start again; it goes on from its last checkpoint."
            ) from error
        distributed.all_gather("finished")
        return run

    def _tracker(self, arm: Any, run: Run) -> Tracker:
        kind = getattr(arm, "tracker", "none")
        return Tracker(
            kind, run.path.name, self.root / "tensorboard", identity(arm, labels=True) | {"seed": run.seed}
        )

    def list(self) -> list[Run]:
        """All runs that were begun, by folder name, damaged ones included (reading their parts raises
        RunError)."""
        folders = sorted(self.root.iterdir()) if self.root.is_dir() else []
        return [Run(path) for path in folders if FOLDER.fullmatch(path.name) and _begun(path)]

    def find(self, prefix: str) -> Run:
        """The one run whose folder name or digest begins with `prefix`; else the newest of this label.

        Of finished runs with the same label, one that left a model goes before others.

        Raises:
            RunError: there is none, or several folders begin so.
        """
        runs = self.list()
        found = [
            run
            for run in runs
            if prefix and (run.path.name.startswith(prefix) or run.digest.startswith(prefix))
        ]
        exact = [run for run in found if run.path.name == prefix]
        if len(exact or found) == 1:
            return (exact or found)[0]
        if found:
            raise RunError(
                f"Several runs are called {prefix!r}. They are: {', '.join(run.path.name for run in found)}."
            )
        labels = {run: run.sound_label for run in runs if run.finished}
        if named := [run for run, label in labels.items() if label == prefix]:
            return max(named, key=_model_and_age)
        known = ", ".join(sorted(filter(None, set(labels.values())))) or "none (run `zs reproduce`)"
        raise RunError(
            f"No run is called {prefix!r}. Known: {known}; or the beginning of a folder's name "
            "(`zs runs list`)."
        )

    def verify(self) -> list[Problem]:
        """Damage found in the store, with a progress bar. Unfinished runs are not errors; they resume."""
        from tqdm import tqdm

        bar = {"unit": "run", "leave": False, "delay": PROGRESS_AFTER_S, "disable": None}
        runs = tqdm(self.list(), desc="verify", **bar)
        return [problem for run in runs for problem in run.verify()]


def _model_and_age(run: Run) -> tuple[bool, int]:
    return (run.path / "model").is_dir(), (run.path / "summary.json").stat().st_mtime_ns


def _by_main(write: Callable[..., None]) -> Callable[..., None]:
    """Call a writing method in the main process only."""

    @functools.wraps(write)
    def once(*arguments, **more) -> None:
        if distributed.is_main():
            write(*arguments, **more)

    return once


class Run:
    """One arm, one seed, on disk. Made by `RunStore`; everything is read from the folder when asked for."""

    def __init__(self, path: Path):
        self.path = path
        parts = FOLDER.fullmatch(path.name)
        if parts is None:
            raise RunError(f"{path} is no run: the folder's name must be like policy-0123456789ab-s0.")
        self.kind, self.digest, self.seed = parts["kind"], parts["digest"], int(parts["seed"])
        self.tracker: Tracker | None = None

    def __repr__(self) -> str:
        return f"Run({self.path.name}, {'finished' if self.finished else 'unfinished'})"

    # -------------------------------------------------------------------------------- what it is

    @property
    def record(self) -> dict:
        """run.json: label, seed, config, packages, code, machine."""
        record = read_json(self.path / "run.json", self.cure)
        if not isinstance(record.get("config"), dict) or not isinstance(record.get("label"), str):
            raise RunError(
                f"{self.path / 'run.json'} lacks label or config (damaged, or of another version): "
                f"{self.cure}."
            )
        self.file("run.json")
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
    def sound_label(self) -> str | None:
        """The label, or None where the run's record is damaged or cannot be read."""
        with suppress(RunError):
            return self.label

    @property
    def finished(self) -> bool:
        return os.path.exists(self.path / "summary.json")

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
    def summary(self) -> dict:
        """The summary that the work returned; RunError if the run is not finished."""
        path = self.file("summary.json")
        if not self.finished:
            raise RunError(
                f"The run {self.path.name} is not finished: run its notebook or `zs reproduce` again."
            )
        return read_json(path, self.cure)

    @property
    def model_dir(self) -> Path:
        """The finished run's transformers folder, checked (not every kind of run leaves one)."""
        if not self.finished:
            return self.file("model")
        folder = self.path / "model"
        listed = (name for name in self._digests() if name.startswith("model/"))
        found = (str(path.relative_to(self.path)) for path in folder.rglob("*") if path.is_file())
        for name in {*listed, *found}:
            self.file(name)
        return folder

    def file(self, name: str) -> Path:
        """The path of one of the run's files, to be read; of a finished run, only with its stored content.

        Raises:
            RunError: it is damaged or missing; names file and cure. UnreadableError: it cannot be read.
        """
        path = self.path / name
        self._refuse_links()
        try:
            path.stat()
        except FileNotFoundError:
            pass
        except OSError as error:
            raise UnreadableError(unreadable(path, error)) from error
        if self.finished:
            self._compare(name, self._digests().get(name), file_digest)
        return path

    # -------------------------------------------------------------------------------- what it writes

    @_by_main
    def log(self, step: int, **metrics: Any) -> None:
        """Append one line of metrics; numbers that are not finite become null. Times go to `log_timing`."""
        self.logged("metrics.jsonl").append([{"step": step, **metrics}])
        if self.tracker:
            self.tracker.log(step, metrics)
        if isinstance(steps := self._steps, int):
            self.progress("training", step, steps)

    @_by_main
    def log_timing(self, step: int, **seconds: float) -> None:
        """Append one line of wall-clock seconds by phase."""
        self.logged("timing.jsonl").append([{"step": step, **seconds}])

    @_by_main
    def log_trajectories(self, step: int, trajectories: list[dict]) -> None:
        """Append trajectories as JSON objects for people."""
        self.logged("trajectories.jsonl").append(
            [{"step": step, **trajectory} for trajectory in trajectories]
        )

    @_by_main
    def progress(self, stage: str, step: int, steps: int) -> None:
        """Publish how far the run is; `log` does so by itself for arms that have `steps`."""
        temporary = self.path / "progress.tmp"
        temporary.write_text(json.dumps({"stage": stage, "step": step, "steps": steps}))
        temporary.replace(self.path / "progress.json")

    @_by_main
    def save(self, step: int, tensors: dict[str, torch.Tensor], state: dict) -> None:
        """Save everything needed to resume after `step`, replacing the checkpoint before.

        A process killed here leaves the old checkpoint valid.
        """
        for name in LOGS:  # what was logged up to this step must not be lost after it
            if (self.path / name).exists():
                sync(self.path / name)
        logs = {name: self._digest_of(name, step) for name in LOGS}
        checkpoints.save_checkpoint(
            self.path / f"checkpoint-{step:08d}", Checkpoint(step, tensors, state, logs)
        )
        for older in self._checkpoints()[:-1]:
            shutil.rmtree(older)

    # -------------------------------------------------------------------------------- what can be read

    def checkpoint(self) -> Checkpoint | None:
        """The last checkpoint; None if there is none.

        Raises:
            RunError: it is damaged, or what was logged up to it; names file and cure.
        """
        folders = self._checkpoints()
        if not folders:
            return None
        found = checkpoints.load_checkpoint(folders[-1])
        for name, digest_then in found.logs.items():
            if self._digest_of(name, found.step) != digest_then:
                raise RunError(
                    f"{self.path / name} is damaged (its lines up to step {found.step} have changed): "
                    f"{self.cure}."
                )
        return found

    def logged(self, name: str) -> Log:
        """One of LOGS."""
        return Log(self.path / name, self.cure, step=int)

    def metrics(self) -> pd.DataFrame:
        """Logged metrics, one row a line; empty (with a `step` column) before the first."""
        return self._frame("metrics.jsonl")

    def timing(self) -> pd.DataFrame:
        """Logged seconds, one row a line."""
        return self._frame("timing.jsonl")

    def trajectories(self) -> list[dict]:
        """Logged trajectories, each with its `step`."""
        self.file("trajectories.jsonl")
        return self.logged("trajectories.jsonl").rows()

    def read_progress(self) -> Progress | None:
        """Published progress; None before the first, or if the file is damaged."""
        try:
            return from_dict(Progress, read_json(self.path / "progress.json", ""), "progress.json")
        except ZeroSearchError:
            return None

    def verify(self) -> list[Problem]:
        """Damage found in this run."""
        problems = []

        def check(path: Path, part: Callable[[], Any]) -> None:
            try:
                part()
            except RunError as error:
                cure = RIGHTS if isinstance(error, UnreadableError) else self.cure
                problems.append(Problem(path, str(error), cure))

        check(self.path / "run.json", self._check_record)
        for name in LOGS:
            check(self.path / name, self.logged(name).rows)
        if self.finished:
            check(self.path / "summary.json", lambda: self.summary)
            check(self.path, self._check_files)
        elif not self.running:
            check(self.path, self.checkpoint)
        return problems

    # -------------------------------------------------------------------------------- inside

    @property
    def cure(self) -> str:
        """The cure for damage."""
        return f"delete the folder {self.path}, and the run is made again"

    @functools.cached_property
    def _steps(self) -> Any:
        return self.config.get("steps")

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Hold the run's lock; wait for another holder, up to LOCK_WAIT_S."""
        deadline = time.monotonic() + LOCK_WAIT_S
        with (self.path / "lock").open("a") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() > deadline:
                        what = f"Another process still works on {self.path.name}"
                        raise RunError(f"{what} after {LOCK_WAIT_S / 3600:.0f} h: end it.") from None
                    time.sleep(LOCK_POLL_S)
            yield

    def _begin(self, arm: Any, seed: int) -> None:
        """Write run.json of a new run; of one that was cut off, drop what was logged after its checkpoint."""
        if (self.path / "run.json").exists():
            self._check_record()
            checkpoint = self.checkpoint()
            last = checkpoint.step if checkpoint else -math.inf
            for name in LOGS:
                self.logged(name).cut(lambda row: row["step"] <= last)
            return
        if _begun(self.path):
            raise RunError(f"{self.path / 'run.json'} is missing beside the run's other files: {self.cure}.")
        record = {"label": getattr(arm, "name", ""), "seed": seed, "config": identity(arm)}
        if contents := contents_of(record["config"]):
            record["contents"] = contents
        write_json(self.path / "run.json", record | provenance())

    def _digest_of(self, name: str, step: int) -> str:
        """Digest of a log's content up to `step`."""
        return _sha256(self.logged(name).text(lambda row: row["step"] <= step))

    def _finish(self, summary: dict) -> None:
        text = to_json(summary, indent=1)
        write_json(self.path / "sha256.json", hashes(self.path, PASSING) | {"summary.json": _sha256(text)})
        write_text(self.path / "summary.json", text)
        for folder in self.path.glob("checkpoint*"):  # only an unfinished run needs them
            shutil.rmtree(folder)

    def _frame(self, name: str) -> pd.DataFrame:
        import pandas as pd

        self.file(name)
        rows = self.logged(name).rows()
        frame = pd.DataFrame(rows) if rows else pd.DataFrame({"step": []}, dtype=int)
        return frame.apply(lambda c: pd.to_numeric(c) if c.isna().all() else c)  # all null: NaN, not objects

    def _checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        return sorted(self.path.glob("checkpoint-*[0-9]"))

    def _refuse_links(self) -> None:
        """RunError if the run's folder, or a file that its work would write, is a link to another place."""
        try:
            inside = [] if self.finished else list(os.scandir(self.path))
        except OSError:  # not there, or not to be read: whoever reads it tells
            inside = []
        links = [entry.path for entry in inside if entry.is_symlink()]
        if links or self.path.is_symlink():
            raise RunError(
                f"{links[0] if links else self.path} is a link: put what it names into its place, for a run "
                "is written nowhere else."
            )

    def _check_record(self) -> None:
        try:
            found = digest(self.config, self.contents)
        except (ValueError, RecursionError):  # NaN, a thousand brackets
            found = ""
        if found != self.digest:
            raise RunError(
                f"{self.path / 'run.json'} does not hold the configuration {self.digest}: {self.cure}."
            )

    def _check_files(self) -> None:
        digests = self._digests()
        found = [name for name in listed(self.path, (*PASSING, "sha256.json")) if not name.startswith(".")]
        for name in {"run.json", "summary.json", *digests, *found}:  # a list that lacks even these is none
            self._compare(name, digests.get(name), read_digest)

    def _digests(self) -> dict[str, str]:
        """The digests of a finished run's files; RunError if a byte of them was cut, added or changed."""
        path = self.path / "sha256.json"
        digests = read_json(path, self.cure)
        if path.read_text(encoding="utf-8") != to_json(digests, indent=1):
            raise RunError(f"{path} is damaged (not as it was written): {self.cure}.")
        return digests

    def _compare(self, name: str, expected: str | None, read: Callable[[Path], str]) -> None:
        """RunError if a file has another digest than expected; None: it should not be there."""
        path = self.path / name
        if expected is None and not path.exists():
            return
        if hash_file(path, self.cure, read) != expected:
            raise RunError(f"{path} is damaged (its sha256 has changed): {self.cure}.")


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


def _begun(path: Path) -> bool:
    """Whether a folder holds more than a process leaves that was killed before it wrote run.json."""
    try:
        return not set(os.listdir(path)) <= {*PASSING, "run.json.tmp"}
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:  # something that cannot be looked into: reading its parts tells why
        return True


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def kind_of(arm: Any) -> str:
    """The kind of an arm's runs: "policy" for a PolicyArm."""
    return type(arm).__name__.lower().removesuffix("arm")
