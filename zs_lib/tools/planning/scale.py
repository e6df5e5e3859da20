"""Training on 10, 100, 1,000 cards, simulated (`cluster`): seconds a step, what saturates first, and which knob moves it.

Measured here: the shape of rollouts (data/lengths.csv), seconds for a reward and for the store (data/latencies.csv); `record`
wrote both. Quoted: data sheets, models' shapes. The rest is modelled, on what `ASSUMED` says.
"""

from __future__ import annotations

import csv
import math
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from itertools import groupby
from pathlib import Path
from random import Random

import pandas as pd

from zs_lib import config
from zs_lib.analysis import roofline
from zs_lib.analysis.roofline import BATCH, DATA, DECODING, Gpu, Shape, shape
from zs_lib.analysis.tables import markdown
from zs_lib.config import Profile, paths
from zs_lib.config.arms import PolicyArm
from zs_lib.config.engines import simulates
from zs_lib.errors import ConfigError, DataError
from zs_lib.qa import scoring
from zs_lib.rl.trajectory_log import TrajectoryLog
from zs_lib.runs import RunStore
from zs_lib.runs.files import write_text
from zs_lib.runs.provenance import provenance
from zs_lib.tools.planning import cluster
from zs_lib.tools.planning.cluster import Parts, Rolled
from zs_lib.tools.planning.plan import DOCUMENT, PROMPT, SIMULATOR_PROMPT, TURN, training_flops

PAGE = paths.ROOT / "figures" / "scale.md"
SIZES = (10, 100, 1000)
MODES = ("synchronous", "one step ahead")
SEEDS = 5
"""Recorded of the study's ZeroSearch."""
UNIT = 10
"""Cards among which the best split is sought; larger clusters have the same shares."""


@dataclass(frozen=True)
class Setup:
    """A cluster's make and its work; each field is a knob."""

    arm: PolicyArm
    card: Gpu
    simulator: Shape
    """Of the model that writes documents."""
    rollouts_a_card: float = 32.0
    """Of a step, for each card of the cluster: the paper's 320 on ten."""
    rollouts: int = 0
    """Of a step, whatever the cluster; 0: as many as `rollouts_a_card` makes."""
    longest_turn: float = math.inf
    """Tokens after which a turn is cut."""
    slots: int = BATCH
    """Sequences that a card writes at once."""
    network: float = 25e9
    """Bytes a second from card to card."""
    relayed: bool = True
    """New weights: who has them passes them on. Otherwise one trainer sends them to one card after the other."""
    judge_s: float = 0.0
    """Seconds of a judge for a rollout, besides the reward's; a trainer's card has 16 asked at once."""
    writers: int = 1
    """Processes that append to the store."""


@dataclass(frozen=True)
class Split:
    """Cards that train, that write rollouts, and that play the search engine."""

    trainers: int
    policies: int
    simulators: int

    def __str__(self) -> str:
        return f"{self.trainers} + {self.policies} + {self.simulators}"

    def scaled(self, cards: int) -> Split:
        trainers, simulators = (
            max(1, round(cards * part / UNIT)) for part in (self.trainers, self.simulators)
        )
        return Split(trainers, cards - trainers - simulators, simulators)


@dataclass(frozen=True)
class Step:
    """One training step: seconds of its parts. `ahead`: rollouts are written with the weights of the step before, while that
    step's are trained on."""

    split: Split
    rollouts: int
    rolled: Rolled
    update: float
    sync: float
    ahead: bool

    @property
    def seconds(self) -> float:
        rolled = self.rolled.seconds
        return self.sync + (max(rolled, self.update) if self.ahead else rolled + self.update)

    @property
    def shares(self) -> dict[str, float]:
        """Of what each part could do in the step's time, what it did; of the tail and the new weights: of the time."""
        busy = {name: share * self.rolled.seconds for name, share in self.rolled.busy.items()}
        parts = {"trainers": self.update} | busy | {"tail": self.rolled.tail, "weight sync": self.sync}
        return {name: part / self.seconds for name, part in parts.items()}

    @property
    def first(self) -> str:
        """What saturates first: the largest share; one step ahead, of the longer of the two that go on side by side."""
        shares = self.shares
        if self.ahead and self.update > self.rolled.seconds:
            shares = {name: shares[name] for name in ("trainers", "weight sync")}
        elif self.ahead:
            del shares["trainers"]
        return max(shares, key=shares.get)


@cache
def lengths() -> tuple[list[tuple[int, ...]], list[int]]:
    """Sampled rollouts as the tokens of their turns, and how many there were of each. DataError if the file is damaged."""
    try:
        rows = _rows("lengths")
        return [tuple(map(int, row["tokens"].split())) for row in rows], [
            int(row["rollouts"]) for row in rows
        ]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"data/lengths.csv cannot be read ({error}): restore it with `git checkout`."
        ) from error


