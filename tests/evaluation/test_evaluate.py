"""Scores per question, their means, and the choice of questions."""

import json
from types import SimpleNamespace

import pytest
from arm_fixtures import arm, rollout_config
from engine_fixtures import FixedEngine
from evaluation_fixtures import CFG, FOUND, QUESTIONS, write
from model_fixtures import ScriptedGenerator, tiny_model, tiny_tokenizer

from zs_lib import pipeline
from zs_lib.analysis.results import read_scores
from zs_lib.config.arms import EvaluationArm, EvaluationConfig, PolicyArm
from zs_lib.errors import EngineError
from zs_lib.evaluation import evaluate as evaluation
from zs_lib.evaluation.evaluate import evaluate, evaluate_subsets, pick_questions, summarise
from zs_lib.models import load
from zs_lib.qa import SUBSETS, Question, load_benchmark
from zs_lib.runs import Run, RunStore


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
    monkeypatch.setattr(evaluation, "TOGETHER", 5)  # two subsets of two questions
    run = pipeline.ensure(arm, 0, store)
    assert shown == [("evaluating", done, len(SUBSETS)) for done in range(0, len(SUBSETS), 2)]
    assert run.finished and set(run.summary["subsets"]) == set(SUBSETS)
    table = read_scores(run)
    assert len(table) == run.summary["questions"] == 2 * len(SUBSETS) and "record" not in table
    trajectories = [
        json.loads(line) for line in run.file(evaluation.PREDICTIONS_FILE).read_text().splitlines()
    ]
    assert [one["id"] for one in trajectories] == table["id"].to_list()
    for one, row in zip(trajectories, table.itertuples(), strict=True):
        assert len(one["turns"]) == row.turns and one["stop_reason"] == row.stop_reason and one["question"]
        assert one["golden_answers"] and one["reward"] == row.f1
    monkeypatch.setattr(evaluation, "evaluate", None)  # found in the store, not made again
    assert pipeline.ensure(arm, 0, store).path == run.path


def test_what_is_answered_together_changes_no_score(store, monkeypatch):
    questions, tables = pick_questions(load_benchmark("embedded", "dev"), 3), []
    generator = load.load_generator("tiny-X")
    for together in (1, 7, 1000):
        monkeypatch.setattr(evaluation, "TOGETHER", together)
        run = SimpleNamespace(seed=0, progress=lambda *_: None)
        table = evaluate_subsets(generator, questions, None, EvaluationArm.of_backbone(POLICY, SMALL), run)
        tables.append(table.drop(columns=["policy_tokens", "seconds"]))
    assert tables[0]["id"].tolist() == [question.id for question in questions]
    assert tables[0].equals(tables[1]) and tables[0].equals(tables[2])


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
