"""The run store under accidents: kill -9, two processes, damaged and half-written files; workers side by
side."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from run_fixtures import CountingArm, ensure

from zs_lib import config, reproduce, runs
from zs_lib.errors import RunError
from zs_lib.runs import RunStore
from zs_lib.values import digest, from_identity, identity

PATHS = os.pathsep.join([str(config.ROOT), str(Path(__file__).parent)])
ENVIRONMENT = os.environ | {"PYTHONPATH": PATHS, "OMP_NUM_THREADS": "1"}


def start(store: RunStore, arm: CountingArm, seed: int = 0) -> subprocess.Popen:
    script = Path(__file__).with_name("run_fixtures.py")
    return subprocess.Popen(
        [sys.executable, str(script), str(store.root), json.dumps(identity(arm)), str(seed)],
        env=ENVIRONMENT,
    )


def never(run):
    raise AssertionError("a finished run was made again")


@pytest.fixture(autouse=True)
def root(store):
    store.root.mkdir()


def test_a_run_is_a_folder(store):
    run = ensure(CountingArm(), 3, store)
    assert run.path.name == f"counting-{digest(CountingArm())}-s3" and run.finished and not run.running
    assert run.label == "counting-10" and run.config["steps"] == 10 and run.seed == 3
    assert {"packages", "code", "machine"} <= set(run.record) and "torch" in run.record["packages"]
    assert run.summary == {"total": run.metrics()["total"].iloc[-1]}
    assert list(run.metrics()["step"]) == list(range(1, 11)) and run.metrics()["unknown"].isna().all()
    assert run.trajectories()[4] == {"step": 5, "text": "π 5"} and len(run.timing()) == 10
    assert run.read_progress() == runs.Progress("training", 10, 10)
    assert not list(run.path.glob("checkpoint*")) and store.verify() == []
    assert store.ensure(CountingArm(), 3, never).path == run.path
    assert [found.path for found in store.list()] == [run.path]


def test_find(store):
    one, two = ensure(CountingArm(), 1, store), ensure(CountingArm(), 11, store)
    assert store.find("counting-" + one.digest + "-s1").path == one.path  # whole name before prefix
    with pytest.raises(RunError, match="Several runs are called"):
        store.find(one.digest[:5])
    other = ensure(CountingArm(steps=5), 0, store)
    assert store.find(other.digest[:8]).path == other.path
    for wrong in ("zzz", ""):
        with pytest.raises(RunError, match=two.path.name):
            store.find(wrong)


def test_kill_and_resume_is_bit_identical(store, tmp_path):
    arm = CountingArm(die_at=7)
    assert start(store, arm).wait(timeout=60) == -signal.SIGKILL
    run = store.get(arm, 0)
    assert not run.finished and not run.running and len(run.metrics()) == 7  # the half line does not count
    assert store.verify() == []  # unfinished is no damage
    with pytest.raises(RunError, match="not finished"):
        _ = run.summary
    assert (
        run.checkpoint().step == 4
        and run.checkpoint().state["half"] == run.checkpoint().tensors["total"].item() / 2
    )
    ensure(arm, 0, store)

    (tmp_path / "whole").mkdir()
    whole = ensure(CountingArm(die_at=99), 0, RunStore(tmp_path / "whole"))
    for name in ("metrics.jsonl", "trajectories.jsonl", "summary.json"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert run.finished and store.verify() == []


def test_killed_before_the_first_checkpoint(store):
    arm = CountingArm(die_at=2)
    assert start(store, arm).wait(timeout=60) == -signal.SIGKILL
    assert list(ensure(arm, 0, store).metrics()["step"]) == list(range(1, 11))


def test_two_processes_make_one_run(store):
    arm = CountingArm(sleep=0.1)
    first, second = start(store, arm), start(store, arm)
    deadline = time.monotonic() + 30
    while not store.path(arm, 0).joinpath("metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert store.get(arm, 0).running
    assert ensure(arm, 0, store).finished  # a third one waits
    assert first.wait(timeout=60) == second.wait(timeout=60) == 0
    assert len((store.root / "begun.txt").read_text().splitlines()) == 1


def test_waiting_is_bounded(store, monkeypatch):
    arm = CountingArm(sleep=5)
    process = start(store, arm)
    try:
        deadline = time.monotonic() + 30
        while not store.path(arm, 0).joinpath("metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        monkeypatch.setattr(runs, "LOCK_WAIT_S", 0.3)
        with pytest.raises(RunError, match="Another process still works"):
            ensure(arm, 0, store)
    finally:
        process.kill()
        process.wait()


def interrupted(store) -> runs.Run:
    """An unfinished run with a checkpoint after step 4."""

    def work(run):
        for step in range(1, 7):
            run.log(step, x=step)
            if step == 4:
                run.save(step, {"x": torch.arange(3)}, {})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.ensure(CountingArm(), 0, work)
    return store.get(CountingArm(), 0)


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json", "sha256.json"])
@pytest.mark.parametrize("damage", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_told_and_nothing_is_lost(store, file, damage):
    run = interrupted(store)
    path = run.path / "checkpoint-00000004" / file
    content = path.read_bytes()
    if damage == "remove":
        path.unlink()
    else:
        path.write_bytes(
            content[:-3] if damage == "cut" else content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        )
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="checkpoint-00000004/.*delete .*checkpoint-00000004"):
        store.ensure(CountingArm(), 0, never)
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert "checkpoint-00000004" in store.verify()[0].what
    path.write_bytes(content)
    assert store.verify() == [] and run.checkpoint().step == 4


def test_a_half_written_checkpoint_is_ignored(store):
    run = interrupted(store)
    (run.path / "checkpoint.tmp").mkdir()
    (run.path / "checkpoint.tmp" / "tensors.safetensors").write_bytes(b"half")
    assert run.checkpoint().step == 4 and torch.equal(run.checkpoint().tensors["x"], torch.arange(3))
    finished = store.ensure(CountingArm(), 0, lambda run: {"from": run.checkpoint().step})
    assert finished.summary == {"from": 4} and list(finished.metrics()["step"]) == [1, 2, 3, 4]


def test_an_older_checkpoint_left_by_a_kill_does_not_count(store):
    run = interrupted(store)
    (run.path / "checkpoint-00000002").mkdir()
    assert run.checkpoint().step == 4


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("run.json", "{"),
        ("run.json", "[]"),
        ("run.json", '{"config": {"steps": 11}}'),
        ("metrics.jsonl", '{"step"\n{"step": 2}\n'),
        ("metrics.jsonl", '{"a": 1}\n'),
        ("summary.json", ""),
        ("trajectories.jsonl", "\x00\n"),
    ],
)
def test_damage_is_found(store, name, text):
    run = ensure(CountingArm(), 0, store)
    (run.path / name).write_text(text)
    problems = store.verify()
    assert any(problem.path == run.path / name and str(run.path) in problem.cure for problem in problems)


def test_a_changed_or_lost_file_of_a_finished_run_is_found(store):
    run = ensure(CountingArm(), 0, store)
    (run.path / "metrics.jsonl").write_text((run.path / "metrics.jsonl").read_text().replace("0.", "1.", 1))
    assert "metrics.jsonl is damaged (its sha256" in store.verify()[0].what
    (run.path / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing" in store.verify()[0].what


def test_a_damaged_log_of_an_unfinished_run_stops_the_resume(store):
    run = interrupted(store)
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text("".join(["{broken\n", *lines[1:]]))
    with pytest.raises(RunError, match="metrics.jsonl is damaged in line 1"):
        store.ensure(CountingArm(), 0, never)


def test_numbers_of_numpy_and_torch_are_logged(store):
    def work(run):
        run.log(
            1, a=np.float32(0.5), b=torch.tensor(2.0), c=np.int64(3), d=[torch.tensor(float("inf"))], e=None
        )
        return {"a": np.mean([1.0, 2.0])}

    run = store.ensure(CountingArm(), 0, work)
    logged = json.loads((run.path / "metrics.jsonl").read_text())
    assert logged == {"step": 1, "a": 0.5, "b": 2.0, "c": 3, "d": [None], "e": None}
    assert run.summary == {"a": 1.5}


# ------------------------------------------------------------------------------------------ workers


@pytest.fixture
def workers(monkeypatch):
    monkeypatch.setitem(reproduce.WORK, "CountingArm", "run_fixtures:ensure")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def test_arms_are_made_side_by_side_once(store, workers, capsys):
    arms = [(CountingArm(sleep=0.05), seed) for seed in range(4)]
    made = reproduce.ensure_arms(arms, jobs=2)
    assert [run.seed for run in made] == [0, 1, 2, 3] and all(run.finished for run in made)
    processes = {line.split()[1] for line in (store.root / "begun.txt").read_text().splitlines()}
    assert len(processes) == 2 and str(os.getpid()) not in processes
    assert "4 of 4 runs finished" in capsys.readouterr().err
    started = time.monotonic()
    assert len(reproduce.ensure_arms(arms, jobs=2)) == 4 and time.monotonic() - started < 0.5  # all found
    assert len((store.root / "begun.txt").read_text().splitlines()) == 4


def test_failing_workers_do_not_stop_the_others(store, workers):
    dying = CountingArm(steps=8, die_at=2)
    typed, untyped = CountingArm(steps=1, fail="typed"), CountingArm(steps=2, fail="untyped")
    with pytest.raises(RunError) as caught:
        reproduce.ensure_arms([(arm, 0) for arm in (typed, untyped, dying, CountingArm())], jobs=1)
    message = str(caught.value)
    assert "3 of 4 runs failed" in message
    assert "counting counting-1 s0: There is no such model." in message
    assert (
        "counting counting-2 s0: ValueError: a bug (traceback: " in message
        and "counting counting-8 s0: its process was killed" in message
    )
    assert store.get(CountingArm(), 0).finished and not store.get(dying, 0).finished
    assert "raise ValueError" in (store.path(untyped, 0) / "worker.log").read_text()
    reproduce.ensure_arms([(dying, 0)], jobs=1)
    assert store.get(dying, 0).finished


def test_a_run_waits_for_what_it_needs(store):
    profile = config.load_profile("tiny")
    arm = config.EvaluationArm.of_policy(profile.policy("zerosearch"), profile.evaluation)
    queue = reproduce._Queue(store, [(arm, 0), (arm, 1), (profile.policy("r1"), 0)])
    assert queue.total == 6
    simulator, other = queue.next(), queue.next()
    assert simulator.arm == profile.simulator("grounded-tiny-L") and simulator.seed == 0
    assert other.name == "policy r1 s0"  # no use in waiting
    queue.finished(store.path(simulator.arm, 0), simulator, None)
    policy = queue.next()
    assert policy.name == "policy zerosearch s0"
    queue.finished(store.path(policy.arm, 0), policy, "out of luck")
    assert queue.next().name == "policy zerosearch s1"
    queue.close()
    assert queue.failed == {
        "policy zerosearch s0": "out of luck",
        "evaluation zerosearch s0": "needs policy zerosearch s0, which failed",
    }


def test_what_needs_a_failed_run_fails_with_its_name(store):
    profile = config.load_profile("tiny")
    queue = reproduce._Queue(store, [(profile.policy("zerosearch"), seed) for seed in range(2)])
    simulator = queue.next()
    queue.finished(store.path(simulator.arm, 0), simulator, "out of luck")
    assert queue.next() is None
    assert queue.failed["policy zerosearch s1"] == "needs simulator grounded-tiny-L s0, which failed"


def test_a_job_survives_the_way_to_a_worker():
    profile = config.load_profile("tiny")
    arm = config.EvaluationArm.of_policy(profile.policy("zerosearch"), profile.evaluation)
    plain = json.loads(json.dumps(identity(arm, labels=True)))
    assert from_identity(config.EvaluationArm, plain) == arm


@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGKILL])
def test_workers_end_with_their_parent(store, workers, ending):
    code = (
        # a process in the background of a script is started deaf to Ctrl-C
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from run_fixtures import CountingArm; from zs_lib import reproduce\n"
        "reproduce.WORK['CountingArm'] = 'run_fixtures:ensure'\n"
        "reproduce.ensure_arms([(CountingArm(sleep=0.2, steps=500), 0)], jobs=1)"
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
