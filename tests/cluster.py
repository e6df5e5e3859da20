"""`make test-ray`: a study on a real Ray cluster of two nodes, one of which is killed; and SLURM's jobs, by submitit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from chaos import outcome
from run_fixtures import CountingArm

from zs_lib import config, executors, reproduce
from zs_lib.arms import EvaluationArm
from zs_lib.config import Resources, Share
from zs_lib.errors import ConfigError, RunError
from zs_lib.executors import Executor, _SlurmJob, opened
from zs_lib.runs import Run, RunStore

PATHS = os.pathsep.join([str(config.ROOT), str(Path(__file__).parent)])
WAIT_S = 900


@pytest.fixture(autouse=True)
def counting(monkeypatch):
    monkeypatch.setitem(reproduce.WORK, "CountingArm", "run_fixtures:ensure")
    monkeypatch.setenv("PYTHONPATH", PATHS)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


def wait_for(what):
    deadline = time.monotonic() + WAIT_S
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


# ------------------------------------------------------------------------------------------ Ray


class Cluster:
    """A head, which runs nothing, and two nodes of one core."""

    def __init__(self):
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
        self.nodes = [self.cluster.add_node(num_cpus=1, wait=False) for _ in range(2)]
        self.cluster.wait_for_nodes()
        self.address = self.cluster.address

    def processes(self, node) -> list[psutil.Process]:
        """The node's own first, then its tasks'."""
        own = [psutil.Process(info.process.pid) for infos in node.all_processes.values() for info in infos]
        return own + [child for process in own for child in process.children(recursive=True)]

    def node_of(self, run: Run):
        """The node whose process holds the run's lock."""
        return next((node for node in self.nodes if any(str(run.path / "lock") in _open(process) for process in self.processes(node))), None)

    def kill(self, node) -> None:
        for process in self.processes(node):
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
    with closing(Cluster()) as cluster:
        yield cluster


STEPS = 10


def study() -> list[tuple]:
    """Two policies of two seeds, each with a simulator of its own, and an evaluation."""
    smoke = config.load_profile("smoke")
    arms = [replace(smoke.policy(name), steps=STEPS, checkpoint_every=2) for name in ("zerosearch", "zerosearch-naive")]
    return [(arm, seed) for arm in arms for seed in range(2)] + [(EvaluationArm.of_policy(arms[0], smoke.evaluation), 0)]


def test_a_study_ends_as_the_local_one_though_a_node_is_killed(cluster, tmp_path):
    here, there = RunStore(tmp_path / "here"), RunStore(tmp_path / "there")
    reproduce.ensure_arms(study(), store=here)
    killed = []

    def kill() -> None:
        policies = [there.path(arm, seed) for arm, seed in study() if type(arm).__name__ == "PolicyArm"]
        path = wait_for(lambda: next((path for path in policies if list(path.glob("checkpoint-*[24]"))), None))
        cluster.kill(wait_for(lambda: cluster.node_of(Run(path))))
        killed.append((Run(path), Run(path).checkpoint().step, Run(path).timing()))

    killer = threading.Thread(target=kill)
    killer.start()
    with opened("ray", cluster.address) as executor:
        runs = reproduce.ensure_arms(study(), store=there, executor=executor)
    killer.join()
    ((run, step, timing),) = killed
    assert step < STEPS and timing.head(step).equals(run.timing().head(step))  # it went on from there, and did not begin again
    assert all(made.finished for made in runs) and there.verify() == []
    assert outcome(there.root) == outcome(here.root) and len(outcome(here.root)) > 20
