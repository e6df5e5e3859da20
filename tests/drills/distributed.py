"""`make test-distributed`: one run by two processes for real (torchrun's variables, gloo, a core each),
against one process.

As a script it is one of the processes: `distributed.py ARM[,ARM…] BACKBONE STORE [STEP RANK SIGNAL]`; the
process of that rank sends itself the signal after that step. With the variables of SHARDED the weights are
sharded: accelerate ignores FSDP without GPUs, though torch's FSDP2 works by gloo, too, so that choice is
made here.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from random import Random

import psutil
import pytest
import torch
from arm_fixtures import arm, objective
from model_fixtures import tiny_model, tiny_tokenizer
from policy_fixtures import PPO, QUESTIONS, LookupEngine, load, save_backbone
from safetensors.torch import load_file

from zs_lib import config
from zs_lib.config.arms import CurriculumConfig
from zs_lib.launch import worker
from zs_lib.models.load import LoadedModel
from zs_lib.models.sft import fine_tune
from zs_lib.rl import batches
from zs_lib.rl import train as own
from zs_lib.runs import Run, RunStore, distributed
from zs_lib.trl import train as trl_train

batches.MICRO_BATCH_TOKENS = 96  # several micro-batches a step, so that there is something to share
LIMIT_S = 600
"""For processes that are done, or have lost one another: a bound for machines that do much else, too."""
NORMALISED = replace(arm().objective, algorithm="reinforce++", kl_coef=0.01)
# Three groups: two for the one process, one for the other. Slow and short, for learning magnifies rounding.
SEARCHING = arm(engine="bm25", learning_rate=2e-4, steps=6)
GROUPS = objective("grpo", updates_per_batch=2)
ARMS = {
    "reinforce": SEARCHING,
    "reinforce++ with LoRA": replace(SEARCHING, objective=NORMALISED, lora_rank=4),
    "ppo": replace(SEARCHING, objective=PPO),
    "minibatches": replace(SEARCHING, objective=replace(NORMALISED, minibatch_rollouts=8)),
    "branches": replace(SEARCHING, objective=objective(credit="branch"), reward="f1 - 0.1 * searches"),
    # An odd number of extra groups, or none, for the two to share.
    "questions": replace(
        SEARCHING,
        selection="pass_rates",
        extra_rounds=2,
        curriculum=CurriculumConfig(schedule="by_question", p_start=0.0, p_end=0.5, band_high=0.4, gain=0.2),
        rollout=replace(SEARCHING.rollout, draws="group"),
    ),
    "trl grpo": replace(SEARCHING, trainer="trl", objective=replace(GROUPS, kl_coef=0.05)),
    "trl dr_grpo": replace(SEARCHING, trainer="trl", objective=replace(GROUPS, algorithm="dr_grpo")),
    "fine-tuning": replace(config.load_profile("smoke").simulators[0], steps=14, batch_size=4),
}
SHARDED = {
    "ACCELERATE_USE_CPU": "true",
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
    "FSDP_STATE_DICT_TYPE": "FULL_STATE_DICT",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "false",
}
"""What `accelerate launch` sets by launch/fsdp2.yaml."""
ROWS = 26  # seven batches an epoch, of which the last is half a one
ROUNDING = {"rtol": 1e-4, "atol": 1e-6}
"""Float32's, after a few steps of Adam, which divides small gradients by small numbers."""


def make(name: str, backbone: Path, store: RunStore, progress=None) -> Run:
    """The run of this arm, by as many processes as there are."""

    def work(made: Run) -> dict:
        if name != "fine-tuning":
            train = own.train if ARMS[name].trainer == "own" else trl_train.train
            engine = LookupEngine(failing=0.05)
            return train(own.Training(made, ARMS[name], QUESTIONS, load(backbone), engine, progress))
        loaded, rng = LoadedModel(tiny_model(), tiny_tokenizer()), Random(0)
        rows = [
            {
                "input_ids": [rng.randrange(2, 300) for _ in range(size)],
                "completion_mask": [0, 0] + [1] * (size - 2),
            }
            for size in (rng.randrange(5, 40) for _ in range(ROWS))
        ]
        summary = fine_tune(made, loaded, rows, ARMS[name], progress)
        if distributed.is_main():
            loaded.model.save_pretrained(made.model_dir)
        return summary

    return store.complete(ARMS[name], 0, work, together=True)


