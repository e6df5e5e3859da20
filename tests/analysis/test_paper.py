"""The paper's tables: as printed, with the error that they leave out."""

import re

import pandas as pd
import pytest

from zs_lib.analysis import paper
from zs_lib.errors import ConfigError


@pytest.mark.parametrize("name", [name for name in paper.TABLES if name != "cost"])
def test_averages_are_those_of_the_subsets(name):
    table = paper.load_table(name)
    assert (
        table[list(paper.TEST_SETS)].mean(axis=1) - table["Avg"]
    ).abs().max() < 0.02  # a slip of the pen shows


def test_bamboogle_has_125_or_72_questions():
    assert [paper.bamboogle_questions(score) for score in (14.4, 24.0, 13.89, 30.56, 5.56)] == [
        125,
        125,
        72,
        72,
        72,
    ]
    assert paper.load_table("main_results")["Bamboogle"].map(
        paper.bamboogle_questions
    ).value_counts().to_dict() == {72: 18, 125: 15}


def test_errors_by_hand():
    row = pd.DataFrame([dict.fromkeys(paper.TEST_SETS, 50.0)])
    errors = paper.standard_errors(row).iloc[0]
    assert errors["NQ"] == pytest.approx(2.23607, abs=1e-4)  # 100 sqrt(0.25 / 500)
    assert errors["Bamboogle"] == pytest.approx(
        5.89256, abs=1e-4
    )  # 50% is 36 of 72, and no whole number of 125
    assert errors["Avg"] == pytest.approx((6 * 5 + 34.7222) ** 0.5 / 7, abs=1e-4)


def test_only_a_best_far_from_all_others_is_marked():
    scores, errors = (
        pd.DataFrame({"a": [10.0, 40.0, 12.0], "b": [10.0, 40.0, 38.0]}),
        pd.DataFrame({"a": [2.0] * 3, "b": [2.0] * 3}),
    )
    assert paper.distinguishable(scores, errors).to_numpy().tolist() == [
        [False, False],
        [True, False],
        [False, False],
    ]


def test_the_papers_main_average_is_not_told_from_search_r1():
    table = paper.with_intervals("main_results").set_index(["backbone", "method"])
    assert table.loc[("Qwen-2.5-7B", "ZeroSearch-base"), "Avg"] == "40.9 ± 2.1"
    assert not table["Avg"].str.contains("*", regex=False).any()


def test_an_unknown_table_is_named():
    with pytest.raises(ConfigError, match="main_results"):
        paper.load_table("table9")


def test_the_setting_is_the_paper_s_or_the_original_s_or_the_difference_is_told():
    table = paper.setting_table()
    compared = 0
    for line in table.itertuples():
        stated = line.original if line.paper == "not said" else line.paper
        numbers = re.fullmatch(r"[\d.e-]+(?= |$).*", stated)
        if numbers and not isinstance(line.ours, (str, bool)):
            compared += 1
            assert float(line.ours) == float(stated.split()[0]) or line.difference, line
        assert line.ours != "see there" or line.difference, line
    assert compared > 20 and not table.reset_index()[["part", "setting"]].duplicated().any()
