"""Tests of what the study must show, and of the paper's twelve claims, over stored results.

A statement holds if its whole 95% interval is on the right side of the bound, does not hold if it is on the
wrong side, and is undecided otherwise. With one seed, statements about trained policies are undecided,
whatever the interval over questions, because the variance between seeds is not known. `detectable` is the
smallest distance from the bound that a study with this interval finds with 80% power. To add a claim, add a
function with `@claim`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from operator import sub, truediv

import numpy as np
import pandas as pd

from zs_lib.analysis import summaries
from zs_lib.analysis.bootstrap import draw_counts, hierarchical_bootstrap
from zs_lib.analysis.cost import priced
from zs_lib.analysis.results import START, Tables
from zs_lib.errors import DataError
from zs_lib.evaluation.methods import METHODS
from zs_lib.studies import MAIN

Z = 1.96
"""Half-width of a 95% interval in standard errors."""
POWER = 2.8
"""Smallest detectable effect in standard errors: 1.96 for the 95% interval plus 0.84 for a power of 80%."""
MARGIN = 0.05
"""F1 points within which two methods count as on a par."""
SEARCHES = 1.5
"""Searches that a two-hop question must exceed, so that both hops are searched for."""
PAPERS_ALGORITHMS = ("REINFORCE", "GRPO", "PPO")
SUBSETS_TRAINED_ON = ("natural", "bridge", "nq", "hotpotqa")
SAVED = 0.875
"""The share saved that claim 12 states as 88%, before rounding."""
ENDS = 10
"""Training steps that count as the beginning or the end of a curve."""


@dataclass(frozen=True)
class Statement:
    """A tested statement; `bound` is what the estimate must be above ("≥ 0.9") or below ("≤ 0.15")."""

    statement: str
    estimate: float
    low: float
    high: float
    seeds: int
    n: int
    bound: str
    verdict: str

    @property
    def detectable(self) -> float:
        return POWER * (self.high - self.low) / (2 * Z)


def heldout_statements(tables: Tables) -> pd.DataFrame:
    """Test what RL with each engine achieves on held-out entities, evaluated with the real engine."""
    table = tables["evaluation"]
    main, real = "ZeroSearch (grounded)", "Search-R1 (real engine)"
    compared = [
        (f"{main} over its start: ratio of F1", MAIN, START, truediv, 2.5),
        (f"{main} over {real}: ratio of F1", MAIN, "search-r1", truediv, 0.9),
        (f"{main} minus R1 (no search): F1", MAIN, "r1", sub, 0.0),
        (f"{real} minus R1 (no search): F1", "search-r1", "r1", sub, 0.0),
        ("ZeroSearch grounded minus naive simulator: F1", MAIN, "zerosearch-naive", sub, 0.0),
    ]
    tested = [_above(bound, said, *compare(table, *arms)) for said, *arms, bound in compared]
    return _frame(tested + [_searches(table, arm) for arm in (MAIN, "search-r1")])


def fidelity_statements(tables: Tables) -> pd.DataFrame:
    """Test what the largest grounded simulator must do, and whether larger ones do it better."""
    table = _table(tables, "fidelity")
    chosen = (table["recipe"] == "grounded") & (table["questions_from"] == "held out")
    table = table[chosen].set_index("simulator")
    name, row = table.index[-1], table.iloc[-1]
    good, bad = int(row["good_queries"]), int(row["bad_queries"])
    useful = f"{name}, training entities: useful documents of good queries state the answer"
    wrong = f"{name}, training entities: documents of bad queries state it"
    noisy = f"{name}, training entities: noisy documents leak it"
    statements = [
        _share(useful, row["answer_good"], good, least=0.85),
        _share(wrong, row["answer_bad"], bad, most=0.15),
        _share(noisy, row["leak"], good, most=0.05),
    ]
    rates, leaks = table["answer_good"], table["leak"]
    for small, large in pairwise(table.index):
        statements += [
            _shares(
                f"{large} minus {small}: answer rate on good queries", good, [rates[large]], [rates[small]]
            ),
            _shares(f"{small} minus {large}: leak", good, [leaks[small]], [leaks[large]]),
        ]
    return _frame(statements)


Test = Callable[[Tables], list[Statement]]


@dataclass(frozen=True)
class Claim:
    """A claim of the paper: what it says, where, and the function over stored results that tests it."""

    says: str
    where: str
    test: Test


CLAIMS: dict[int, Claim] = {}
"""The paper's claims by their number in notebook 10; sizes S, M, L stand for its 3B, 7B, 14B."""


def claim(number: int, says: str, where: str) -> Callable[[Test], Test]:
    """Register the decorated function as the test of a claim in CLAIMS."""

    def register(test: Test) -> Test:
        CLAIMS[number] = Claim(says, where, test)
        return test

    return register


