"""Tests of what the study must show, and of the paper's twelve claims, over stored results.

`data/predictions.toml` states the tests, their margins, what each verdict means, and what we expect. A claim
generalises over its `FACTORS`: where one of them was made once, its statements are undecided whatever their
intervals say. To add a claim, add a function with `@claim`, and its prediction.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise

import pandas as pd

from zs_lib.analysis import cost, summaries
from zs_lib.analysis.comparisons import (
    by_seed,
    compare,
    compare_rates,
    levels_lacking,
    score_matrix,
    stored,
    window,
)
from zs_lib.analysis.results import START, Tables
from zs_lib.analysis.shipped import read_predictions
from zs_lib.analysis.statistics import (
    Estimate,
    Statement,
    log_spread_ratio,
    over_seeds,
    two_way,
    verdict_table,
)
from zs_lib.errors import DataError
from zs_lib.studies import MAIN

SEARCHES = 1.5
"""Searches that a two-hop question must exceed, so that both hops are searched for."""
PAPERS_ALGORITHMS = ("REINFORCE", "GRPO", "PPO")
SUBSETS_TRAINED_ON = ("natural", "bridge", "nq", "hotpotqa")
SAVED = 0.875
"""The share saved that claim 12 states as 88%, before rounding."""
SIMULATOR, CARDS = "14B", "as many cards as the paper"
"""The simulator of claim 12, and the row of `cost.ways` that it rests on."""
BEGINNING, EARLY, MIDDLE, END = (0.0, 0.1), (0.1, 0.3), (0.4, 0.6), (0.8, 1.0)
"""Windows of a training, as shares of its steps."""


def heldout_statements(tables: Tables) -> pd.DataFrame:
    """Test what RL with each engine achieves on held-out entities, evaluated with the real engine."""
    table = stored(tables, "evaluation")
    main, real = "ZeroSearch (grounded)", "Search-R1 (real engine)"
    compared = [
        (f"{main} minus 2.5 times its start: F1", MAIN, START, 2.5),
        (f"{main} minus 0.9 times {real}: F1", MAIN, "search-r1", 0.9),
        (f"{main} minus R1 (no search): F1", MAIN, "r1", 1.0),
        (f"{real} minus R1 (no search): F1", "search-r1", "r1", 1.0),
        ("ZeroSearch grounded minus naive simulator: F1", MAIN, "zerosearch-naive", 1.0),
    ]
    statements = [
        Statement(said, compare(table, arm, other, times), margin=_margin("f1"))
        for said, arm, other, times in compared
    ]
    for arm in (MAIN, "search-r1"):
        found = two_way(score_matrix(table[table["hops"] == 2], arm, "searches").to_numpy())
        said = f"{arm}: searches on a two-hop question"
        statements.append(Statement(said, found, SEARCHES, _margin("turns"), equal=False))
    return verdict_table(statements)


def fidelity_statements(tables: Tables) -> pd.DataFrame:
    """Test what the largest grounded simulator must do, and whether larger ones do it better.

    Statements are about these very simulators: intervals are over queries.
    """
    table = stored(tables, "fidelity")
    chosen = (table["recipe"] == "grounded") & (table["questions_from"] == "held out")
    names = list(dict.fromkeys(table[chosen]["simulator"]))
    top = f"{names[-1]}, training entities"
    aims = [
        (f"{top}: useful documents of good queries state the answer", "answer_good", 0.85, False),
        (f"{top}: documents of bad queries state it", "answer_bad", 0.15, True),
        (f"{top}: noisy documents leak it", "leak", 0.05, True),
    ]
    statements = [
        Statement(said, compare_rates(tables, (1, names[-1], rate)), aim, _margin("rate"), below, equal=False)
        for said, rate, aim, below in aims
    ]
    for small, large in pairwise(names):
        compared = {
            f"{large} minus {small}: answer rate on good queries": ("answer_good", large, small),
            f"{small} minus {large}: leak": ("leak", small, large),
        }
        statements += [
            Statement(
                said, compare_rates(tables, (1, first, rate), (-1, second, rate)), margin=_margin("rate")
            )
            for said, (rate, first, second) in compared.items()
        ]
    return verdict_table(statements)


Test = Callable[[Tables], list[Statement]]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: what it says, where, and the function over stored results that tests it."""

    says: str
    where: str
    test: Test
    paper: tuple[str, ...] = ()
    """The table of `paper.TABLES`, and its rows, with the numbers that it rests on."""
    factors: tuple[str, ...] = ()
    """Which of FACTORS it generalises over."""