def latencies() -> dict[str, float]:
    """Seconds of one "reward" and one record in the "store". DataError if the file is damaged."""
    try:
        return {row["what"]: float(row["seconds"]) for row in _rows("latencies")}
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            f"data/latencies.csv cannot be read ({error}): restore it with `git checkout`."
        ) from error


def _rows(name: str) -> list[dict]:
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def record(store: RunStore) -> None:
    """Maintainers: measure data/lengths.csv (the recorded study's ZeroSearch, all seeds that logged tokens) and
    data/latencies.csv (the best of many, on this machine)."""
    arm, sampled = config.load_profile("tiny").policy("zerosearch"), []
    for run in filter(None, (store.get(arm, seed) for seed in range(SEEDS))):
        log = TrajectoryLog(run)
        sampled += [
            one for one in log.read(entry for entry in log.entries if not entry.watched) if "tokens" in one
        ]
    counted = Counter(
        " ".join(
            str(len(list(part)))
            for written, part in groupby(one["tokens"], lambda token: isinstance(token, list))
            if written
        )
        for one in sampled
    )
    _write(
        "lengths",
        [
            {"tokens": tokens, "rollouts": number, "run": store.path(arm, 0).name.rpartition("-")[0]}
            for tokens, number in sorted(counted.items())
        ],
    )
    it = provenance()["machine"]
    machine, today = (
        f"{it['system']} {it['processor']}, {it['cores']} cores",
        datetime.now(UTC).date().isoformat(),
    )
    seconds = {
        "reward": _best(
            lambda part: [scoring.f1(one["answer"], one["golden_answers"]) for one in part], sampled
        )
    }
    with tempfile.TemporaryDirectory() as folder:
        RunStore(folder).complete(
            arm,
            0,
            lambda run: (
                seconds.update(store=_best(lambda part: run.log_trajectories(1, part), sampled)) or {}
            ),
        )
    _write(
        "latencies",
        [
            {"what": what, "seconds": f"{took:.3g}", "as_of": today, "machine": machine}
            for what, took in seconds.items()
        ],
    )


def _best(work, records: list, batch: int = 72) -> float:
    """Seconds for one of the records, which come by the batch."""
    took = []
    for start in range(0, len(records) - batch + 1, batch):
        began = time.perf_counter()
        work(records[start : start + batch])
        took.append((time.perf_counter() - began) / batch)
    return min(took)


def _write(name: str, rows: list[dict]) -> None:
    write_text(DATA / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))


def setup(profile: Profile, card: str) -> Setup:
    """The profile's first policy that learns with a simulator. ConfigError for an unknown card or model."""
    arm = next((arm for arm in profile.policies if simulates(arm.engine)), None)
    if arm is None:
        raise ConfigError(
            f"The profile '{profile.name}' trains no policy with a simulator: choose another one."
        )
    return Setup(arm, roofline.gpu(card), shape(arm.simulator.backbone))


def _means() -> tuple[float, float]:
    """Turns and tokens of a measured rollout."""
    patterns, weights = lengths()
    turns, tokens = (
        sum(of(one) * number for one, number in zip(patterns, weights, strict=True)) for of in (len, sum)
    )
    return turns / sum(weights), tokens / sum(weights)


@cache
def drawn(rollouts: int, longest_turn: float) -> list[tuple[float, ...]]:
    """So many of the measured rollouts, by a seed of their own, each turn as long as the mean makes TURN tokens."""
    patterns, weights = lengths()
    turns, tokens = _means()
    scale, sample = TURN * turns / tokens, Random(0).choices(patterns, weights, k=rollouts)
    return [tuple(min(scale * tokens, longest_turn) for tokens in one) for one in sample]


