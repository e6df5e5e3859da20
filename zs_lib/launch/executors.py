"""Where runs are made: in processes of this machine, by Ray on a cluster, or by SLURM.

An executor has places, each of which makes one run at a time. What it is asked to do is the same everywhere (`worker.do`),
and what it leaves lies in the run store: a folder that all machines see under one path. So a run whose machine is lost goes
on elsewhere from its last checkpoint, and a run that is finished is found.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from zs_lib.config import Resources, Share
from zs_lib.config.values import pick
from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import worker
from zs_lib.runs.provenance import available_cores

ATTEMPTS = 4
"""So often a run is begun at most, if the machines that make it are lost."""
PLACES = 256
"""Tasks that a cluster is given at once; it has a queue of its own."""
CONNECT_S = 10
LOOK_S, LONELY_S = 30, 900
"""So often Ray's nodes are looked at, and so long a run waits while none of them could make it."""
SLURM_HOURS = 24
"""A job's time, unless SBATCH_TIMELIMIT says otherwise; at its end SLURM has it go on in another job."""
POLL_S = 1
STOPPED = "it was stopped"
LACKS = "The executor '{}' needs the package {}: pip install -c constraints.txt -e '.[cluster]'."


class Place(Protocol):
    """Makes one run at a time."""

    def do(self, job: dict) -> str | None:
        """Make the run of a job (`worker.do`); returns what went wrong, if anything did. Called in a thread."""

    def ask_to_end(self) -> None:
        """A training stops after its step, with a checkpoint; anything else at once. No job is begun any more."""

    def end(self, deadline: float) -> None:
        """Wait for that, and end by force from `deadline` (monotonic) on."""


@dataclass(frozen=True)
class Executor:
    """`place` makes a new one; `places`: so many are used, unless someone asks for another number."""

    place: Callable[[], Place]
    places: int


@contextmanager
def opened(
    name: str = "local", address: str | None = None, resources: Resources | None = None
) -> Iterator[Executor]:
    """The executor of this name: "local", "ray" (a cluster at `address`, else the one of this machine, else a new one) or
    "slurm". On a cluster a run takes what `resources` says.

    Raises:
        ConfigError: unknown name, an address for what has none, a package or SLURM is missing, or no node has what is needed.
        RunError: the cluster cannot be reached.
    """
    opening = pick("executor", name, {"local": lambda *_: nullcontext(LOCAL), "ray": _ray, "slurm": _slurm})
    if address and name != "ray":
        raise ConfigError(f"The executor '{name}' has no address: leave it out, or take ray.")
    with opening(address, resources or Resources()) as executor:
        yield executor


class _Process:
    """A worker process (`zs_lib.worker`), started when it has something to do."""

    def __init__(self):
        self.process, self.output = None, tempfile.TemporaryFile()
        self.lock, self.ended = threading.Lock(), False

    def do(self, job: dict) -> str | None:
        try:
            process = self._started()
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        except OSError as failure:  # no process could be started, or it died before it read its job
            return f"worker process: {failure}"
        answer = process.stdout.readline()
        return json.loads(answer)["error"] if answer else self._obituary()

    def ask_to_end(self) -> None:
        with self.lock:
            self.ended = True
            if self.process:
                self.process.terminate()

    def end(self, deadline: float) -> None:
        if self.process:
            try:
                self.process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.output.close()

    def _started(self) -> subprocess.Popen:
        with self.lock:
            if self.ended:
                raise OSError("ended")
            if self.process is None or self.process.poll() is not None:
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "zs_lib.launch.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self.output,
                    encoding="utf-8",
                    env=worker.environment() | worker.settings(1),
                )
            return self.process

    def _obituary(self) -> str:
        code = self.process.wait()
        if self.ended:
            return STOPPED
        if code == -9:
            return "its process was killed (out of memory?): try fewer --jobs"
        self.output.seek(0)
        last = self.output.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"its process ended with exit code {code} ({''.join(last) or 'it said nothing'})"


LOCAL = Executor(_Process, available_cores())


@contextmanager
def _ray(address: str | None, resources: Resources) -> Iterator[Executor]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a new cluster would tell Ray's makers of itself
    try:
        import ray
    except ImportError:
        raise ConfigError(LACKS.format("ray", "ray")) from None
    _reach(address)
    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, configure_logging=False)
    except (
        ConnectionError,
        RuntimeError,
        ValueError,
    ) as error:  # gone meanwhile; another version of Ray or Python
        raise RunError(
            f"No Ray cluster at {address or 'this machine'} ({error}): `ray start --head` begins one."
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)  # Ray has set its own
    try:
        for kind, share in vars(resources).items():
            if not _fits(share):
                raise ConfigError(
                    f"No node of the Ray cluster has {share}, which the profile's [resources] give to a run ({kind}): add "
                    "one, or change them."
                )
        # A process of its own for every task: what one leaves in memory does not count for the next.
        remote = ray.remote(max_calls=1, max_retries=ATTEMPTS - 1)(worker.do)
        yield Executor(lambda: _RayTask(remote, resources), PLACES)
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """RunError if nobody listens there, for Ray itself would try for minutes."""
    host, _, port = (address or os.environ.get("RAY_ADDRESS") or "auto").rpartition(":")
    if not host:  # "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise RunError(
            f"No Ray cluster at {host}:{port} ({error}): give the HOST:PORT that `ray start --head` told."
        ) from error


