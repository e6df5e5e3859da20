"""Executors: make runs in processes of this machine, by Ray on a cluster, or by SLURM.

An executor has slots, each of which makes one run at a time. The work is the same everywhere (`worker.do`),
and its results go to the run store: a folder that all machines share under one path. A run whose machine is
lost resumes elsewhere from its last checkpoint, and a finished run is not repeated.
"""

from __future__ import annotations

import importlib
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
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from zs_lib.config import Resources, Share
from zs_lib.config.values import pick
from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import worker
from zs_lib.launch.placement import Machine, visible_gpus
from zs_lib.runs.provenance import available_cores

ATTEMPTS = 4
"""Attempts at a run whose machines are lost."""
CLUSTER_SLOTS = 256
"""Jobs submitted to a cluster at once; it has a queue of its own."""
CONNECT_S = 10
"""Seconds to wait for a connection to the head of a Ray cluster."""
NODE_CHECK_S = 30
"""Seconds between two checks that a Ray node can make the run."""
NO_NODE_S = 900
"""Seconds that a run waits while no Ray node can make it."""
SLURM_HOURS = 24
"""Time limit of a job unless SBATCH_TIMELIMIT sets another; SLURM then requeues it, and it resumes."""
POLL_S = 1
"""Seconds between two checks of a SLURM job."""
STOPPED = "it was stopped"


class Slot(ABC):
    """A place for one run at a time: a worker process, or a job of a cluster."""

    def __init__(self):
        self.lock, self.ended = threading.Lock(), False

    @abstractmethod
    def do(self, job: dict) -> str | None:
        """Do a job (`worker.do`) and return its error, if any; called in a thread."""

    def ask_to_end(self) -> None:
        """Start no more jobs; training saves a checkpoint after its step and stops, others at once."""
        with self.lock:
            self.ended = True
            self._cancel()

    @abstractmethod
    def _cancel(self) -> None:
        """Ask the job in progress to end, if there is one."""

    @abstractmethod
    def end(self, deadline: float) -> None:
        """Wait until the job has ended, and kill it at `deadline` (monotonic seconds)."""


@dataclass(frozen=True)
class Executor:
    """A kind of slot, and how many of them to use."""

    new_slot: Callable[[], Slot]
    slots: int
    """The default number of slots."""


@contextmanager
def open_executor(
    name: str = "local", address: str | None = None, resources: Resources | None = None
) -> Iterator[Executor]:
    """Open an executor by name: "local", "ray" or "slurm".

    Ray connects to the cluster at `address`, else to the one of this machine, else starts a new one. Each run
    gets the share of a machine that `resources` sets for its kind.

    Raises:
        ConfigError: the name is unknown, or has no address; a package or SLURM is missing; no machine is
        large enough. RunError: the cluster cannot be reached.
    """
    opened = pick("executor", name, EXECUTORS)
    if address and name != "ray":
        raise ConfigError(f"The executor '{name}' has no address: leave it out, or use ray.")
    with opened(address, resources or Resources()) as executor:
        yield executor


