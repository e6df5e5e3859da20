"""`make chaos`: kill -9 at random moments, start again, and compare with what was never killed.

    python tests/drills/chaos.py [KILLS [MINUTES]]        writes data/results/chaos.csv

For each phase of the work (PHASES) one whole run is the measure. A kill ends the phase's process and its
group at a moment drawn from SEED, between the end of its imports and its usual end; then the same command is
given again. It has survived if it ends with the same files (timings aside: `outcome`), nothing damaged in the
store, and no process left over. Phases take turns, till KILLS or MINUTES are spent.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import pandas as pd
import psutil
from safetensors.torch import load_file

from zs_lib import config
from zs_lib.config import paths
from zs_lib.config.arms import EvaluationArm
from zs_lib.evaluation.evaluate import SCORES_FILE
from zs_lib.runs import RunStore, checkpoints
from zs_lib.runs.provenance import provenance

RECORD = paths.ROOT / "data" / "results" / "chaos.csv"
SEED = 0
KILLS, MINUTES = 50, 60.0
LIMIT_S = 600
"""No phase may take longer, and none does."""
ORPHAN_S = 15
"""Seconds within which a kernel or worker must notice that whoever started it is gone."""


# what is killed


def simulator(folder: Path) -> Callable[[], object]:
    """Pairs and fine-tuning."""
    from zs_lib import pipeline

    arm = config.load_profile("smoke").simulators[0]
    return lambda: pipeline.ensure(arm, 0, RunStore())


def policy(folder: Path) -> Callable[[], object]:
    """RL with the real engine, a checkpoint every three steps."""
    from zs_lib import pipeline

    arm = replace(config.load_profile("smoke").policy("search-r1"), steps=12, checkpoint_every=3)
    return lambda: pipeline.ensure(arm, 0, RunStore())


def evaluation(folder: Path) -> Callable[[], object]:
    """A backbone on test questions of all subsets."""
    from zs_lib import pipeline

    study = config.load_profile("smoke", {"evaluation.questions_per_subset": 12})
    arm = EvaluationArm.of_backbone(study.policy("search-r1"), study.evaluation)
    return lambda: pipeline.ensure(arm, 0, RunStore())


def notebook(folder: Path) -> Callable[[], object]:
    """Notebook 03 by papermill: a kernel, which has a worker train three policies, and draws."""
    from zs_lib.launch.notebooks import NOTEBOOKS, Notebook, run_notebook

    source = next(NOTEBOOKS.glob("03_*.ipynb"))
    executed = Notebook(str(source), str(folder / "out.ipynb"), {"profile": "smoke", "jobs": 1})
    return lambda: run_notebook(executed)


def figures(folder: Path) -> Callable[[], object]:
    """Every figure and table from the recorded results."""
    from zs_lib.analysis import figures, tables

    return lambda: (figures.draw_all("tiny", folder / "figures"), tables.write_all("tiny", folder / "tables"))


def pretraining(folder: Path) -> Callable[[], object]:
    """A backbone of toy size, a checkpoint every second."""
    from zs_lib.tools.backbones import build
    from zs_lib.tools.backbones.induction_init import Shape, initialise
    from zs_lib.tools.benchmark.world import load_world

    world, build.SAVE_S = load_world(), 1.0
    tokenizer = build.build_tokenizer(world)
    recipe = build.Recipe(
        Shape(width=32, layers=2, heads=4), 120_000, (("reading", 0.7), ("recall", 0.3)), batch_tokens=1024
    )
    model = initialise(recipe.shape, len(tokenizer), tokenizer.pad_token_id, tokenizer.eos_token_id)
    return lambda: build.pretrain(model, tokenizer, recipe, world, folder, "toy")


PHASES = {work.__name__: work for work in (simulator, policy, evaluation, notebook, figures, pretraining)}


def work(phase: str, folder: Path) -> None:
    """What the killed process does; it tells on stdout when it begins."""
    do = PHASES[phase](folder)
    print("begun", flush=True)
    do()


# killing it


def start(phase: str, folder: Path) -> subprocess.Popen:
    """The phase in a process group of its own; returns when it has begun."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(paths.ROOT), str(Path(__file__).parent)]),
        "OMP_NUM_THREADS": "1",
        "ZS_RUNS": str(folder / "runs"),
        "ZS_OUTPUTS": str(folder / "outputs"),
    }
    with (folder / "told.txt").open("ab") as told:
        process = subprocess.Popen(
            [sys.executable, __file__, "work", phase, str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=told,
            start_new_session=True,
        )
    process.stdout.readline()
    return process


def run(phase: str, folder: Path) -> float:
    """The phase to its end; the seconds it took from its beginning."""
    process, begun = start(phase, folder), time.monotonic()
    if process.wait(timeout=LIMIT_S):
        raise RuntimeError(f"{phase} failed:\n{(folder / 'told.txt').read_text()[-3000:]}")
    return time.monotonic() - begun


def outcome(folder: Path) -> dict[str, str]:
    """Digests of what a phase leaves, by name: all but times, and what is only passing."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.suffix == ".safetensors":
            content = b"".join(
                key.encode() + tensor.numpy().tobytes() for key, tensor in sorted(load_file(path).items())
            )
        elif path.name == SCORES_FILE:
            content = pd.read_csv(path).drop(columns="seconds").to_csv().encode()
        elif path.name in (
            "metrics.jsonl",
            "trajectories.jsonl",
            "summary.json",
            "pairs.jsonl",
        ) or path.suffix in (".png", ".csv", ".md", ".tex"):
            content = path.read_bytes()
        else:
            continue
        found[name] = hashlib.sha256(content).hexdigest()
    return found


def state(folder: Path) -> str:
    """What a killed phase left to go on from."""
    store, left = RunStore(folder / "runs"), []
    for found in store.list():
        if found.finished:
            left.append(f"{found.kind} finished")
        elif (found.path / "run.json").exists() and not found.running:
            checkpoint, logged = found.checkpoint(), len(found.metrics())
            left.append(f"{found.kind} at step {logged}, kept {checkpoint.step if checkpoint else 0}")
    if (folder / "toy").exists():
        left.append(f"pretraining kept step {checkpoints.load_checkpoint(folder / 'toy').step}")
    drawn = sum(path.suffix == ".png" for path in folder.rglob("*"))
    return "; ".join(left + ([f"{drawn} figures"] if drawn else [])) or "nothing"


@dataclass(frozen=True)
class Trial:
    """One kill. `moment`: the share of the phase's usual time after which it came; `killed`: whether the
    phase was still at work then; `left`: what was there to go on from; `differs`: names that ended otherwise
    than without a kill; `orphans`: processes that did not end."""

    phase: str
    moment: float
    killed: bool
    left: str
    differs: str
    damaged: int
    orphans: int

    @property
    def survived(self) -> bool:
        return not (self.differs or self.damaged or self.orphans)


def kill(phase: str, moment: float, seconds: float, whole: dict[str, str]) -> Trial:
    """Kill the phase at `moment` of its usual `seconds`, start it again, and compare with `whole`."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        process = start(phase, folder)
        try:
            process.wait(timeout=moment * seconds)
        except subprocess.TimeoutExpired:
            pass
        killed, family = (
            process.poll() is None,
            psutil.Process(process.pid).children(recursive=True) if process.poll() is None else [],
        )
        if killed:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        orphans = psutil.wait_procs(family, timeout=ORPHAN_S)[1]
        left = state(folder)
        run(phase, folder)
        found = outcome(folder)
        differs = sorted(name for name in whole.keys() | found.keys() if whole.get(name) != found.get(name))
        damaged = RunStore(folder / "runs").verify()
        return Trial(phase, round(moment, 3), killed, left, " ".join(differs), len(damaged), len(orphans))


def measure(phase: str) -> tuple[float, dict[str, str]]:
    """Seconds and outcome of the phase when nothing happens to it."""
    with tempfile.TemporaryDirectory() as name:
        return run(phase, Path(name)), outcome(Path(name))


def main(kills: int, minutes: float) -> int:
    deadline, rng, trials = time.monotonic() + 60 * minutes, Random(SEED), []
    measured = {phase: measure(phase) for phase in PHASES}
    print(
        {phase: f"{seconds:.1f} s, {len(whole)} files" for phase, (seconds, whole) in measured.items()},
        flush=True,
    )
    for number in range(kills):
        if time.monotonic() > deadline:
            break
        phase = list(PHASES)[number % len(PHASES)]
        trials.append(kill(phase, rng.random(), *measured[phase]))
        print(json.dumps(vars(trials[-1]) | {"survived": trials[-1].survived}), flush=True)
    about = provenance()
    table = pd.DataFrame(
        [
            vars(trial)
            | {
                "survived": trial.survived,
                "seed": SEED,
                "python": about["machine"]["python"],
                "torch": about["packages"]["torch"],
                "sources": about["code"]["sources"],
            }
            for trial in trials
        ]
    )
    table.to_csv(RECORD, index=False, lineterminator="\n")
    print(
        f"{table['killed'].sum()} kills ({(~table['killed']).sum()} came too late), "
        f"{(~table['survived']).sum()} lost: "
        f"{RECORD.relative_to(paths.ROOT)}"
    )
    return int(not table["survived"].all())


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(sys.argv[2], Path(sys.argv[3]))
    else:
        sys.exit(main(int((sys.argv[1:] or [KILLS])[0]), float((sys.argv[2:] or [MINUTES])[0])))
