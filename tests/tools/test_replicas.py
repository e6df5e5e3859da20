"""Replicas of a simulator: each on GPUs of its own, and a training goes on when one of them is lost."""

from __future__ import annotations

import signal
import socket
import subprocess
import threading
from dataclasses import replace

import httpx
import psutil
import pytest
from serve_fixtures import serving

from zs_lib import cli, config, pipeline
from zs_lib.engines import client
from zs_lib.errors import ConfigError, EngineError, ModelError
from zs_lib.launch.placement import Place
from zs_lib.tools.serving import replicas
from zs_lib.tools.serving.replicas import places

STUDY = config.load_profile("smoke", {"policy.simulator": "prompted-tiny-S"})


@pytest.mark.parametrize(
    ("number", "gpus", "visible", "found"),
    [
        (2, 1, "13", [Place(8, ("1",)), Place(8, ("3",))]),
        (2, 2, "0123", [Place(8, ("0", "1")), Place(8, ("2", "3"))]),
        (3, 1, "", [Place(5)] * 3),  # no GPUs here: on CPUs
        (20, 1, "", [Place(1)] * 20),
    ],
)
def test_each_replica_has_gpus_of_its_own(number, gpus, visible, found):
    assert places(number, gpus, 16, tuple(visible)) == found


def test_more_replicas_than_gpus():
    with pytest.raises(ConfigError, match="3 replicas on 2 GPUs each need 6, and 4 are here: take fewer"):
        places(3, 2, 16, tuple("0123"))


def test_heads_that_cannot_be_divided_among_gpus(capsys):
    assert cli.main(["serve", "simulator", "--model", "tiny-S", "--port", "0", "--gpus", "3"]) == 1
    told = capsys.readouterr().err
    assert (
        "attention heads of '" in told
        and "tiny-S' cannot be divided among 3 GPUs (tensor parallelism): take 1, 2" in told
    )
    assert cli.main(["serve", "simulator", "--model", "tiny-S", "--port", "0", "--gpus", "2"]) == 1
    assert "Only vLLM divides a model among 2 GPUs" in capsys.readouterr().err


def test_a_dead_server_is_one_error_before_any_step(store, monkeypatch):
    monkeypatch.setattr(client.Service, "_pause", lambda *_: 0.0)
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
    arm = replace(STUDY.policy("zerosearch"), engine=f"openai:{url}", format_sft=None)
    with pytest.raises(
        EngineError, match=f"no answer .ConnectError. .4 attempts.; check that {url} is up and"
    ):
        pipeline.ensure(arm, 0, store)
    assert store.get(arm, 0).metrics().empty


def test_a_lost_replica_costs_no_step(store):
    """One of two servers is killed while it has requests; the run is the one that a single server gives."""
    steps = 2
    with serving("simulator", "--model", "tiny-S", "--replicas", "2", OMP_NUM_THREADS="1") as served:
        address = served.line.split()[1]
        first, second = psutil.Process(served.process.pid).children()
        small = {"prompts_per_step": 4, "group_size": 2, "steps": steps, "format_sft": None}
        arm = replace(STUDY.policy("zerosearch"), engine=address, backbone="tiny-S-instruct", **small)

        def progress(step: int, of: int, metrics: dict) -> None:
            if step == 1:
                first.send_signal(signal.SIGSTOP)  # so that requests of the next step wait there
                threading.Timer(0.5, first.kill).start()

        lost = pipeline.ensure(arm, 0, store, progress)
        assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
        alone = replace(arm, engine=f"openai:{address.rpartition(',')[2]}")
        whole = pipeline.ensure(alone, 0, store, lambda *_: None)
        assert served.process.poll() is None and second.is_running()
        with httpx.Client(transport=httpx.HTTPTransport(retries=10)) as asking:  # it is started again
            assert asking.get(f"{address[7:].partition(',')[0]}/health", timeout=60).is_success
        served.process.terminate()
        served.process.wait(20)
        assert (
            f"{address[7:].partition(',')[0]} ended with exit code -9 and is started again; 1 serve on"
            in served.process.stderr.read()
        )
    assert list(lost.metrics()["step"]) == list(range(1, steps + 1))
    assert lost.metrics().equals(whole.metrics())


def test_a_replica_that_ends_again_and_again_is_given_up(monkeypatch, capfd):
    """Real processes, which end at once."""
    monkeypatch.setattr(replicas, "POLL_S", 0.05)
    started = []

    def start(url: str) -> subprocess.Popen:
        started.append(url)
        return subprocess.Popen(["false"])

    with pytest.raises(ModelError, match="All replicas have ended"):
        replicas._watch({url: start(url) for url in ("one", "two")}, start)
    assert sorted(started) == ["one"] * 4 + ["two"] * 4
    told = capfd.readouterr().err
    assert told.count("exit code 1 and is started again; ") == 6  # the other may have ended, too
    assert told.count("ended too often") == 2 and "0 serve on" in told
