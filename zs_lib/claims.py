"""What the study must show, each statement tested over stored results: estimate, interval, n and a verdict.

A verdict is "holds" where the whole 95% interval is on the right side of the bound, "does not hold" where it is on
the wrong side, "undecided" between. What rests on training is undecided with one seed, whatever the interval over
questions: how much seeds differ is not known then.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd

from zs_lib.errors import DataError
from zs_lib.metrics import hierarchical_bootstrap
from zs_lib.results import START, Tables

RESAMPLES = 2000
Z = 1.96
"""Half-width of a 95% interval in standard errors."""


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
    """What the largest grounded simulator must do, and whether larger ones do it better."""
    table = tables["fidelity"]
    table = table[(table["way"] == "grounded") & (table["questions_from"] == "held out")].set_index("simulator")
    name, row = table.index[-1], table.iloc[-1]
    good, bad = int(row["good_queries"]), int(row["bad_queries"])
    statements = [_share(f"{name}: useful documents of good queries state the answer", row["answer_good"], good, least=0.85),
                  _share(f"{name}: documents of bad queries state it", row["answer_bad"], bad, most=0.15),
                  _share(f"{name}: noisy documents leak it", row["leak"], good, most=0.05)]
    rates = table["answer_good"]
    statements += [_larger(f"{large} minus {small}: answer rate on good queries", rates[large], rates[small], good)
                   for small, large in zip(rates.index, rates.index[1:], strict=False)]
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
    verdict = _verdict(low > bound, high < bound, seeds)
    return Statement(statement, estimate, low, high, seeds, n, f"> {bound:g}", verdict)


def _searches(table: pd.DataFrame, arm: str) -> Statement:
    """Two-hop questions really take two searches (comparisons and chains alike)."""
    two_hop = table[(table["arm"] == arm) & (table["hops"] == 2)]
    matrix = two_hop.pivot_table(index="seed", columns="id", values="searches")
    mean, low, high = hierarchical_bootstrap(matrix.to_numpy())
    verdict = _verdict(low > 1.5, high < 1.5, len(matrix))
    return Statement(f"{arm}: searches on a two-hop question", mean, low, high, *matrix.shape, "> 1.5", verdict)


def _share(statement: str, share: float, n: int, least: float | None = None, most: float | None = None) -> Statement:
    """A share of `n` queries with its Wilson interval, against the least or the most that it may be."""
    centre, width = share + Z * Z / (2 * n), Z * np.sqrt(share * (1 - share) / n + Z * Z / (4 * n * n))
    low, high = (centre - width) / (1 + Z * Z / n), (centre + width) / (1 + Z * Z / n)
    if least is not None:
        return Statement(statement, share, low, high, 1, n, f"≥ {least:g}", _verdict(low >= least, high < least))
    return Statement(statement, share, low, high, 1, n, f"≤ {most:g}", _verdict(high <= most, low > most))


def _larger(statement: str, share: float, other: float, n: int) -> Statement:
    """The difference of two shares of `n` queries each, with its normal interval; is it above zero?"""
    width = Z * np.sqrt((share * (1 - share) + other * (1 - other)) / n)
    difference = share - other
    verdict = _verdict(difference - width > 0, difference + width < 0)
    return Statement(statement, difference, difference - width, difference + width, 1, n, "> 0", verdict)


def _verdict(right: bool, wrong: bool, seeds: int = 2) -> str:
    if seeds < 2:
        return "undecided"
    return "holds" if right else "does not hold" if wrong else "undecided"


def _matrix(table: pd.DataFrame, arm: str, score: str) -> pd.DataFrame:
    part = table[table["arm"] == arm]
    if part.empty:
        raise DataError(f"No evaluation of the arm {arm!r} is stored (stored: {', '.join(table['arm'].unique())}).")
    return part.pivot_table(index="seed", columns="id", values=score)


def _frame(statements: list[Statement]) -> pd.DataFrame:
    return pd.DataFrame([asdict(statement) for statement in statements]).set_index("statement").round(3)
