"""The README's result section, made from recorded results: it says what they say, or a test fails."""

from __future__ import annotations

from pathlib import Path

from zs_lib import claims, config, results
from zs_lib.errors import DataError
from zs_lib.figures import LABELS
from zs_lib.results import Tables

README = config.ROOT / "README.md"
BEGIN, END = "<!-- results: `zs runs record` writes these lines -->", "<!-- end of results -->"


def section(tables: Tables) -> str:
    """Held-out F1 of every arm, then the statements tested on them and on the simulators, as Markdown."""
    scores = results.heldout_table(results.core(tables["evaluation"])).sort_values("f1", ascending=False)
    seeds, questions = int(scores["seeds"].max()), int(scores["questions"].max())
    lines = [f"F1 on {questions} questions about held-out entities, with BM25, mean of {seeds} seeds and 95% interval over seeds and questions:",
             "", "| | F1 | searches |", "| --- | --- | --- |"]
    lines += [f"| {LABELS[arm]} | {row['f1']:.2f} ({row['low']:.2f} to {row['high']:.2f}) | {row['searches']:.1f} |" for arm, row in scores.iterrows()]
    lines += ["", "| tested statement | estimate (95% interval) | aim | verdict |", "| --- | --- | --- | --- |"]
    for table in (claims.heldout(tables), claims.fidelity(tables)):
        lines += [f"| {statement} | {row['estimate']:.3f} ({row['low']:.3f} to {row['high']:.3f}) | {row['bound']} | {row['verdict']} |"
                  for statement, row in table.iterrows()]
    return "\n".join(lines)


def update(tables: Tables, path: Path = README) -> None:
    """Replace the lines between the two marks.

    Raises:
        DataError: the marks are not there.
    """
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{path.name} has no place for results: put the lines {BEGIN!r} and {END!r} around one.")
    path.write_text(f"{before}{BEGIN}\n{section(tables)}\n{END}{after}", encoding="utf-8")
