"""The parts of a reward by hand, its text, what is refused, and what happens to a training."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from arm_fixtures import arm
from http_fixtures import QUICK, completion, serving
from model_fixtures import tiny_llama, word_tokenizer
from policy_fixtures import QUESTIONS, LookupEngine, load, written
from trajectory_fixtures import LYON, search

from zs_lib import pipeline
from zs_lib.config.values import digest
from zs_lib.errors import ConfigError, RewardError
from zs_lib.protocol import parse_action
from zs_lib.qa import Question
from zs_lib.rl import judge
from zs_lib.rl.rewards import REWARDS, Reward, parse
from zs_lib.rl.train import FAILED_LIMIT, Training, train
from zs_lib.rl.trajectory import Trajectory, Turn
from zs_lib.runs import RunStore


def answer(text: str) -> Turn:
    return Turn(text, parse_action(f"<answer>{text}</answer>"))


def ended(*turns: Turn, question: Question = LYON) -> Trajectory:
    tokens = [True, False] * len(turns)
    last = turns[-1].action if turns else None
    given = last.text if last and last.kind == "answer" else None
    return written([1], [2] * len(tokens), tokens, question=question, turns=turns, answer=given)


INVALID = Turn("hm", parse_action("hm"))
WANDERING = ended(
    search("country of Lyon", "Lyon lies in France.", "Paris is a city."),
    search("rivers", "Lyon lies in France.", "The Rhine is a river."),
    search("currency of France", "France pays in euro.", "France pays in euro."),
    answer("the franc or euro"),
)
SILENT = ended(INVALID, search("Lyon"))
BY_HAND = {
    # of WANDERING, of SILENT; a list is one number a turn
    "f1": (0.5, 0.0),  # one of three tokens, and the one right one: 2 * 1 / (3 + 1)
    "em": (0.0, 0.0),
    "cover_em": (1.0, 0.0),
    "format": (1.0, 0.0),
    "no_search": (0.0, 0.0),
    "no_answer": (0.0, 1.0),
    "searches": ([1, 1, 1, 0], [0, 1]),
    "redundancy": ([0, 0.5, 0, 0], [0, 0]),
    "information_gain": ([0.5, 0, 0.5, 0], [0, 0]),
    "query_quality": ([1 / 3, 0, 1 / 3, 0], [0, 1]),
}


@pytest.mark.parametrize("name", REWARDS)
def test_each_part_by_hand(name):
    for trajectory, expected in zip((WANDERING, SILENT), BY_HAND[name], strict=True):
        assert REWARDS[name](trajectory) == pytest.approx(expected)


def test_without_hops_the_golden_answer_is_what_can_be_found():
    plain = replace(LYON, hops=())
    trajectory = ended(search("a", "Oslo"), search("b", "the euro"), search("c", "euro"), question=plain)
    assert REWARDS["information_gain"](trajectory) == [0, 1, 0]
    assert REWARDS["query_quality"](trajectory) == [0, pytest.approx(1 / 3), pytest.approx(1 / 3)]
    none = ended(question=plain)
    assert REWARDS["no_search"](none) == 1 and Reward("information_gain - no_answer")([none])[0].total == -1


def test_a_sum_comes_turn_by_turn_and_part_by_part():
    (score,) = Reward("f1 + 0.1*format - 0.05 * searches")([WANDERING])
    assert score.turns == pytest.approx((-0.05, -0.05, -0.05, 0.6)) and score.total == pytest.approx(0.45)
    assert score.parts == {"reward_f1": 0.5, "reward_format": 1.0, "reward_searches": 3.0}
    failed = replace(WANDERING, stop_reason="engine_failed")
    (score,) = Reward("f1 - searches")([failed])
    assert all(map(math.isnan, score.turns)) and len(score.turns) == 4 and not score.parts


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        ("f1", {"f1": 1}),
        (" -2*searches+em-.5 * f1 ", {"searches": -2, "em": 1, "f1": -0.5}),
        ("1e-2 * judge:a/b@http://h-1:80/v1 + 0 * em", {"judge:a/b@http://h-1:80/v1": 0.01, "em": 0}),
        ("f1 - 2 * python:my.own.cost", {"f1": 1, "python:my.own.cost": -2}),
    ],
)
def test_the_text_of_a_sum_is_read(text, weights):
    assert parse(text) == weights and list(parse(text)) == list(weights)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("f1 +", r"from '\+' on"),
        ("f1 0.1 * format", "from '0.1"),
        ("f1 * 0.1", r"from '\* 0.1' on"),
        ("0.1", "cannot be read"),
        ("f1 + 2 * bleu", "Unknown reward 'bleu'. Known: f1, em, .*query_quality, judge:MODEL"),
        ("judge", "Unknown reward 'judge'"),
        ("f1 - f1", "f1 twice"),
        ("judge:@http://h", "names no model"),
        ("python:no_such.module", "'python:no_such.module' cannot be imported"),
    ],
)
def test_what_is_no_reward_is_refused_before_any_work(text, message):
    with pytest.raises(ConfigError, match=message):
        pipeline.check(arm(reward=text))


def own(monkeypatch, **functions) -> None:
    module = ModuleType("my_rewards")
    vars(module).update(functions)
    monkeypatch.setitem(sys.modules, "my_rewards", module)


WRONG = {
    "NaN": (lambda trajectory: math.nan, "gave nan, which is not finite"),
    "text": (lambda trajectory: "1.0", "gave '1.0', neither a number"),
    "length": (lambda trajectory: [1.0], "gave 1 numbers for 2 turns"),
    "raises": (lambda trajectory: trajectory.turns[9], r"raised IndexError \(tuple index"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_wrong_reward_is_named_with_question_and_trajectory(wrong, monkeypatch):
    function, message = WRONG[wrong]
    own(monkeypatch, mine=function)
    with pytest.raises(RewardError, match=rf"'python:my_rewards.mine' {message}.*Lyon lies.*2 turns"):
        Reward("f1 + python:my_rewards.mine")([SILENT])
    own(monkeypatch, mine=lambda trajectory: [0.25] * len(trajectory.turns))
    assert Reward("python:my_rewards.mine")([SILENT, WANDERING])[1].total == 1.0


SHORT = {"steps": 5, "checkpoint_every": 2}


def trained(backbone, folder, reward: str, **changes):
    made = arm(engine="bm25", reward=reward, **changes)
    store = RunStore(folder)
    return store.complete(
        made, 0, lambda run: train(Training(run, made, QUESTIONS, load(backbone), LookupEngine()))
    )


def test_a_reward_that_breaks_stops_its_step_and_the_repaired_run_goes_on(backbone, tmp_path, monkeypatch):
    calls = []

    def breaks(trajectory):
        calls.append(trajectory)
        return 0.0 if len(calls) < 5 * 18 else math.nan

    reward = "f1 + 0.5 * python:my_rewards.mine"
    own(monkeypatch, mine=breaks)
    with pytest.raises(RewardError, match="not finite"):
        trained(backbone, tmp_path / "broken", reward, **SHORT)
    own(monkeypatch, mine=lambda trajectory: 0.0)
    repaired, whole = (trained(backbone, tmp_path / name, reward, **SHORT) for name in ("broken", "whole"))
    assert (repaired.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()
    logged = whole.metrics()
    assert (logged["reward_f1"] == logged["f1"]).all() and (logged["reward_mine"] == 0).all()


def test_the_recorded_arms_keep_their_digests_and_metrics(backbone, tmp_path):
    assert digest(arm(reward="f1")) == digest(arm())
    assert not [name for name in trained(backbone, tmp_path, "f1", steps=1).metrics() if "reward_" in name]


# ------------------------------------------------------------------------------------ an LLM judge


def says(asked) -> None:
    """A judge that knows that EUR is the euro, mumbles at one answer, and breaks down at another."""
    prompt = asked.body["messages"][0]["content"]
    given = prompt.partition("Given answer: ")[2].splitlines()[0]
    verdict = {"EUR": "<think> no? </think> Yes.", "mumble": "Perhaps."}.get(given, "no")
    asked.reply({"error": "x"}, 400) if given == "outage" else asked.reply(completion(verdict))


def test_a_judge_on_a_server_reads_each_answer_once_and_its_failures_leave_the_loss():
    answers = ("the Euro", "EUR", "franc", "EUR", "mumble", "outage")
    trajectories = [*(ended(answer(text)) for text in answers), SILENT]
    with serving(says) as server:
        reward = Reward(f"judge:M@{server.url}/v1 - 0.1 * no_search")
        scores = reward(trajectories)
        reward(trajectories[:4])
    verdicts = [score.parts.get("reward_judge", math.nan) for score in scores]
    assert verdicts == pytest.approx([1, 1, 0, 1, math.nan, math.nan, 0], nan_ok=True)
    assert [math.isnan(score.total) for score in scores] == [math.isnan(verdict) for verdict in verdicts]
    assert len(server.asked) == 4 and {asked.path for asked in server.asked} == {"/v1/chat/completions"}
    assert {(asked.body["model"], asked.body["temperature"]) for asked in server.asked} == {("M", 0)}


def test_a_judge_that_is_down_stops_the_step_by_the_engines_rule_and_the_run_goes_on(
    backbone, tmp_path, monkeypatch
):
    monkeypatch.setattr(judge, "LIMITS", QUICK)
    up = {"": True}
    with serving(lambda asked: says(asked) if up[""] else asked.reset()) as server:
        reward = f"judge:M@{server.url}"
        whole = trained(backbone, tmp_path / "whole", reward, **SHORT)
        before = len(server.asked)
        up[""] = False
        with pytest.raises(RewardError, match=r"of step \d have no reward, .*no answer.*judge 'M'"):
            trained(backbone, tmp_path / "down", reward, **SHORT)
        assert len(server.asked) - before <= 18 * QUICK.attempts
        up[""] = True
        again = trained(backbone, tmp_path / "down", reward, **SHORT)
    assert (again.path / "metrics.jsonl").read_bytes() == (whole.path / "metrics.jsonl").read_bytes()


def test_some_missing_verdicts_leave_the_batch(backbone, tmp_path, monkeypatch):
    monkeypatch.setattr(judge, "LIMITS", QUICK)
    flaky = {"w1", "w2"}

    def script(asked):
        given = asked.body["messages"][0]["content"].partition("Given answer: ")[2].splitlines()[0]
        asked.reply(completion("what?" if given in flaky else "no"))

    with serving(script) as server:
        logged = trained(backbone, tmp_path, f"f1 + judge:M@{server.url}", steps=4).metrics()
    assert 0 < logged["failed"].mean() < FAILED_LIMIT and logged["reward"].notna().all()


def test_a_judge_in_this_process(tmp_path):
    """A model that always says yes."""
    prompt = judge.PROMPT.format(question=LYON.question, golden="euro", answer="franc")
    words = list(dict.fromkeys(["<pad>", "<eos>", "other", *prompt.split(), "yes"]))
    tokenizer, model = word_tokenizer(words, []), tiny_llama(len(words))
    batch = torch.tensor([tokenizer(f"{prompt} yes <eos>").input_ids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(30):
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    (wrong, silent) = Reward(f"judge:{tmp_path}")([ended(answer("franc")), SILENT])
    assert (wrong.total, silent.total) == (1.0, 0.0)