class WorkerSlot(Slot):
    """A worker process (`launch.worker`), started with its first job.

    With a `machine`, a job waits for its share of it; without one it sees all devices, and has one thread.
    """

    def __init__(self, machine: Machine | None = None, resources: Resources | None = None):
        super().__init__()
        self.machine, self.resources = machine, resources
        self.process, self.settings, self.output = None, {}, tempfile.TemporaryFile()

    def do(self, job: dict) -> str | None:
        if self.machine is None:
            return self._do(job, worker.settings(1))
        share = self.resources.of(job["kind"])
        with self.machine.lend(share, lambda: self.ended) as place:
            if place is None:
                return STOPPED
            try:
                return self._do(
                    _in_processes(job, share, len(place.gpus)), worker.settings(place.cpus, place.gpus)
                )
            finally:
                if place.gpus:  # the next run there needs the memory that this process would keep
                    self._leave()

    def _do(self, job: dict, settings: dict[str, str]) -> str | None:
        try:
            process = self._start(settings)
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
        except OSError as failure:  # no process could be started, or it died before it read its job
            return f"worker process: {failure}"
        answer = process.stdout.readline()
        return json.loads(answer)["error"] if answer else self._exit_message()

    def _cancel(self) -> None:
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

    def _start(self, settings: dict[str, str]) -> subprocess.Popen:
        with self.lock:
            if self.ended:
                raise OSError("ended")
            if self.settings != settings:
                self._leave()
            if self.process is None or self.process.poll() is not None:
                self.settings = settings
                self.process = subprocess.Popen(
                    [sys.executable, "-m", "zs_lib.launch.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self.output,
                    encoding="utf-8",
                    env=worker.environment() | settings,
                )
            return self.process

    def _leave(self) -> None:
        """End the process, which has no job."""
        if self.process:
            self.process.stdin.close()
            self.process.wait()

    def _exit_message(self) -> str:
        """Why the worker process ended without an answer."""
        code = self.process.wait()
        if self.ended:
            return STOPPED
        if code == -9:
            return "its process was killed (out of memory?): try fewer --jobs"
        self.output.seek(0)
        last = self.output.read().decode(errors="replace").strip().splitlines()[-1:]
        return f"its process ended with exit code {code} ({''.join(last) or 'no output'})"


def local(resources: Resources | None = None) -> Executor:
    """Use this machine, which makes as many runs at once as their shares of its CPUs and GPUs allow.

    Raises:
        ConfigError: it has GPUs, but fewer than a run's share.
    """
    resources = resources or Resources()
    shares = vars(resources).items()
    gpus = visible_gpus() if any(share.gpus for _, share in shares) else ()
    for kind, share in shares:
        if 0 < len(gpus) < share.gpus:
            raise _too_large("This machine does not have", kind, share)
    machine = Machine(available_cores(), gpus)
    return Executor(lambda: WorkerSlot(machine, resources), machine.cpus)


def _too_large(nobody_has: str, kind: str, share: Share) -> ConfigError:
    return ConfigError(
        f"{nobody_has} {share}, which the profile's [resources] give to a run ({kind}): add one, or change "
        "them."
    )


@contextmanager
def _open_local(address: str | None, resources: Resources) -> Iterator[Executor]:
    yield local(resources)


def _devices(share: Share) -> dict[str, str]:
    """Settings of a cluster's process, whose GPUs the cluster names; without any it must see none."""
    return worker.settings(share.cpus, None if share.gpus else ())


def _in_processes(job: dict, share: Share, gpus: int) -> dict:
    """The job, to be done by a process on each GPU."""
    return job | {"processes": max(1, gpus), "sharding": share.sharding}


def _require(executor: str, package: str) -> None:
    try:
        importlib.import_module(package)
    except ImportError:
        cure = "pip install -c constraints.txt -e '.[cluster]'"
        raise ConfigError(f"The executor '{executor}' needs the package {package}: {cure}.") from None


@contextmanager
def _open_ray(address: str | None, resources: Resources) -> Iterator[Executor]:
    # A new cluster would report its use to Ray's makers.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    _require("ray", "ray")
    import ray

    _check_listening(address)
    _connect_ray(address)
    try:
        for kind, share in vars(resources).items():
            if not _fits(share):
                raise _too_large("No node of the Ray cluster has", kind, share)
        # A new process for each task, so that memory which one task leaks is not the next one's.
        remote = ray.remote(max_calls=1, max_retries=ATTEMPTS - 1)(worker.do)
        yield Executor(lambda: _RaySlot(remote, resources), CLUSTER_SLOTS)
    finally:
        ray.shutdown()


def _connect_ray(address: str | None) -> None:
    import ray

    handler = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address, log_to_driver=False, configure_logging=False)
    # The cluster has ended meanwhile, or has another version of Ray or Python.
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise RunError(
            f"No Ray cluster at {address or 'this machine'} ({error}): `ray start --head` starts one."
        ) from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)  # Ray has set its own


def _check_listening(address: str | None) -> None:
    """RunError if nothing listens at the address; Ray itself would retry for minutes."""
    host, _, port = (address or os.environ.get("RAY_ADDRESS") or "auto").rpartition(":")
    if not host:  # "auto"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
    except (OSError, ValueError, OverflowError) as error:
        raise RunError(
            f"No Ray cluster at {host}:{port} ({error}): give the HOST:PORT that `ray start --head` printed."
        ) from error


