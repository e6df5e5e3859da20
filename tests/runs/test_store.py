"""The run store under accidents: kill -9, two processes, damaged and half-written files."""

import functools
import hashlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, replace
from multiprocessing.process import BaseProcess
from pathlib import Path

import forks
import numpy as np
import pytest
import torch
from forks import exit_code
from run_fixtures import PATHS, CountingArm

from zs_lib import cli, config, runs
from zs_lib.analysis.find import find_run, find_runs
from zs_lib.analysis.results import read_scores
from zs_lib.config import contents, paths
from zs_lib.config.arms import PolicyArm
from zs_lib.config.values import digest, from_identity, identity
from zs_lib.errors import ConfigError, RunError, ZeroSearchError
from zs_lib.launch import background
from zs_lib.launch.progress import Progress, read_progress, run_state
from zs_lib.models.load import load_model
from zs_lib.pipeline import ensure
from zs_lib.runs import RunStore
from zs_lib.runs import run as run_module
from zs_lib.runs.files import hashes, write_json
from zs_lib.simulator.pairs import Pair, read_pairs

HERE = str(Path(__file__).parent)
ENVIRONMENT = os.environ | {"PYTHONPATH": os.pathsep.join([PATHS, HERE]), "OMP_NUM_THREADS": "1"}


def start(store: RunStore, arm: CountingArm) -> BaseProcess:
    """Another process that makes a run."""
    return forks.start(ensure, arm, 0, store)


