"""Notebook 13: every cell of it, and every command in it, runs as it stands, and does what it says."""

from __future__ import annotations

import json
import re
import shlex
import sys
from pathlib import Path

import nbformat
import pytest

from zs_lib import cli
from zs_lib.config import paths
from zs_lib.launch.notebooks import choose
from zs_lib.pipeline import ensure
from zs_lib.runs import RunStore
from zs_lib.ui import mine, notebook

CELLS = nbformat.read(choose(["13"])[0], 4).cells


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What the cells define at `smoke`, in an empty working directory and an empty store."""
    folder = tmp_path_factory.mktemp("mine")
    defined = {"profile": "smoke", "seeds": 1, "jobs": 1, "overrides": {}}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        (folder / "my-model").symlink_to(paths.BACKBONES / "tiny-S-instruct")
        patch.setenv("ZS_RUNS", str(folder / "runs"))
        patch.setattr(mine, "FOLDER", folder / "outputs" / "mine")
        patch.setattr(notebook, "run", lambda wanted, _: [ensure(*one, RunStore()) for one in wanted])
        patch.setattr(notebook, "display", lambda _: None)
        for cell in CELLS:
            if cell.cell_type == "code" and "parameters" not in cell.metadata.get("tags", []):
                source = cell.source.replace("study.instructs[0]", "'my-model'")
                exec(compile(source, cell.id, "exec"), defined)
        yield defined


def test_your_own_data(made, capsys):
    (run, _), asked = made["runs"], made["first"].benchmark
    assert run.finished and run.config["benchmark"] == asked == "outputs/mine/questions.jsonl"
    assert {t["question"] for t in run.trajectories()} <= {
        json.loads(line)["question"] for line in Path(asked).open()
    }
    lines = [line for cell in CELLS for line in re.findall(r"^\.venv/bin/zs (.+)$", cell.source, re.M)]
    (evaluated,) = (shlex.split(line, comments=True) for line in lines if line.startswith("eval"))
    assert cli.main(evaluated) == 0 and "4 questions: F1" in capsys.readouterr().out
    assert [cli.PARSER.parse_args(shlex.split(line)).command for line in lines] and len(lines) == 3


def test_your_own_corpus(made):
    assert "Oslo" in made["found"].documents[0]


def test_your_own_engine(made):
    (run, _) = made["runs"]
    documents = {
        text for t in run.trajectories() for turn in t["turns"] if turn["query"] for text in turn["documents"]
    }
    assert documents and documents <= {
        f"The capital of {of} is {city}." for of, city in mine.CAPITALS.items()
    }


def test_your_own_engine_in_a_file_beside_you(made, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # of another test
    source = (
        "def search(queries, num_documents):\n    return [[f'Nothing is known of {q}.'] for q in queries]\n"
    )
    (tmp_path / "mine.py").write_text(source)
    assert cli.main(["search", "Norway", "--engine", "python:mine.search"]) == 0
    assert "Doc 1: Nothing is known of Norway." in capsys.readouterr().out


def test_your_own_model(made):
    assert made["runs"][0].config["backbone"] == "my-model"
    loaded = "first = replace(first, backbone=study.instructs[0])"
    assert sum(loaded in cell.source for cell in CELLS) == 1


def test_your_own_curriculum_and_reward(made):
    logged = made["runs"][1].metrics()
    assert (logged["noise_probability"] == 0.3).all()
    parts = logged["reward_f1"] - 0.1 * logged["reward_no_answer"] - 0.02 * logged["reward_words"]
    assert logged["reward"].to_list() == pytest.approx(parts.to_list()) and logged["reward_words"].any()


def test_inside_trl(made):
    trainer = made["trainer"]
    assert trainer.state.global_step == 2 and made["search"].trajectories
    assert any(turn.documents for t in made["search"].trajectories for turn in t.turns)
    assert type(made["engine"]).__name__ == "SimulatedEngine"


def test_the_sections_are_short():
    """At most ten lines of prose, and of code."""
    for cell in CELLS:
        lines = [line for line in cell.source.splitlines() if line]
        assert len(lines) <= (13 if cell.id.startswith("13-trainer") else 10), cell.id