def step(made: Setup, split: Split, cards: int, ahead: bool) -> Step:
    """One step of that cluster."""
    arm, count = made.arm, made.rollouts or round(made.rollouts_a_card * cards)
    longest, of = min(made.longest_turn, arm.rollout.max_turn_tokens), shape(arm.backbone)
    rollouts = drawn(count, longest)
    written, turns = sum(map(sum, rollouts)) / count, sum(map(len, rollouts)) / count
    whole = PROMPT + written + (turns - 1) * arm.rollout.num_documents * DOCUMENT
    seconds, answer = latencies(), arm.rollout.num_documents * DOCUMENT
    policy = _pace(made.card, of, arm.dtype, (PROMPT + whole) / 2, turns * (PROMPT + whole) / 2 / written)
    simulator = _pace(
        made.card,
        made.simulator,
        arm.simulator.dtype,
        SIMULATOR_PROMPT + answer / 2,
        SIMULATOR_PROMPT / answer,
    )
    parts = Parts(
        policies=(split.policies, made.slots, policy),
        simulators=(split.simulators, made.slots, simulator),
        judges=(16 * split.trainers, seconds["reward"] + made.judge_s),
        writers=(made.writers, seconds["store"] * written / _means()[1]),
        answer=answer,
    )
    flops = training_flops(of, arm, math.ceil(count / split.trainers) * whole, arm.objective.kl_coef > 0)
    gradients = 2 * 4 * of.parameters * (1 - 1 / split.trainers) / made.network  # a ring of float32 gradients
    sendings = math.ceil(math.log2(split.policies + 1)) if made.relayed else split.policies
    update = made.card.computing(flops) * arm.objective.updates_per_batch + gradients
    return Step(
        split,
        count,
        _rolled(count, longest, parts),
        update,
        sendings * of.held(arm.dtype) / made.network,
        ahead,
    )


@cache
def _rolled(rollouts: int, longest_turn: float, parts: Parts) -> Rolled:
    """Many knobs leave it as it is."""
    return cluster.roll(drawn(rollouts, longest_turn), parts)


@cache
def _pace(card: Gpu, of: Shape, dtype: str, context: float, read: float):
    """Seconds in which each of n sequences gets a token, of which each needs `read` tokens to be read besides."""
    reading = card.computing(2 * of.parameters) * read
    return cache(lambda sequences: card.step(of, dtype, sequences, context) / DECODING + sequences * reading)


def best_split(made: Setup, ahead: bool) -> Split:
    """Of UNIT cards, that with the shortest step."""
    splits = [
        Split(trainers, UNIT - trainers - simulators, simulators)
        for trainers in range(1, UNIT - 1)
        for simulators in range(1, UNIT - trainers)
    ]
    return min(splits, key=lambda split: step(made, split, UNIT, ahead).seconds)


def steps(made: Setup, sizes: Sequence[int]) -> dict[tuple[int, str], Step]:
    """By size and mode."""
    return {
        (cards, mode): step(made, best_split(made, ahead).scaled(cards), cards, ahead)
        for ahead, mode in enumerate(MODES)
        for cards in sizes
    }


def table(found: dict[tuple[int, str], Step], sizes: Sequence[int]) -> pd.DataFrame:
    """A row a size and mode; the speed-up is in rollouts a second, over the smallest cluster in the same mode."""
    rows = []
    for (cards, mode), one in sorted(found.items(), key=lambda item: (item[0][0], MODES.index(item[0][1]))):
        least = found[sizes[0], mode]
        speed, before = one.rollouts / one.seconds, least.rollouts / least.seconds
        rows.append(
            {
                "cards": cards,
                "mode": mode,
                "split": str(one.split),
                "rollouts": f"{one.rollouts:,}",
                "s a step": f"{one.seconds:.1f}",
                "rollouts/s": f"{speed:,.1f}",
                "speed-up": f"{speed / before:.1f}",
            }
            | {name: f"{share:.0%}" for name, share in one.shares.items()}
            | {"first": one.first}
        )
    return pd.DataFrame(rows).set_index("cards")


