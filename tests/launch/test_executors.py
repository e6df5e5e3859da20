"""Executors, as far as they need no cluster (with one: `make test-ray`)."""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
import types

import pytest
from run_fixtures import CountingArm

from zs_lib import cli, config
from zs_lib.config import Share, paths
from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import executors, scheduler, worker
from zs_lib.launch.executors import Executor, open_executor


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (["--executor", "rey"], "Unknown executor 'rey'. Known: local, ray, slurm."),
        (["--executor", "slurm", "--address", "head:6379"], "The executor 'slurm' has no address"),
        (
            ["--executor", "ray", "--only", "03"],
            "Notebooks make their runs on this machine: leave --only out",
        ),
        (["--executor", "ray"], "needs the package ray: pip install -c constraints.txt -e '.[cluster]'"),
        (
            ["--executor", "slurm"],
            "needs the package submitit: pip install -c constraints.txt -e '.[cluster]'",
        ),
    ],
)
def test_what_cannot_be_opened_is_told_in_one_line(given, cause, store, monkeypatch, capsys):
    for package in ("ray", "submitit"):
        monkeypatch.setitem(sys.modules, package, None)  # as where it is not installed
    assert cli.main(["reproduce", "--profile", "smoke", *given]) == 1
    assert cause in capsys.readouterr().err and store.list() == []


def test_no_slurm_here(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "submitit", types.ModuleType("submitit"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match="no SLURM here"), open_executor("slurm"):
        pytest.fail("it was opened")


@pytest.mark.parametrize("address", ["127.0.0.1:{}", "127.0.0.1:port", ":::", "127.0.0.1:99999999"])
def test_an_address_where_no_cluster_is(address, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", types.ModuleType("ray"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # nobody listens
        begun = time.monotonic()
        with (
            pytest.raises(RunError, match="No Ray cluster at .*ray start --head"),
            open_executor("ray", address.format(free.getsockname()[1])),
        ):
            pytest.fail("it was opened")
        assert time.monotonic() - begun < executors.CONNECT_S + 5


def test_what_a_run_takes_of_a_cluster_is_the_profiles_and_makes_no_other_study():
    paper, smoke = config.load_profile("paper"), config.load_profile("smoke")
    assert (
        str(paper.resources.of("policy")) == "8 CPU and 1 GPU"
        and paper.resources.of("fidelity") == paper.resources.evaluation
    )
    assert smoke.resources.of("simulator") == Share(cpus=1, gpus=0)
    more = config.load_profile("paper", {"resources.policy.gpus": 2})
    assert more.resources.policy.gpus == 2 and more == paper
    with pytest.raises(ConfigError, match="cpus = 0 is out of range"):
        config.load_profile("paper", {"resources.policy.cpus": 0})


def test_nodes_get_settings_and_no_secrets(monkeypatch):
    for name in ("ZS_HUB_DATA", "ZS_SERVE_TOKEN", "SERPAPI_API_KEY"):
        monkeypatch.setenv(name, "x")
    given = executors._settings(Share(cpus=4))
    assert (
        given["OMP_NUM_THREADS"] == "4"
        and given["ZS_HUB_DATA"] == "x"
        and str(paths.ROOT) in given["PYTHONPATH"]
    )
    assert not {"ZS_SERVE_TOKEN", "SERPAPI_API_KEY"} & given.keys()


class Elsewhere:
    """A slot in this process, which gets jobs as text. `blind`: what it makes is not in the store."""

    def __init__(self, blind: bool = False):
        self.blind, self.asked, self.ended = blind, threading.Event(), None

    def do(self, job: dict) -> str | None:
        return None if self.blind else worker.do(json.loads(json.dumps(job)))

    def ask_to_end(self) -> None:
        self.asked.set()

    def end(self, deadline: float) -> None:
        self.ended = deadline - time.monotonic()


def test_any_place_that_does_jobs_makes_runs(store):
    made = []

    def place() -> Elsewhere:
        made.append(Elsewhere())
        return made[-1]

    runs = scheduler.make_runs([(CountingArm(), seed) for seed in range(3)], executor=Executor(place, 256))
    assert all(run.finished for run in runs) and len(made) == 3  # no more places than tasks
    assert all(one.asked.is_set() and 0 < one.ended <= scheduler.STOP_S for one in made)
    with pytest.raises(RunError, match="counting counting-3 s0: There is no such model."):
        scheduler.make_runs([(CountingArm(steps=3, fail="typed"), 0)], executor=Executor(place, 256))


def test_a_machine_that_does_not_share_the_store_is_found_out(store, monkeypatch):
    monkeypatch.setattr(scheduler, "SEEN_S", 0)
    with pytest.raises(
        RunError,
        match="finished on another machine, and not here: .* must be a folder that all machines share",
    ):
        scheduler.make_runs([(CountingArm(), 0)], executor=Executor(lambda: Elsewhere(blind=True), 1))
