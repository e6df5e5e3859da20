"""Intervals of mean scores over seeds and questions, tests of statements, and the seeds that would decide.

Assumed: seed s scores mean + seed effect + question effect + rest on question q, each drawn independently
("two-way random effects"), and every seed answers the same questions. Seed effects must be roughly normal,
because few seeds are averaged; questions and rest need not be, because many are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy import special

from zs_lib.errors import DataError

ALPHA = 0.025
"""Chance of an error on one side: that of a 95% interval."""
MOST_SEEDS = 1000
"""More are not asked for: then questions are lacking, or the effect is no use."""
SEEDS, BOTH, ONE_SEED, QUERIES = "seeds", "seeds and questions", "questions, one seed", "queries"
"""What an interval is over: what it generalises to. Over questions alone it says nothing of another seed."""


@dataclass(frozen=True)
class Estimate:
    """A mean with its variance in two parts: what more seeds reduce, and what they do not."""

    mean: float
    over: str
    seeds: int
    n: int
    """Questions, queries, or seeds where there are no questions."""
    seed_variance: float
    """Of one seed's mean."""
    question_variance: float
    """Of the mean over the questions alone."""
    df: float = math.inf
    """Degrees of freedom of the error."""

    @property
    def error(self) -> float:
        return math.sqrt(self.seed_variance / self.seeds + self.question_variance)

    @property
    def low(self) -> float:
        return self.mean - self._half_width()

    @property
    def high(self) -> float:
        return self.mean + self._half_width()

    def _half_width(self) -> float:
        return float(special.stdtrit(self.df, 1 - ALPHA)) * self.error

    def p_below(self) -> float:
        """Compute the p-value of the one-sided test that the true mean is below 0."""
        return float(special.stdtr(self.df, self.mean / self.error)) if self.error else float(self.mean >= 0)

    def seeds_to_decide(self, margin: float) -> float:
        """Find the seeds at which this interval is no wider than `margin`; infinity if questions are lacking.

        Such an interval decides whatever the true mean is: it leaves out the bound, or lies within the margin
        around it. Its expected width is meant, so the power is well over 80% but not 1.
        """
        if self.over in (ONE_SEED, QUERIES):
            return math.nan if self.over == ONE_SEED else math.inf
        seeds = np.arange(self.seeds + 1, MOST_SEEDS + 1)
        each = self.seed_variance / seeds
        variance = each + self.question_variance
        df = variance**2 / (each**2 / (seeds - 1) + self.question_variance**2 / max(1, self.n - 1) + 1e-300)
        enough = seeds[special.stdtrit(df, 1 - ALPHA) * np.sqrt(variance) <= margin / 2]
        return float(enough[0]) if len(enough) else math.inf


def two_way(matrix: Sequence[Sequence[float]]) -> Estimate:
    """Estimate the mean of a (seeds, questions) score matrix with Student's t.

    The error's mean squares are those of the module's model, its degrees of freedom Satterthwaite's; a
    negative estimate of the questions' variance counts as 0, which can only widen the interval. In studies
    simulated with the recorded variances, the interval covers 94 to 95.5% at 5, 10 and 20 seeds. Of one seed
    the interval is over its questions, of one question over the seeds.

    Raises:
        DataError: no matrix of finite numbers.
    """
    array = _checked(matrix)
    if array.ndim != 2:
        raise DataError(f"A matrix of seeds × questions is needed, got {array.ndim} dimension(s).")
    seeds, n = array.shape
    rows, columns = array.mean(axis=1), array.mean(axis=0)
    mean = float(array.mean())
    if seeds == 1:
        variance = float(columns.var(ddof=1)) / n if n > 1 else math.inf
        return Estimate(mean, ONE_SEED, 1, n, 0.0, variance, max(1, n - 1))
    seed_variance = float(rows.var(ddof=1))
    if n == 1:
        return Estimate(mean, SEEDS, seeds, seeds, seed_variance, 0.0, seeds - 1)
    rest = array - rows[:, None] - columns + mean
    parts = {  # mean squares per score, by their degrees of freedom
        "seeds": (seed_variance / seeds, seeds - 1),
        "questions": (float(columns.var(ddof=1)) / n, n - 1),
        "rest": (float((rest**2).sum()) / ((seeds - 1) * (n - 1)) / array.size, (seeds - 1) * (n - 1)),
    }
    question_variance = parts["questions"][0] - parts["rest"][0]
    used = parts.values() if question_variance > 0 else [parts["seeds"]]
    question_variance = max(0.0, question_variance)
    largest = max(square for square, _ in used) or 1.0  # the ratio's unit: squares of squares overflow
    uncertainty = sum((square / largest) ** 2 / df for square, df in used)
    total = (parts["seeds"][0] + question_variance) / largest
    df = total**2 / uncertainty if uncertainty > 0 else math.inf
    return Estimate(mean, BOTH, seeds, n, seed_variance, question_variance, df)


