"""The tables in figures/tables/ and in the README are those of the record."""

import pandas as pd
import pytest

from zs_lib.analysis import figures, paper, results
from zs_lib.analysis.tables import (
    BEGIN,
    END,
    OURS,
    README,
    markdown,
    results_section,
    update_readme,
    write_all,
)
from zs_lib.errors import DataError


def test_the_readme_says_what_is_recorded(tmp_path):
    assert results_section(results.load_tables("tiny")) in README.read_text(encoding="utf-8")
    stale = tmp_path / "README.md"
    stale.write_text(f"before\n{BEGIN}\nF1 is 0.99\n{END}\nafter\n")
    update_readme(results.load_tables("tiny"), stale)
    text = stale.read_text()
    assert (
        "0.99" not in text
        and text.startswith("before\n")
        and text.endswith("\nafter\n")
        and "| ZeroSearch | 0.64" in text
    )
    stale.write_text("no marks")
    with pytest.raises(DataError, match="end of results"):
        update_readme(results.load_tables("tiny"), stale)


def test_the_stored_tables_are_those_of_the_record(tmp_path):
    for name in OURS:
        (tmp_path / f"{name}.csv").write_text("of another record")
    written, lacking = write_all("tiny", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    assert len(written) == 3 * (len(OURS) - len(lacking) + len(paper.TABLES) + 1)  # the paper's setting
    assert {path.name for path in (figures.FOLDER / "tables").iterdir()} == {path.name for path in written}
    for path in written:
        assert path.read_bytes() == (figures.FOLDER / "tables" / path.name).read_bytes(), path.name


def test_a_table_as_markdown():
    table = pd.DataFrame(
        {"a|b": [0.12345, 2.0], "c": ["x|y", "z"]}, index=pd.Index(["one", "two"], name="row")
    )
    assert (
        markdown(table)
        == "| row | a\\|b | c |\n| --- | --- | --- |\n| one | 0.1235 | x\\|y |\n| two | 2 | z |\n"
    )
