"""Simulate training on 10, 100 and 1,000 GPUs: seconds per step, bottleneck, and the effect of each knob.

Measured here: lengths of rollouts (data/lengths.csv), seconds for a reward and for the run store
(data/latencies.csv); `record` wrote both. Quoted: data sheets and shapes of models. The rest is modelled, on
the assumptions that `assumed` lists. The events on the cluster are simulated by `cluster`.
"""

from __future__ import annotations

import math
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from random import Random

import pandas as pd

from zs_lib import config
from zs_lib.analysis import roofline
from zs_lib.analysis.roofline import BATCH, DECODING, Gpu, Shape, shape
from zs_lib.analysis.shipped import read_shipped
from zs_lib.analysis.tables import markdown
from zs_lib.analysis.trajectory_index import TrajectoryLog
from zs_lib.config import Profile, paths
from zs_lib.config.arms import PolicyArm
from zs_lib.config.engines import simulates
from zs_lib.errors import ConfigError
from zs_lib.qa import scoring
from zs_lib.runs import Run, RunStore
from zs_lib.runs.files import write_text
from zs_lib.runs.provenance import provenance
from zs_lib.tools.planning import cluster
from zs_lib.tools.planning.cluster import Parts, Rolled
from zs_lib.tools.planning.estimates import DOCUMENT, PROMPT, SIMULATOR_PROMPT, TURN, training_flops

PAGE = paths.ROOT / "figures" / "scale.md"
SIZES = (10, 100, 1000)
MODES = ("synchronous", "one step ahead")
SEEDS = 5
"""Recorded seeds of the study's ZeroSearch."""
UNIT = 10
"""GPUs of the cluster whose best split is searched for; larger clusters have the same shares."""
JUDGE_SLOTS = 16
"""Requests to an LLM judge at once, per trainer GPU."""


@dataclass(frozen=True)
class Setup:
    """A cluster and its work; each field is a knob."""

    arm: PolicyArm
    gpu: Gpu
    simulator: Shape
    """Shape of the model that writes documents."""
    rollouts_per_gpu: float = 32.0
    """Rollouts of a step per GPU of the cluster: the paper's 320 on ten."""
    rollouts: int = 0
    """Rollouts of a step on any cluster; 0: as `rollouts_per_gpu` says."""
    longest_turn: float = math.inf
    """Tokens after which a turn is cut."""
    slots: int = BATCH
    """Sequences that a GPU decodes at once."""
    network: float = 25e9
    """Bytes per second between two GPUs."""
    relayed: bool = True
    """Whether GPUs pass new weights on; else one trainer sends them to one GPU after the other."""
    judge_s: float = 0.0
    """Seconds of an LLM judge per rollout, in addition to the reward's."""
    writers: int = 1
    """Processes that write to the run store."""


@dataclass(frozen=True)
class Split:
    """GPUs that train, that decode rollouts, and that simulate the search engine."""

    trainers: int
    policies: int
    simulators: int

    def __str__(self) -> str:
        return f"{self.trainers} + {self.policies} + {self.simulators}"

    def scaled(self, gpus: int) -> Split:
        """Take the same shares of a cluster of another size."""
        trainers = max(1, round(gpus * self.trainers / UNIT))
        simulators = max(1, round(gpus * self.simulators / UNIT))
        return Split(trainers, gpus - trainers - simulators, simulators)


