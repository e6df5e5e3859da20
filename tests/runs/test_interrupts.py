"""Ctrl-C and SIGTERM: for the whole study, and for a notebook's cell. (Trainings: test_train; workers:
test_scheduler.)"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest
from jupyter_client import KernelManager
from run_fixtures import PATHS

from zs_lib.models.load import shipped
from zs_lib.runs import RunStore
from zs_lib.runs.interrupts import between_steps


def wait_for(what, seconds: float):
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
    return found


def test_the_first_signal_waits_and_the_second_does_not(capfd):
    done = []
    with pytest.raises(SystemExit) as caught, between_steps() as asked:
        for step in range(5):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            done.append(step)
            if asked():
                break
    assert (
        caught.value.code == 143
        and done == [0, 1, 2]
        and "Stopping after this step" in capfd.readouterr().err
    )
    with pytest.raises(KeyboardInterrupt), between_steps():
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("it went on")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_signal_that_is_ignored_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with between_steps() as asked:
            os.kill(os.getpid(), signal.SIGINT)
            assert not asked()
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.skipif("tiny-L" not in shipped(), reason="needs the shipped backbones")
@pytest.mark.parametrize(
    ("number", "code", "part", "processes"),
    [
        (signal.SIGINT, 130, ["--jobs", "1"], 1),  # while runs are made: a worker
        (signal.SIGTERM, 143, ["--jobs", "1", "--only", "03"], 5),
    ],
    ids=["Ctrl-C", "SIGTERM in a notebook"],
)  # a worker, the two processes that fork its kernel, the kernel, and that one's worker
def test_the_study_ends_cleanly_and_leaves_no_process(number, code, part, processes, store, tmp_path):
    environment = os.environ | {"PYTHONPATH": PATHS, "ZS_OUTPUTS": str(tmp_path / "outputs")}
    study = subprocess.Popen(
        [sys.executable, "-m", "zs_lib", "reproduce", "--profile", "smoke", *part],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: any(run.running for run in store.list()), 90)
    family = psutil.Process(study.pid).children(recursive=True)
    assert len(family) == processes
    study.send_signal(number)
    _, told = study.communicate(timeout=60)
    assert study.returncode == code and "zs_lib/" not in told, (
        told
    )  # no traceback of ours; a kernel may complain of its end
    assert psutil.wait_procs(family, timeout=20)[1] == []
    assert not any(run.running for run in store.list()) and store.verify() == []


def test_an_interrupted_cell_ends_with_one_line(store, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)
    store.root.mkdir()
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    try:
        client.wait_for_ready(timeout=60)
        client.execute(
            "from run_fixtures import CountingArm; from zs_lib.ui import notebook\n"
            "notebook.run([(CountingArm(sleep=0.2, steps=500), 0)], jobs=1)"
        )
        wait_for(lambda: (store.root / "begun.txt").exists(), 60)
        family = [
            child
            for child in psutil.Process().children(recursive=True)
            if child.status() != psutil.STATUS_ZOMBIE and "zs_lib.launch.worker" in child.cmdline()
        ]
        manager.interrupt_kernel()
        answer = client.get_shell_msg(timeout=30)["content"]
        while answer.get("ename") is None:  # that of wait_for_ready may come first
            answer = client.get_shell_msg(timeout=30)["content"]
        assert answer["status"] == "error" and answer["ename"] == "Stopped"
        assert answer["traceback"] == [
            "Stopped. Finished runs and checkpoints are kept: run the cell again to resume."
        ]
        assert family and psutil.wait_procs(family, timeout=15)[1] == []
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    (run,) = RunStore().list()
    assert not run.running and run.checkpoint().step == run.metrics()["step"].iloc[-1]
