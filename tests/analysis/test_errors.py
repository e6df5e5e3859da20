"""How questions end, by hand; with records, and from evaluations of older versions."""

import pandas as pd
import pytest
from engine_fixtures import FixedEngine
from evaluation_fixtures import CFG, FOUND, QUESTIONS, write
from model_fixtures import ScriptedGenerator
from run_fixtures import CountingArm

from zs_lib import config
from zs_lib.analysis import errors
from zs_lib.config.arms import EvaluationArm
from zs_lib.errors import RunError
from zs_lib.evaluation.evaluate import PREDICTIONS_FILE, SCORES_FILE, evaluate, write_scores
from zs_lib.pipeline import ensure
from zs_lib.ui import notebook

ARM = EvaluationArm.of_backbone(
    config.load_profile("smoke").policy("zerosearch"), config.load_profile("smoke").evaluation
)


def test_outcomes_by_hand():
    table = pd.DataFrame(
        [
            ("answer", 1, 1.0, True, "right"),
            ("answer", 1, 1.0, False, "right"),  # it knew
            ("answer", 0, 0.5, True, "partly right"),
            ("answer", 0, 0.0, True, "misread"),
            ("answer", 0, 0.0, False, "not found"),
            ("max_turns", 0, 0.0, True, "no answer"),
            ("invalid", 0, 0.0, False, "no answer"),
        ],
        columns=["stop_reason", "em", "f1", "answer_in_documents", "outcome"],
    )
    assert errors.outcomes(table).to_list() == table["outcome"].to_list()
    assert set(table["outcome"]) == set(errors.OUTCOMES)
    counted = errors.error_table(table, by=["stop_reason"])
    assert counted.loc[("all", ""), ["questions", *errors.OUTCOMES]].to_list() == [
        7,
        2 / 7,
        *[1 / 7] * 3,
        2 / 7,
    ]
    assert counted.loc[("stop reason", "answer"), ["questions", "right"]].to_list() == [5, 0.4]
    assert list(counted.index.get_level_values("value")) == ["", "answer", "invalid", "max_turns"]


def stored(store, old: bool = False):
    """An evaluation of three questions; as an older version stored it, without records."""

    def work(run):
        table = evaluate(ScriptedGenerator(write), QUESTIONS, FOUND, CFG, seed=0)
        write_scores(run, table)
        if old:
            (run.path / PREDICTIONS_FILE).unlink()
        return {}

    return store.complete(ARM, int(old), work)


def test_an_evaluation_is_read_with_its_trajectories_and_an_older_one_without(store):
    new, old = (errors.read_evaluation(stored(store, each)) for each in (False, True))
    assert new["outcome"].to_list() == old["outcome"].to_list() == ["right", "not found", "no answer"]
    record = new["record"][1]
    assert record["question"] == "capital of Spain?" and record["golden_answers"] == ["Madrid"]
    assert [turn["query"] for turn in record["turns"]] == ["capital of France", None]
    assert record["turns"][0]["documents"] == ["Paris it is"] and record["answer"] == "Paris"
    assert old["record"].isna().all() and new.drop(columns=["record", "seconds"]).equals(
        old.drop(columns=["record", "seconds"])
    )
    with pytest.raises(RunError, match="is no finished evaluation"):
        errors.read_evaluation(ensure(CountingArm(), 0, store))
    run = store.get(ARM, 0)
    (run.path / PREDICTIONS_FILE).write_text("{}\n")
    with pytest.raises(RunError, match=f"{PREDICTIONS_FILE} is damaged"):
        errors.read_evaluation(run)
    assert (run.path / SCORES_FILE).exists()


def test_errors_are_shown_with_one_case_of_each(store, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr(notebook, "display", lambda each: shown.append(each._repr_html_()))
    notebook.show_errors(stored(store), stored(store, old=True))
    counts, cases = shown
    assert "stop reason" in counts and "33%" in counts and ">6<" in counts
    assert cases.count("<details>") == 2 and "not found (no document stated" in cases and "is it?" in cases
    notebook.show_errors()
    assert len(shown) == 2 and "No evaluation is finished" in capsys.readouterr().out


def test_a_hostile_record_is_shown_as_text(store, monkeypatch):
    shown = []
    monkeypatch.setattr(notebook, "display", lambda each: shown.append(each._repr_html_()))

    def work(run):
        hostile = FixedEngine("<script>alert(1)</script> $x$")
        write_scores(run, evaluate(ScriptedGenerator(write), QUESTIONS[1:2], hostile, CFG, seed=0))
        return {}

    notebook.show_errors(store.complete(ARM, 7, work))
    assert "alert(1)" in shown[1] and "<script" not in shown[1]