@dataclass(frozen=True)
class Step:
    """One simulated training step."""

    split: Split
    rollouts: int
    rolled: Rolled
    update: float
    """Seconds of the update."""
    sync: float
    """Seconds in which the new weights are sent."""
    ahead: bool
    """Whether rollouts are made while the last step's are trained on, with weights one step old."""

    @property
    def seconds(self) -> float:
        rolled = self.rolled.seconds
        return self.sync + (max(rolled, self.update) if self.ahead else rolled + self.update)

    @property
    def shares(self) -> dict[str, float]:
        """Utilisation of each part in the step's time; of tail and weight sync, their share of that time."""
        busy = {name: share * self.rolled.seconds for name, share in self.rolled.busy.items()}
        parts = {"trainers": self.update} | busy | {"tail": self.rolled.tail, "weight sync": self.sync}
        return {name: part / self.seconds for name, part in parts.items()}

    @property
    def first(self) -> str:
        """The bottleneck: the largest share; one step ahead, that of the longer of rollouts and update."""
        shares = self.shares
        if self.ahead and self.update > self.rolled.seconds:
            shares = {name: shares[name] for name in ("trainers", "weight sync")}
        elif self.ahead:
            del shares["trainers"]
        return max(shares, key=shares.get)


@cache
def lengths() -> tuple[list[tuple[int, ...]], list[int]]:
    """Read measured rollouts as the tokens of their turns, and the number of rollouts of each such kind.

    Raises:
        DataError: the file is damaged.
    """
    table = read_shipped("lengths").astype({"tokens": str})
    return [tuple(map(int, tokens.split())) for tokens in table["tokens"]], list(table["rollouts"])


def latencies() -> dict[str, float]:
    """Read the seconds of one "reward" and of one rollout's record in the "store".

    Raises:
        DataError: the file is damaged.
    """
    return read_shipped("latencies").set_index("what")["seconds"].to_dict()


def record(store: RunStore) -> None:
    """Measure data/lengths.csv from the recorded runs of ZeroSearch, and data/latencies.csv on this machine.

    This is a step for maintainers.
    """
    arm, records = config.load_profile("tiny").policy("zerosearch"), []
    for run in filter(None, (store.get(arm, seed) for seed in range(SEEDS))):
        log = TrajectoryLog(run)
        logged = log.read(entry for entry in log.entries if not entry.watched)
        records += [record for record in logged if "tokens" in record]
    name = store.path(arm, 0).name.rpartition("-")[0]
    counts = Counter(map(_turn_lengths, records))
    rows = [{"tokens": key, "rollouts": count, "run": name} for key, count in sorted(counts.items())]
    _write("lengths", rows)
    made = provenance()["machine"]
    machine = f"{made['system']} {made['processor']}, {made['cores']} cores"
    today = datetime.now(UTC).date().isoformat()
    seconds = {"reward": _best(_score_all, records), "store": _store_seconds(arm, records)}
    rows = [
        {"what": what, "seconds": f"{took:.3g}", "as_of": today, "machine": machine}
        for what, took in seconds.items()
    ]
    _write("latencies", rows)


def _turn_lengths(record: dict) -> str:
    """Tokens of the policy's turns in a logged trajectory, separated by spaces."""
    parts = groupby(record["tokens"], lambda token: isinstance(token, list))
    return " ".join(str(len(list(part))) for of_policy, part in parts if of_policy)


def _score_all(records: list[dict]) -> None:
    for record in records:
        scoring.f1(record["answer"], record["golden_answers"])


def _store_seconds(arm: PolicyArm, records: list[dict]) -> float:
    """Seconds to log one trajectory in a run."""
    seconds = []

    def work(run: Run) -> dict:
        seconds.append(_best(partial(run.log_trajectories, 1), records))
        return {}

    with tempfile.TemporaryDirectory() as folder:
        RunStore(folder).complete(arm, 0, work)
    return seconds[0]


def _best(work: Callable[[list[dict]], object], records: list[dict]) -> float:
    """Seconds per record of `work` on batches of records: those of the fastest batch."""
    took, batch = [], 72
    for start in range(0, len(records) - batch + 1, batch):
        started = time.perf_counter()
        work(records[start : start + batch])
        took.append((time.perf_counter() - started) / batch)
    return min(took)


def _write(name: str, rows: list[dict]) -> None:
    write_text(
        paths.ROOT / "data" / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n")
    )


