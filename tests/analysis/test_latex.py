"""LaTeX tables: what is written, what is bold, and that all stored ones compile."""

import re
import shutil
import subprocess

import pandas as pd
import pytest

from zs_lib.analysis import figures
from zs_lib.analysis.comparisons import best_apart
from zs_lib.analysis.latex import PREAMBLE, latex

KNOWN = r"\\(textbf|text[a-z]+|dots|allowbreak)\{|\\[&%$#_{}]|\$(\\[a-z]+|[<>-])\$"
STORED = sorted((figures.FOLDER / "tables").glob("*.tex"))


def test_numbers_have_the_decimals_of_their_column_and_text_is_escaped():
    table = pd.DataFrame(
        {
            "a_b": [0.5, 12.25],
            "n": [3, 40],
            "text": ["5 % & ~x_y", "40.9 ± 1.3 *"],
            "gap": [1.0, float("nan")],
            "large": [-7024.8, 0.0375],
            "said": ["`zs x --full`: \"all\" of 'it'", "1.2-7B: -4.1 to (-0.5)"],
        },
        index=pd.Index(["[one]", "two"], name="row"),
    )
    best = pd.DataFrame({"a_b": [False, True]}, index=table.index)
    assert latex(table, best).splitlines() == [
        r"\begin{tabular}{lrrlrrl}",
        r"\toprule",
        r"row & a b & n & text & gap & large & said \\",
        r"\midrule",
        r"{[}one] & 0.50 & 3 & 5 \% \& \textasciitilde{}x\_\allowbreak{}y & 1 & $-$7025 & "
        r"\texttt{zs x -{}-full}: ``all'' of `it' \\",
        r"two & \textbf{12.25} & 40 & \textbf{40.9 $\pm$ 1.3} & -- & 0 & 1.2-7B: $-$4.1 to ($-$0.5) \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_groups_are_named_once_and_sentences_are_broken():
    index = pd.MultiIndex.from_tuples([("S", "a"), ("S", "b"), ("M", "a")], names=["size", "method"])
    lines = latex(pd.DataFrame({"says": ["short", "w" * 50, "x"]}, index=index)).splitlines()
    assert lines[0].startswith(r"\begin{tabular}{ll>{\raggedright\arraybackslash}p{0.")
    assert [line.split(" & ")[0] for line in lines[4:8]] == ["S", "", r"\midrule", "M"]
    assert [line[-3:] for line in lines[4:6]] == [r"\\*", r" \\"]  # no page ends within a group
    alone = latex(pd.DataFrame({"says": ["w" * 50, "x"], "em": ["5.6 ± 5.3", "27.8 ± 10.3"]})).splitlines()
    assert alone[0].endswith("r}") and alone[5] == r"\addlinespace[2pt]"
    assert "longtable" in latex(pd.DataFrame({"says": ["w" * 200]}))


def test_only_what_can_be_told_apart_is_best():
    """ZeroSearch answers 9 of 10 questions with either seed; R1 none; the others differ by chance or seed."""

    def scores(arm, *right):
        rows = [
            {"arm": arm, "seed": seed, "id": str(i), "subset": "s", "em": float(i < n)}
            for seed, n in enumerate(right)
            for i in range(20)
        ]
        return pd.DataFrame(rows)

    def best(*parts):
        arms = {part["arm"].iloc[0]: part["arm"].iloc[0] for part in parts}
        found = best_apart(pd.concat(parts), arms)
        return found["s"][found["s"]].index.to_list()

    assert best(scores("zerosearch", 19, 18), scores("r1", 0, 1)) == ["zerosearch"]
    assert best(scores("zerosearch", 19, 18), scores("search-r1", 18, 19), scores("r1", 0, 1)) == []
    assert best(scores("zerosearch", 19), scores("r1", 0)) == []  # of one seed


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_every_row_of_a_stored_table_has_all_columns_and_no_bare_sign(path):
    head, *body = path.read_text(encoding="utf-8").splitlines()
    kind, spec = re.fullmatch(r"\\begin\{(tabular|longtable)\}\{(.*)\}", head).groups()
    columns = len(re.sub(r">\{\\raggedright\\arraybackslash\}p\{0\.\d+\\linewidth\}", "p", spec))
    assert body[-1] == rf"\end{{{kind}}}" and body[0] == r"\toprule" and body[-2] == r"\bottomrule"
    others = r"\toprule", r"\midrule", r"\bottomrule", r"\endhead", r"\addlinespace[2pt]"
    rows = [line.removesuffix("*") for line in body[:-1] if line not in others]
    assert len(rows) > 1
    for row in rows:
        assert row.endswith(r" \\") and row.isascii()
        assert len(re.split(r"(?<!\\)&", row)) == columns, row
        plain = re.sub(KNOWN, "", row.removesuffix(r" \\")).replace("{[}", "[")
        assert not set("\\%$#_^~") & set(plain), row


def test_the_stored_tables_compile(tmp_path):
    """By pdfLaTeX with booktabs, if installed (`make test-latex`); the test above always reads them."""
    engine, finder = shutil.which("pdflatex"), shutil.which("kpsewhich")
    if (
        not engine
        or not finder
        or subprocess.run([finder, "booktabs.sty"], stdout=subprocess.DEVNULL).returncode
    ):
        pytest.skip("pdfLaTeX with booktabs is not installed")
    text = "\n\\clearpage\n".join(
        rf"\footnotesize\noindent {path.read_text(encoding='utf-8')}" for path in STORED
    )
    document = tmp_path / "tables.tex"
    document.write_text(
        "\\documentclass{article}\n\\usepackage[landscape,margin=1cm]{geometry}\n"
        f"{PREAMBLE}\n\\begin{{document}}\n{text}\n\\end{{document}}\n"
    )
    command = [engine, "-interaction=nonstopmode", "-halt-on-error", document.name]
    for _ in range(3):  # a longtable takes the widths of its columns from the run before
        ran = subprocess.run(command, cwd=tmp_path, capture_output=True, timeout=60)
        log = (tmp_path / "tables.log").read_text(encoding="latin-1")
        assert ran.returncode == 0, log[-2000:]
    assert "Overfull" not in log and "Missing character" not in log and "Rerun" not in log
    assert int(re.search(r"\((\d+) pages?", log)[1]) >= len(STORED)
