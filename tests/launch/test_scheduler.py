"""Runs side by side: each is made once, in order of need; failures and the end of the parent are survived."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from run_fixtures import PATHS, CountingArm

from zs_lib import config
from zs_lib.config.arms import EvaluationArm
from zs_lib.config.values import from_identity, identity
from zs_lib.errors import ConfigError, RunError
from zs_lib.launch import scheduler
from zs_lib.runs import distributed

ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", PATHS)


def test_arms_are_made_side_by_side_once(store, workers, capsys):
    arms = [(CountingArm(sleep=0.05), seed) for seed in range(4)]
    made = scheduler.make_runs(arms, jobs=2)
    assert [run.seed for run in made] == [0, 1, 2, 3] and all(run.finished for run in made)
    processes = {line.split()[1] for line in (store.root / "begun.txt").read_text().splitlines()}
    assert len(processes) == 2 and str(os.getpid()) not in processes
    assert "4 of 4 runs finished" in capsys.readouterr().err
    started = time.monotonic()
    assert len(scheduler.make_runs(arms, jobs=2)) == 4 and time.monotonic() - started < 0.5  # all found
    assert len((store.root / "begun.txt").read_text().splitlines()) == 4


def test_failing_workers_do_not_stop_the_others(store, workers):
    dying = CountingArm(steps=8, die_at=2)
    typed, untyped = CountingArm(steps=1, fail="typed"), CountingArm(steps=2, fail="untyped")
    with pytest.raises(RunError) as caught:
        scheduler.make_runs([(arm, 0) for arm in (typed, untyped, dying, CountingArm())], jobs=1)
    message = str(caught.value)
    assert "3 of 4 runs failed" in message
    assert "counting counting-1 s0: There is no such model." in message
    assert (
        "counting counting-2 s0: ValueError: a bug (traceback: " in message
        and "counting counting-8 s0: its process was killed" in message
    )
    assert store.get(CountingArm(), 0).finished and not store.get(dying, 0).finished
    assert "raise ValueError" in (store.path(untyped, 0) / "worker.log").read_text()
    scheduler.make_runs([(dying, 0)], jobs=1)
    assert store.get(dying, 0).finished


def test_a_run_waits_for_what_it_needs(store, monkeypatch):
    monkeypatch.setattr(scheduler, "_seen", lambda path: True)
    profile = config.load_profile("tiny")
    arm = EvaluationArm.of_policy(profile.policy("zerosearch"), profile.evaluation)
    queue = scheduler._RunQueue(store, [(arm, 0), (arm, 1), (profile.policy("r1"), 0)])
    assert queue.total == 7
    pairs, other = queue.next(), queue.next()
    assert pairs.arm == profile.simulator("grounded-tiny-L").pairs and pairs.seed == 0
    assert other.name == "policy r1 s0"  # no use in waiting
    queue.finished(pairs, None)
    simulator = queue.next()
    assert simulator.arm == profile.simulator("grounded-tiny-L") and simulator.seed == 0
    queue.finished(simulator, None)
    policy = queue.next()
    assert policy.name == "policy zerosearch s0"
    queue.finished(policy, "out of luck")
    assert queue.next().name == "policy zerosearch s1"
    queue.close()
    assert dict(queue.failed.values()) == {
        "policy zerosearch s0": "out of luck",
        "evaluation zerosearch s0": "needs policy zerosearch s0, which failed",
    }


def test_what_needs_a_failed_run_fails_with_its_name(store, monkeypatch):
    monkeypatch.setattr(scheduler, "_seen", lambda path: True)
    profile = config.load_profile("tiny")
    queue = scheduler._RunQueue(store, [(profile.policy("zerosearch"), seed) for seed in range(2)])
    pairs = queue.next()
    queue.finished(pairs, None)
    simulator = queue.next()
    queue.finished(simulator, "out of luck")
    assert queue.next() is None
    cause = dict(queue.failed.values())["policy zerosearch s1"]
    assert cause == "needs simulator grounded-tiny-L s0, which failed"


def test_failed_runs_of_one_name_are_each_counted_and_told(store, monkeypatch):
    """Evaluations of one arm with two engines: their names are equal, their folders are not."""
    profile = config.load_profile("smoke")
    evaluations = [
        EvaluationArm.of_backbone(profile.policy("search-r1"), replace(profile.evaluation, engine=engine))
        for engine in ("bm25", "dense")
    ]

    def work_through(queue, slots, watch):
        for cause in ("no line", "no key"):
            queue.finished(queue.next(), cause)

    monkeypatch.setattr(scheduler, "work_through", work_through)
    paths = [store.path(arm, 0).name for arm in evaluations]
    with pytest.raises(RunError) as caught:
        scheduler.make_runs([(arm, 0) for arm in evaluations], store=store)
    assert str(caught.value) == (
        "2 of 2 runs failed (the others are kept). "
        f"evaluation start s0 ({paths[0]}): no line; evaluation start s0 ({paths[1]}): no key"
    )


def test_a_job_survives_the_way_to_a_worker():
    profile = config.load_profile("tiny")
    arm = EvaluationArm.of_policy(profile.policy("zerosearch"), profile.evaluation)
    plain = json.loads(json.dumps(identity(arm, labels=True)))
    assert from_identity(EvaluationArm, plain) == arm


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_workers_end_with_their_parent(store, workers, ending):
    code = (
        "from run_fixtures import CountingArm; from zs_lib.launch import scheduler\n"
        "scheduler.make_runs([(CountingArm(sleep=0.2, steps=500), 0)], jobs=1)"
    )
    environment = ENVIRONMENT | {"ZS_RUNS": str(store.root)}
    parent = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    begun, deadline = store.root / "begun.txt", time.monotonic() + 30
    while not begun.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    run = store.list()[0]
    assert run.running
    parent.send_signal(ending)
    assert parent.wait(timeout=20) != 0
    deadline = time.monotonic() + 10
    while run.running and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not run.running and not run.finished
    if ending == signal.SIGINT:  # the worker had time to finish its step
        assert run.checkpoint().step == run.metrics()["step"].iloc[-1]


def test_runs_side_by_side_are_no_work_for_several(monkeypatch, store):
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    with pytest.raises(ConfigError, match="zs train"):
        scheduler.make_runs([], 1, store)