@claim(1, "A 3B simulator already teaches the policy to search.", "Table 4")
def small_simulator_teaches(tables: Tables) -> list[Statement]:
    label, arm = _fine_tuned(tables)[0]
    return [_difference(tables, f"trained with {label}, minus its start", arm, START)]


@claim(2, "A 7B simulator is on a par with the real engine, 14B above it.", "Table 4")
def simulators_reach_the_real_engine(tables: Tables) -> list[Statement]:
    (middle, arm), (largest, top) = _fine_tuned(tables, 2)[1], _fine_tuned(tables, 2)[-1]
    return [
        _difference(tables, f"trained with {middle}, minus with the real engine", arm, "search-r1", -MARGIN),
        _difference(tables, f"trained with {largest}, minus with the real engine", top, "search-r1"),
    ]


@claim(3, "Fine-tuned simulators beat prompted ones of the same size.", "Table 4")
def fine_tuned_beats_prompted(tables: Tables) -> list[Statement]:
    pairs = zip(_fine_tuned(tables), _simulators(tables, "prompted"), strict=True)
    return [
        _difference(tables, f"trained with {label}, minus with {prompted}", arm, other)
        for (label, arm), (prompted, other) in pairs
    ]


@claim(4, "Larger simulators are better, and tell useful from noisy more cleanly.", "Tables 4 and 10")
def larger_is_better(tables: Tables) -> list[Statement]:
    tuned = _fine_tuned(tables, 2)
    trained = [
        _difference(tables, f"trained with {large}, minus with {small}", arm, other)
        for (small, other), (large, arm) in pairwise(tuned)
    ]
    table = _table(tables, "fidelity")
    table = table[table["questions_from"] == "held out"].set_index("simulator")
    # how cleanly the keyword separates them: share of answers in useful documents minus that in noisy ones
    useful, noisy, n = table["answer_good"], table["leak"], int(table["good_queries"].iloc[0])
    separated = [
        _shares(
            f"useful minus noisy answers: {large} minus {small}",
            n,
            [useful[large], noisy[small]],
            [useful[small], noisy[large]],
        )
        for (small, _), (large, _) in pairwise(tuned)
    ]
    return trained + separated


@claim(5, "ZeroSearch beats Search-R1 and every baseline, in and out of domain.", "Table 3")
def beats_every_method(tables: Tables) -> list[Statement]:
    table = _table(tables, "evaluation")
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
    last, rough = _by_seed(tables, "reward", _last), _by_seed(tables, "reward", _roughness)
    return [
        _seeds("last rewards: ZeroSearch minus Search-R1", last[MAIN], last["search-r1"]),
        _seeds("step-to-step variation: Search-R1 minus ZeroSearch", rough["search-r1"], rough[MAIN]),
    ]


@claim(7, "Turns drop first, then rise.", "Figure 2c")
def turns_drop_then_rise(tables: Tables) -> list[Statement]:
    """Compare with the step at which the other seeds have their minimum, since no curve is below its own."""
    smooth = np.array(
        _by_seed(tables, "turns", lambda curve: curve.rolling(_ends(curve)).mean().dropna().to_numpy())[MAIN]
    )
    first, last = [], []
    for seed, own in enumerate(smooth):
        others = np.delete(smooth, seed, axis=0) if len(smooth) > 1 else smooth
        least = own[others.mean(axis=0).argmin()]
        first.append(own[0] - least)
        last.append(own[-1] - least)
    return [
        _paired("turns at the beginning minus at their least", first),
        _paired("turns at the end minus at their least", last),
    ]


@claim(8, "REINFORCE, GRPO and PPO all work; REINFORCE is the most stable.", "Table 5")
def every_algorithm_works(tables: Tables) -> list[Statement]:
    arms = {label: arm for label, arm in _labels(tables, "algorithms").items() if label in PAPERS_ALGORITHMS}
    rough = _by_seed(tables, "reward", _roughness)
    learnt = [_difference(tables, f"{label} minus the start", arm, START) for label, arm in arms.items()]
    stable = [
        _seeds(f"step-to-step variation: {label} minus REINFORCE", rough[arm], rough[arms["REINFORCE"]])
        for label, arm in arms.items()
        if label != "REINFORCE"
    ]
    return learnt + stable


@claim(9, "Easy to hard beats a constant noise of 0.5.", "Table 6")
def curriculum_beats_constant_noise(tables: Tables) -> list[Statement]:
    arms = _labels(tables, "curricula")
    return [_difference(tables, "curriculum minus constant noise", arms["curriculum"], arms["random"])]


