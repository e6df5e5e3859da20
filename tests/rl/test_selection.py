"""Questions by epochs and by past success, their history, and fresh ones for dead groups."""

from __future__ import annotations

import pytest
from arm_fixtures import arm
from policy_fixtures import QUESTIONS, LookupEngine, load, written

from zs_lib.qa import Question
from zs_lib.rl.questions import epochs, pass_rates, remember
from zs_lib.rl.rewards import Score
from zs_lib.rl.train import Group, Training, train
from zs_lib.runs import RunStore

TEN = [Question(str(i), f"question {i}?", ("x",)) for i in range(10)]


def test_every_question_once_before_any_again():
    steps = [epochs(TEN, 4, seed=3, step=step) for step in range(1, 6)]
    ids = [q.id for batch in steps for q in batch]
    assert sorted(ids[:10]) == sorted(ids[10:]) == sorted(q.id for q in TEN)
    assert ids[:10] != ids[10:]
    assert epochs(TEN, 4, seed=3, step=4) == steps[3]
    assert epochs(TEN, 4, seed=4, step=4) != steps[3]


def rates(**known: float) -> dict:
    """A past in which these questions (q3=0.5) had these mean rewards."""
    return {name[1:]: {"step": 1, "noise_probability": 0.0, "reward": rate} for name, rate in known.items()}


def test_half_of_a_step_are_questions_that_were_neither_always_nor_never_solved():
    past = rates(q0=0.0, q1=1.0, q2=0.5, q3=0.9, q4=0.0)
    chosen = pass_rates(TEN, 5, 3, 2, past)
    fresh = epochs(TEN, 5, 3, 2)
    assert {chosen[1].id, chosen[3].id} == {"2", "3"}
    assert [chosen[0], chosen[2], chosen[4]] == fresh[:3]
    assert pass_rates(TEN, 5, 3, 2, dict(reversed(past.items()))) == chosen  # whatever its order
    assert pass_rates(TEN, 5, 3, 2, rates(q0=0.0, q1=1.0)) == fresh == pass_rates(TEN, 5, 3, 2, {})


def test_questions_come_again_in_proportion_to_what_can_be_learnt_from_them():
    """p (1 - p) is 0.25 at a rate of 0.5, and 0.09 at 0.1: the first is drawn in 0.25 / 0.34 of the steps."""
    past, steps = rates(q4=0.5, q7=0.1), 2000
    again = [pass_rates(TEN, 2, 0, step, past)[1].id for step in range(1, steps + 1)]
    assert set(again) == {"4", "7"}
    assert again.count("4") / steps == pytest.approx(0.25 / 0.34, abs=0.03)  # three standard errors


def test_the_past_is_each_questions_last_group_without_failed_rollouts():
    past = {}
    groups = [
        {"step": 1, "question": "a", "noise_probability": 0.5, "rewards": [1.0, 0.0, None, 0.5]},
        {"step": 1, "question": "b", "noise_probability": 0.5, "rewards": [1.0]},
        {"step": 2, "question": "b", "noise_probability": 0.25, "rewards": [0.0, 0.5]},
        {"step": 3, "question": "b", "noise_probability": 0.0, "rewards": [None, None]},
    ]
    remember(past, groups)
    assert past["a"] == {"step": 1, "noise_probability": 0.5, "reward": 0.5}
    assert past["b"] == {"step": 2, "noise_probability": 0.25, "reward": 0.25}


def test_fresh_questions_take_the_places_of_dead_groups_in_so_many_rounds(tmp_path, monkeypatch):
    """Of three groups the first and last are dead; of the two fresh ones the second is alive, and takes the
    last's place; the next round's only one is dead, too, so that one dead group is left.
    """
    alive, asked = {1, 4}, []

    def roll_out(self, step, chosen, engine):
        asked.append([place for place, *_ in chosen])
        rollouts = [written([1], [2], [True])] * 2
        scores = {place: [Score((0.0,), {}), Score((float(place in alive),), {})] for place, *_ in chosen}
        return [Group(*one, rollouts, scores[one[0]]) for one in chosen]

    monkeypatch.setattr(Training, "_roll_out", roll_out)
    sampling = arm(extra_rounds=2, group_size=2)

    def work(run):
        batch = Training(run, sampling, TEN, None, None).collect(1)
        return {"groups": [g.place for g in batch.groups], "extra": [g.place for g in batch.extra]}

    summary = RunStore(tmp_path).complete(sampling, 0, work).summary
    assert asked == [[0, 1, 2], [3, 4], [5]]
    assert summary == {"groups": [0, 1, 4], "extra": [3, 2, 5]}


def test_only_what_replaced_a_dead_group_is_trained_and_all_is_logged(backbone, tmp_path):
    sampling = arm(engine="bm25", extra_rounds=3, group_size=3, steps=4)

    def work(run):
        return train(Training(run, sampling, QUESTIONS, load(backbone), LookupEngine()))

    run = RunStore(tmp_path).complete(sampling, 0, work)
    logged = run.metrics()
    assert logged["extra_groups"].sum() > 0
    for step, row in zip(range(1, 5), logged.to_dict("records"), strict=True):
        groups = [group for group in run.groups() if group["step"] == step]
        trained = [group for group in groups if group["trained"]]
        dead = [len(set(group["rewards"])) == 1 for group in groups]
        assert len(trained) == 3 and len(groups) == 3 + row["extra_groups"]
        assert sorted(group["place"] for group in groups) == list(range(len(groups)))
        assert row["zero_variance_groups"] == pytest.approx(sum(dead) / len(dead))
        rewards = [reward for group in groups for reward in group["rewards"]]
        assert row["reward"] == pytest.approx(sum(rewards) / len(rewards))
        assert all(g["trained"] or is_dead for g, is_dead in zip(groups, dead, strict=True))
