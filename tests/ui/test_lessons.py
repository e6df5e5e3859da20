"""What notebooks teach with: the live step is the real loop's, and the formulas are the library's."""

import pytest

from zs_lib import config, protocol, qa, studies
from zs_lib.engines import build_engine
from zs_lib.rl.trajectory import Trajectory, Turn
from zs_lib.ui import lessons, render, theme


@pytest.fixture(scope="module")
def lesson():
    return lessons.small(config.load_profile("smoke").policy("zerosearch"))


def test_the_live_step_is_the_first_of_the_minimal_loop(lesson):
    """Same rollouts, rewards and loss: the KL to the policy's own start is 0 in the first step."""
    live, trained = lessons.roll_out(lesson), lessons.three_steps(lesson)
    assert trained.loc[1, "reward"] == pytest.approx(live.rewards.mean().item(), abs=1e-4)
    rows = studies.masks(config.load_profile("smoke"))
    table = lessons.gradients(live, {"mine": lesson} | rows)
    assert table.loc["mine", "loss"] == pytest.approx(trained.loc[1, "loss"], abs=1e-3)
    assert table.loc["mine", "cosine"] == 1 and table.loc["without mask", "cosine"] < 0.9
    tokens = sum(len(one.mask) for one in live.trajectories)
    assert table.loc["without mask", "trained tokens"] == tokens > table.loc["mine", "trained tokens"]
    assert {one.question for one in live.group} == {live.group[0].question}
    assert live.rewards[live.chosen].var() == live.rewards.var(1).max() > 0


def test_bm25_by_hand_is_the_engines():
    table = lessons.bm25_by_hand(build_engine("bm25"), "capital of Norway", qa.load_passages())
    assert list(table.index) == ["capital", "norway", "sum"]
    assert table.loc["sum", "score"] == pytest.approx(table.loc["sum", "engine"], abs=1e-3)


def test_tokens_are_shaded_by_who_wrote_them():
    page = render.stream([("<think>", False), ("$x$", True), ("a&b", True), ("Doc", False)], "whole")
    assert page.count(theme.TOKEN_EDGE) == 4
    trained, shown = page.split(theme.TRAINED_UP)[1].split("Doc")[0], page.split(theme.TRAINED_UP)[0]
    assert "a&amp;b" in trained and "&lt;think&gt;" in shown and page.count(theme.FAINT) == 2
    assert "$x$" not in page  # nothing that MathJax reads


def test_log_probabilities_add_up_by_turn():
    (question,), action = qa.load_questions(subset="natural")[:1], protocol.parse_action
    said = "<search> a </search>", "<answer> b </answer>"
    turns = tuple(Turn(text, action(text)) for text in said)
    mask, logprobs = [True, True, False, True], [-0.5, -0.25, 0.0, -2.0]
    one = Trajectory(question, [1], [2, 3, 4, 5], mask, logprobs, turns, "answer", "b")
    table = lessons.by_turn(one)
    assert table["log p"].tolist() == [-0.75, -2.0] and table["tokens"].tolist() == [2, 1]
    assert table["action"].tolist() == ["search", "answer"]
