"""The paper's tables from recorded results, ours and its own, as CSV, Markdown and LaTeX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd

from zs_lib import claims, cost, paper, results
from zs_lib.errors import DataError
from zs_lib.files import write_text
from zs_lib.results import Tables

OURS: dict[str, Callable[[Tables], pd.DataFrame]] = {
    "table3_methods": results.methods_table,
    "table4_simulators": lambda tables: results.study_table(tables, "simulators"),
    "table5_algorithms": lambda tables: results.study_table(tables, "algorithms"),
    "table6_curricula": lambda tables: results.study_table(tables, "curricula"),
    "table7_masks": lambda tables: results.study_table(tables, "masks"),
    "table8_cost": lambda tables: cost.priced(tables["cost"]).round(4),
    "core": lambda tables: results.heldout_table(results.core(tables["evaluation"])).round(3),
    "claims": lambda tables: claims.verdicts(claims.paper_claims(tables)),
}
"""File name → the table; EM in percent, with 95% intervals over seeds and questions."""


def write_all(profile: str, folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Write every table that the recorded results of a profile suffice for into `folder`: the files, and of the other
    tables, why they are not written. The paper's own, with their sampling error, are the same for every profile."""
    recorded = results.load(profile)
    folder.mkdir(parents=True, exist_ok=True)
    written, lacking = [], {}
    for name, make in OURS.items():
        try:
            written += _write(make(recorded), folder / name)
        except DataError as error:
            lacking[name] = str(error)
            for older in folder.glob(f"{name}.*"):  # of another record
                older.unlink()
    for name in paper.TABLES:
        table = paper.load(name) if name == "cost" else paper.with_intervals(name)
        written += _write(table.set_index(table.columns[0]), folder / f"paper_{name}")
    return written, lacking


def _write(table: pd.DataFrame, stem: Path) -> list[Path]:
    texts = {
        "csv": table.to_csv(lineterminator="\n"),
        "md": markdown(table),
        "tex": table.to_latex(escape=True, float_format="%.3g"),
    }
    paths = []
    for ending, text in texts.items():
        paths.append(stem.with_name(f"{stem.name}.{ending}"))
        write_text(paths[-1], text)
    return paths


def markdown(table: pd.DataFrame) -> str:
    """A table with its index as GitHub shows it."""
    flat = table.reset_index()
    lines = [map(_text, flat.columns), ["---"] * flat.shape[1], *flat.map(_text).to_numpy()]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _text(value: object) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", r"\|")
