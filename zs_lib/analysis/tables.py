"""The paper's tables from recorded results, ours and its own, as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from zs_lib.analysis import claims, cost, ledger, paper, results, summaries
from zs_lib.analysis.comparisons import best_apart, stored
from zs_lib.analysis.drawing import LABELS
from zs_lib.analysis.latex import latex
from zs_lib.analysis.results import Tables
from zs_lib.analysis.statistics import ONE_SEED
from zs_lib.config import paths
from zs_lib.config.values import pick
from zs_lib.errors import DataError
from zs_lib.runs.files import write_text

OURS: dict[str, Callable[[Tables], pd.DataFrame]] = {
    "table3_methods": summaries.methods_table,
    "table4_simulators": lambda tables: summaries.study_table(tables, "simulators"),
    "table5_algorithms": lambda tables: summaries.study_table(tables, "algorithms"),
    "table6_curricula": lambda tables: summaries.study_table(tables, "curricula"),
    "table7_masks": lambda tables: summaries.study_table(tables, "masks"),
    "table8_cost": lambda tables: cost.priced(stored(tables, "cost")).round(4),
    "core": lambda tables: summaries.heldout_table(summaries.core(tables["evaluation"])).round(3),
    "noise": summaries.effective_noise,
    "claims": lambda tables: ledger.verdicts(claims.paper_claims(tables)),
    "ledger": lambda tables: ledger.ledger(claims.paper_claims(tables)),
    "statements": lambda tables: statements(tables),
}
"""File name → table; EM in percent, with 95% intervals over seeds and questions."""
BEST: dict[str, Callable[[Tables], pd.DataFrame]] = {
    "table3_methods": lambda tables: best_methods(tables),
    "table4_simulators": lambda tables: best_row(tables, "simulators"),
    "table5_algorithms": lambda tables: best_row(tables, "algorithms"),
    "table6_curricula": lambda tables: best_row(tables, "curricula"),
    "table7_masks": lambda tables: best_row(tables, "masks"),
}
"""File name → which of its cells are bold in LaTeX: the best of a column, if it can be told apart."""
OWN: dict[str, Callable[[Tables], pd.DataFrame]] = {
    "own_heldout": lambda tables: summaries.heldout_table(stored(tables, "evaluation")).round(3),
    "provenance": lambda tables: stored(tables, "provenance").set_index("run"),
}
"""As OURS, of every arm and run of the store."""


def make_all(made: Tables, names: Iterable[str]) -> tuple[dict[str, pd.DataFrame], dict[str, str]]:
    """Make these tables of OURS and OWN; and for each that cannot be made the reason.

    Raises:
        ConfigError: there is no such table.
    """
    found, lacking = {}, {}
    for name in names:
        make = pick("table", name, OURS | OWN)
        try:
            found[name] = make(made)
        except DataError as error:
            lacking[name] = str(error)
    return found, lacking


def write_all(profile: str, folder: Path, made: Tables | None = None) -> tuple[list[Path], dict[str, str]]:
    """Write a profile's recorded tables and the paper's own to `folder`, as CSV, Markdown and LaTeX.

    `made`: tables of the run store instead of the record. Returns the files, and for each table that cannot
    be made the reason.
    """
    written, lacking = write(made or results.load_tables(profile), folder, [*OURS, *(OWN if made else ())])
    for name in paper.TABLES:
        table = paper.load_table(name) if name == "cost" else paper.with_intervals(name)
        keys = list(table.columns[: 2 if "backbone" in table else 1])
        written += _write(table.set_index(keys), folder / f"paper_{name}")
    written += _write(paper.setting_table(), folder / "paper_setting")
    return written, lacking


def write(made: Tables, folder: Path, names: Iterable[str]) -> tuple[list[Path], dict[str, str]]:
    """Write these tables of OURS and OWN to `folder`, as CSV, Markdown and LaTeX.

    Returns the files, and for each table that cannot be made the reason; its outdated files are deleted.
    """
    folder.mkdir(parents=True, exist_ok=True)
    found, lacking = make_all(made, names)
    for name in lacking:
        for outdated in folder.glob(f"{name}.*"):
            outdated.unlink()
    written = []
    for name, table in found.items():
        written += _write(table, folder / name, BEST[name](made) if name in BEST else None)
    return written, lacking


def best_row(tables: Tables, study: str) -> pd.DataFrame:
    """Mark the cells of a study's table whose score is above every other row's (`best_apart`)."""
    labels = summaries.study_scores(tables, study)["arm"]
    return best_apart(tables["evaluation"], labels.to_dict())


def best_methods(tables: Tables) -> pd.DataFrame:
    """Mark the cells of Table 3 whose score is above every other method's of the same backbone."""
    table = summaries.by_method(tables)
    found = {
        backbone: best_apart(part, part.groupby("method", sort=False)["arm"].first().to_dict())
        for backbone, part in table.groupby("backbone", sort=False)
    }
    return pd.concat(found)


