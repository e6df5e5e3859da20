"""`make test-deepspeed`: one run by two processes under DeepSpeed ZeRO-3 (gloo, a core each), started as
launch/deepspeed.yaml says, against one process.

As a script it is one of the processes, as `distributed.py` is. Without GPUs accelerate ignores DeepSpeed,
though that works by gloo, too, so that choice is made here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from distributed import ARMS, LIMIT_S, assert_same, at, backbone, make, whole  # noqa: F401

from zs_lib.launch import worker
from zs_lib.runs import RunStore

SHARDED = ("trl grpo", "trl dr_grpo", "fine-tuning")


def run(name: str, folder: Path, store: RunStore, *signalled: int) -> tuple[int, str]:
    """Make the run with two processes; the exit code, and their output."""
    command = [*worker.launcher(2, "deepspeed"), __file__, name, str(folder), str(store.root)]
    variables = {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    done = subprocess.run(
        [*command, *(str(int(number)) for number in signalled)],
        env=os.environ | variables,
        text=True,
        capture_output=True,
        timeout=3 * LIMIT_S,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize("name", SHARDED)
def test_two_processes_under_zero3_make_what_one_makes(name, backbone, whole, store):  # noqa: F811
    code, said = run(name, backbone, store)
    assert code == 0, said
    assert said.count("sharded by ZeRO-3") >= 2
    assert_same(store.get(ARMS[name], 0), whole(name))
    assert store.verify() == []


def test_a_run_under_zero3_that_is_killed_goes_on_from_its_checkpoint(backbone, whole, store):  # noqa: F811
    code, said = run("trl grpo", backbone, store, 5, 1, signal.SIGKILL)
    assert code == 1, said
    assert store.get(ARMS["trl grpo"], 0).checkpoint().step == 4 and store.verify() == []
    code, said = run("trl grpo", backbone, store)
    assert code == 0, said
    assert_same(store.get(ARMS["trl grpo"], 0), whole("trl grpo"))


def shard_on_cpus() -> None:
    """Let accelerate shard by DeepSpeed where it would not, and say how many weights were parted."""
    import deepspeed
    from accelerate.state import PartialState
    from accelerate.utils import DistributedType

    begin, initialize = PartialState.__init__, deepspeed.initialize

    def begin_sharded(self, *given, **more):
        begin(self, *given, **more)
        if not deepspeed.comm.is_initialized():
            deepspeed.comm.init_distributed(dist_backend="gloo", auto_mpi_discovery=False)
        self.distributed_type = DistributedType.DEEPSPEED

    def initialize_and_tell(*given, **more):
        made = initialize(*given, **more)
        if all(hasattr(weight, "ds_tensor") for weight in made[0].parameters()):
            print("sharded by ZeRO-3", file=sys.stderr)
        return made

    PartialState.__init__, deepspeed.initialize = begin_sharded, initialize_and_tell


if __name__ == "__main__":
    shard_on_cpus()
    make(
        sys.argv[1],
        Path(sys.argv[2]),
        RunStore(sys.argv[3]),
        at(*map(int, sys.argv[4:])) if sys.argv[4:] else None,
    )
