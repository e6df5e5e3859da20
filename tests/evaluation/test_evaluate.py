"""Scores per question, their means, and the choice of questions."""

import json
import time
from dataclasses import replace

import pytest
from arm_fixtures import arm, rollout_config
from engine_fixtures import FixedEngine
from model_fixtures import ScriptedGenerator, tiny_model, tiny_tokenizer

from zs_lib import pipeline, qa
from zs_lib.config.arms import EvaluationArm, EvaluationConfig, PolicyArm
from zs_lib.engines import build_engine
from zs_lib.errors import DataError, EngineError, RunError
from zs_lib.evaluation import evaluate as evaluation
from zs_lib.evaluation.evaluate import (
    Setup,
    evaluate,
    evaluate_to_file,
    pick_questions,
    read_scores,
    retrieval_recall,
    summarise,
)
from zs_lib.models import load
from zs_lib.qa import SUBSETS, Hop, Question
from zs_lib.runs import Run, RunStore

CFG = rollout_config()
FOUND = FixedEngine("Paris it is")
QUESTIONS = [
    Question(
        "a", "capital of France?", ("Paris",), "natural", "test", (Hop("France", "capital", ("Paris",)),)
    ),
    Question(
        "b", "capital of Spain?", ("Madrid",), "natural", "test", (Hop("Spain", "capital", ("Madrid",)),)
    ),
    Question("c", "is it?", ("yes",), "bridge", "test"),
]


def write(context, key):
    if "is it?" in context:
        return "dunno"
    return "<answer> Paris </answer>" if "Paris" in context else "<search> capital of France </search>"


def test_one_row_per_question_scored_greedily():
    policy = ScriptedGenerator(write)
    table = evaluate(policy, QUESTIONS, FOUND, CFG, seed=0).set_index("id")
    assert {call["temperature"] for call in policy.calls} == {0.0}
    assert (
        table["f1"].to_dict()
        == table["em"].to_dict()
        == table["cover_em"].to_dict()
        == {"a": 1, "b": 0, "c": 0}
    )
    assert table["searches"].to_dict() == {"a": 1, "b": 1, "c": 0}
    assert table["turns"].to_dict() == {"a": 2, "b": 2, "c": 3}
    assert table["query_quality"].fillna(-1).to_dict() == {"a": 1, "b": 0, "c": -1}
    assert table["answer_in_documents"].to_dict() == {"a": True, "b": False, "c": False}
    assert table["stop_reason"].to_dict() == {"a": "answer", "b": "answer", "c": "invalid"}
    assert table["hops"].to_dict() == {"a": 1, "b": 1, "c": 0} and (table["policy_tokens"] > 0).all()


def test_the_summary_averages_questions_then_subsets():
    summary = summarise(evaluate(ScriptedGenerator(write), QUESTIONS, FOUND, CFG, seed=0))
    assert summary["subsets"]["natural"]["f1"] == 0.5 and summary["subsets"]["natural"]["questions"] == 2
    assert summary["subsets"]["bridge"]["query_quality"] is None
    assert summary["mean"]["f1"] == 0.25 and summary["mean"]["query_quality"] == 0.5


def test_a_failed_engine_gives_no_scores():
    with pytest.raises(EngineError, match="failed 2 of 3 questions .down."):
        evaluate(ScriptedGenerator(write), QUESTIONS, FixedEngine("Paris it is", failing=True), CFG, seed=0)


def test_the_same_questions_are_picked_whatever_their_order():
    questions = [
        Question(f"{subset}-{i}", "?", ("x",), subset) for subset in ("natural", "bridge") for i in range(50)
    ]
    picked = pick_questions(questions, 10)
    assert [q.subset for q in picked] == ["natural"] * 10 + ["bridge"] * 10
    assert {q.id for q in pick_questions(questions[::-1], 10)} == {q.id for q in picked}
    assert pick_questions(questions, 4) == picked[:4] + picked[10:14]
    assert len(pick_questions(questions, 1000)) == 100


@pytest.fixture
def store(tmp_path, monkeypatch):
    """An empty run store, and a random model as the backbone "tiny-X"."""
    monkeypatch.setattr(load, "BACKBONES", tmp_path)
    save(tmp_path / "tiny-X")
    return RunStore(tmp_path / "runs")


