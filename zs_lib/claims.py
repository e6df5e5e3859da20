"""What the study must show, each statement tested over stored results: estimate, interval, n and a verdict.

A verdict is "holds" where the whole 95% interval is on the right side of the bound, "does not hold" where it is on
the wrong side, "undecided" between. A statement about one number without repetitions has no interval, and is
decided by the number.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from zs_lib.errors import DataError
from zs_lib.results import START, Tables

RESAMPLES = 2000


@dataclass(frozen=True)
class Statement:
    """A tested statement. `bound` is what the estimate must be above ("≥ 0.9") or below ("≤ 0.15")."""

    statement: str
    estimate: float
    low: float
    high: float
    seeds: int
    n: int
    bound: str
    verdict: str


def heldout(tables: Tables) -> pd.DataFrame:
    """What reinforcement learning with each engine achieved on held-out entities, with the real engine."""
    table = tables["evaluation"]
    ratio, difference = lambda a, b: a / b, lambda a, b: a - b  # noqa: E731
    return _frame([
        _compare(table, "ZeroSearch (grounded) over its start: ratio of F1", "zerosearch", START, ratio, 2.5),
        _compare(table, "ZeroSearch (grounded) over Search-R1 (real engine): ratio of F1", "zerosearch", "search-r1", ratio, 0.9),
        _compare(table, "ZeroSearch (grounded) minus R1 (no search): F1", "zerosearch", "r1", difference, 0.0),
        _compare(table, "Search-R1 (real engine) minus R1 (no search): F1", "search-r1", "r1", difference, 0.0),
        _compare(table, "ZeroSearch grounded minus naive simulator: F1", "zerosearch", "zerosearch-naive", difference, 0.0),
        _searches(table, "zerosearch"), _searches(table, "search-r1")])


def fidelity(tables: Tables) -> pd.DataFrame:
    """What the grounded L simulator must do, and whether larger simulators do it better."""
    table = tables["fidelity"].set_index(["simulator", "questions_from"])
    largest = table[table["way"] == "grounded"].index.get_level_values(0).unique()[-1]
    row = table.loc[(largest, "held out")]
    statements = [_number(f"{largest}: useful documents of good queries state the answer", row["answer_good"], 0.85, row["good_queries"]),
                  _number(f"{largest}: documents of bad queries state it", row["answer_bad"], -0.15, row["bad_queries"]),
                  _number(f"{largest}: noisy documents leak it", row["leak"], -0.05, row["good_queries"])]
    sizes = table.xs("held out", level=1).query("way == 'grounded'")["answer_good"]
    for (small, one), (large, other) in zip(sizes.items(), sizes.iloc[1:].items(), strict=False):
        statements.append(_number(f"{large} minus {small}: answer rate on good queries", other - one, 0.0, int(row["good_queries"])))
    return _frame(statements)


def compare(table: pd.DataFrame, arm: str, other: str, statistic: Callable, score: str = "f1", seed: int = 0):
    """(estimate, low, high, seeds, questions) of `statistic(mean of arm, mean of other)`.

    Hierarchical bootstrap: questions are drawn once for both (they answer the same ones), seeds for each apart.

    Raises:
        DataError: an arm was not evaluated.
    """
    first, second = _matrix(table, arm, score), _matrix(table, other, score)
    shared = first.columns.intersection(second.columns)
    a, b = first[shared].to_numpy(), second[shared].to_numpy()
    rng, n = np.random.default_rng(seed), len(shared)
    draws = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        questions = rng.integers(0, n, n)
        draws[i] = statistic(a[np.ix_(rng.integers(0, len(a), len(a)), questions)].mean(),
                             b[np.ix_(rng.integers(0, len(b), len(b)), questions)].mean())
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(statistic(a.mean(), b.mean())), float(low), float(high), len(a), n


def _compare(table: pd.DataFrame, statement: str, arm: str, other: str, statistic: Callable, bound: float) -> Statement:
    estimate, low, high, seeds, n = compare(table, arm, other, statistic)
    verdict = "holds" if low > bound else "does not hold" if high < bound else "undecided"
    return Statement(statement, estimate, low, high, seeds, n, f"> {bound:g}", verdict)


def _searches(table: pd.DataFrame, arm: str) -> Statement:
    """Two-hop questions really take two searches (comparisons and chains alike)."""
    two_hop = table[(table["arm"] == arm) & (table["hops"] == 2)]
    from zs_lib.metrics import hierarchical_bootstrap

    matrix = two_hop.pivot_table(index="seed", columns="id", values="searches")
    mean, low, high = hierarchical_bootstrap(matrix.to_numpy())
    verdict = "holds" if low > 1.5 else "does not hold" if high < 1.5 else "undecided"
    return Statement(f"{arm}: searches on a two-hop question", mean, low, high, *matrix.shape, "> 1.5", verdict)


def _number(statement: str, value: float, bound: float, n: int) -> Statement:
    """A share of `n` queries with its Wilson interval; a negative bound is an upper one."""
    value, upper = float(value), bound < 0
    z, n = 1.96, int(n)
    share = min(max(value, 0.0), 1.0)
    centre, spread = (share + z * z / (2 * n)) / (1 + z * z / n), z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    low, high = (centre - spread, centre + spread) if bound else (value - 1.4 * spread, value + 1.4 * spread)
    right, wrong = (high <= -bound, low > -bound) if upper else (low >= bound, high < bound)
    verdict = "holds" if right else "does not hold" if wrong else "undecided"
    return Statement(statement, value, low, high, 1, n, f"{'≤' if upper else '≥'} {abs(bound):g}", verdict)


def _matrix(table: pd.DataFrame, arm: str, score: str) -> pd.DataFrame:
    part = table[table["arm"] == arm]
    if part.empty:
        raise DataError(f"No evaluation of the arm {arm!r} is stored (stored: {', '.join(table['arm'].unique())}).")
    return part.pivot_table(index="seed", columns="id", values=score)


def _frame(statements: list[Statement]) -> pd.DataFrame:
    return pd.DataFrame([asdict(statement) for statement in statements]).set_index("statement").round(3)