def _fits(share: Share) -> bool:
    """Whether a node of the cluster has that much in all."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(node.get("CPU", 0) >= share.cpus and node.get("GPU", 0) >= share.gpus for node in nodes)


class _RayTask:
    """A task on one of Ray's nodes; Ray begins it again elsewhere if the node is lost."""

    def __init__(self, remote, resources: Resources):
        self.remote, self.resources, self.task = remote, resources, None
        self.lock, self.ended = threading.Lock(), False

    def do(self, job: dict) -> str | None:
        import ray

        share = self.resources.of(job["kind"])
        with self.lock:
            if self.ended:
                return STOPPED
            self.task = self.remote.options(
                num_cpus=share.cpus, num_gpus=share.gpus, runtime_env={"env_vars": _settings(share)}
            ).remote(job)
        try:
            return self._answer(share)
        except ray.exceptions.TaskCancelledError:
            return STOPPED
        except Exception as error:  # Ray has many; each is told with the run's name
            return f"Ray: {type(error).__name__}: {_last_line(error)}"

    def ask_to_end(self) -> None:
        import ray

        with self.lock:
            self.ended = True
            if self.task:
                ray.cancel(self.task)  # in the task it is Ctrl-C

    def end(self, deadline: float) -> None:
        import ray

        if self.task and not ray.wait([self.task], timeout=max(0.0, deadline - time.monotonic()))[0]:
            ray.cancel(self.task, force=True)

    def _answer(self, share: Share) -> str | None:
        """Wait for it; not for ever if the nodes that could make it are gone."""
        import ray

        fitted = time.monotonic()
        while not ray.wait([self.task], timeout=LOOK_S)[0]:
            if _fits(share):
                fitted = time.monotonic()
            elif time.monotonic() - fitted > LONELY_S:
                ray.cancel(self.task, force=True)
                return f"no node of the Ray cluster has had {share} for {LONELY_S // 60} minutes: add one"
        return ray.get(self.task)


def _settings(share: Share) -> dict[str, str]:
    """What a node's process takes over of this one's environment: where the library and its data are, but no secret."""
    own = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("ZS_") and name != "ZS_SERVE_TOKEN"
    }
    return own | {"PYTHONPATH": worker.environment()["PYTHONPATH"]} | worker.settings(share.cpus)


@contextmanager
def _slurm(_, resources: Resources) -> Iterator[Executor]:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise ConfigError(LACKS.format("slurm", "submitit")) from None
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise ConfigError(
            "There is no SLURM here (sbatch and srun are not on the PATH): start on a machine that submits jobs."
        )
    yield Executor(lambda: _SlurmJob(resources), PLACES)


class _SlurmJob:
    """A job of SLURM's. It comes back by itself from the end of its time and from pre-emption, and is submitted again if it
    is lost. sbatch takes what else it needs from the environment: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT."""

    def __init__(self, resources: Resources, cluster: str = "slurm"):
        self.resources, self.cluster, self.job = resources, cluster, None
        self.lock, self.ended = threading.Lock(), False

    def do(self, job: dict) -> str | None:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        for _ in range(ATTEMPTS):
            try:
                return self._once(job)
            except FailedJobError as error:  # it could not even begin: a damaged installation there
                return f"SLURM: {_last_line(error)}"
            except UncompletedJobError as error:
                lost = error
            except Exception as error:
                return f"SLURM: {_last_line(error)}"
        return (
            f"SLURM lost {ATTEMPTS} jobs that made it (see {Path(job['store'], 'slurm')}): {_last_line(lost)}"
        )

    def _once(self, job: dict) -> str | None:
        import submitit

        share = self.resources.of(job["kind"])
        executor = submitit.AutoExecutor(Path(job["store"], "slurm"), cluster=self.cluster)
        settings = {"PYTHONPATH": worker.environment()["PYTHONPATH"]} | worker.settings(share.cpus)
        executor.update_parameters(
            name=f"zs-{job['kind']}",
            timeout_min=60 * SLURM_HOURS,
            cpus_per_task=share.cpus,
            slurm_setup=[f"export {name}={shlex.quote(value)}" for name, value in settings.items()],
            **({"gpus_per_node": share.gpus} if share.gpus else {}),
        )
        with self.lock:
            if not self.ended:
                self.job = executor.submit(_Resumed(), job)
        while not self.ended:
            if self.job.done():
                return self.job.result()
            time.sleep(POLL_S)
        return STOPPED

    def ask_to_end(self) -> None:
        with self.lock:
            self.ended = True
            if self.job:
                self.job.cancel(check=False)  # it may be over

    def end(self, deadline: float) -> None:
        """SLURM itself does not wait long for a cancelled job."""


class _Resumed:
    """`worker.do` for submitit, which calls `checkpoint` when a job must make room: the next goes on where the run's own is."""

    def __call__(self, job: dict) -> str | None:
        return worker.do(job)

    def checkpoint(self, job: dict):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def _last_line(error: Exception) -> str:
    return "".join(str(error).strip().splitlines()[-1:])