def save(folder):
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)


SMALL = EvaluationConfig(questions_per_subset=2)
SHORT = rollout_config(max_searches=1, max_turn_tokens=8, max_context_tokens=300)


POLICY = arm(name="r1", backbone="tiny-X", rollout=SHORT)


def test_a_backbones_evaluation_is_a_run_over_all_subsets(store, monkeypatch):
    arm = EvaluationArm.of_backbone(POLICY, SMALL)
    assert (arm.rollout.temperature, arm.rollout.num_documents) == (0.0, 3)
    shown = []
    monkeypatch.setattr(Run, "progress", lambda run, stage, step, steps: shown.append((stage, step, steps)))
    run = pipeline.ensure(arm, 0, store)
    assert shown == [("evaluating", done, len(SUBSETS)) for done in range(len(SUBSETS))]
    assert run.finished and set(run.summary["subsets"]) == set(SUBSETS)
    table = read_scores(run)
    assert len(table) == run.summary["questions"] == 2 * len(SUBSETS)
    monkeypatch.setattr(evaluation, "evaluate", None)  # found in the store, not made again
    assert pipeline.ensure(arm, 0, store).path == run.path


def test_rows_come_back_as_they_were_stored(store, monkeypatch):
    written = evaluate(ScriptedGenerator(write), QUESTIONS, FOUND, CFG, seed=0)
    written.loc[0, "prediction"] = "NA"  # a name like any other
    parts = iter([written])  # of the first subset; the others have no questions
    monkeypatch.setattr(evaluation, "evaluate", lambda *args: next(parts, written[:0]))
    read = read_scores(pipeline.ensure(EvaluationArm.of_backbone(POLICY, SMALL), 0, store))
    assert read["prediction"].fillna("").tolist() == written["prediction"].fillna("").tolist()
    assert read["query_quality"].isna().tolist() == [False, False, True] and read["f1"].dtype == float


def test_a_policys_evaluation_ensures_the_policy_of_its_seed_and_takes_its_model(store, monkeypatch):
    arm, made = EvaluationArm.of_policy(POLICY, SMALL), []

    def make(run, policy, *_):
        made.append((policy, run.seed))
        save(run.model_dir)
        return {}

    assert arm.engine == "none"
    monkeypatch.setitem(pipeline.MAKERS, PolicyArm, pipeline.Maker(make))
    run = pipeline.ensure(arm, 3, store)
    assert made == [(POLICY, 3)] and store.get(POLICY, 3).finished
    assert run.seed == 3 and (read_scores(run)["searches"] == 0).all()


ME = Setup("me", "search", CFG)


def test_predictions_are_kept_batch_by_batch_and_not_made_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "BATCH", 2)
    path, asked = tmp_path / "out.jsonl", []
    original = evaluate
    monkeypatch.setattr(
        evaluation,
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
        evaluation, "evaluate", lambda g, some, *rest: asked.extend(some) or original(g, some, *rest)
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


def test_recall_counts_what_a_good_query_finds():
    engine = FixedEngine("Nothing.", "Oslofjord.", "No.", "It is Oslo.")
    hops = (qa.Hop("Bergen", "country", ("Norway",)), qa.Hop("Norway", "capital", ("Oslo",)))
    table = retrieval_recall([qa.Question("1", "?", ("Oslo",), "bridge", "test", hops)], engine)
    assert engine.queries == ["country of Bergen", "capital of Norway"]
    assert table.loc[("bridge", 2)].to_dict() == {"recall@3": 0.0, "recall@5": 1.0, "questions": 1}
    assert table.loc[("bridge", 1), "recall@5"] == 0.0


def test_good_queries_find_their_hop_in_every_subset():
    questions = qa.load_questions(split="test")[::8]
    table = retrieval_recall(questions, build_engine("bm25"))
    assert set(table.index.get_level_values("subset")) == set(qa.SUBSETS)
    assert (table["recall@5"] >= table["recall@3"]).all() and table["recall@5"].min() > 0.8
