"""Figures from tables: every one can be drawn, says what it shows, and asks for what it lacks."""

from itertools import combinations

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib import image
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from study_fixtures import ROWS

from zs_lib import config
from zs_lib.analysis import claims, cost, figures, results, summaries
from zs_lib.analysis.drawing import WIDTHS
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


def test_files_for_papers_are_the_same_each_time_and_embed_their_fonts(tables, tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "FIGURES", {"04_heldout": figures.FIGURES["04_heldout"]})
    made = [
        figures.draw_all("tiny", tmp_path / name, tables, "column", ("png", "svg", "pdf"))[0] for name in "ab"
    ]
    assert [path.name for path in made[0]] == ["04_heldout.png", "04_heldout.svg", "04_heldout.pdf"]
    png, svg, pdf = (path.read_bytes() for path in made[0])
    assert [png, svg, pdf] == [path.read_bytes() for path in made[1]]
    assert image.imread(made[0][0]).shape[1] == 3.3 * 200
    assert b"<text" not in svg and b"<dc:date>" not in svg  # its text is drawn as paths
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf and b"/CreationDate" not in pdf


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
    drawn = [bar for bar in axes.containers if len(bar[0].get_xdata())]
    filled = [bar[0].get_markerfacecolor() != "white" for bar in drawn]
    capped = [len(bar[1]) == 2 for bar in drawn]
    solid = [bar[2][0].get_linestyle()[0][1] is None for bar in drawn]
    assert sum(filled) == 1 and len(filled) > 5 and filled == capped == solid
    told = {text.get_text() for text in axes.figure.legends[0].get_texts()}
    assert {"95% over seeds and questions", "95% over questions, one seed"} <= told
    figures.plt.close(axes.figure)


def test_costs_break_even_where_lines_cross():
    figure = figures.draw("08_break_even", {}, "profile tiny")
    # it shows no run of any profile
    assert figure.texts[0].get_text().startswith("prices quoted (data/prices.csv)")
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
    assert "warning: reward drop" in axes.get_legend_handles_labels()[1]
    marked = next(line for line in axes.lines if line.get_marker() == "X")
    assert 14 < marked.get_xdata()[0] <= 20  # ten steps' mean is under half of 0.8 after more than five zeros
    quiet = figures.draw("04_engines", tables).axes[0].get_legend_handles_labels()[1]
    assert not [label for label in quiet if "warning" in label]


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
    tables = results.load_tables("tiny")
    trained = summaries.core(tables["evaluation"]).groupby("arm")["seed"].nunique().drop(results.START)
    assert (
        set(trained.index) == {arm.name for arm in config.load_profile("tiny").policies}
        and trained.min() >= 3
    )
    names = {f"{name}.{one.ending}" for name, one in figures.FIGURES.items()}
    assert names <= {path.name for path in figures.FOLDER.iterdir()}
    assert {path.name for path in figures.FOLDER.glob("*.png")} <= names


def drawn_texts(figure, monkeypatch):
    """Draw a figure and return each text that it shows, with its box on the canvas."""
    found, draw = [], Text.draw

    def note(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            found.append((self.get_text(), self.get_window_extent(renderer)))
        return draw(self, renderer, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Text, "draw", note)
        figure.canvas.draw()
    return found


@pytest.mark.parametrize(("profile", "width"), [*(("tiny", width) for width in WIDTHS), ("smol", "page")])
def test_no_texts_of_a_recorded_figure_touch_or_leave_the_canvas(profile, width, monkeypatch):
    tables, varied = results.load_tables(profile), results.load_variations(profile)
    foot, faults, count = figures.provenance_of(tables, profile), [], 0
    for name, drawing in figures.FIGURES.items():
        shown = varied if drawing.varied else tables
        if figures._lacks(drawing, shown, width):
            continue
        figure = figures.draw(name, shown, foot, width)
        texts, canvas = drawn_texts(figure, monkeypatch), figure.bbox.padded(0.5)
        faults += [(name, text) for text, box in texts if not canvas.contains(*box.min + box.size)]
        faults += [(name, text) for text, box in texts if not canvas.contains(*box.min)]
        for (one, box), (other, second) in combinations(texts, 2):
            both = Bbox.intersection(box, second)
            if both and both.width > 0.5 and both.height > 0.5:
                faults.append((name, one, other))
        for axes in figure.axes:  # a panel has numbers or names at its axes, or none on purpose
            for axis in (axes.xaxis, axes.yaxis):
                if len(axis.get_ticklocs()) and not any(t.get_text() for t in axis.get_ticklabels()):
                    faults.append((name, axes.get_title("left"), axis.axis_name))
        count += 1
        plt.close(figure)
    assert not faults and count > 5


def test_the_claims_figure_shows_each_statement_with_its_verdict():
    recorded = results.load_tables("tiny")
    told = claims.paper_claims(recorded).reset_index()
    axes = figures.draw("10_claims", recorded).axes[0]
    rows = [tick.get_text().partition("  ")[2] for tick in axes.get_yticklabels()]
    assert rows == told[told["estimate"].notna()]["statement"].to_list()
    first, place = told.iloc[0], len(rows) - 1
    at, marker, low, high = next(
        (bar[0].get_xdata()[0], bar[0].get_marker(), *bar[2][0].get_segments()[0][:, 0])
        for bar in axes.containers
        if len(bar[0].get_ydata()) and bar[0].get_ydata()[0] == place
    )
    assert (at, low, high) == pytest.approx(
        [first[end] / first["margin"] for end in ("estimate", "low", "high")]
    )
    assert marker == figures.VERDICTS[first["verdict"]][0]
    plt.close(axes.figure)
