"""Figures from tables: every one can be drawn, says what it shows, and asks for what it lacks."""

import shutil

import pandas as pd
import pytest
from study_fixtures import ROWS

from zs_lib import config, studies
from zs_lib.analysis import cost, figures, paper, results, summaries
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
from zs_lib.errors import ConfigError, DataError
from zs_lib.qa import SUBSETS


@pytest.fixture
def tables():
    arms = ["zerosearch", "search-r1"] + [arm for arm in ROWS["arm"].drop_duplicates() if "/" in arm]
    steps = [
        {
            "arm": arm,
            "seed": seed,
            "step": step,
            "reward": step / 10,
            "turns": 2.0,
            "noise_probability": 0.1,
            "query_quality": 0.5,
        }
        for arm in arms
        for seed in (0, 1)
        for step in range(1, 11)
    ]
    scores = [
        {
            "arm": arm,
            "seed": 0,
            "id": f"{subset}{i}",
            "subset": subset,
            "hops": 1,
            "f1": i % 2,
            "em": i % 2,
            "searches": 1,
            "query_quality": 1.0,
        }
        for arm in ("start", "direct", "rag/backbone=tiny-M", *arms)
        for subset in SUBSETS
        for i in range(4)
    ]
    faithful = [
        {
            "simulator": f"grounded-tiny-{size}",
            "questions_from": source,
            "answer_good": 0.9,
            "answer_bad": 0.1,
            "leak": 0.0,
            "real_good": 1.0,
            "real_bad": 0.05,
        }
        for size in "SL"
        for source in studies.QUESTIONS_FROM
    ]
    robust = [
        {"arm": arm, "seed": seed, "engine": engine, "noise": noise, "f1": 0.6 - noise / 2}
        for arm in ("zerosearch", "search-r1", "search-r1/engine=dense")
        for seed in (0, 1)
        for engine, noise in (("bm25", 0.0), ("dense", 0.0), ("simulated", 0.0), ("bm25", 0.5))
    ]
    return {
        "study_rows": ROWS,
        "robustness": pd.DataFrame(robust),
        "training": pd.DataFrame(steps),
        "evaluation": pd.DataFrame(scores),
        "fidelity": pd.DataFrame(faithful),
        "tuning": pd.DataFrame({"simulator": "grounded-tiny-S", "step": [1, 2], "loss": [2.0, 1.0]}),
        "retrieval": pd.DataFrame({"subset": ["natural"], "hop": [1], "recall@3": [0.9], "recall@5": [1.0]}),
        "provenance": pd.DataFrame(
            {"kind": ["policy"], "arm": ["zerosearch"], "seed": [0], "run": ["policy-0123456789ab-s0"]}
        ),
    }


def test_all_are_drawn_and_say_where_they_come_from(tables, tmp_path):
    written, lacking = figures.draw_all("tiny", tmp_path, tables)
    assert (
        not lacking
        and [path.stem for path in written] == list(figures.FIGURES)
        and all(path.stat().st_size > 5000 for path in written)
    )
    assert figures.provenance_of(tables, "tiny") == "profile tiny; 1 seed(s); runs: zerosearch 012345"


def test_a_picture_of_another_record_does_not_stay(tables, tmp_path):
    old = tmp_path / "05_simulators.png"
    old.write_bytes(b"of another record")
    _, lacking = figures.draw_all("tiny", tmp_path, tables | {"study_rows": ROWS.iloc[:0]})
    assert "05_simulators" in lacking and not old.exists()


def test_redrawn_figures_are_the_same_bytes(tables, tmp_path):
    (first, _), (second, _) = (figures.draw_all("tiny", tmp_path / name, tables) for name in "ab")
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(first, second, strict=True))


def test_a_curve_is_the_mean_over_seeds(tables):
    figure = figures.draw("04_engines", tables)
    line = figure.axes[0].lines[0]
    assert line.get_ydata()[0] == pytest.approx(0.1) and line.get_ydata()[-1] == pytest.approx(
        0.8
    )  # mean of steps 6 to 10


def test_costs_break_even_where_lines_cross():
    figure = figures.draw("08_break_even", {}, "profile tiny")
    assert figure.get_supxlabel().startswith(
        "prices quoted (data/prices.csv)"
    )  # it shows no run of any profile
    axes, training = figure.axes[0], cost.papers_training()
    told = [text.get_text().partition("\n")[0] for text in axes.texts]
    assert told[:8] == [*cost.COMPARED, *cost.ways(training, "14B").index] and len(set(told)) == 10
    cheapest, rented = axes.lines[2], axes.lines[3]
    cross = cheapest.get_xdata()[cheapest.get_ydata() > rented.get_ydata()][0]
    assert cross == pytest.approx(rented.get_ydata()[0] / 0.0003, rel=0.11)  # a step of x: 10%