def _write(table: pd.DataFrame, stem: Path, best: pd.DataFrame | None = None) -> list[Path]:
    texts = {"csv": table.to_csv(lineterminator="\n"), "md": markdown(table), "tex": latex(table, best)}
    paths = []
    for ending, text in texts.items():
        paths.append(stem.with_name(f"{stem.name}.{ending}"))
        write_text(paths[-1], text)
    return paths


def markdown(table: pd.DataFrame) -> str:
    """Format a table and its index as GitHub Markdown."""
    flat = table.reset_index()
    lines = [map(_text, flat.columns), ["---"] * flat.shape[1], *flat.map(_text).to_numpy()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", r"\|")


README = paths.ROOT / "README.md"
BEGIN, END = "<!-- results: `zs runs record` writes these lines -->", "<!-- end of results -->"


def results_section(tables: Tables) -> str:
    """Write the README's results as Markdown: held-out F1 of the core arms."""
    scores = summaries.heldout_table(summaries.core(tables["evaluation"])).sort_values("f1", ascending=False)
    seeds, questions = int(scores["seeds"].max()), int(scores["questions"].max())
    arms = pd.DataFrame(
        {
            "F1": [_interval(row["f1"], row, 2) for _, row in scores.iterrows()],
            "searches": [f"{count:.1f}" for count in scores["searches"]],
        },
        index=pd.Index(scores.index.map(LABELS), name=""),
    )
    head = (
        f"F1 on {questions} questions about held-out entities, with BM25, "
        f"mean of {seeds} seeds and 95% interval over seeds and questions (in square brackets: over the "
        "questions of one seed):"
    )
    return f"{head}\n\n{markdown(arms)}".rstrip("\n")


def statements(tables: Tables) -> pd.DataFrame:
    """Test what the core study is about: held-out scores, and what simulators write."""
    tested = pd.concat([claims.heldout_statements(tables), claims.fidelity_statements(tables)])
    tested["estimate (95% interval)"] = [_interval(row["estimate"], row, 3) for _, row in tested.iterrows()]
    shown = tested[["estimate (95% interval)", "bound", "verdict"]].rename(columns={"bound": "aim"})
    return shown.rename_axis("tested statement")


def _interval(value: float, row: pd.Series, digits: int) -> str:
    """In square brackets where the interval leaves seeds out."""
    opened, closed = "[]" if row["over"] == ONE_SEED else "()"
    return f"{value:.{digits}f} {opened}{row['low']:.{digits}f} to {row['high']:.{digits}f}{closed}"


def update_readme(tables: Tables, path: Path = README) -> None:
    """Replace the README's results between the marks BEGIN and END.

    Raises:
        DataError: a mark is missing.
    """
    before, begin, rest = path.read_text(encoding="utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise DataError(f"{path.name} has no place for results: add the lines {BEGIN!r} and {END!r}.")
    write_text(path, f"{before}{BEGIN}\n{results_section(tables)}\n{END}{after}")
