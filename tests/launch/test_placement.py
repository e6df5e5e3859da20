"""Devices for jobs: each GPU is one job's at a time, nobody waits for what is free, nobody is overtaken."""

from __future__ import annotations

import sys
import threading
import types

import pytest
from run_fixtures import PATHS, CountingArm

from zs_lib.config import Resources, Share
from zs_lib.errors import ConfigError
from zs_lib.launch import executors, scheduler, worker
from zs_lib.launch.placement import Machine, Place, assign, visible_gpus

ONE, TWO, NONE = Share(cpus=4, gpus=1), Share(cpus=8, gpus=2), Share(cpus=4)


@pytest.mark.parametrize(
    ("share", "cpus", "gpus", "taken", "place"),
    [
        (ONE, 16, "01", [], Place(4, ("0",))),
        (ONE, 16, "01", [Place(4, ("0",))], Place(4, ("1",))),
        (ONE, 16, "01", [Place(4, ("0",)), Place(4, ("1",))], None),  # CPUs alone are no place
        (TWO, 16, "0123", [Place(4, ("1",))], Place(8, ("0", "2"))),
        (TWO, 16, "01", [Place(4, ("1",))], None),
        (ONE, 6, "01", [Place(4, ("0",))], None),  # two CPUs are left
        (NONE, 16, "01", [Place(4, ("0",)), Place(4, ("1",))], Place(4)),
        (ONE, 16, "", [], Place(4)),  # no GPU in the machine: on its CPUs
        (TWO, 2, "", [], Place(2)),  # fewer CPUs than the share: all
        (TWO, 2, "", [Place(2)], None),
    ],
)
def test_what_a_job_gets_of_a_machine(share, cpus, gpus, taken, place):
    assert assign(share, cpus, tuple(gpus), taken) == place


@pytest.mark.parametrize(
    ("named", "found"),
    [("", ()), ("2, 0", ("2", "0")), ("GPU-1e,MIG-7", ("GPU-1e", "MIG-7")), ("1,-1,0", ("1",)), ("-1", ())],
)
def test_gpus_are_those_that_the_environment_leaves(named, found, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == found


def test_gpus_of_the_machine(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    cuda = types.SimpleNamespace(device_count=lambda: 3)
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(cuda=cuda))
    assert visible_gpus() == ("0", "1", "2")


def test_no_gpu_has_two_jobs_and_all_are_used():
    machine, lock, ready, seen = Machine(8, "0123"), threading.Lock(), threading.Barrier(4), []

    def job() -> None:
        with machine.lend(Share(gpus=1), lambda: False) as place:
            with lock:
                taken = [gpu for one in machine.taken for gpu in one.gpus]
                seen.append((place.gpus, len(taken), len(set(taken))))
            ready.wait(20)  # four at once, or nobody goes on

    threads = [threading.Thread(target=job) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(seen) == 20 and {gpus for gpus, *_ in seen} == {(gpu,) for gpu in "0123"}
    assert all(number == distinct <= 4 for _, number, distinct in seen) and machine.taken == []


def test_a_large_job_is_not_overtaken_and_one_that_is_given_up_leaves():
    machine, order, stop = Machine(8, "01"), [], threading.Event()

    def job(name: str, share: Share, given_up=lambda: False) -> threading.Thread:
        def work() -> None:
            with machine.lend(share, given_up) as place:
                order.append((name, place and place.gpus))

        thread = threading.Thread(target=work)
        thread.start()
        while thread.is_alive() and len(machine._asking) == len(asking):
            pass
        asking.append(thread)
        return thread

    asking: list = []
    with machine.lend(Share(gpus=1), lambda: False) as first:
        assert first.gpus == ("0",)
        given_up = job("given up", Share(gpus=2), stop.is_set)
        large, small = job("large", Share(gpus=2)), job("small", Share(gpus=1))  # which would fit beside
        stop.set()
        given_up.join(10)
        assert order == [("given up", None)]
    large.join(10)
    small.join(10)
    assert order[1:] == [("large", ("0", "1")), ("small", ("0",))]


def test_runs_on_one_gpu_follow_one_another_in_processes_of_their_own(store, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    executor = executors.local(Resources(evaluation=Share(gpus=1)))
    runs = scheduler.make_runs([(CountingArm(sleep=0.02), seed) for seed in (0, 1)], 2, executor=executor)
    begun = [line.split() for line in (store.root / "begun.txt").read_text().splitlines()]
    assert [gpu for *_, gpu in begun] == ["5", "5"] and begun[0][1] != begun[1][1]
    times = sorted((run.timing()["seconds"].min(), run.timing()["seconds"].max()) for run in runs)
    assert times[0][1] < times[1][0]


@pytest.mark.parametrize(("visible", "processes"), [("0,1,2", 2), ("", 1)])
def test_a_run_has_a_process_on_each_of_its_gpus(visible, processes, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    given = {}
    monkeypatch.setattr(
        executors.WorkerSlot, "_do", lambda self, job, settings: given.update(job, **settings)
    )
    slot = executors.local(Resources(policy=Share(gpus=2, sharding="fsdp2"))).new_slot()
    assert slot.do({"kind": "policy"}) is None
    assert (given["processes"], given["sharding"]) == (processes, "fsdp2")
    assert given["CUDA_VISIBLE_DEVICES"] == ("0,1" if visible else "")
    command = " ".join(worker.launcher(2, "fsdp2"))
    assert (
        "accelerate.commands.launch --config_file " in command and "launch/fsdp2.yaml --num_proc" in command
    )


def test_a_worker_has_its_own_devices_and_threads():
    given = worker.settings(4, ("2", "3"))
    assert given["CUDA_VISIBLE_DEVICES"] == "2,3" and given["OMP_NUM_THREADS"] == "4"
    assert worker.settings(1, ())["CUDA_VISIBLE_DEVICES"] == ""  # a run without GPUs sees none
    assert "CUDA_VISIBLE_DEVICES" not in worker.settings(1)


def test_a_share_that_this_machine_does_not_have(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(
        ConfigError, match="This machine does not have 8 CPU and 2 GPU, .* a run .policy.: add"
    ):
        executors.local(Resources(policy=TWO))