def wait_for(what, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


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
    assert read_progress(run) == Progress("training", 10, 10)
    assert not list(run.path.glob("checkpoint*")) and store.verify() == []
    assert store.complete(CountingArm(), 3, never).path == run.path
    assert [found.path for found in store.list()] == [run.path]


def test_a_run_is_found_by_the_content_of_its_files(store, tmp_path, monkeypatch):
    arm = replace(config.load_profile("smoke").policies[0], benchmark="mine.jsonl")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.jsonl").write_text("the same")
    monkeypatch.chdir(tmp_path / "one")
    run = store.complete(arm, 0, lambda run: {})
    assert run.config["benchmark"] == "mine.jsonl" and "mine.jsonl" in run.contents
    monkeypatch.chdir(tmp_path / "two")
    assert store.complete(arm, 0, never).path == run.path and store.verify() == []
    (tmp_path / "two" / "mine.jsonl").write_text("another")
    assert store.get(arm, 0) is None and store.verify() == []  # a run stays itself when its file is gone


def test_find(store):
    one, two = ensure(CountingArm(), 1, store), ensure(CountingArm(), 11, store)
    assert find_run(store, "counting-" + one.digest + "-s1").path == one.path  # whole name before prefix
    with pytest.raises(RunError, match="Several runs are called"):
        find_run(store, one.digest[:5])
    other = ensure(CountingArm(steps=5), 0, store)
    assert find_run(store, other.digest[:8]).path == other.path
    assert find_run(store, "counting-10").path == two.path  # by its arm's name: the newest seed
    later = time.time() + 7200
    os.utime(one.path / "summary.json", (later, later))
    assert find_run(store, "counting-10").path == one.path
    assert find_run(store, "counting-10@11").path == find_run(store, one.digest + "@11").path == two.path
    (two.path / "summary.json").unlink()
    assert find_run(store, "counting-10").path == one.path  # a finished one before others
    assert find_run(store, "counting-10@11").path == two.path
    assert find_run(store, "counting-10", "policy").path == one.path  # whoever needs a policy says so
    found = {
        name: [run.path for run in find_runs(store, name)] for name in ("counting-10", one.digest, "coun")
    }
    assert found["counting-10"] == found[one.digest] == [one.path, two.path] and len(found["coun"]) == 3
    (other.path / "run.json").write_text("{")
    for wrong in ("zzz", "", "counting-5"):
        with pytest.raises(RunError, match="Known: counting-10; or the beginning of a folder's name"):
            find_run(store, wrong)


def test_kill_and_resume_is_bit_identical(store, tmp_path):
    arm = CountingArm(die_at=7)
    assert exit_code(start(store, arm)) == -signal.SIGKILL
    run = store.get(arm, 0)
    assert not run.finished and not run.running and len(run.metrics()) == 7  # the half line does not count
    assert store.verify() == []  # unfinished is no damage
    with pytest.raises(RunError, match="not finished"):
        _ = run.summary
    assert (
        run.checkpoint().step == 4
        and run.checkpoint().tensors["half"] == run.checkpoint().tensors["total"] / 2
    )
    ensure(arm, 0, store)

    (tmp_path / "whole").mkdir()
    whole = ensure(CountingArm(die_at=99), 0, RunStore(tmp_path / "whole"))
    for name in ("metrics.jsonl", "trajectories.jsonl", "summary.json"):
        assert (run.path / name).read_bytes() == (whole.path / name).read_bytes()
    assert run.finished and store.verify() == []


def test_killed_before_the_first_checkpoint(store):
    arm = CountingArm(die_at=2)
    assert exit_code(start(store, arm)) == -signal.SIGKILL
    assert list(ensure(arm, 0, store).metrics()["step"]) == list(range(1, 11))


def test_two_processes_make_one_run(store):
    arm = CountingArm(sleep=0.1)
    first, second = start(store, arm), start(store, arm)
    wait_for(store.path(arm, 0).joinpath("metrics.jsonl").exists)
    assert store.get(arm, 0).running
    assert ensure(arm, 0, store).finished  # a third one waits
    assert exit_code(first) == exit_code(second) == 0
    assert len((store.root / "begun.txt").read_text().splitlines()) == 1


def test_waiting_is_bounded(store, monkeypatch):
    arm = CountingArm(sleep=5)
    process = start(store, arm)
    try:
        wait_for(store.path(arm, 0).joinpath("metrics.jsonl").exists)
        monkeypatch.setattr(run_module, "LOCK_WAIT_S", 0.3)
        with pytest.raises(RunError, match="Another process still works"):
            ensure(arm, 0, store)
    finally:
        process.kill()
        exit_code(process)


def interrupted(store) -> runs.Run:
    """An unfinished run with a checkpoint after step 4."""

    def work(run):
        for step in range(1, 7):
            run.log(step, x=step)
            if step == 4:
                run.save(step, {"x": torch.arange(3)})
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.complete(CountingArm(), 0, work)
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
        store.complete(CountingArm(), 0, never)
    assert (run.path / "metrics.jsonl").read_bytes() == before
    assert "checkpoint-00000004" in str(store.verify()[0])
    path.write_bytes(content)
    assert store.verify() == [] and run.checkpoint().step == 4


def test_a_half_written_checkpoint_is_ignored(store):
    run = interrupted(store)
    (run.path / "checkpoint-00000006.tmp").mkdir()
    (run.path / "checkpoint-00000006.tmp" / "tensors.safetensors").write_bytes(b"half")
    assert run.checkpoint().step == 4 and torch.equal(run.checkpoint().tensors["x"], torch.arange(3))
    finished = store.complete(CountingArm(), 0, lambda run: {"from": run.checkpoint().step})
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
    errors = store.verify()
    assert any(str(run.path / name) in str(error) and run.cure in str(error) for error in errors)


def test_a_changed_or_lost_file_of_a_finished_run_is_found(store):
    run = ensure(CountingArm(), 0, store)
    (run.path / "metrics.jsonl").write_text((run.path / "metrics.jsonl").read_text().replace("0.", "1.", 1))
    assert "metrics.jsonl is damaged (its sha256" in str(store.verify()[0])
    (run.path / "metrics.jsonl").unlink()
    assert "metrics.jsonl is missing" in str(store.verify()[0])


FILES = {
    "run.json": lambda run: run.config,
    "summary.json": lambda run: run.summary,
    "metrics.jsonl": lambda run: run.metrics(),
    "timing.jsonl": lambda run: run.timing(),
    "trajectories.jsonl": lambda run: run.trajectories(),
    "rows.csv": read_scores,
    "pairs.jsonl": read_pairs,
    "model/model.safetensors": lambda run: load_model(run.model_dir),
    "model/generation_config.json": lambda run: load_model(run.model_dir),
    "model/tokenizer.json": lambda run: load_model(run.model_dir),
    "sha256.json": lambda run: run.summary,
}
"""File of a finished run -> what reads it."""
DAMAGE = {
    "flipped": lambda content: content[:-9] + bytes([content[-9] ^ 1]) + content[-8:],
    "cut": lambda content: content[:-1],
    "appended": lambda content: content + b" ",
    "emptied": lambda content: b"",
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A finished run that has every kind of file."""
    store = RunStore(tmp_path_factory.mktemp("whole"))

    def work(run):
        run.log(1, x=0.5)
        run.log_timing(1, seconds=1.0)
        run.log_trajectories(1, [{"text": "π"}])
        pairs = [Pair("q", "q?", "a", ("a",), ("d",), ("c",), True, True)]
        (run.path / "pairs.jsonl").write_text("".join(json.dumps(asdict(pair)) + "\n" for pair in pairs))
        (run.path / "rows.csv").write_text("id,prediction,query_quality,f1\n1,Oslo,,0.5\n2,Rome,,0.25\n")
        shutil.copytree(paths.BACKBONES / "tiny-S", run.model_dir)
        return {"total": 0.5}

    return store.complete(CountingArm(), 0, work).path


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", FILES)
def test_no_reader_takes_a_damaged_file_of_a_finished_run(whole, store, name, damage):
    run = runs.Run(shutil.copytree(whole, store.root / whole.name))
    FILES[name](run)
    (run.path / name).write_bytes(DAMAGE[damage]((run.path / name).read_bytes()))
    with pytest.raises(RunError, match=r"(damaged|has changed|missing).*delete the folder"):
        FILES[name](run)
    assert store.verify()
    (run.path / name).write_bytes((whole / name).read_bytes())
    FILES[name](run)
    assert store.verify() == []


def test_a_file_that_was_added_to_a_finished_model_is_not_used(whole, store):
    run = runs.Run(shutil.copytree(whole, store.root / whole.name))
    (run.model_dir / "adapter_config.json").write_text("{}")
    with pytest.raises(RunError, match="adapter_config.json is damaged"):
        _ = run.model_dir


def test_a_list_of_digests_that_lost_a_file_is_found(whole, store):
    run = runs.Run(shutil.copytree(whole, store.root / whole.name))
    digests = json.loads((run.path / "sha256.json").read_text())
    del digests["metrics.jsonl"]
    write_json(run.path / "sha256.json", digests)
    with pytest.raises(RunError, match="metrics.jsonl is damaged"):
        run.metrics()
    assert "metrics.jsonl is damaged" in str(store.verify()[0])


def test_files_of_a_finished_run_are_hashed_once(whole, monkeypatch):
    run, hashed = runs.Run(whole), []
    time.sleep(2 * contents.SETTLED_NS / 1e9)
    run.model_dir, run.summary, run.metrics()
    original = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda *given: hashed.append(1) or original(*given))
    for _ in range(3):
        run.model_dir, run.summary, run.metrics()
    assert not hashed and run.verify() == [] and hashed  # who verifies reads everything


@pytest.mark.parametrize("name", ["", "metrics.jsonl", "summary.json", "lock", "run.json", "model"])
def test_a_link_in_the_place_of_a_run_is_refused_and_not_followed(store, tmp_path, name):
    """A store that others can write must not make us write elsewhere."""
    outside = tmp_path / "outside"
    path = store.path(CountingArm(), 0)
    if name:
        path.mkdir()
        (path / name).symlink_to(outside)
    else:
        outside.mkdir()
        path.symlink_to(outside)
    with pytest.raises(RunError, match="is a link: put what it names into its place"):
        ensure(CountingArm(), 0, store)
    assert not outside.exists() or not any(outside.iterdir())
    assert store.verify() or store.list() == []


def test_ten_thousand_runs_are_listed_in_seconds_and_little_memory(store, capsys):
    run = ensure(CountingArm(), 0, store)
    for seed in range(1, 10_000):
        (other := store.path(CountingArm(), seed)).mkdir()
        for name in ("run.json", "summary.json", "sha256.json"):
            os.link(run.path / name, other / name)
    started, before = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert cli.main(["runs", "list"]) == 0
    assert capsys.readouterr().out.split()[:4] == [run.path.name[:-3], "counting-10", "0-9999", "finished"]
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB
    assert time.process_time() - started < 30
    assert find_run(store, f"counting-{run.digest}-s77").seed == 77


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_without_its_record_is_refused_and_kept(store, finished):
    run = ensure(CountingArm(), 0, store) if finished else interrupted(store)
    (run.path / "run.json").unlink()
    before = (run.path / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="run.json is missing.*delete the folder"):
        store.complete(CountingArm(), 0, never)
    assert (run.path / "metrics.jsonl").read_bytes() == before and not (run.path / "run.json").exists()
    assert store.verify() and store.get(CountingArm(), 0) is not None


def test_a_damaged_log_of_an_unfinished_run_stops_the_resume(store):
    run = interrupted(store)
    lines = (run.path / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run.path / "metrics.jsonl").write_text("".join(["{broken\n", *lines[1:]]))
    with pytest.raises(RunError, match="metrics.jsonl is damaged in line 1"):
        store.complete(CountingArm(), 0, never)


def test_numbers_of_numpy_and_torch_are_logged(store):
    def work(run):
        run.log(
            1, a=np.float32(0.5), b=torch.tensor(2.0), c=np.int64(3), d=[torch.tensor(float("inf"))], e=None
        )
        return {"a": np.mean([1.0, 2.0])}

    run = store.complete(CountingArm(), 0, work)
    logged = json.loads((run.path / "metrics.jsonl").read_text())
    assert logged == {"step": 1, "a": 0.5, "b": 2.0, "c": 3, "d": [None], "e": None}
    assert run.summary == {"a": 1.5}


def test_a_folder_without_anything_in_it_is_no_damage(store):
    path = store.path(CountingArm(), 0)
    path.mkdir()
    for name in ("lock", "run.json.tmp"):  # killed while it wrote the first file
        (path / name).write_text("{")
        assert store.list() == [] == store.verify() and store.get(CountingArm(), 0) is None
    assert ensure(CountingArm(), 0, store).finished and store.verify() == []


def test_a_waiting_process_takes_over_when_the_holder_dies(store):
    arm = CountingArm(sleep=0.3, steps=12)
    holder = start(store, arm)
    wait_for(lambda: list(store.path(arm, 0).glob("checkpoint-*[0-9]")))
    waiting = start(store, arm)
    time.sleep(0.5)
    holder.kill()
    assert exit_code(holder, 10) == -signal.SIGKILL and exit_code(waiting, 60) == 0
    begun = (store.root / "begun.txt").read_text().splitlines()
    assert [line.split()[1] for line in begun] == [str(holder.pid), str(waiting.pid)]
    assert list(store.get(arm, 0).metrics()["step"]) == list(range(1, 13)) and store.verify() == []


def test_a_run_killed_before_its_summary_is_finished_again_without_damage(store):
    run = ensure(CountingArm(), 0, store)
    (run.path / "summary.json").unlink()  # the list of digests stands already
    assert ensure(CountingArm(), 0, store).finished and store.verify() == []


def fill(arm, seeds, store):
    for seed in seeds:
        ensure(arm, seed, store)


def test_eight_processes_fill_one_store_and_lose_nothing(store):
    seeds, arm, fork = range(6), CountingArm(sleep=0.01), multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=fill, args=(arm, [*seeds[first % 6 :], *seeds[: first % 6]], store))
        for first in range(8)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=60)
    assert [process.exitcode for process in processes] == [0] * 8
    begun = [line.split()[0] for line in (store.root / "begun.txt").read_text().splitlines()]
    assert (
        sorted(begun) == sorted(set(begun)) == [store.path(arm, seed).name for seed in seeds]
    )  # each made once
    assert (
        all(list(run.metrics()["step"]) == list(range(1, 11)) for run in store.list())
        and store.verify() == []
    )


# disks and clocks


def filling(store: RunStore, size: int = 4000):
    """Work whose checkpoint grows with each step, till the disk is full."""

    def work(run):
        checkpoint = run.checkpoint()
        for step in range(checkpoint.step + 1 if checkpoint else 1, 9):
            run.log(step, x=step)
            run.save(step, {"x": torch.arange(step * size)})
        return {"last": int(run.checkpoint().tensors["x"][-1])}

    return store.complete(CountingArm(), 0, work)


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip("file systems cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_is_one_error_and_the_last_checkpoint_is_used_later(small_disk):
    store = RunStore(small_disk)
    with pytest.raises(RunError, match="No space left on device.*make room.*last checkpoint"):
        filling(store)
    run = store.get(CountingArm(), 0)
    last = run.checkpoint().step
    assert not run.finished and last >= 2 and store.verify() == []
    with pytest.raises(RunError, match="No space left"):  # still full: nothing is lost by trying again
        filling(store)
    assert run.checkpoint().step == last and list(run.metrics()["step"][:last]) == list(range(1, last + 1))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    assert filling(store).summary == {"last": 8 * 4000 - 1} and store.verify() == []
    assert list(run.metrics()["step"]) == list(range(1, 9))


def test_a_file_that_may_not_grow_is_one_error(store):
    """The same where nothing can be mounted: the system refuses to let a file grow."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "from pathlib import Path; from test_store import filling\n"
        "from zs_lib.errors import RunError; from zs_lib.runs import RunStore\n"
        f"try:\n    filling(RunStore({str(store.root)!r}))\nexcept RunError as error:\n    print(error)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert "File too large" in shown.stdout and "make room" in shown.stdout and not shown.stderr
    assert store.get(CountingArm(), 0).checkpoint().step == 3 and store.verify() == []
    assert filling(store).finished


def test_a_store_that_cannot_be_written_is_read_and_told():
    if os.geteuid():
        pytest.skip("needs root, to become another user")
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to other users
        os.chmod(folder, 0o755)
        told_of_a_store_that_cannot_be_written(RunStore(folder))


def told_of_a_store_that_cannot_be_written(store):
    finished = ensure(CountingArm(), 0, store)
    code = (
        "import os; from run_fixtures import CountingArm; from zs_lib.pipeline import ensure\n"
        "from zs_lib.errors import RunError; from zs_lib.runs import RunStore\n"
        "os.setgid(65534); os.setuid(65534)\n"
        f"store = RunStore({str(store.root)!r})\n"
        "print(ensure(CountingArm(), 0, store).summary['total'], store.verify())\n"
        "try:\n    ensure(CountingArm(), 1, store)\nexcept RunError as error:\n    print(error)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    told = shown.stdout.splitlines()
    assert told[0] == f"{finished.summary['total']} []", shown.stderr
    assert "Permission denied" in told[1] and "ZS_RUNS" in told[1] and len(told) == 2


def as_nobody(*look) -> list[str]:
    """What these functions return or raise in a process of a user without rights."""
    if os.geteuid():
        pytest.skip("needs root, to become another user")
    fork = multiprocessing.get_context("fork")
    here, there = fork.Pipe(duplex=False)

    def say() -> None:
        os.setgid(65534)
        os.setuid(65534)
        for one in look:
            try:
                there.send(str(one()))
            except ZeroSearchError as error:
                there.send(str(error))

    process = fork.Process(target=say)
    process.start()
    try:
        return [here.recv() for _ in look if here.poll(60)]
    finally:
        process.join(60)


DESTRUCTIVE = re.compile("delete|damaged|made again|build")


def test_what_may_not_be_read_is_not_called_damaged(whole):
    with tempfile.TemporaryDirectory() as folder:  # tmp_path is closed to other users
        os.chmod(folder, 0o755)
        run = runs.Run(Path(shutil.copytree(whole, Path(folder, whole.name))))
        looks = [functools.partial(read, run) for read in FILES.values()]
        looks += [lambda: list(map(str, run.verify())), lambda: run_state(run)]
        assert as_nobody(*looks)[-2:] == ["[]", "finished"]
        for name in FILES:
            (run.path / name).chmod(0)
        for _ in range(2):
            told = as_nobody(*looks)
            assert all("Permission denied" in one for one in told[: len(FILES)]) and told[-1] == "unreadable"
            assert len(told) == len(looks) and "check its rights" in told[-2]
            assert not DESTRUCTIVE.search("".join(told))
            run.path.chmod(0)  # the second time: the whole folder


def test_a_checkpoint_that_may_not_be_read_is_kept():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        run = interrupted(RunStore(folder))
        for name in ("tensors.safetensors", "state.json", "sha256.json"):
            path = run.path / "checkpoint-00000004" / name
            path.chmod(0)
            (told,) = as_nobody(run.checkpoint)
            assert "Permission denied" in told and not DESTRUCTIVE.search(told), name
            path.chmod(0o644)


def test_weights_that_may_not_be_read_are_not_called_damaged():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        model = Path(shutil.copytree(paths.BACKBONES / "tiny-S", Path(folder, "model")))
        for name in ("model.safetensors", "config.json", "tokenizer.json"):
            (model / name).chmod(0)
            (told,) = as_nobody(lambda: load_model(model))
            assert "Permission denied" in told and not DESTRUCTIVE.search(told), name
            (model / name).chmod(0o644)


def test_a_background_process_of_a_store_that_may_not_be_used_is_one_error():
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        store = RunStore(folder)
        start_one = functools.partial(background.start, [(CountingArm(), 0)], store)
        assert "cannot be written" in as_nobody(start_one)[0]
        (store.root / background.LOG).touch(0o600)
        assert all(
            "Permission denied" in told for told in as_nobody(start_one, lambda: background.process_id(store))
        )


def test_a_clock_that_jumps_back_changes_nothing(store, monkeypatch, tmp_path):
    now = iter(range(2_000_000_000, 0, -86_400))
    monkeypatch.setattr(time, "time", lambda: float(next(now)))  # a day back each time it is asked
    run = interrupted(store)
    for path in run.path.rglob("*"):
        os.utime(path, (4e9, 4e9))  # from the future
    assert store.verify() == [] and run.checkpoint().step == 4
    finished = store.complete(CountingArm(), 0, lambda run: {"from": run.checkpoint().step})
    assert finished.summary == {"from": 4} and store.verify() == []


# records of other versions


def test_a_checkpoint_of_the_version_before_is_used(store):
    """It knew no digests of the logs."""
    run = interrupted(store)
    folder = run.path / "checkpoint-00000004"
    state = json.loads((folder / "state.json").read_text())
    del state["logs"]
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "sha256.json").write_text(json.dumps(hashes(folder)))
    assert run.checkpoint().step == 4 and store.verify() == []


@pytest.mark.parametrize("lost", ["label", "config"])
def test_a_record_that_lacks_what_this_version_reads_is_told(store, lost):
    run = ensure(CountingArm(), 0, store)
    record = json.loads((run.path / "run.json").read_text())
    del record[lost]
    (run.path / "run.json").write_text(json.dumps(record))
    with pytest.raises(
        RunError, match="run.json lacks label or config .*of another version.*delete the folder"
    ):
        _ = run.label
    assert any("of another version" in str(error) for error in store.verify())


def test_an_arm_that_lacks_a_value_of_this_version_is_told(store):
    arm = config.load_profile("tiny").policies[0]
    old = identity(arm, labels=True)
    del old["steps"]
    with pytest.raises(ConfigError, match="PolicyArm lacks steps"):
        from_identity(PolicyArm, old)


def test_a_changed_summary_or_log_is_found(store):
    run = ensure(CountingArm(), 0, store)
    text = (run.path / "summary.json").read_text()
    (run.path / "summary.json").write_text(text.replace("4", "5", 1))
    assert "summary.json is damaged (its sha256" in str(store.verify()[0])


def test_a_changed_line_before_the_checkpoint_stops_the_resume(store):
    run = interrupted(store)
    log = run.path / "metrics.jsonl"
    log.write_text(log.read_text().replace('"x": 2', '"x": 3'))  # valid JSON, and wrong
    assert "its lines up to step 4 have changed" in str(store.verify()[0])
    with pytest.raises(RunError, match="its lines up to step 4 have changed.*delete the folder"):
        store.complete(CountingArm(), 0, never)
