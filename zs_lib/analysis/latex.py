"""Tables for LaTeX: with booktabs, and with array and longtable where cells hold sentences."""

from __future__ import annotations

import math
import re

import numpy as np
import pandas as pd

SENTENCE = 45
"""A column with a longer cell is broken into lines."""
ESCAPED = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "|": r"\textbar{}",
        "[": "{[}",  # after the end of a row it would be an argument
        "±": r"$\pm$",
        "×": r"$\times$",
        "→": r"$\to$",
        "<": "$<$",
        ">": "$>$",
        "…": r"\dots{}",
        "–": "--",
    }
    | {sign: f"\\{sign}" for sign in "&%$#{}"}
    | {"_": r"\_\allowbreak{}"}
)
TYPESET = {
    r"`(.*?)`": r"\\texttt{\1}",
    r'"(.*?)"': r"``\1''",
    r"(?<!\S)'(.*?)'": r"`\1'",
    r"(?<!\S)--(?=[a-z])": "-{}-",  # of an option: two hyphens would become a dash
    r"(?<![^\s(])-(?=\d)": "$-$",
}
"""Pattern of an escaped text → how LaTeX writes it: code, quotes, options, negative numbers."""
DIGITS = 4
"""Significant digits of the largest number of a column, at most."""
PREAMBLE = r"\usepackage{booktabs,array,longtable}"
"""What a document needs for these tables; sentences are meant for a landscape page, in footnotesize."""


def latex(table: pd.DataFrame, best: pd.DataFrame | None = None) -> str:
    """Format a table and its index: each column of numbers with its own fixed number of decimals.

    Headings have spaces in place of underscores. `best`: (some of the rows, some of the columns) bool, the
    cells in bold; so is text that ends with " *". The first level of an index of two is written once, above a
    rule between its groups, which no page parts.
    """
    flat = table.reset_index()
    cells = np.array([_column(flat.iloc[:, place]) for place in range(flat.shape[1])], dtype=object).T
    if best is not None:
        marked = best.reindex(index=table.index, columns=table.columns, fill_value=False).to_numpy(dtype=bool)
        shown = cells[:, table.index.nlevels :]
        shown[marked] = [rf"\textbf{{{cell}}}" for cell in shown[marked]]
    head = " & ".join(_escaped(str(name).replace("_", " ")) for name in flat.columns) + " \\\\\n"
    spec, grouped = _columns(flat), table.index.nlevels > 1
    between = "\\addlinespace[2pt]\n" if "p{" in spec and not grouped else ""
    starts = [*flat.iloc[:, 0].ne(flat.iloc[:, 0].shift()), True]
    rows = []
    for number, row in enumerate(cells.tolist()):
        rule = "\\midrule\n" if grouped and starts[number] else between
        row[0] = "" if grouped and not starts[number] else row[0]
        kept = "*" if grouped and not starts[number + 1] else ""
        rows.append(f"{rule if number else ''}{' & '.join(row)} \\\\{kept}\n")
    long = len(flat) > 25 or max(map(len, cells.ravel())) > 4 * SENTENCE
    top, body = f"\\toprule\n{head}\\midrule\n", "".join(rows)
    kind, body = ("longtable", f"\\endhead\n{body}") if long else ("tabular", body)
    return f"\\begin{{{kind}}}{{{spec}}}\n{top}{body}\\bottomrule\n\\end{{{kind}}}\n"


def _column(values: pd.Series) -> list[str]:
    if pd.api.types.is_float_dtype(values):
        exact = [f"{value:.4f}".rstrip("0").partition(".")[2] for value in values.dropna()]
        largest = values.abs().max()
        fitting = DIGITS - 1 - math.floor(math.log10(largest)) if largest > 0 else 0
        decimals = max(0, min(fitting, max(map(len, exact), default=0)))
        return ["--" if math.isnan(value) else _escaped(f"{value:z.{decimals}f}") for value in values]
    return [_escaped(value) for value in values]


def _escaped(value: object) -> str:
    text = "--" if pd.isna(value) else str(value)
    escaped = text.removesuffix(" *").translate(ESCAPED)
    for pattern, typeset in TYPESET.items():
        escaped = re.sub(pattern, typeset, escaped)
    return rf"\textbf{{{escaped}}}" if text.endswith(" *") else escaped


def _columns(flat: pd.DataFrame) -> str:
    """Numbers at the right, text at the left, sentences in what is left of a landscape page."""
    numbers = [
        pd.api.types.is_numeric_dtype(values) or values.astype(str).str.contains("±").all()
        for _, values in flat.items()
    ]
    lengths = [max(map(len, map(str, [name, *values]))) for name, values in flat.items()]
    short = sum(length for length in lengths if length <= SENTENCE)
    free = max(0.3, 0.98 - 0.008 * short - 0.017 * len(lengths))
    total = sum(length**0.35 for length in lengths if length > SENTENCE)
    return "".join(
        rf">{{\raggedright\arraybackslash}}p{{{free * length**0.35 / total:.3f}\linewidth}}"
        if length > SENTENCE
        else "r"
        if number
        else "l"
        for number, length in zip(numbers, lengths, strict=True)
    )
