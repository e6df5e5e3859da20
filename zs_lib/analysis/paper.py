"""The paper's own tables, with the sampling error that they leave out.

Each score is the EM of one run on 500 questions (Bamboogle: 125, or 72 in the rows whose scores are multiples
of 1/72), so its sampling error follows from the score alone. The variance between training runs is not known.
"""

from __future__ import annotations

from operator import attrgetter
from types import SimpleNamespace

import numpy as np
import pandas as pd

from zs_lib.analysis.shipped import read_shipped
from zs_lib.config import load_profile
from zs_lib.config.values import pick

TABLES = {
    "main_results": "Table 3",
    "simulator_choice": "Table 4",
    "rl_algorithms": "Table 5",
    "curriculum": "Table 6",
    "document_mask": "Table 7",
    "cost": "Table 8",
}
TEST_SETS = ("NQ", "TriviaQA", "PopQA", "HotpotQA", "2Wiki", "MuSiQue", "Bamboogle")
AVERAGE = "Avg"
QUESTIONS = 500
"""Number of questions of every set but Bamboogle."""
Z = 1.96


def load_table(name: str) -> pd.DataFrame:
    """Read one of the paper's tables as printed, by its key in TABLES.

    Raises:
        ConfigError: no such table. DataError: the file is damaged.
    """
    pick("table of the paper", name, TABLES)
    return read_shipped(f"paper/{name}")


def numbers(name: str = "", *rows: str) -> str:
    """Quote the averages of these rows of a table, as "SFT-3B 30.5; Google 32.8" (Table 8: dollars).

    A row that the table has for several models has as many numbers; without a name the text is empty.
    """
    if not name:
        return ""
    table, score = load_table(name), "total_usd" if name == "cost" else AVERAGE
    labels = table["method" if "method" in table else table.columns[0]]
    quoted = {row: ", ".join(table.loc[labels == row, score].map("{:.1f}".format)) for row in rows}
    return "; ".join(f"{row} {values}" for row, values in quoted.items())


def published(claim: int) -> list[str]:
    """List what others published for or against a claim, each with its source (data/paper/published.csv)."""
    table = read_shipped("paper/published").astype({"claim": str})
    lines = []
    for row in table[table["claim"] == str(claim)].fillna("").itertuples():
        compared = f"{row.zerosearch:g} against {row.other:g} ({row.other_name}); " if row.other else ""
        source = f" [{row.source}]" if row.source else ""
        lines.append(f"{row.finding}: {compared}{row.setting}{source}")
    return lines


def setting_table() -> pd.DataFrame:
    """Set the paper's experiment line by line beside the original code's, and the profile `paper`'s.

    `ours` is read from the profile where the line is a value of it; `difference` says where we differ, and
    why.
    """
    table, profile = read_shipped("paper/setting").fillna(""), load_profile("paper")
    parts = SimpleNamespace(
        policy=profile.policy("zerosearch"), simulator=profile.simulators[0], evaluation=profile.evaluation
    )
    values = [attrgetter(name)(parts) if name else "see there" for name in table["ours"]]
    return table.assign(ours=values).set_index("part")


def bamboogle_questions(score: float) -> int:
    """Infer from a Bamboogle score in percent (two decimals) whether it is of 125 or of 72 questions."""
    return min((125, 72), key=lambda n: (abs(round(score * n / 100) * 100 / n - score) > 0.006, -n))


def standard_errors(table: pd.DataFrame) -> pd.DataFrame:
    """Compute binomial standard errors of a table's seven subsets and their average, in percentage points.

    100 sqrt(p (1 - p) / n); for the average, the root of the summed squares of the seven, over seven.
    """
    share = table[list(TEST_SETS)] / 100
    n = share * 0 + QUESTIONS
    n["Bamboogle"] = [bamboogle_questions(score) for score in table["Bamboogle"]]
    errors = 100 * np.sqrt(share * (1 - share) / n)
    return errors.assign(**{AVERAGE: np.sqrt(errors.pow(2).sum(axis=1)) / len(TEST_SETS)})


def with_intervals(name: str) -> pd.DataFrame:
    """Format a table as "40.9 ± 1.3": each score with the half-width of its 95% interval.

    "*" marks the best score of a column (and backbone) if it is `distinguishable` from all others.
    """
    table = load_table(name)
    columns = [*TEST_SETS, AVERAGE]
    errors = standard_errors(table)[columns]
    marks = pd.DataFrame("", table.index, columns)
    for rows in table.groupby("backbone").groups.values() if "backbone" in table else [table.index]:
        marks.loc[rows] = distinguishable(table.loc[rows, columns], errors.loc[rows]).replace(
            {True: " *", False: ""}
        )
    text = table[columns].map("{:.1f}".format) + (Z * errors).map(" ± {:.1f}".format) + marks
    return pd.concat([table.drop(columns=columns), text], axis=1)


def distinguishable(scores: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """Mark each column's best score if it differs significantly from every other: (rows, columns) bool.

    Significant: by 1.96 standard errors of a difference of independent scores. Methods answered the same
    questions, so a paired test would be sharper; the paper does not give what it needs.
    """
    found = scores.astype(bool) & False
    for column in scores:
        best = scores[column].idxmax()
        others = scores.index.drop(best)
        needed = Z * np.hypot(errors.loc[best, column], errors.loc[others, column])
        found.loc[best, column] = bool((scores.loc[best, column] - scores.loc[others, column] > needed).all())
    return found
