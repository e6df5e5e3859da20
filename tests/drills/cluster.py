"""`make test-ray`: a study on a real Ray cluster of two nodes, one of which is killed; and SLURM's jobs, by
submitit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace

import psutil
import pytest
from chaos import outcome
from run_fixtures import PATHS, CountingArm

from zs_lib import config
from zs_lib.config import Resources, Share
from zs_lib.config.arms import EvaluationArm, PolicyArm
from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import executors, scheduler
from zs_lib.launch.executors import Executor, _SlurmSlot, open_executor
from zs_lib.runs import Run, RunStore

WAIT_S = 900
"""A busy machine takes its time."""


@pytest.fixture(autouse=True)
def counting(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv(
        "RAY_memory_monitor_refresh_ms", "0"
    )  # else tasks are ended where others fill the memory


def wait_for(what):
    deadline = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


# Ray


class Cluster:
    """Two nodes of one core: the head, and one that is killed, with what counts as a GPU."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
        self.node, self.address = self.cluster.add_node(num_cpus=1, num_gpus=1), self.cluster.address

    def processes(self) -> list[psutil.Process]:
        """Processes of the node that is not the head: its own, and its tasks'."""
        own = [
            psutil.Process(info.process.pid) for infos in self.node.all_processes.values() for info in infos
        ]
        return own + [child for process in own for child in process.children(recursive=True)]

    def makes(self, run: Run) -> bool:
        """Whether that node holds the run's lock."""
        return any(str(run.path / "lock") in _open(process) for process in self.processes())

    def kill(self) -> None:
        for process in self.processes():
            process.send_signal(signal.SIGKILL)

    def close(self) -> None:
        self.cluster.shutdown()


def _open(process: psutil.Process) -> list[str]:
    try:
        return [file.path for file in process.open_files()]
    except psutil.Error:
        return []


@pytest.fixture
def cluster():
    with closing(started()) as cluster:
        yield cluster


def started(attempts: int = 5) -> Cluster:
    """A cluster; Ray gives each node half a minute to start, which is too little on a busy machine."""
    try:
        return Cluster()
    except Exception as error:
        if attempts == 1 or "timed out during startup" not in str(error):
            raise
        for process in psutil.Process().children(recursive=True):
            process.kill()
        return started(attempts - 1)


STEPS = 10


def study() -> list[tuple]:
    """Two policies of two seeds, each with a simulator of its own, and an evaluation."""
    smoke = config.load_profile("smoke")
    arms = [
        replace(smoke.policy(name), steps=STEPS, checkpoint_every=2)
        for name in ("zerosearch", "zerosearch-naive")
    ]
    return [(arm, seed) for arm in arms for seed in range(2)] + [
        (EvaluationArm.of_policy(arms[0], smoke.evaluation), 0)
    ]


def test_a_study_ends_as_the_local_one_though_a_node_is_killed(cluster, tmp_path):
    here, there = RunStore(tmp_path / "here"), RunStore(tmp_path / "there")
    scheduler.make_runs(study(), store=here)
    killed = []

    def kill() -> None:
        policies = [Run(there.path(arm, seed)) for arm, seed in study() if isinstance(arm, PolicyArm)]
        run = wait_for(
            lambda: next(
                (run for run in policies if list(run.path.glob("checkpoint-*[24]")) and cluster.makes(run)),
                None,
            )
        )
        cluster.kill()
        killed.append((run, run.checkpoint().step, run.timing()))

    killer = threading.Thread(target=kill)
    killer.start()
    with open_executor("ray", cluster.address) as executor:
        runs = scheduler.make_runs(study(), store=there, executor=executor)
    killer.join()
    ((run, step, timing),) = killed
    assert step < STEPS and timing.head(step).equals(
        run.timing().head(step)
    )  # it went on from there, and did not begin again
    assert all(made.finished for made in runs) and there.verify() == []
    assert outcome(there.root) == outcome(here.root) and len(outcome(here.root)) > 20


def test_ctrl_c_keeps_what_was_done_and_needs_that_no_node_meets_are_told(cluster, store):
    with pytest.raises(ConfigError, match="No node of the Ray cluster has 1 CPU and 2 GPU.*policy"):
        with open_executor("ray", cluster.address, Resources(policy=Share(gpus=2))):
            pytest.fail("it was opened")
    code = (
        "from run_fixtures import CountingArm; from zs_lib.launch import executors, scheduler\n"
        f"with executors.open_executor('ray', '{cluster.address}') as executor:\n"
        "    arms = [(CountingArm(sleep=0.2, steps=5000), seed) for seed in range(4)]\n"
        "    scheduler.make_runs(arms, executor=executor)"
    )
    driver = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True)

    def begun(run: Run) -> bool:
        return run.running and (run.path / "metrics.jsonl").exists()  # so that there is a step to keep

    wait_for(lambda: sum(map(begun, store.list())) == 2)  # two nodes of one core
    driver.send_signal(signal.SIGINT)
    _, told = driver.communicate(timeout=WAIT_S)
    assert driver.returncode != 0 and told.rstrip().endswith("KeyboardInterrupt")
    assert len(store.list()) == 2 and not any(run.running for run in store.list())
    assert all(run.checkpoint().step == run.metrics()["step"].iloc[-1] for run in store.list())