def knobs(made: Setup) -> dict[str, Setup]:
    """One thing changed at a time."""
    arm = made.arm
    return {
        "a simulator of 3B instead": replace(made, simulator=shape("Qwen/Qwen2.5-3B-Instruct")),
        "H100 cards": replace(made, card=roofline.gpu("H100-80GB")),
        "turns cut at 150 tokens": replace(made, longest_turn=150),
        "twice the rollouts a step": replace(made, rollouts_a_card=2 * made.rollouts_a_card),
        "320 rollouts a step, however many cards": replace(made, rollouts=320),
        "no reference policy": replace(made, arm=replace(arm, objective=replace(arm.objective, kl_coef=0.0))),
        "a quarter of the slots a card": replace(made, slots=made.slots // 4),
        "weights sent to one card after the other": replace(made, relayed=False),
        "a tenth of the network": replace(made, network=made.network / 10),
        "an LLM judge of 2 s": replace(made, judge_s=2.0),
        "eight writers to the store": replace(made, writers=8),
    }


def knob_table(made: Setup, found: dict[tuple[int, str], Step]) -> pd.DataFrame:
    """How many times as many rollouts a second each knob makes, with the cards split as before, by size and mode."""
    rows = {}
    for name, changed in knobs(made).items():
        rows[name] = {}
        for (cards, mode), before in found.items():
            after = step(changed, before.split, cards, before.ahead)
            rows[name][f"{cards}, {mode}"] = (
                f"{after.rollouts / after.seconds / before.rollouts * before.seconds:.2f}"
            )
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("knob")


def assumed(made: Setup) -> tuple[str, ...]:
    """On what the numbers rest."""
    (turns, tokens), seconds = _means(), latencies()
    return (
        f"measured: how {sum(lengths()[1]):,} rollouts of the recorded tiny study fall into turns ({turns:.1f} each, a search after each "
        f"but the last) and tokens (their spread; scaled so that a turn has {TURN}: an LLM's own tail may be longer)",
        f"measured: {1e6 * seconds['reward']:.0f} µs for a reward, {1e6 * seconds['store']:.0f} µs for one of {tokens:.0f} tokens in the "
        "store, which one process writes (longer in proportion for longer ones; every rollout is kept, where today's training keeps a sample)",
        f"quoted: data sheets and shapes of models; modelled: a roofline, of which writing reaches {DECODING:.0%} (published speeds: "
        f"39% to 68%) and reading and training {roofline.COMPUTING:.0%}",
        f"lengths: {PROMPT} tokens a policy's prompt, {SIMULATOR_PROMPT} a simulator's, {DOCUMENT} a document; each turn reads again "
        "what stands before it",
        f"assumed: {made.rollouts_a_card:g} rollouts a step for each card, {made.slots} sequences at once a card, "
        f"{made.network / 1e9:g} GB/s from card to card, new weights passed on by who has them",
        f"splits: of {UNIT} cards the best for each mode, trainers + policies + simulators; larger clusters have the same shares",
        "one step ahead: rollouts are written while the last step's are trained on, with weights one step old. What that does to "
        "learning, and failures, start-up, data loading and evaluation are left out",
    )


def describe(profile: Profile, card: str, sizes: Sequence[int]) -> str:
    """The table and its assumptions, as text. ConfigError for an unknown card or model, or too few cards."""
    if min(sizes) < UNIT:
        raise ConfigError(f"gpus = {min(sizes)}: a simulated cluster has at least {UNIT}.")
    made = setup(profile, card)
    return "\n".join(
        [
            f"{profile.name} on {card}, policy {made.arm.name}: simulated\n",
            markdown(table(steps(made, sizes), sizes)),
            SHARES,
            "",
            *(f"- {line}" for line in assumed(made)),
        ]
    )


def write(profile: Profile, card: str, sizes: Sequence[int] = SIZES) -> Path:
    """Write figures/scale.md and return its path."""
    made = setup(profile, card)
    found = steps(made, sizes)
    text = INTRODUCTION.format(profile=profile.name, card=card, shares=SHARES)
    parts = [
        text,
        markdown(table(found, sizes)),
        "## What saturates first\n",
        *(_said(cards, found) for cards in sizes),
        "",
        KNOBS,
        markdown(knob_table(made, found)),
        "## What this rests on\n",
        *(f"- {line}" for line in assumed(made)),
    ]
    write_text(PAGE, "\n".join(parts) + "\n")
    return PAGE


def _said(cards: int, found: dict[tuple[int, str], Step]) -> str:
    said = []
    for mode in MODES:
        ranked = sorted(found[cards, mode].shares.items(), key=lambda item: -item[1])[:3]
        said.append(f"{mode}: " + ", ".join(f"{name} {share:.0%}" for name, share in ranked))
    gain = found[cards, MODES[0]].seconds / found[cards, MODES[1]].seconds
    return f"- {cards:,} cards. {'; '.join(said)}. One step ahead is {gain:.2f} times as fast."


SHARES = """\
Cards are split into trainers + policies (they write rollouts) + simulators (they play the search engine). Percentages are of what \
each part could have done in a step's time (cards that write: with all their slots full). "Tail" is the time of rolling out that not even \
the busiest part's work explains: rollouts wait for their own turns, the longest ones last. "Weight sync": new weights are on their way. \
"First" is the largest share, one step ahead of the longer of rolling out and training: what saturates first."""
INTRODUCTION = """\
# The plan to internet scale

`zs plan --profile {profile} --page` made this page: ZeroSearch's training of the profile `{profile}` on clusters of \
{card}, in a discrete-event simulation (`zs_lib/tools/planning/cluster.py`). Nothing was run on such clusters; what is measured, quoted and \
modelled is told at the end.

The speed-up is in rollouts a second, over the smallest cluster. {shares}
"""
KNOBS = """\
## Knobs

One thing changed at a time, with the cards split as above: how many times as many rollouts a second. To change how many cards a \
part has is the first knob; the splits above are the best already.
"""