def setup(profile: Profile, gpu: str) -> Setup:
    """Set up the training of the profile's first policy with a simulator.

    Raises:
        ConfigError: the GPU or a model is unknown, or there is no such policy.
    """
    arm = next((arm for arm in profile.policies if simulates(arm.engine)), None)
    if arm is None:
        raise ConfigError(
            f"The profile '{profile.name}' trains no policy with a simulator: choose another one."
        )
    return Setup(arm, roofline.gpu(gpu), shape(arm.simulator.backbone))


def _means() -> tuple[float, float]:
    """Mean turns and tokens of a measured rollout."""
    patterns, weights = lengths()
    turns = sum(len(pattern) * weight for pattern, weight in zip(patterns, weights, strict=True))
    tokens = sum(sum(pattern) * weight for pattern, weight in zip(patterns, weights, strict=True))
    return turns / sum(weights), tokens / sum(weights)


@cache
def drawn(rollouts: int, longest_turn: float) -> list[tuple[float, ...]]:
    """Draw measured rollouts with a fixed seed, scaled so that the mean turn has TURN tokens."""
    patterns, weights = lengths()
    turns, tokens = _means()
    scale, sample = TURN * turns / tokens, Random(0).choices(patterns, weights, k=rollouts)
    return [tuple(min(scale * tokens, longest_turn) for tokens in one) for one in sample]


def step(made: Setup, split: Split, gpus: int, ahead: bool) -> Step:
    """Simulate one step of a cluster."""
    arm, count = made.arm, made.rollouts or round(made.rollouts_per_gpu * gpus)
    longest, of = min(made.longest_turn, arm.rollout.max_turn_tokens), shape(arm.backbone)
    rollouts = drawn(count, longest)
    written, turns = sum(map(sum, rollouts)) / count, sum(map(len, rollouts)) / count
    whole = PROMPT + written + (turns - 1) * arm.rollout.num_documents * DOCUMENT
    seconds, answer = latencies(), arm.rollout.num_documents * DOCUMENT
    read = turns * (PROMPT + whole) / 2 / written
    policy = _pace(made.gpu, of, arm.dtype, (PROMPT + whole) / 2, read)
    context, read = SIMULATOR_PROMPT + answer / 2, SIMULATOR_PROMPT / answer
    simulator = _pace(made.gpu, made.simulator, arm.simulator.dtype, context, read)
    parts = Parts(
        policies=(split.policies, made.slots, policy),
        simulators=(split.simulators, made.slots, simulator),
        judges=(JUDGE_SLOTS * split.trainers, seconds["reward"] + made.judge_s),
        writers=(made.writers, seconds["store"] * written / _means()[1]),
        answer=answer,
    )
    flops = training_flops(of, arm, math.ceil(count / split.trainers) * whole, arm.objective.kl_coef > 0)
    # A ring all-reduce of float32 gradients.
    gradients = 2 * 4 * of.parameters * (1 - 1 / split.trainers) / made.network
    update = made.gpu.compute_seconds(flops) * arm.objective.updates_per_batch + gradients
    sends = math.ceil(math.log2(split.policies + 1)) if made.relayed else split.policies
    sync = sends * of.weight_bytes(arm.dtype) / made.network
    return Step(split, count, _rolled(count, longest, parts), update, sync, ahead)


@cache
def _rolled(rollouts: int, longest_turn: float, parts: Parts) -> Rolled:
    """The simulated rollouts; cached, since many knobs do not change them."""
    return cluster.roll(drawn(rollouts, longest_turn), parts)


@cache
def _pace(gpu: Gpu, of: Shape, dtype: str, context: float, read: float) -> Callable[[int], float]:
    """Seconds per token of n sequences at once; each prefills `read` tokens for every token it writes."""
    prefill = gpu.compute_seconds(2 * of.parameters) * read
    return cache(lambda n: gpu.step_seconds(of, dtype, n, context) / DECODING["vllm"] + n * prefill)


def best_split(made: Setup, ahead: bool) -> Split:
    """Find the split of UNIT GPUs with the shortest step."""
    splits = [
        Split(trainers, UNIT - trainers - simulators, simulators)
        for trainers in range(1, UNIT - 1)
        for simulators in range(1, UNIT - trainers)
    ]
    return min(splits, key=lambda split: step(made, split, UNIT, ahead).seconds)


