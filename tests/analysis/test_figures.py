"""Figures from tables: every one can be drawn, says what it shows, and asks for what it lacks."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from study_fixtures import ROWS

from zs_lib import config
from zs_lib.analysis import cost, figures, results, summaries
from zs_lib.errors import ConfigError, DataError


def test_all_are_drawn_twice_to_the_same_bytes_and_say_where_they_come_from(tables, tmp_path):
    (written, lacking), (again, _) = (figures.draw_all("tiny", tmp_path / name, tables) for name in "ab")
    assert (
        not lacking
        and [path.stem for path in written] == list(figures.FIGURES)
        and all(path.stat().st_size > 5000 for path in written)
    )
    assert all(one.read_bytes() == other.read_bytes() for one, other in zip(written, again, strict=True))
    assert figures.provenance_of(tables, "tiny") == "profile tiny; 1 seed(s); runs: zerosearch 012345"


def test_a_picture_of_another_record_does_not_stay(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(
        figures, "FIGURES", {name: figures.FIGURES[name] for name in ("04_engines", "05_simulators")}
    )
    old = tmp_path / "05_simulators.png"
    old.write_bytes(b"of another record")
    written, lacking = figures.draw_all("tiny", tmp_path, tables | {"study_rows": ROWS.iloc[:0]})
    assert list(lacking) == ["05_simulators"] and not old.exists()
    assert written == [tmp_path / "04_engines.png"]


def test_a_curve_is_the_mean_over_seeds(tables):
    figure = figures.draw("04_engines", tables)
    line = figure.axes[0].lines[0]
    assert line.get_ydata()[0] == pytest.approx(0.1) and line.get_ydata()[-1] == pytest.approx(
        0.8
    )  # mean of steps 6 to 10


def test_an_interval_of_one_seed_does_not_look_like_one_of_several(tables):
    scores = tables["evaluation"]  # seed 0 alone
    main = scores[scores["arm"] == "zerosearch"].assign(seed=1)
    axes = figures.draw("05_simulators", tables | {"evaluation": pd.concat([scores, main])}).axes[0]
    filled = [line.get_markerfacecolor() != "white" for line in axes.lines if line.get_marker() == "o"]
    dotted = [bar.get_linestyle()[0][1] is not None for bar in axes.collections]
    assert sum(filled) == 1 and len(filled) > 5 and [not one for one in filled] == dotted
    figures.plt.close(axes.figure)


def test_costs_break_even_where_lines_cross():
    figure = figures.draw("08_break_even", {}, "profile tiny")
    assert figure.get_supxlabel().startswith(
        "prices quoted (data/prices.csv)"
    )  # it shows no run of any profile
    axes, training = figure.axes[0], cost.paper_load()
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


def test_the_parts_of_a_reward_are_drawn_beside_it(tables):
    table = tables["training"].assign(reward_f1=0.5, reward_searches=2.0)
    axes = figures.draw("03_curriculum", tables | {"training": table}).axes[0]
    parts = {line.get_label(): line.get_ydata() for line in axes.lines if line.get_linestyle() == "--"}
    assert list(parts) == ["f1", "searches"] and set(parts["searches"]) == {2.0} and axes.get_ylim()[1] > 2
    assert figures.draw("03_curriculum", tables).axes[0].get_ylim() == (0, 1)


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


def test_the_recorded_study_has_three_seeds_of_every_arm_and_all_its_figures():
    tables, varied = results.load_tables("tiny"), results.load_variations("tiny")
    trained = summaries.core(tables["evaluation"]).groupby("arm")["seed"].nunique().drop(results.START)
    assert (
        set(trained.index) == {arm.name for arm in config.load_profile("tiny").policies}
        and trained.min() >= 3
    )
    drawn = {path.stem for path in figures.FOLDER.glob("*.png")}
    assert drawn and drawn <= set(figures.FIGURES)
    for name in drawn:
        figure = figures.draw(name, varied if figures.FIGURES[name].varied else tables)
        assert figure.axes
        plt.close(figure)
