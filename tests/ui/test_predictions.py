"""Predictions for a file of questions: kept batch by batch, found again by all that they depend on."""

import json
import time
from dataclasses import replace

import pytest
from evaluation_fixtures import CFG, FOUND, QUESTIONS, write
from model_fixtures import ScriptedGenerator

from zs_lib.errors import DataError, RunError
from zs_lib.evaluation.evaluate import evaluate
from zs_lib.qa import Question
from zs_lib.ui import predictions
from zs_lib.ui.predictions import Setup, evaluate_to_file

ME = Setup("me", "search", CFG)


def test_predictions_are_kept_batch_by_batch_and_not_made_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(predictions, "BATCH", 2)
    path, asked = tmp_path / "out.jsonl", []
    original = evaluate
    monkeypatch.setattr(
        predictions,
        "evaluate",
        lambda g, questions, *rest: asked.append([q.id for q in questions]) or original(g, questions, *rest),
    )
    whole = evaluate_to_file(path, QUESTIONS, ScriptedGenerator(write), FOUND, ME)
    ids = [question.id for question in QUESTIONS]
    assert whole["id"].tolist() == ids and asked == [ids[:2], ids[2:]]
    lines = path.read_text().splitlines(keepends=True)
    path.write_text(lines[0] + lines[1][:20])  # a kill in the middle of a write
    asked.clear()
    again = evaluate_to_file(path, QUESTIONS, ScriptedGenerator(write), FOUND, ME)
    assert asked == [ids[1:]] and again["f1"].tolist() == whole["f1"].tolist()
    assert [json.loads(line)["id"] for line in path.read_text().splitlines()] == ids
    with pytest.raises(DataError, match="holds the answers of me, not of you"):
        evaluate_to_file(path, QUESTIONS, ScriptedGenerator(write), FOUND, Setup("you", "search", CFG))
    path.write_text("no JSON\n")
    with pytest.raises(RunError, match="out.jsonl is damaged in line 1.*name another file"):
        evaluate_to_file(path, QUESTIONS, ScriptedGenerator(write), FOUND, ME)


def test_a_result_is_found_by_everything_that_it_depends_on(tmp_path, monkeypatch):
    """Question, golden answers, weights, method, rollout and engine settings; not by its number in a file."""
    path, asked = tmp_path / "out.jsonl", []
    original = evaluate
    monkeypatch.setattr(
        predictions, "evaluate", lambda g, some, *rest: asked.extend(some) or original(g, some, *rest)
    )

    def scores(questions, setup=ME):
        asked.clear()
        table = evaluate_to_file(path, questions, ScriptedGenerator(write), FOUND, setup)
        return table["f1"].tolist(), len(asked)

    paris = Question("1", "capital of France?", ("Paris",))
    assert scores([paris]) == ([1.0], 1) and scores([paris]) == ([1.0], 0)
    assert scores([Question("1", "capital of Spain?", ("Madrid",))]) == ([0.0], 1)  # the next file's number 1
    assert scores([replace(paris, golden_answers=("Lutetia",))]) == ([0.0], 1)
    assert scores([paris]) == ([1.0], 0)  # what was there is kept
    others = [
        replace(ME, weights="other"),
        replace(ME, engine="other"),
        replace(ME, rollout=replace(CFG, max_searches=1)),
        replace(ME, generator="vllm"),
        replace(ME, method="direct"),
    ]
    for setup in others:
        assert scores([paris], setup)[1] == 1 and scores([paris], setup)[1] == 0
    assert len(path.read_text().splitlines()) == 8


def test_a_hundred_thousand_questions_are_named_in_seconds():
    many = [Question(str(i), f"what is number {i}?", (str(i),)) for i in range(100_000)]
    started = time.process_time()
    assert len(set(ME.keys(many).values())) == len(many) and time.process_time() - started < 20


def test_rows_of_a_version_without_keys_are_not_found_again(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text('{"id": "a", "who": "me", "f1": 0.5}\n')
    table = evaluate_to_file(path, QUESTIONS[:1], ScriptedGenerator(write), FOUND, ME)
    assert table["f1"].tolist() == [1.0] and len(path.read_text().splitlines()) == 2