CLAIMS: dict[int, Claim] = {}
"""The paper's claims by their number in notebook 10; sizes S, M, L stand for its 3B, 7B, 14B."""


def claim(
    number: int, says: str, where: str, paper: tuple[str, ...] = (), factors: tuple[str, ...] = ()
) -> Callable[[Test], Test]:
    """Register the decorated function as the test of a claim in CLAIMS."""

    def register(test: Test) -> Test:
        CLAIMS[number] = Claim(says, where, test, paper, factors)
        return test

    return register


TABLE4 = "simulator_choice"


@claim(1, "A 3B simulator already teaches the policy to search.", "Table 4", (TABLE4, "SFT-3B", "Base Model"))
def small_simulator_teaches(tables: Tables) -> list[Statement]:
    label, arm = _fine_tuned(tables)[0]
    return [_difference(tables, f"trained with {label}, minus its start", arm, START)]


@claim(
    2,
    "A 7B simulator is on a par with the real engine, 14B above it.",
    "Table 4",
    (TABLE4, "SFT-7B", "SFT-14B", "Google"),
    ("fine-tuning",),
)
def simulators_reach_the_real_engine(tables: Tables) -> list[Statement]:
    (middle, arm), (largest, top) = _fine_tuned(tables, 2)[1], _fine_tuned(tables, 2)[-1]
    real = "search-r1"
    return [
        _difference(tables, f"trained with {middle}, minus with the real engine", arm, real, par=True),
        _difference(tables, f"trained with {largest}, minus with the real engine", top, real),
    ]


@claim(
    3,
    "Fine-tuned simulators beat prompted ones of the same size.",
    "Table 4",
    (TABLE4, *(f"{kind}-{size}" for size in ("3B", "7B", "14B") for kind in ("SFT", "Prompt"))),
    ("fine-tuning",),
)
def fine_tuned_beats_prompted(tables: Tables) -> list[Statement]:
    pairs = zip(_fine_tuned(tables), _simulators(tables, "prompted"), strict=True)
    return [
        _difference(tables, f"trained with {label}, minus with {prompted}", arm, other)
        for (label, arm), (prompted, other) in pairs
    ]


@claim(
    4,
    "Larger simulators are better, and tell useful from noisy more cleanly.",
    "Tables 4 and 10",
    (TABLE4, "SFT-3B", "SFT-7B", "SFT-14B"),
    ("fine-tuning", "pre-training"),
)
def larger_is_better(tables: Tables) -> list[Statement]:
    sizes = list(pairwise(_fine_tuned(tables, 2)))
    trained = [
        _difference(tables, f"trained with {large}, minus with {small}", arm, other)
        for (small, other), (large, arm) in sizes
    ]
    # how cleanly the keyword separates them: share of answers in useful documents minus that in noisy ones
    separated = [
        Statement(
            f"useful minus noisy answers: {large} minus {small}",
            compare_rates(
                tables,
                *((1, large, "answer_good"), (-1, large, "leak")),
                *((-1, small, "answer_good"), (1, small, "leak")),
            ),
            margin=_margin("rate"),
        )
        for (small, _), (large, _) in sizes
    ]
    return trained + separated


@claim(
    5,
    "ZeroSearch beats Search-R1 and every baseline, in and out of domain.",
    "Table 3",
    ("main_results", "ZeroSearch-base", "Search-R1-base"),
)
def beats_every_method(tables: Tables) -> list[Statement]:
    table = stored(tables, "evaluation")
    inside = table["subset"].isin(SUBSETS_TRAINED_ON)
    others = ("direct", "cot", "rag", START, "search-o1", "r1")
    statements = [_difference(tables, f"ZeroSearch minus {other}", MAIN, other) for other in others]
    sets = {"on the sets trained on": table[inside], "on the others": table[~inside], "on all": table}
    return statements + [
        _difference({"evaluation": part}, f"ZeroSearch minus Search-R1 {where}", MAIN, "search-r1")
        for where, part in sets.items()
    ]