@claim(10, "Masking document tokens helps.", "Table 7, Figure 4c")
def document_mask_helps(tables: Tables) -> list[Statement]:
    arms = _labels(tables, "masks")
    return [_difference(tables, "documents masked minus not", arms["with mask"], arms["without mask"])]


@claim(11, "Base models gain more and reach instruct models.", "Figures 4a-b")
def base_reaches_instruct(tables: Tables) -> list[Statement]:
    base, instruct = summaries.base_and_instruct(tables)
    gain = _by_seed(tables, "reward", lambda curve: _last(curve) - curve.head(_ends(curve)).mean())
    if lacking := {base, instruct} - set(gain):
        raise DataError(
            f"No training of the arm {lacking.pop()!r} is stored: `zs reproduce --full` makes it."
        )
    return [
        _seeds("gain of the reward: base minus instruct", gain[base], gain[instruct]),
        _difference(tables, "base minus instruct, after training", base, instruct, -MARGIN),
    ]


@claim(12, "It costs 88% less than the search API.", "Table 8")
def cheaper_than_the_api(tables: Tables) -> list[Statement]:
    """Test the share saved in our runs, at the prices that the paper implies; CPU seconds as a GPU's."""
    table = _table(tables, "cost")
    saved = [priced(part)["saved"].iloc[0] for _, part in table[table["arm"] == MAIN].groupby("seed")]
    return [_paired("share of the API's price that is saved", saved, SAVED)]


def paper_claims(tables: Tables, *numbers: int) -> pd.DataFrame:
    """Test these claims (all by default): one row per statement with estimate, interval, n and verdict.

    A claim whose runs are not stored has one row, which says what is missing and how to make it.
    """
    frames = []
    for number in numbers or CLAIMS:
        try:
            statements = CLAIMS[number].test(tables)
        except DataError as error:
            statements = [Statement(str(error), np.nan, np.nan, np.nan, 0, 0, "", "no runs")]
        frames.append(_frame(statements).reset_index().assign(claim=number))
    return pd.concat(frames, ignore_index=True).set_index(["claim", "statement"])


def verdicts(tested: pd.DataFrame) -> pd.DataFrame:
    """Tabulate one row per claim: it holds if all its statements hold, and does not if one does not."""
    rows = {}
    for number, part in tested.groupby(level="claim"):
        found = set(part["verdict"])
        verdict = next(one for one in ("does not hold", "no runs", "undecided", "holds") if one in found)
        says, where = CLAIMS[number].says, CLAIMS[number].where
        rows[number] = {"claim of the paper": says, "where": where, "here": verdict}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("claim")


def describe(tested: pd.DataFrame) -> str:
    """Format `paper_claims` as text: each claim with its verdict, then its tested statements."""
    lines = []
    for number, row in verdicts(tested).iterrows():
        lines.append(f"{number:>2}  {row['here']:<14} {row['claim of the paper']} ({row['where']})")
        for statement, part in tested.loc[number].iterrows():
            one_seed = np.isnan(part["low"])
            interval = "" if one_seed else f" ({part['low']:+.3f} to {part['high']:+.3f})"
            found = f": {part['estimate']:+.3f}{interval}, {part['seeds']} seed(s): {part['verdict']}"
            lines.append(f"    {statement}{found if part['n'] else ''}")
    return "\n".join(lines)


def _table(tables: Tables, name: str) -> pd.DataFrame:
    if name not in tables or tables[name].empty:
        raise DataError(f"Nothing is stored for the table '{name}': `zs reproduce --full` makes its runs.")
    return tables[name]


def _labels(tables: Tables, study: str) -> dict[str, str]:
    """Rows of a study: label → arm."""
    _table(tables, "study_rows")
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


def _difference(tables: Tables, statement: str, arm: str, other: str, bound: float = 0.0) -> Statement:
    """Test that the F1 of an arm minus that of another is above `bound`."""
    return _above(bound, f"F1: {statement}", *compare(_table(tables, "evaluation"), arm, other, sub))


