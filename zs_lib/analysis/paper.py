"""The paper's own tables, and the uncertainty that they leave out.

Each score is the EM of one run on 500 questions (Bamboogle: 125, or the 72 of its rows whose scores are whole numbers
of 72nds), so its sampling error follows from the score alone. What training runs add to it is not known.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from zs_lib.config import paths
from zs_lib.config.values import pick
from zs_lib.errors import DataError

FOLDER = paths.ROOT / "data" / "paper"
TABLES = {
    "main_results": "Table 3",
    "simulator_choice": "Table 4",
    "rl_algorithms": "Table 5",
    "curriculum": "Table 6",
    "document_mask": "Table 7",
    "cost": "Table 8",
}
SUBSETS = ("NQ", "TriviaQA", "PopQA", "HotpotQA", "2Wiki", "MuSiQue", "Bamboogle")
AVERAGE = "Avg"
QUESTIONS = 500
"""Of every set but Bamboogle."""
Z = 1.96


def load_table(name: str) -> pd.DataFrame:
    """One of the paper's tables, as printed: a key of TABLES, else ConfigError; DataError if the file is damaged."""
    pick("table of the paper", name, TABLES)
    try:
        return pd.read_csv(FOLDER / f"{name}.csv")
    except (OSError, ValueError) as error:
        raise DataError(
            f"data/paper/{name}.csv cannot be read ({error}): restore it with `git checkout`."
        ) from error


def bamboogle_questions(score: float) -> int:
    """125 or 72: of how many questions a Bamboogle score in percent is a whole number (within its two decimals)."""
    return min((125, 72), key=lambda n: (abs(round(score * n / 100) * 100 / n - score) > 0.006, -n))


def standard_errors(table: pd.DataFrame) -> pd.DataFrame:
    """In points of percent, one column a subset and the average's, of a table with the seven subsets.

    Binomial: 100 sqrt(p (1 - p) / n); the average of seven independent means has the root of their summed squares
    over seven.
    """
    share = table[list(SUBSETS)] / 100
    n = share * 0 + QUESTIONS
    n["Bamboogle"] = [bamboogle_questions(score) for score in table["Bamboogle"]]
    errors = 100 * np.sqrt(share * (1 - share) / n)
    return errors.assign(**{AVERAGE: np.sqrt(errors.pow(2).sum(axis=1)) / len(SUBSETS)})


def with_intervals(name: str) -> pd.DataFrame:
    """A table as text, "40.9 ± 1.3": each score with the half-width of its 95% interval; "*" marks the best of a column
    (of each backbone, if there are several) if it can be told from every other row's."""
    table = load_table(name)
    columns = [*SUBSETS, AVERAGE]
    errors = standard_errors(table)[columns]
    marks = pd.DataFrame("", table.index, columns)
    for rows in table.groupby("backbone").groups.values() if "backbone" in table else [table.index]:
        marks.loc[rows] = distinguishable(table.loc[rows, columns], errors.loc[rows]).replace(
            {True: " *", False: ""}
        )
    text = table[columns].map("{:.1f}".format) + (Z * errors).map(" ± {:.1f}".format) + marks
    return pd.concat([table.drop(columns=columns), text], axis=1)


def distinguishable(scores: pd.DataFrame, errors: pd.DataFrame) -> pd.DataFrame:
    """(rows, columns) bool: the best of each column, if its distance to every other row is more than 1.96 standard
    errors of a difference of independent scores. Methods answered the same questions, which would make differences
    more certain if they were paired; the paper does not give what pairing needs."""
    found = scores.astype(bool) & False
    for column in scores:
        best = scores[column].idxmax()
        others = scores.index.drop(best)
        needed = Z * np.hypot(errors.loc[best, column], errors.loc[others, column])
        found.loc[best, column] = bool((scores.loc[best, column] - scores.loc[others, column] > needed).all())
    return found