def _fits(share: Share) -> bool:
    """Whether a node of the cluster has as many CPUs and GPUs in total."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return any(node.get("CPU", 0) >= share.cpus and node.get("GPU", 0) >= share.gpus for node in nodes)


class _RaySlot(Slot):
    """A task of a Ray cluster; Ray restarts it elsewhere if its node is lost."""

    def __init__(self, remote, resources: Resources):
        super().__init__()
        self.remote, self.resources, self.task = remote, resources, None

    def do(self, job: dict) -> str | None:
        import ray

        share = self.resources.of(job["kind"])
        with self.lock:
            if self.ended:
                return STOPPED
            self.task = self.remote.options(
                num_cpus=share.cpus, num_gpus=share.gpus, runtime_env={"env_vars": _settings(share)}
            ).remote(_in_processes(job, share, share.gpus))
        try:
            return self._answer(share)
        except ray.exceptions.TaskCancelledError:
            return STOPPED
        except Exception as error:  # Ray has many; each is reported with the run's name
            return f"Ray: {type(error).__name__}: {_last_line(error)}"

    def _cancel(self) -> None:
        import ray

        if self.task:
            ray.cancel(self.task)  # raises KeyboardInterrupt in the task

    def end(self, deadline: float) -> None:
        import ray

        if self.task and not ray.wait([self.task], timeout=max(0.0, deadline - time.monotonic()))[0]:
            ray.cancel(self.task, force=True)

    def _answer(self, share: Share) -> str | None:
        """Wait for the task's result, at most NO_NODE_S while no node has its share."""
        import ray

        last_fit = time.monotonic()
        while not ray.wait([self.task], timeout=NODE_CHECK_S)[0]:
            if _fits(share):
                last_fit = time.monotonic()
            elif time.monotonic() - last_fit > NO_NODE_S:
                ray.cancel(self.task, force=True)
                return f"no node of the Ray cluster has had {share} for {NO_NODE_S // 60} minutes: add one"
        return ray.get(self.task)


def _settings(share: Share) -> dict[str, str]:
    """The environment of a node's process: where the library and its data are, without secrets."""
    own = {
        name: value
        for name, value in os.environ.items()
        if name.startswith("ZS_") and name != "ZS_SERVE_TOKEN"
    }
    return own | {"PYTHONPATH": worker.environment()["PYTHONPATH"]} | _devices(share)


@contextmanager
def _open_slurm(address: str | None, resources: Resources) -> Iterator[Executor]:
    _require("slurm", "submitit")
    if not (shutil.which("sbatch") and shutil.which("srun")):
        raise ConfigError(
            "There is no SLURM here (sbatch and srun are not on the PATH): use a machine that submits jobs."
        )
    yield Executor(lambda: _SlurmSlot(resources), CLUSTER_SLOTS)


EXECUTORS = {"local": _open_local, "ray": _open_ray, "slurm": _open_slurm}
"""Executors by name: functions of an address and the resources of each kind of run."""


class _SlurmSlot(Slot):
    """A job of SLURM, requeued at its time limit and on pre-emption, and submitted again if it is lost.

    sbatch reads its other settings from the environment: SBATCH_PARTITION, SBATCH_ACCOUNT, SBATCH_TIMELIMIT.
    """

    def __init__(self, resources: Resources, cluster: str = "slurm"):
        super().__init__()
        self.resources, self.cluster, self.job = resources, cluster, None

    def do(self, job: dict) -> str | None:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        for _ in range(ATTEMPTS):
            try:
                return self._once(job)
            except FailedJobError as error:  # it could not start: the installation there is damaged
                return f"SLURM: {_last_line(error)}"
            except UncompletedJobError as error:
                lost = error
            except Exception as error:
                return f"SLURM: {_last_line(error)}"
        folder = Path(job["store"], "slurm")
        return f"SLURM lost all {ATTEMPTS} jobs of this run (see {folder}): {_last_line(lost)}"

    def _once(self, job: dict) -> str | None:
        import submitit

        share = self.resources.of(job["kind"])
        executor = submitit.AutoExecutor(Path(job["store"], "slurm"), cluster=self.cluster)
        settings = {"PYTHONPATH": worker.environment()["PYTHONPATH"]} | _devices(share)
        executor.update_parameters(
            name=f"zs-{job['kind']}",
            timeout_min=60 * SLURM_HOURS,
            cpus_per_task=share.cpus,
            slurm_setup=[f"export {name}={shlex.quote(value)}" for name, value in settings.items()],
            slurm_srun_args=[f"--cpus-per-task={share.cpus}"],  # SLURM 22.05 would take 1, not sbatch's
            **({"gpus_per_node": share.gpus} if share.gpus else {}),
        )
        with self.lock:
            if not self.ended:
                self.job = executor.submit(_Resumed(), _in_processes(job, share, share.gpus))
        while not self.ended:
            if self.job.done():
                return self.job.result()
            time.sleep(POLL_S)
        return STOPPED

    def _cancel(self) -> None:
        if self.job:
            self.job.cancel(check=False)  # it may have ended

    def end(self, deadline: float) -> None:
        """Leave it to SLURM, which kills a cancelled job that does not end."""


class _Resumed:
    """`worker.do` for submitit, which calls `checkpoint` to requeue a job at its limit or on pre-emption."""

    def __call__(self, job: dict) -> str | None:
        return worker.do(job)

    def checkpoint(self, job: dict):
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def _last_line(error: Exception) -> str:
    return "".join(str(error).strip().splitlines()[-1:])