def test_failures_on_ray_are_told_by_name(cluster, store):
    arms = [CountingArm(steps=1, fail="typed"), CountingArm(steps=2, fail="untyped"), CountingArm()]
    with (
        open_executor("ray", cluster.address) as executor,
        pytest.raises(RunError, match="2 of 3 runs failed") as caught,
    ):
        scheduler.make_runs([(arm, 0) for arm in arms], store=store, executor=executor)
    assert "counting counting-1 s0: There is no such model." in str(
        caught.value
    ) and "ValueError: a bug (traceback: " in str(caught.value)
    assert store.get(CountingArm(), 0).finished


def test_a_run_on_ray_sees_the_gpu_of_its_share_alone(cluster, store):
    for gpus, seen in ((1, "0"), (0, "")):
        with open_executor("ray", cluster.address, Resources(evaluation=Share(gpus=gpus))) as executor:
            scheduler.make_runs([(CountingArm(), gpus)], store=store, executor=executor)
        assert (store.root / "begun.txt").read_text().splitlines()[-1].split(" ")[2] == seen


# SLURM


def slurm_here(made: list) -> Executor:
    """Real processes of submitit's, without SLURM; the slot that is made comes into `made`."""

    def new_slot():
        made.append(_SlurmSlot(Resources(), cluster="local"))
        return made[-1]

    return Executor(new_slot, 1)


def test_a_lost_job_is_submitted_again(store):
    dying = CountingArm(steps=8, die_at=6)
    (run,) = scheduler.make_runs([(dying, 0)], store=store, executor=slurm_here([]))
    assert run.finished and len((store.root / "begun.txt").read_text().splitlines()) == 2
    assert list(run.metrics()["step"]) == list(range(1, 9)) and store.verify() == []


def test_a_job_that_must_make_room_comes_back(store):
    arm, made = CountingArm(sleep=0.1, steps=100), []
    working = threading.Thread(
        target=scheduler.make_runs, args=([(arm, 0)],), kwargs={"store": store, "executor": slurm_here(made)}
    )
    working.start()
    wait_for(lambda: list(store.path(arm, 0).glob("checkpoint-*[0-9]")))
    (process,) = psutil.Process(made[0].job._process.pid).children()
    process.send_signal(signal.SIGUSR2)  # as SLURM does before it ends a job
    working.join(WAIT_S)
    assert store.get(arm, 0).finished and len((store.root / "begun.txt").read_text().splitlines()) == 2


SBATCH = """#!/bin/sh
id=$$; dir=$(dirname "$0"); cp "$1" "$dir/$id.sh"
export SLURM_JOB_ID=$id SLURM_NTASKS=1 SLURM_JOB_NUM_NODES=1 SLURM_NODEID=0 SLURM_PROCID=0 SLURM_LOCALID=0
setsid bash "$dir/$id.sh" > "$dir/$id.out" 2>&1 &
echo $! > "$dir/$id.pid"
echo "Submitted batch job $id"
"""
SRUN = """#!/bin/sh
while true; do case "$1" in --output|--error) shift 2;; --*) shift;; *) exec "$@";; esac; done
"""
SACCT = """#!/bin/sh
echo "JobID|State|NodeList"
for file in "$(dirname "$0")"/*.pid; do echo "$(basename "$file" .pid)|RUNNING|here"; done
"""
SCANCEL = """#!/bin/sh
kill -s TERM -- -$(cat "$(dirname "$0")/$1.pid")
"""


def test_slurm_is_asked_for_what_the_profile_says_and_cancels(store, tmp_path, monkeypatch):
    """With stand-ins for SLURM's four commands."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"sbatch": SBATCH, "srun": SRUN, "sacct": SACCT, "scancel": SCANCEL}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}{os.pathsep}{os.environ['PATH']}")
    with open_executor("slurm", resources=Resources(evaluation=Share(cpus=2, gpus=1))) as executor:
        (run,) = scheduler.make_runs([(CountingArm(), 0)], store=store, executor=executor)
        script = next(commands.glob("*.sh")).read_text()
        assert run.finished and all(
            line in script
            for line in ("--nodes=1", "--cpus-per-task=2", "--gpus-per-node=1", "export OMP_NUM_THREADS=2")
        )
        assert "--cpus-per-task=2" in next(line for line in script.splitlines() if line.startswith("srun "))
        slot, slow = executor.new_slot(), CountingArm(sleep=0.2, steps=5000)
        queue = scheduler._RunQueue(store, [(slow, 0)])
        ending = threading.Thread(
            target=lambda: (wait_for((store.path(slow, 0) / "metrics.jsonl").exists), slot.ask_to_end())
        )
        ending.start()
        assert slot.do(queue.job(queue.next())) == executors.STOPPED
    wait_for(lambda: not store.get(slow, 0).running)
    assert store.get(slow, 0).checkpoint().step == store.get(slow, 0).metrics()["step"].iloc[-1]