def test_a_warning_of_collapse_marks_the_curve(tables):
    falling = (
        tables["training"]
        .query("arm == 'zerosearch' and seed == 0")
        .assign(reward=[0.8] * 4 + [0.0] * 6, step=range(1, 11))
    )
    longer = pd.concat([falling.assign(step=falling["step"] - 10, reward=0.8), falling])
    axes = figures.draw("04_engines", tables | {"training": longer.assign(step=range(1, 21))}).axes[0]
    assert [text.get_text() for text in axes.texts] == ["reward drop"]
    marked = next(line for line in axes.lines if line.get_marker() == "X")
    assert 14 < marked.get_xdata()[0] <= 20  # ten steps' mean is under half of 0.8 after more than five zeros
    assert not figures.draw("04_engines", tables).axes[0].texts


def test_what_is_missing_is_named(tables):
    with pytest.raises(ConfigError, match="04_engines"):
        figures.draw("99_nothing", tables)
    with pytest.raises(DataError, match="training"):
        figures.draw("04_engines", tables | {"training": pd.DataFrame()})
    core = tables | {"study_rows": tables["study_rows"].query("study != 'masks'")}
    with pytest.raises(DataError, match="06_choices.*'masks'.*--full"):
        figures.draw("06_choices", core)
    with pytest.raises(DataError, match="zs reproduce --profile paper"):
        results.load_tables("paper")


def test_subset_table_has_the_papers_shape(tables):
    table = summaries.subset_table(tables["evaluation"], "em")
    assert list(table.columns) == [*SUBSETS, "Avg"] and table.loc["start", "Avg"] == 50.0
    assert list(summaries.core(tables["evaluation"])["arm"].unique()) == ["start", "zerosearch", "search-r1"]


def test_a_study_table_has_its_rows_in_order(tables):
    table = summaries.study_table(tables, "algorithms")
    assert list(table.index) == ["REINFORCE", "REINFORCE++", "GRPO", "PPO"]
    assert list(table.columns) == [*SUBSETS, "Avg", "interval", "seeds"] and (table["Avg"] == 50.0).all()
    with pytest.raises(DataError, match="'none'"):
        summaries.study_table(tables, "none")


def test_the_main_table_knows_method_and_backbone_of_every_arm(tables):
    table = summaries.methods_table(tables)
    assert [
        ("tiny-S", "Direct Answer"),
        ("tiny-S", "RA-Agent"),
        ("tiny-S", "Search-R1"),
        ("tiny-S", "ZeroSearch"),
    ] == [key for key in table.index if key[0] == "tiny-S"]
    assert ("tiny-M", "RAG") in table.index and ("tiny-L-instruct", "R1") in table.index
    assert not any("algorithm" in part for key in table.index for part in key)


def test_the_recorded_study_has_three_seeds_of_every_arm_and_all_its_figures():
    tables = results.load_tables("tiny")
    trained = summaries.core(tables["evaluation"]).groupby("arm")["seed"].nunique().drop(results.START)
    assert (
        set(trained.index) == {arm.name for arm in config.load_profile("tiny").policies}
        and trained.min() >= 3
    )
    drawn = {path.stem for path in figures.FOLDER.glob("*.png")}
    assert drawn and drawn <= set(figures.FIGURES)
    for name in drawn:
        assert figures.draw(name, tables).axes


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
        and "| verdict |" in text
    )
    stale.write_text("no marks")
    with pytest.raises(DataError, match="end of results"):
        update_readme(results.load_tables("tiny"), stale)


def test_the_stored_tables_are_those_of_the_record(tmp_path):
    for name in OURS:
        (tmp_path / f"{name}.csv").write_text("of another record")
    written, lacking = write_all("tiny", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    assert len(written) == 3 * (len(OURS) - len(lacking) + len(paper.TABLES))
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


def test_a_record_of_another_version_is_told(tmp_path):
    shutil.copytree(results.RECORDS / "tiny", tmp_path / "tiny")
    pd.DataFrame({"arm": ["zerosearch"], "seed": [0]}).to_csv(tmp_path / "tiny" / "cost.csv")
    with pytest.raises(DataError, match="cost.csv .* 'queries'"):
        results.load_tables("tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "training.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="training.csv.gz"):
        results.load_tables("tiny", tmp_path / "tiny")
