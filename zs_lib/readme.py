"""The README's result section, made from recorded results: it says what they say, or a test fails."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from zs_lib import claims, config, results
from zs_lib.errors import DataError
from zs_lib.drawing import LABELS
from zs_lib.results import Tables
from zs_lib.tables import markdown

README = config.ROOT / "README.md"
BEGIN, END = "<!-- results: `zs runs record` writes these lines -->", "<!-- end of results -->"


def section(tables: Tables) -> str:
    """Held-out F1 of every arm, then the statements tested on them and on the simulators, as Markdown."""
    scores = results.heldout_table(results.core(tables["evaluation"])).sort_values("f1", ascending=False)
    seeds, questions = int(scores["seeds"].max()), int(scores["questions"].max())
    arms = pd.DataFrame(
        {
            "F1": [_interval(row["f1"], row, 2) for _, row in scores.iterrows()],
            "searches": [f"{count:.1f}" for count in scores["searches"]],
        },
        index=pd.Index(scores.index.map(LABELS), name=""),
    )
    tested = pd.concat([claims.heldout(tables), claims.fidelity(tables)])
    tested["estimate (95% interval)"] = [_interval(row["estimate"], row, 3) for _, row in tested.iterrows()]
    statements = (
        tested[["estimate (95% interval)", "bound", "verdict"]]
        .rename_axis("tested statement")
        .rename(columns={"bound": "aim"})
    )
    head = f"F1 on {questions} questions about held-out entities, with BM25, mean of {seeds} seeds and 95% interval over seeds and questions:"
    return f"{head}\n\n{markdown(arms)}\n{markdown(statements)}".rstrip("\n")


def _interval(value: float, row: pd.Series, digits: int) -> str:
    return f"{value:.{digits}f} ({row['low']:.{digits}f} to {row['high']:.{digits}f})"


def update(tables: Tables, path: Path = README) -> None:
    """Replace the lines between the two marks.

    Raises:
        DataError: the marks are not there.
    """
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(
            f"{path.name} has no place for results: put the lines {BEGIN!r} and {END!r} around one."
        )
    path.write_text(f"{before}{BEGIN}\n{section(tables)}\n{END}{after}", encoding="utf-8")
