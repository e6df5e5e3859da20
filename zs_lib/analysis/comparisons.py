"""Estimates from stored tables: arms, rates of simulators and training curves, compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import pandas as pd

from zs_lib.analysis.results import START, Tables
from zs_lib.analysis.statistics import ONE_SEED, QUERIES, Estimate, share, two_way
from zs_lib.errors import DataError
from zs_lib.evaluation.methods import METHODS

FACTORS = {"fine-tuning": "simulator_seed", "pre-training": "build_seed"}
"""What a claim may generalise over → the column of the evaluation that tells its levels apart."""


def stored(tables: Tables, name: str) -> pd.DataFrame:
    """Return a table; DataError, with what makes its runs, if it is missing or empty."""
    if name not in tables or tables[name].empty:
        raise DataError(f"Nothing is stored for the table '{name}': `zs reproduce --full` makes its runs.")
    return tables[name]


def compare(table: pd.DataFrame, arm: str, other: str, times: float = 1.0) -> Estimate:
    """Estimate the mean F1 of an arm minus `times` that of another, by question and by seed.

    A seed takes the same training questions in every arm, so trained arms are compared over the seeds that
    both have. Seeds that share a level of FACTORS count as one.

    Raises:
        DataError: an arm was not evaluated, or they share no question or seed.
    """
    matrices = {name: score_matrix(table, name) for name in (arm, other)}
    trained = [name for name in matrices if name.partition("/")[0] not in (START, *METHODS)]
    questions = matrices[arm].columns.intersection(matrices[other].columns)
    seeds = set.intersection(*(set(matrices[name].index) for name in trained or matrices))
    a, b = (
        part.loc[[seed for seed in part.index if seed in seeds or name not in trained], questions].to_numpy()
        for name, part in matrices.items()
    )
    if not seeds or questions.empty:
        raise DataError(f"The arms {arm!r} and {other!r} were evaluated on no common seed and question.")
    difference = pd.DataFrame(a - times * b)  # an arm that is not trained has one row
    used = table[table["arm"].isin(trained) & table["seed"].isin(seeds)]
    levels = [used.groupby("seed")[column].max() for column in FACTORS.values() if column in used]
    several = [level for level in levels if level.nunique() > 1]
    if several:
        difference = difference.groupby(min(several, key=pd.Series.nunique).to_numpy()).mean()
    return two_way(difference.to_numpy())


def best_apart(table: pd.DataFrame, arms: Mapping[str, str]) -> pd.DataFrame:
    """Mark the best EM of each subset, and of all questions ("Avg"), if it can be told from all others.

    It can where the 95% interval of its difference (`compare`) from each other is above 0, over seeds and
    questions. `arms`: row → arm. Returns (rows, subsets and "Avg") bool.
    """
    table = table[table["arm"].isin(arms.values())].assign(f1=lambda part: part["em"])
    found = pd.DataFrame(False, index=list(arms), columns=[*table["subset"].unique(), "Avg"])
    for column in found:
        part = table if column == "Avg" else table[table["subset"] == column]
        means = part.groupby("arm")["f1"].mean()
        rows = sorted((row for row in arms if arms[row] in means), key=lambda row: -means[arms[row]])
        differences = (compare(part, arms[rows[0]], arms[row]) for row in rows[1:])
        found.loc[rows[0], column] = all(one.over != ONE_SEED and one.low > 0 for one in differences)
    return found


def score_matrix(table: pd.DataFrame, arm: str, score: str = "f1") -> pd.DataFrame:
    """Reshape the evaluations of an arm to (seeds, questions); DataError if there are none."""
    part = table[table["arm"] == arm]
    if part.empty:
        raise DataError(f"No evaluation of the arm {arm!r} is stored: `zs reproduce --full` makes it.")
    return part.set_index(["seed", "id"])[score].unstack()


def compare_rates(tables: Tables, *terms: tuple[int, str, str]) -> Estimate:
    """Estimate a sum of signed rates on held-out questions: (sign, simulator, column of the fidelity table).

    From the stored queries, a question's together; from the means alone, as if all queries were independent.
    """
    table, queries = stored(tables, "fidelity"), tables.get("fidelity_queries", pd.DataFrame())
    if len(queries) and {name for _, name, _ in terms} <= set(queries["simulator"]):
        queries = queries[queries["questions_from"] == "held out"]
        total = 0
        for sign, name, rate in terms:
            part = queries[(queries["simulator"] == name) & (queries["rate"] == rate)]
            hits = part.pivot_table(index="seed", columns="question", values="answered", aggfunc="sum")
            total = total + sign * hits * (hits.size / len(part))
        found = two_way(total.dropna().to_numpy())
        return replace(found, over=QUERIES) if found.over == ONE_SEED else found
    rows = table[table["questions_from"] == "held out"].set_index("simulator")
    if lacking := {name for _, name, _ in terms} - set(rows.index):
        raise DataError(
            f"No fidelity of {', '.join(sorted(lacking))} is stored: `zs reproduce --full` makes it."
        )
    counts = {"answer_bad": "bad_queries"}
    each = [
        (sign, share(rows.loc[name, rate], int(rows.loc[name, counts.get(rate, "good_queries")])))
        for sign, name, rate in terms
    ]
    return replace(
        each[0][1],
        mean=float(sum(sign * found.mean for sign, found in each)),
        question_variance=sum(found.question_variance for _, found in each),
    )


def by_seed(tables: Tables, arm: str, column: str, summary: Callable) -> pd.Series:
    """Summarise the training curve of `column` of each seed of an arm."""
    table = stored(tables, "training")
    part = table[table["arm"] == arm].sort_values("step")
    if part.empty:
        raise DataError(f"No training of the arm {arm!r} is stored: `zs reproduce --full` makes it.")
    return pd.Series({seed: summary(curve[column]) for seed, curve in part.groupby("seed")})


def window(curve: pd.Series, shares: tuple[float, float]) -> float:
    """Average a curve over a window, given as shares of its steps, of at least one step."""
    first, end = (round(share * len(curve)) for share in shares)
    first = min(first, len(curve) - 1)
    return curve.iloc[first : max(end, first + 1)].mean()


def levels_lacking(tables: Tables, factors: tuple[str, ...]) -> str:
    """Name the factors that the record has one level of; empty if it has several of each."""
    table = stored(tables, "evaluation") if factors else pd.DataFrame()
    once = [name for name in factors if FACTORS[name] not in table or table[FACTORS[name]].nunique() < 2]
    return f"one {' and one '.join(once)} of each" if once else ""