def steps(made: Setup, sizes: Sequence[int]) -> dict[tuple[int, str], Step]:
    """Simulate the step of each size and mode."""
    return {
        (gpus, mode): step(made, best_split(made, ahead).scaled(gpus), gpus, ahead)
        for mode, ahead in zip(MODES, (False, True), strict=True)
        for gpus in sizes
    }


def table(found: dict[tuple[int, str], Step], sizes: Sequence[int]) -> pd.DataFrame:
    """Tabulate steps, one row per size and mode; speed-ups are over the smallest cluster in the same mode."""
    rows = []
    for (gpus, mode), one in sorted(found.items(), key=lambda item: (item[0][0], MODES.index(item[0][1]))):
        smallest = found[sizes[0], mode]
        speed, base = one.rollouts / one.seconds, smallest.rollouts / smallest.seconds
        row = {
            "GPUs": gpus,
            "mode": mode,
            "split": str(one.split),
            "rollouts": f"{one.rollouts:,}",
            "s/step": f"{one.seconds:.1f}",
            "rollouts/s": f"{speed:,.1f}",
            "speed-up": f"{speed / base:.1f}",
        }
        shares = {name: f"{share:.0%}" for name, share in one.shares.items()}
        rows.append(row | shares | {"first": one.first})
    return pd.DataFrame(rows).set_index("GPUs")