@claim(6, "Its reward ends above the real engine's, and is smoother.", "Figures 2a-b, 3")
def reward_ends_above_and_is_smoother(tables: Tables) -> list[Statement]:
    """Compare without noise, and only where the engines' documents state the answer equally often."""
    quiet, real = _curriculum(tables, "none"), "search-r1"
    documents = _seeds(tables, "", "answer_in_documents", _last, quiet, real, "documents").found
    margin = _margin("documents")
    alike = -margin <= documents.low and documents.high <= margin
    limit = "" if alike else "documents not shown to be equally good"
    statements = [
        _seeds(tables, "last rewards: without noise minus Search-R1", "reward", _last, quiet, real, "reward"),
        _seeds(
            tables,
            "step-to-step variation: Search-R1 minus without noise",
            *("reward", _roughness, real, quiet, "variation"),
        ),
    ]
    said = "documents that state the answer, last steps: without noise minus Search-R1"
    return [replace(each, limit=limit) for each in statements] + [Statement(said, documents, bound=None)]


@claim(7, "Turns drop first, then rise.", "Figure 2c")
def turns_drop_then_rise(tables: Tables) -> list[Statement]:
    """Compare windows that were chosen beforehand: no curve is below its own minimum."""

    def change(first: tuple, second: tuple) -> Estimate:
        return over_seeds(
            by_seed(tables, MAIN, "turns", lambda curve: window(curve, first) - window(curve, second))
        )

    return [
        Statement("turns: beginning minus 10 to 30%", change(BEGINNING, EARLY), margin=_margin("turns")),
        Statement("turns: end minus 40 to 60%", change(END, MIDDLE), margin=_margin("turns")),
    ]


@claim(
    8,
    "REINFORCE, GRPO and PPO all work; REINFORCE is the most stable.",
    "Table 5",
    ("rl_algorithms", *PAPERS_ALGORITHMS),
)
def every_algorithm_works(tables: Tables) -> list[Statement]:
    """Stable: final scores scatter little over seeds (a curve's roughness follows its mean reward)."""
    arms = {label: arm for label, arm in _labels(tables, "algorithms").items() if label in PAPERS_ALGORITHMS}
    table = stored(tables, "evaluation")
    final = {label: score_matrix(table, arm).mean(axis=1) for label, arm in arms.items()}
    learnt = [_difference(tables, f"{label} minus the start", arm, START) for label, arm in arms.items()]
    stable = [
        Statement(
            f"spread of final F1 over seeds: {label} over REINFORCE (log ratio)",
            log_spread_ratio(final[label], final["REINFORCE"]),
            margin=_margin("spread"),
        )
        for label in list(arms)[1:]
    ]
    return learnt + stable


@claim(9, "Easy to hard beats a constant noise of 0.5.", "Table 6", ("curriculum", "Curriculum", "Random"))
def curriculum_beats_constant_noise(tables: Tables) -> list[Statement]:
    """Separate the order of the noise from its amount, on which the paper's two arms differ too."""
    arms = {name: _curriculum(tables, name) for name in ("random", "same-mean", "reversed", "none")}
    return [
        _difference(tables, "curriculum minus constant noise of 0.5", MAIN, arms["random"]),
        _difference(tables, "order: curriculum minus constant noise of its mean", MAIN, arms["same-mean"]),
        _difference(tables, "order: curriculum minus hard to easy", MAIN, arms["reversed"]),
        replace(
            _difference(tables, "amount: no noise minus constant noise of 0.5", arms["none"], arms["random"]),
            bound=None,
        ),
    ]


@claim(
    10, "Masking document tokens helps.", "Table 7, Figure 4c", ("document_mask", "with mask", "without mask")
)
def document_mask_helps(tables: Tables) -> list[Statement]:
    arms = _labels(tables, "masks")
    return [_difference(tables, "documents masked minus not", arms["with mask"], arms["without mask"])]