def run(
    count: int, name: str, backbone: Path, store: RunStore, *signalled: int, **variables: str
) -> tuple[list[int], list[str]]:
    """Make the run with `count` processes; their exit codes, and their output."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [
        sys.executable,
        __file__,
        name,
        str(backbone),
        str(store.root),
        *(str(int(number)) for number in signalled),
    ]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(sys.path),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(count),
        **variables,
    }
    started = [
        subprocess.Popen(
            command,
            env=environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            text=True,
            stderr=subprocess.PIPE,
        )
        for rank in range(count)
    ]
    try:
        said = [process.communicate(timeout=LIMIT_S)[1] for process in started]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return [process.returncode for process in started], said


def assert_same(ours: Run, theirs: Run) -> None:
    mine, other = ours.metrics(), theirs.metrics()
    assert list(mine) == list(other) and len(mine) == len(other) > 0
    for name in mine.drop(columns="sampler_gap", errors="ignore"):  # that is nothing but rounding
        one, two = (torch.tensor(log[name].astype(float).to_numpy()) for log in (mine, other))
        torch.testing.assert_close(one, two, **ROUNDING, equal_nan=True, msg=(name + ": {}").format)
    for name, weights in load_file(theirs.model_dir / "model.safetensors").items():
        torch.testing.assert_close(load_file(ours.model_dir / "model.safetensors")[name], weights, **ROUNDING)
    assert ours.summary.keys() == theirs.summary.keys()
    assert all(value == pytest.approx(theirs.summary[name], rel=1e-4) for name, value in ours.summary.items())


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("backbone")
    save_backbone(path)
    return path


@pytest.fixture(scope="module")
def whole(backbone, tmp_path_factory):
    """What one process makes of an arm."""
    return lru_cache(lambda name: make(name, backbone, RunStore(tmp_path_factory.mktemp("whole"))))


@pytest.fixture(scope="module")
def by_two(backbone, tmp_path_factory) -> RunStore:
    """Where two processes have made every arm."""
    store = RunStore(tmp_path_factory.mktemp("two"))
    codes, said = run(2, ",".join(ARMS), backbone, store)
    assert codes == [0, 0], said
    return store


@pytest.mark.parametrize("name", ARMS)
def test_two_processes_make_what_one_makes(name, whole, by_two):
    ours, theirs = by_two.get(ARMS[name], 0), whole(name)
    assert_same(ours, theirs)
    assert ours.verify() == [] and len(ours.trajectories()) == len(theirs.trajectories())
    assert [t["answer"] for t in ours.trajectories()] == [t["answer"] for t in theirs.trajectories()]
    assert ours.groups() == theirs.groups()


@pytest.mark.parametrize("name", ["trl grpo", "trl dr_grpo"])
def test_two_processes_with_sharded_weights_make_what_one_makes(name, backbone, whole, store):
    codes, said = run(2, name, backbone, store, **SHARDED)
    assert codes == [0, 0], said
    assert "sharded by DTensor" in said[0] and "sharded by DTensor" in said[1]
    assert_same(store.get(ARMS[name], 0), whole(name))


@pytest.mark.parametrize("variables", [{}, SHARDED], ids=["whole", "sharded"])
def test_a_run_by_trl_that_is_killed_goes_on_from_its_checkpoint(variables, backbone, whole, store):
    codes, said = run(2, "trl grpo", backbone, store, 5, 1, signal.SIGKILL, **variables)
    assert codes[1] == -signal.SIGKILL and codes[0] == 1, said
    assert "has lost another process of its run" in said[0]
    assert store.get(ARMS["trl grpo"], 0).checkpoint().step == 4 and store.verify() == []
    codes, said = run(2, "trl grpo", backbone, store, **variables)
    assert codes == [0, 0], said
    assert_same(store.get(ARMS["trl grpo"], 0), whole("trl grpo"))


def test_a_signal_to_one_stops_both_and_another_number_goes_on(backbone, whole, store):
    """One process for two steps, two for another two, one to the end."""
    for count, step, rank in ((1, 1, 0), (2, 3, 1)):
        codes, said = run(count, "reinforce", backbone, store, step, rank, signal.SIGTERM)
        assert codes == [128 + signal.SIGTERM] * count, said
        # the signal comes before the step asks whether to stop
        assert store.get(ARMS["reinforce"], 0).checkpoint().step == step
    assert_same(make("reinforce", backbone, store), whole("reinforce"))


@pytest.mark.parametrize("rank", [0, 1], ids=["main", "other"])
def test_a_process_that_is_killed_ends_the_other_and_one_goes_on(rank, backbone, whole, store):
    codes, said = run(2, "ppo", backbone, store, 5, rank, signal.SIGKILL)
    assert codes[rank] == -signal.SIGKILL and codes[1 - rank] == 1, said
    assert "has lost another process of its run" in said[1 - rank]
    assert store.get(ARMS["ppo"], 0).checkpoint().step == 4
    assert_same(make("ppo", backbone, store), whole("ppo"))


SEARCH_R1 = replace(
    config.load_profile("smoke").policy("search-r1"),
    backbone="tiny-S-instruct",
    format_sft=None,
    steps=2,
    learning_rate=1e-5,
)


def job(arm, store: RunStore, processes: int) -> dict:
    more = {"seed": 0, "store": str(store.root), "log": str(store.root / "log"), "sharding": "none"}
    return worker.to_job(arm) | more | {"processes": processes}


def test_a_worker_makes_a_run_with_a_process_for_each_of_its_gpus(tmp_path):
    """Here on CPUs. The error of a process is the job's."""
    one, two = RunStore(tmp_path / "one"), RunStore(tmp_path / "two")
    assert worker.do(job(SEARCH_R1, one, 1)) is None and worker.do(job(SEARCH_R1, two, 2)) is None
    assert_same(two.get(SEARCH_R1, 0), one.get(SEARCH_R1, 0))
    told = worker.do(job(replace(SEARCH_R1, backbone="nothing"), two, 2))
    assert told.startswith("Unknown model 'nothing'")