def knobs(made: Setup) -> dict[str, Setup]:
    """Change one thing at a time: name of the change → setup."""
    arm = made.arm
    return {
        "a simulator of 3B instead": replace(made, simulator=shape("Qwen/Qwen2.5-3B-Instruct")),
        "H100 GPUs": replace(made, gpu=roofline.gpu("H100-80GB")),
        "turns cut at 150 tokens": replace(made, longest_turn=150),
        "twice the rollouts per step": replace(made, rollouts_per_gpu=2 * made.rollouts_per_gpu),
        "320 rollouts per step on any cluster": replace(made, rollouts=320),
        "no reference policy": replace(made, arm=replace(arm, objective=replace(arm.objective, kl_coef=0.0))),
        "a quarter of the slots per GPU": replace(made, slots=made.slots // 4),
        "weights sent to one GPU after the other": replace(made, relayed=False),
        "a tenth of the network's speed": replace(made, network=made.network / 10),
        "an LLM judge of 2 s": replace(made, judge_s=2.0),
        "eight writers to the store": replace(made, writers=8),
    }


def knob_table(made: Setup, found: dict[tuple[int, str], Step]) -> pd.DataFrame:
    """Tabulate the factor by which each knob changes the rollouts per second, with the same split."""
    rows: dict[str, dict[str, str]] = {}
    for name, changed in knobs(made).items():
        rows[name] = {}
        for (gpus, mode), before in found.items():
            after = step(changed, before.split, gpus, before.ahead)
            factor = after.rollouts / after.seconds / before.rollouts * before.seconds
            rows[name][f"{gpus}, {mode}"] = f"{factor:.2f}"
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("knob")


def assumed(made: Setup) -> tuple[str, ...]:
    """List the measurements, quotes and assumptions behind the numbers."""
    (turns, tokens), seconds = _means(), latencies()
    measured = f"{sum(lengths()[1]):,} rollouts of the recorded tiny study"
    reward, store = f"{1e6 * seconds['reward']:.0f} µs", f"{1e6 * seconds['store']:.0f} µs"
    return (
        f"measured: the turns ({turns:.1f} per rollout, with a search after each but the last) and tokens of "
        f"{measured}; tokens are scaled to {TURN} per turn, and an LLM's distribution may have a longer "
        "tail",
        f"measured: {reward} for a reward, and {store} for one process to store a rollout of {tokens:.0f} "
        "tokens (longer ones in proportion; every rollout is stored, while training today stores a sample)",
        "quoted: data sheets and shapes of models; modelled: a roofline, of which decoding reaches "
        f"{DECODING['vllm']:.0%} (published speeds: 39% to 68%), prefill and training "
        f"{roofline.COMPUTING:.0%}",
        f"lengths: {PROMPT} tokens per policy prompt, {SIMULATOR_PROMPT} per simulator prompt, "
        f"{DOCUMENT} per document; each turn prefills what precedes it",
        f"assumed: {made.rollouts_per_gpu:g} rollouts per step and GPU, {made.slots} sequences at once per "
        f"GPU, {made.network / 1e9:g} GB/s between GPUs, new weights passed on by those that have them",
        f"splits: the best one of {UNIT} GPUs for each mode, trainers + policies + simulators; larger "
        "clusters have the same shares",
        "one step ahead: rollouts are made while the last step's are trained on, with weights one step old; "
        "its effect on learning is left out, and so are failures, start-up, data loading and evaluation",
    )


def describe(profile: Profile, gpu: str, sizes: Sequence[int]) -> str:
    """Format the table and its assumptions as text.

    Raises:
        ConfigError: the GPU or a model is unknown, or a cluster is too small.
    """
    if min(sizes) < UNIT:
        raise ConfigError(f"gpus = {min(sizes)}: a simulated cluster has at least {UNIT}.")
    made = setup(profile, gpu)
    lines = [
        f"{profile.name} on {gpu}, policy {made.arm.name}: simulated\n",
        markdown(table(steps(made, sizes), sizes)),
        SHARES,
        "",
        *(f"- {line}" for line in assumed(made)),
    ]
    return "\n".join(lines)


def write(profile: Profile, gpu: str, sizes: Sequence[int] = SIZES) -> Path:
    """Write figures/scale.md and return its path."""
    made = setup(profile, gpu)
    found = steps(made, sizes)
    parts = [
        INTRODUCTION.format(profile=profile.name, gpu=gpu, shares=SHARES),
        markdown(table(found, sizes)),
        "## Bottlenecks\n",
        *(_bottlenecks(gpus, found) for gpus in sizes),
        "",
        KNOBS,
        markdown(knob_table(made, found)),
        "## Assumptions\n",
        *(f"- {line}" for line in assumed(made)),
    ]
    write_text(PAGE, "\n".join(parts) + "\n")
    return PAGE


def _bottlenecks(gpus: int, found: dict[tuple[int, str], Step]) -> str:
    modes = []
    for mode in MODES:
        ranked = sorted(found[gpus, mode].shares.items(), key=lambda item: -item[1])[:3]
        modes.append(f"{mode}: " + ", ".join(f"{name} {share:.0%}" for name, share in ranked))
    factor = found[gpus, MODES[0]].seconds / found[gpus, MODES[1]].seconds
    return f"- {gpus:,} GPUs. {'; '.join(modes)}. One step ahead is {factor:.2f} times as fast."


SHARES = """\
GPUs are split into trainers + policies (they decode rollouts) + simulators (they simulate the search \
engine). Percentages are the utilisation of each part in a step's time (of GPUs that decode: against all \
slots full). "Tail" is the time of the rollouts beyond the work of the busiest part: the longest rollouts \
wait for their own turns. "Weight sync" is the time in which new weights are sent. "First" is the \
bottleneck: the largest share, in the mode one step ahead that of the longer of rollouts and update."""
INTRODUCTION = """\
# Scaling plan

`zs plan --profile {profile} --page` made this page: ZeroSearch's training of the profile `{profile}` on \
clusters of {gpu}, by a discrete-event simulation (`zs_lib/tools/planning/cluster.py`). Nothing was run on \
such clusters; the end of the page lists what is measured, quoted and modelled.

Speed-ups are in rollouts per second, over the smallest cluster. {shares}
"""
KNOBS = """\
## Knobs

One thing is changed at a time, with the same split: the factor by which the rollouts per second change. \
The first knob is the split itself; those above are the best.
"""