@claim(
    11,
    "Base models gain more and reach instruct models.",
    "Figures 4a-b",
    ("main_results", "ZeroSearch-base", "ZeroSearch-inst"),
    ("pre-training",),
)
def base_reaches_instruct(tables: Tables) -> list[Statement]:
    def gain(curve: pd.Series) -> float:
        return _last(curve) - window(curve, BEGINNING)

    statements = []
    for name, (base, instruct) in summaries.base_and_instruct(tables).items():
        said = f"{name}: gain of the reward: base minus instruct"
        statements += [
            _seeds(tables, said, "reward", gain, base, instruct, "reward"),
            _difference(tables, f"{name}: base minus instruct, after training", base, instruct, par=True),
        ]
    return statements


@claim(12, "It costs 88% less than the search API.", "Table 8", ("cost", "Google", "SFT-14B"))
def cheaper_than_the_api(tables: Tables) -> list[Statement]:
    """Price the paper's largest simulator on its GPUs against each engine, at our searches per rollout."""
    saved = []
    for searches in by_seed(tables, MAIN, "searches", pd.Series.mean):
        load = replace(cost.paper_load(), searches=searches)
        saved.append(cost.savings(cost.ways(load, SIMULATOR)["usd"], load.queries).loc[CARDS])
    return [
        Statement(f"share of the price of {engine} that is saved", over_seeds(each), SAVED, _margin("saved"))
        for engine, each in pd.DataFrame(saved).items()
    ]


def paper_claims(tables: Tables, *numbers: int) -> pd.DataFrame:
    """Test these claims (all by default): one row per statement of `verdict_table`, by claim.

    A claim or statement whose runs are not stored has one row, which says what is missing and how to make it.
    """
    frames = []
    for number in numbers or CLAIMS:
        chosen = CLAIMS[number]
        try:
            limit = levels_lacking(tables, chosen.factors)
            statements = [replace(each, limit=each.limit or limit) for each in chosen.test(tables)]
        except DataError as error:
            statements = [Statement(str(error))]
        frames.append(verdict_table(statements, corrected=True).reset_index().assign(claim=number))
    return pd.concat(frames, ignore_index=True).set_index(["claim", "statement"])


def _labels(tables: Tables, study: str) -> dict[str, str]:
    """Rows of a study: label → arm."""
    stored(tables, "study_rows")
    return {label: arm for arm, label in summaries.study_labels(tables, study).items()}


def _simulators(tables: Tables, recipe: str) -> list[tuple[str, str]]:
    """(label, arm) of the policies trained with simulators of this recipe."""
    labels = _labels(tables, "simulators").items()
    return [(label, arm) for label, arm in labels if label.startswith(f"{recipe}-")]


def _fine_tuned(tables: Tables, sizes: int = 1) -> list[tuple[str, str]]:
    """(label, arm) by size of simulators with the main arm's recipe; DataError if there are fewer sizes."""
    main = next((label for label, arm in _labels(tables, "simulators").items() if arm == MAIN), "")
    found = _simulators(tables, main.partition("-")[0])
    if len(found) < sizes:
        raise DataError(
            f"The profile has {len(found)} fine-tuned simulator(s), and the claim compares {sizes} sizes."
        )
    return found


def _margin(measure: str) -> float:
    return read_predictions()["margins"][measure]


def _difference(tables: Tables, said: str, arm: str, other: str, par: bool = False) -> Statement:
    """Test that the F1 of an arm is above that of another; with `par`, that it is at most a margin below."""
    margin = _margin("f1")
    try:
        found = compare(stored(tables, "evaluation"), arm, other)
    except DataError as error:
        return Statement(f"F1: {said}. {error}")
    return Statement(f"F1: {said}", found, -margin if par else 0.0, margin, equal=not par)


def _curriculum(tables: Tables, label: str) -> str:
    """The arm of a row of Table 6; if its runs are not stored, the name that it would have."""
    return _labels(tables, "curricula").get(label, f"{MAIN}/curriculum={label}")


def _last(curve: pd.Series) -> float:
    return window(curve, END)


def _roughness(curve: pd.Series) -> float:
    """Standard deviation of the steps' differences."""
    return curve.diff().std()


def _seeds(
    tables: Tables, said: str, column: str, summary: Callable, arm: str, other: str, measure: str
) -> Statement:
    """Test that a summary of training is above that of another arm, over the seeds that both have."""
    first, second = (by_seed(tables, name, column, summary) for name in (arm, other))
    return Statement(said, over_seeds((first - second).dropna().to_numpy()), margin=_margin(measure))