def test_a_worker_that_is_stopped_stops_its_processes_after_their_step(store):
    long = replace(SEARCH_R1, steps=500, checkpoint_every=500)
    command = [sys.executable, "-m", "zs_lib.launch.worker"]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        process.stdin.write(json.dumps(job(long, store, 2)) + "\n")
        process.stdin.flush()
        deadline = time.monotonic() + LIMIT_S
        while not (store.path(long, 0) / "metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
        process.terminate()
        assert process.wait(60) == 128 + signal.SIGTERM and len(started) == 3  # torchrun and two
    finally:
        process.kill()
        process.wait()
    assert not any(one.is_running() for one in started)
    made = store.get(long, 0)
    assert made.checkpoint().step == made.metrics()["step"].iloc[-1]


def at(step: int, rank: int, number: int):
    def progress(done: int, *_) -> None:
        if done == step and int(os.environ.get("RANK", 0)) == rank:
            os.kill(os.getpid(), number)

    return progress


def shard_on_cpus() -> None:
    """Let accelerate shard by FSDP2 where it would not, and say by what class the weights then are."""
    from accelerate.state import AcceleratorState
    from accelerate.utils import DistributedType

    begin, compute_loss = AcceleratorState.__init__, trl_train.PolicyTrainer._compute_loss

    def begin_sharded(self, *given, fsdp_plugin=None, **more):
        begin(self, *given, fsdp_plugin=fsdp_plugin, **more)
        self.fsdp_plugin = fsdp_plugin or self.__dict__.get("fsdp_plugin")
        if self.fsdp_plugin:
            self.distributed_type = DistributedType.FSDP

    def tell_and_compute_loss(self, *given):
        print("sharded by", *{type(weight).__name__ for weight in self.model.parameters()}, file=sys.stderr)
        return compute_loss(self, *given)

    AcceleratorState.__init__ = begin_sharded
    trl_train.PolicyTrainer._compute_loss = tell_and_compute_loss


if __name__ == "__main__":
    if distributed.model_is_sharded():
        shard_on_cpus()
    for wanted in sys.argv[1].split(","):
        make(
            wanted,
            Path(sys.argv[2]),
            RunStore(sys.argv[3]),
            at(*map(int, sys.argv[4:])) if sys.argv[4:] else None,
        )
    if distributed.model_is_sharded():
        # FSDP2 keeps groups of gloo's till the end, whose threads may abort an interpreter that shuts down.
        sys.stderr.flush()
        os._exit(0)
