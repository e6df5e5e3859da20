"""Work for tests of the run store: an arm whose runs are quick, and can be slow, fail or be killed on demand.

Importing it adds the arm to `pipeline.MAKERS`, in worker processes too: they import this module, by the job's
type, and find it through PATHS.
"""

import os
import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from zs_lib import pipeline
from zs_lib.config import paths
from zs_lib.errors import ModelError
from zs_lib.runs import Run, RunStore, StepCallback
from zs_lib.runs.interrupts import between_steps

PATHS = os.pathsep.join([str(paths.ROOT), str(Path(__file__).parent)])
"""PYTHONPATH of a child process that imports the library and this module."""


@dataclass(frozen=True)
class CountingArm:
    """A sum of random numbers. `die_at`: the process kills itself there, once; `fail`: how it ends."""

    steps: int = 10
    sleep: float = 0.0
    die_at: int = 0
    fail: str = ""

    @property
    def name(self) -> str:
        return f"counting-{self.steps}"


def count(run: Run, arm: CountingArm, store: RunStore, progress: StepCallback | None) -> dict:
    with (store.root / "begun.txt").open("a") as file:
        file.write(f"{run.path.name} {os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES')}\n")
    if arm.fail == "typed":
        raise ModelError("There is no such model.")
    if arm.fail == "untyped":
        raise ValueError("a bug")
    checkpoint = run.checkpoint()
    total = checkpoint.tensors["total"] if checkpoint else torch.zeros(1, dtype=torch.float64)
    with between_steps() as asked_to_stop:
        for step in range(checkpoint.step + 1 if checkpoint else 1, arm.steps + 1):
            total += random.Random(f"{run.seed} {step}").random()
            run.log(step, total=total.item(), unknown=float("nan"))
            run.log_trajectories(step, [{"text": f"π {step}"}])
            run.log_timing(step, seconds=time.time())
            stop = asked_to_stop()
            if step % 4 == 0 or stop:
                run.save(step, {"total": total, "half": total / 2})
            if step == arm.die_at and not (run.path / "died").exists():
                (run.path / "died").touch()
                with (run.path / "metrics.jsonl").open("a") as file:
                    file.write('{"step": 7, "tot')  # killed in the middle of a line
                    file.flush()
                    os.kill(os.getpid(), signal.SIGKILL)
            if stop:
                break
            time.sleep(arm.sleep)
    return {"total": total.item()}


pipeline.MAKERS[CountingArm] = pipeline.Maker(count)