def over_seeds(values: Sequence[float]) -> Estimate:
    """Estimate the mean of one value per seed with Student's t; without an end, from one seed."""
    return two_way(_checked(values)[:, None])


def share(part: float, n: int) -> Estimate:
    """Estimate a share of `n` independent queries (Agresti and Coull: two of each outcome are added)."""
    shrunk = (part * n + 2) / (n + 4)
    return Estimate(part, QUERIES, 1, n, 0.0, shrunk * (1 - shrunk) / (n + 4))


def log_spread_ratio(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Estimate the log ratio of two samples' standard deviations, one value per seed, roughly normal.

    The variance of the log of a normal sample's deviation is trigamma(df / 2) / 4; with 5 seeds the interval
    is 2% narrower than that of the F distribution.
    """
    a, b = _checked(first), _checked(second)
    seeds = min(len(a), len(b))
    if seeds < 2 or not (a.std() and b.std()):
        return Estimate(math.nan, ONE_SEED, 1, seeds, 0.0, math.inf)
    variance = sum(float(special.polygamma(1, (len(x) - 1) / 2)) / 4 for x in (a, b))
    return Estimate(math.log(a.std(ddof=1) / b.std(ddof=1)), SEEDS, seeds, seeds, variance * seeds, 0.0)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Adjust p-values of several tests by Holm's method: under `ALPHA`, not one is wrong with 97.5%."""
    values = np.asarray(p_values, dtype=float)
    order = np.argsort(values)
    steps = np.maximum.accumulate(np.sort(values) * np.arange(len(values), 0, -1))
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


@dataclass(frozen=True)
class Statement:
    """A tested statement: the estimate is above `bound` (None: it is reported and not tested)."""

    statement: str
    found: Estimate | None = None
    """None: its runs are not stored."""
    bound: float | None = 0.0
    margin: float = np.nan
    below: bool = False
    """The estimate must be below the bound instead."""
    equal: bool = True
    """Within the margin around the bound counts as equal, not as undecided."""
    limit: str = ""
    """Why it is undecided, whatever its interval says."""

    @property
    def decides(self) -> bool:
        return bool(self.found and self.found.over != ONE_SEED and self.bound is not None and not self.limit)

    def toward(self) -> Estimate:
        """Measure the estimate's distance from the bound, positive on the right side."""
        sign = -1 if self.below else 1
        return replace(self.found, mean=sign * (self.found.mean - self.bound))

    def verdict(self, p_wrong: float) -> str:
        """Decide by the interval, given the p-value (corrected for its family) of being on the wrong side."""
        if not self.decides:
            return "no runs" if not self.found else "reported" if self.bound is None else "undecided"
        distance = self.toward()
        if distance.low > 0:
            return "holds"
        if p_wrong < ALPHA:
            return "does not hold"
        within = -self.margin <= distance.low and distance.high <= self.margin
        return "equal" if self.equal and within else "undecided"


def verdict_table(statements: list[Statement], corrected: bool = False) -> pd.DataFrame:
    """Tabulate statements, one row each: estimate, interval and what it is over, bound, margin, verdict.

    more_seeds: for an undecided one, `Estimate.seeds_to_decide`. `corrected`: one failing is enough to refute
    them all, so that the p-values of failing are Holm's.
    """
    p_wrong = {each: each.toward().p_below() for each in statements if each.decides}
    if corrected:
        p_wrong = dict(zip(p_wrong, holm(list(p_wrong.values())), strict=True))
    rows = [_row(each, each.verdict(p_wrong.get(each, 1.0))) for each in statements]
    return pd.DataFrame(rows).set_index("statement")


def _row(each: Statement, verdict: str) -> dict:
    found = each.found or Estimate(math.nan, "", 0, 0, 0.0, 0.0)
    ends = (found.low, found.high) if each.found and math.isfinite(found.error) else (math.nan, math.nan)
    undecided, reported = each.decides and verdict == "undecided", each.bound is None or not each.found
    return {
        "statement": each.statement,
        "estimate": round(found.mean, 3),
        "low": round(ends[0], 3),
        "high": round(ends[1], 3),
        "over": found.over,
        "seeds": found.seeds,
        "n": found.n,
        "bound": "" if reported else f"{'<' if each.below else '>'} {each.bound:g}",
        "margin": each.margin,
        "verdict": verdict,
        "more_seeds": found.seeds_to_decide(each.margin) if undecided else math.nan,
        "limit": each.limit,
    }


def _checked(values: Sequence) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (OverflowError, TypeError, ValueError) as error:  # rows of different lengths, 10**400, text
        raise DataError(f"These values are not numbers, or not a matrix of them ({error}).") from None
    with np.errstate(over="ignore"):
        whole = np.square(np.abs(array).sum()) * array.size  # as large as anything that is computed from them
    if array.size == 0 or not np.isfinite(whole):
        raise DataError("An interval needs at least one value, and no NaN or infinity among them.")
    return array
