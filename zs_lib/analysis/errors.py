"""How questions end: right, or how they went wrong, by what they and their trajectories have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from zs_lib.analysis.results import read_scores
from zs_lib.errors import RunError
from zs_lib.evaluation.evaluate import PREDICTIONS_FILE
from zs_lib.runs import Run
from zs_lib.runs.files import Log

OUTCOMES = {
    "right": "its answer is a golden one (exact match)",
    "partly right": "its answer shares words with a golden one",
    "misread": "a document stated a golden answer, and its own is another",
    "not found": "no document stated a golden answer, and its own is another",
    "no answer": "it ended without an answer",
}
"""How a question can end → what that means."""
BY = ("subset", "hops", "stop_reason", "searches")
"""Columns of an evaluation by which errors are counted."""


def read_evaluation(run: Run) -> pd.DataFrame:
    """Read the scores of a finished evaluation (`evaluate`), with each question's outcome and record.

    The record (`rl.trajectory.to_record`) is None in runs that older versions stored.

    Raises:
        RunError: the run is no finished evaluation, or damaged. DataError: it has no table of scores.
    """
    if run.kind != "evaluation" or not run.finished:
        raise RunError(f"{run.path.name} is no finished evaluation: choose another (`zs runs list`).")
    table, path = read_scores(run), run.path / PREDICTIONS_FILE
    rows = Log(run.file(PREDICTIONS_FILE), run.cure, id=str).rows() if path.exists() else []
    records = {row.pop("id"): row for row in rows}
    return table.assign(outcome=outcomes(table), record=[records.get(name) for name in table["id"]])


def outcomes(table: pd.DataFrame) -> pd.Series:
    """Tell how each question of an evaluation ended, in a word of OUTCOMES."""
    answered = table["stop_reason"] == "answer"
    found = table["answer_in_documents"].astype(bool)
    cases = [table["em"] == 1, answered & (table["f1"] > 0), answered & found, answered]
    return pd.Series(np.select(cases, list(OUTCOMES)[:4], "no answer"), table.index)


def error_table(table: pd.DataFrame, by: Sequence[str] = BY) -> pd.DataFrame:
    """Count questions by each of these columns, and the share of each outcome among them.

    One row a column and value (its index), first all questions.
    """
    ended = outcomes(table)
    parts = {("all", ""): table.index}
    for column in by:
        for value, part in table.groupby(column):
            parts[column.replace("_", " "), value] = part.index
    rows = {
        key: {"questions": len(index)} | {outcome: (ended[index] == outcome).mean() for outcome in OUTCOMES}
        for key, index in parts.items()
    }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index = pd.MultiIndex.from_tuples(frame.index, names=["by", "value"])
    return frame
