"""Summaries of stored tables have the shape of the paper's."""

import pandas as pd
import pytest

from zs_lib.analysis import summaries
from zs_lib.errors import DataError
from zs_lib.qa import SUBSETS


def test_subset_table_has_the_papers_shape(tables):
    table = summaries.subset_table(tables["evaluation"], "em")
    assert list(table.columns) == [*SUBSETS, "Avg"] and table.loc["start", "Avg"] == 50.0
    assert list(summaries.core(tables["evaluation"])["arm"].unique()) == ["start", "zerosearch", "search-r1"]


def test_a_study_table_has_its_rows_in_order(tables):
    table = summaries.study_table(tables, "algorithms")
    assert list(table.index) == ["REINFORCE", "REINFORCE, group mean", "REINFORCE++", "GRPO", "PPO"]
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


def test_leaks_make_the_noise_of_an_arm_smaller(tables):
    fidelity = pd.DataFrame(
        [
            {"simulator": "grounded-tiny-L", "questions_from": "held out", "leak": 0.1},
            {"simulator": "naive-tiny-L", "questions_from": "held out", "leak": 0.8},
            {"simulator": "naive-tiny-L", "questions_from": "test", "leak": 0.0},
        ]
    )
    naive = tables["training"].query("arm == 'zerosearch'").assign(arm="zerosearch-naive")
    training = pd.concat([tables["training"], naive]).assign(noise_probability=0.5)
    table = summaries.effective_noise(tables | {"fidelity": fidelity, "training": training})
    assert table.loc["zerosearch", "effective"] == 0.45 and table.loc["zerosearch-naive", "effective"] == 0.1
    assert table.loc["zerosearch/algorithm=ppo", "simulator"] == "grounded-tiny-L"  # it names no other
    assert "search-r1" not in table.index and "zerosearch/simulator=naive-tiny-S" not in table.index
