"""Sentences computed from tables: by hand-made tables with known means."""

import math

import pandas as pd

from zs_lib.analysis import results
from zs_lib.qa import Question
from zs_lib.rl.trajectory import Trajectory
from zs_lib.ui import sentences


def evaluation(**scores) -> pd.DataFrame:
    """One question of each of two subsets; arm → F1 of both, and searches."""
    rows = [
        {
            "arm": arm,
            "seed": 0,
            "id": subset,
            "subset": subset,
            "f1": f1,
            "searches": count,
            "query_quality": 1,
        }
        for arm, (*both, count) in scores.items()
        for subset, f1 in zip(("natural", "bridge"), both, strict=True)
    ]
    return pd.DataFrame(rows)


def test_outcomes_are_counted_by_title():
    question = Question("1", "capital of Norway?", ("Oslo",))
    right, wrong, none = (
        Trajectory(question, [], [], [], [], (), "answer", a) for a in ("Oslo", "Rome", None)
    )
    assert sentences.outcomes({"Before:": [none, wrong], "After:": [right, right]}) == (
        "Before: 0 of 2 questions answered right, 1 answered at all, 0 searches.\n"
        "After: 2 of 2 questions answered right, 2 answered at all, 0 searches."
    )


def test_gains_are_told_with_their_extremes():
    table = evaluation(start=(0.5, 0.0, 1.0), zerosearch=(0.25, 0.75, 2.0))
    assert sentences.gains(table) == (
        "zerosearch: F1 +0.250 over start, -0.250 (natural) to +0.750 (bridge) by subset; "
        "2.00 searches instead of 1.00."
    )
    assert "no start" in sentences.gains(table[table["arm"] != "start"])


def test_savings_are_told_by_engine_for_the_papers_gpus_and_a_shared_server():
    ways = ["as many cards as the paper", "fewest cards", "shared by 4 trainings"]
    index = pd.MultiIndex.from_product([["3B", "14B"], ways], names=["simulator", "way"])
    table = pd.DataFrame({"Dear": [0.9, 0.9, 0.99, 0.5, 0.9, 0.99]}, index=index).assign(Cheap=-0.25)
    assert sentences.savings(table) == (
        "Saved against Dear: as many cards as the paper 50% to 90%, shared by 4 trainings 99%.\n"
        "Saved against Cheap: as many cards as the paper -25%, shared by 4 trainings -25%."
    )


def test_a_training_without_reward_is_told():
    table = pd.DataFrame({"arm": "a", "step": [1, 2], "reward": [0.0, 0.125], "invalid_actions": [4.0, 3.0]})
    told = "a: 2 steps, highest mean reward of a step 0.125, 3.5 invalid actions per rollout."
    assert sentences.training_reward(table, "a") == told
    assert sentences.training_reward(table, "b") == "b has no run here."


def test_scores_stand_beside_the_recorded_ones_of_the_profile():
    recorded = results.load_tables("tiny")["evaluation"]
    own = recorded[recorded["arm"].isin(["start", "zerosearch"]) & (recorded["seed"] == 0)]
    table = sentences.beside_recorded(own, "tiny")
    assert list(table.index) == ["start", "zerosearch"] and list(table["recorded seeds"]) == [1, 5]
    assert table["inside"].all() and table.loc["start", "difference"] == 0
    wrong = own.assign(f1=0.0)
    assert not sentences.beside_recorded(wrong, "tiny")["inside"].any()
    alone = sentences.beside_recorded(own, "smoke")
    assert alone["recorded"].isna().all() and not alone["inside"].any() and alone["f1"].gt(0).all()
    assert math.isnan(alone.loc["start", "difference"])


def test_the_largest_simulator_is_compared_with_the_smallest_of_its_recipe():
    arms = {"naive-S": "zerosearch/naive-S", "grounded-S": "zerosearch/S", "grounded-L": "zerosearch"}
    rows = pd.DataFrame({"study": "simulators", "label": list(arms), "arm": list(arms.values())})
    scores = dict(zip(arms.values(), [(0.5, 0.5, 1), (0.25, 0.25, 1), (0.5, 1.0, 1)], strict=True))
    tables = {"study_rows": rows, "evaluation": evaluation(**scores)}
    assert sentences.by_size(tables).startswith(
        "grounded: F1 0.750 with grounded-L, 0.250 with grounded-S; paired difference +0.500 ("
    )  # a recipe of one size has nothing to compare
    assert sentences.by_size(tables).endswith("1 seed(s): undecided.")