def _ends(curve: pd.Series) -> int:
    """Steps of a curve's beginning or end: ENDS, or a third of a shorter curve."""
    return max(1, min(ENDS, len(curve) // 3))


def _last(curve: pd.Series) -> float:
    return curve.tail(_ends(curve)).mean()


def _roughness(curve: pd.Series) -> float:
    """Standard deviation of the steps' differences."""
    return curve.diff().std()


def _by_seed(tables: Tables, column: str, summary: Callable) -> dict[str, list]:
    """Summarise each seed's training curve of `column`: arm → one value per seed."""
    ordered = _table(tables, "training").sort_values("step")
    return {
        arm: [summary(curve[column]) for _, curve in part.groupby("seed")]
        for arm, part in ordered.groupby("arm")
    }


def _seeds(statement: str, first: list[float], second: list[float]) -> Statement:
    """Test that the first arm is above the second, paired by seed (each has its own training questions)."""
    return _paired(statement, [a - b for a, b in zip(first, second, strict=False)])


def _paired(statement: str, differences: list[float], bound: float = 0.0) -> Statement:
    """Test that the mean over seeds is above `bound`, by Student's interval."""
    from scipy import stats

    seeds = len(differences)
    low, high = stats.ttest_1samp(differences, 0.0).confidence_interval() if seeds > 1 else (np.nan, np.nan)
    return _above(bound, statement, float(np.mean(differences)), low, high, seeds, seeds)


def compare(
    table: pd.DataFrame, arm: str, other: str, statistic: Callable
) -> tuple[float, float, float, int, int]:
    """Compare two arms by `statistic(mean F1, mean F1 of other)`: (estimate, low, high, seeds, questions).

    Paired hierarchical bootstrap: both arms share the resampled questions, and also the seeds if both have
    the same ones (a seed takes the same training questions in every arm). seeds: the smaller number of the
    trained arms.

    Raises:
        DataError: an arm was not evaluated.
    """
    first, second = _matrix(table, arm), _matrix(table, other)
    shared = first.columns.intersection(second.columns)
    a, b = first[shared].to_numpy(), second[shared].to_numpy()
    rng, n = np.random.default_rng(0), len(shared)
    questions, seeds = draw_counts(rng, n) / n, draw_counts(rng, len(a)) / len(a)
    others = seeds if first.index.equals(second.index) else draw_counts(rng, len(b)) / len(b)
    draws = statistic(((seeds @ a) * questions).sum(axis=1), ((others @ b) * questions).sum(axis=1))
    low, high = np.quantile(draws, (0.025, 0.975))
    untrained = (START, *METHODS)
    trained = [len(m) for name, m in ((arm, a), (other, b)) if name.partition("/")[0] not in untrained]
    return float(statistic(a.mean(), b.mean())), float(low), float(high), min(trained, default=1), n


def _searches(table: pd.DataFrame, arm: str) -> Statement:
    """Test that two-hop questions (comparisons and chains) take two searches."""
    two_hop = table[(table["arm"] == arm) & (table["hops"] == 2)]
    matrix = two_hop.pivot_table(index="seed", columns="id", values="searches")
    interval = hierarchical_bootstrap(matrix.to_numpy())
    return _above(SEARCHES, f"{arm}: searches on a two-hop question", *interval, *matrix.shape)


def _share(
    statement: str, share: float, n: int, least: float | None = None, most: float | None = None
) -> Statement:
    """Test a share of `n` queries against a lower or an upper bound, by its Wilson interval."""
    from scipy import stats

    low, high = stats.binomtest(round(share * n), n).proportion_ci(method="wilson")
    if least is not None:
        bound, verdict = f"≥ {least:g}", _verdict(low >= least, high < least)
    else:
        bound, verdict = f"≤ {most:g}", _verdict(high <= most, low > most)
    return Statement(statement, share, low, high, 1, n, bound, verdict)


def _shares(statement: str, n: int, plus: list[float], minus: list[float]) -> Statement:
    """Test that the sum of some shares of `n` queries is above that of others, by its normal interval."""
    difference = sum(plus) - sum(minus)
    width = Z * np.sqrt(sum(share * (1 - share) / n for share in plus + minus))
    low, high = difference - width, difference + width
    return Statement(statement, difference, low, high, 1, n, "> 0", _verdict(low > 0, high < 0))


def _above(
    bound: float, statement: str, estimate: float, low: float, high: float, seeds: int, n: int
) -> Statement:
    """Test that an estimate is above `bound`, by its interval."""
    verdict = _verdict(low > bound, high < bound, seeds)
    return Statement(statement, estimate, low, high, seeds, n, f"> {bound:g}", verdict)


def _verdict(right: bool, wrong: bool, seeds: int = 2) -> str:
    if seeds < 2:
        return "undecided"
    return "holds" if right else "does not hold" if wrong else "undecided"


def _matrix(table: pd.DataFrame, arm: str) -> pd.DataFrame:
    part = table[table["arm"] == arm]
    if part.empty:
        raise DataError(f"No evaluation of the arm {arm!r} is stored: `zs reproduce --full` makes it.")
    return part.pivot_table(index="seed", columns="id", values="f1")


def _frame(statements: list[Statement]) -> pd.DataFrame:
    rows = [asdict(statement) | {"detectable": statement.detectable} for statement in statements]
    return pd.DataFrame(rows).set_index("statement").round(3)
