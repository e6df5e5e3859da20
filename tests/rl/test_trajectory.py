"""The metrics of trajectories, by hand."""

from __future__ import annotations

import dataclasses

import pytest
from policy_fixtures import written
from trajectory_fixtures import LYON, search

from zs_lib.protocol import parse_action
from zs_lib.rl.trajectory import Turn, answer_in_documents, query_quality, trajectory_metrics


def test_query_quality_follows_the_hops():
    turns = [
        search("country of Lyon", "Paris is a city."),  # names the first hop, which stays open
        search("LYON country", "Lyon lies in France."),  # again, and resolves it
        search("country of Lyon", "Lyon lies in France."),  # resolved: asking again is no good query
        search("currency"),  # names nothing
        search("the currency of France", "It is the Euro."),
    ]
    trajectory = written([1], [2], [True], question=LYON, turns=turns)
    assert query_quality(trajectory) == [True, True, False, False, True]
    assert answer_in_documents(trajectory)
    assert not answer_in_documents(dataclasses.replace(trajectory, turns=tuple(turns[:3])))


def test_trajectory_metrics_by_hand():
    answered = Turn(
        "<answer>the euro</answer>", parse_action("<answer>the euro</answer>"), None, (), False, ""
    )
    invalid = Turn("hm", parse_action("hm"), None, (), False, "")
    first = written(
        [1, 2],
        [3, 4, 5],
        [True, False, True],
        [-1.0, 0.0, -2.0],
        LYON,
        [dataclasses.replace(search("Lyon"), cut=True), answered],
        "the euro",
    )
    second = written([1, 2], [3], [True], [-3.0], LYON, [invalid], None)
    second = dataclasses.replace(second, stop_reason="length")
    expected = {
        "f1": 0.5,
        "em": 0.5,
        "turns": 1.5,
        "searches": 0.5,
        "invalid_actions": 0.5,
        "query_quality": 1.0,
        "answer_in_documents": 0.0,
        "cut_observations": 0.5,
        "stop_answer": 0.5,
        "stop_max_turns": 0.0,
        "stop_length": 0.5,
        "stop_invalid": 0.0,
        "prompt_tokens": 2.0,
        "completion_tokens": 2.0,
        "policy_tokens": 1.5,
        "entropy": 2.0,
    }
    assert trajectory_metrics([first, second]) == pytest.approx(expected)
    no_hops = dataclasses.replace(second, question=dataclasses.replace(LYON, hops=()))
    assert trajectory_metrics([no_hops])["query_quality"] is None
