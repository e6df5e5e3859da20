"""README's sections for people with something of their own: short, and every snippet runs as it stands."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys

import pytest
from IPython.display import HTML

from zs_lib import cli
from zs_lib.analysis.tables import README
from zs_lib.config import paths

LINES = 10
OWN = ["data", "corpus", "engine", "model", "curriculum"]
TEXT = README.read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^### (.+?)\n+(.*?)(?=^##|\Z)", TEXT, re.MULTILINE | re.DOTALL))


@pytest.fixture
def desk(tmp_path, monkeypatch, store):
    """A working directory with files of one's own: the snippets need no checkout around them."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # of another test
    (tmp_path / "my-model").symlink_to(paths.BACKBONES / "tiny-S-instruct")
    questions = [
        {"question": f"what is the capital of {country}?", "golden_answers": [city]}
        for country, city in (("Norway", "Oslo"), ("Peru", "Lima"), ("Kenya", "Nairobi"), ("Japan", "Tokyo"))
    ]
    passages = [
        {"id": str(n), "contents": f'"{row["golden_answers"][0]}"\nIt {row["question"][8:-1]}.'}
        for n, row in enumerate(questions)
    ]
    for name, rows in (("mine.jsonl", questions), ("corpus.jsonl", passages)):
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def run_snippets(section: str, desk) -> dict:
    """Run the snippets of a section in order; what they define. "# mine.py" heads the text of a file."""
    defined: dict = {"__name__": "readme"}
    for language, text in re.findall(r"```(\w+)\n(.*?)```", SECTIONS[section], re.DOTALL):
        if language == "sh":
            for line in text.splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == ".venv/bin/zs" and cli.main(arguments) == 0, line
        elif file := re.match(r"# (\w+\.py)", text):
            (desk / file[1]).write_text(text)
        else:
            exec(compile(text, f"README, {section}", "exec"), defined)
    return defined


@pytest.mark.parametrize("section", [f"Your own {what}" for what in OWN] + ["Inside TRL"])
def test_sections_are_short(section):
    assert (
        len([line for line in SECTIONS[section].strip().splitlines() if line])
        <= LINES + (section == "Inside TRL") * 3
    )


def test_your_own_data(desk, store, capsys):
    run = run_snippets("Your own data", desk)["run"]
    assert run.finished and run.config["benchmark"] == "mine.jsonl"
    assert {t["question"] for t in run.trajectories()} <= {
        json.loads(line)["question"] for line in (desk / "mine.jsonl").open()
    }
    assert "4 questions: F1" in capsys.readouterr().out


def test_your_own_corpus(desk):
    assert "Oslo" in run_snippets("Your own corpus", desk)["found"][0].documents[0]


def test_your_own_engine(desk, capsys):
    run_snippets("Your own engine", desk)
    assert "Doc 1: Nothing is known of Norway." in capsys.readouterr().out


def test_your_own_model(desk):
    run = run_snippets("Your own model", desk)["run"]
    assert run.finished and run.config["backbone"] == "my-model"


def test_your_own_curriculum(desk):
    run = run_snippets("Your own curriculum", desk)["run"]
    assert (run.metrics()["noise_probability"] == 0.3).all()


def test_inside_trl(desk):
    trainer = run_snippets("Inside TRL", desk)["trainer"]
    assert trainer.state.global_step == 2 and trainer.rollout_func.trajectories
    assert any(turn.documents for t in trainer.rollout_func.trajectories for turn in t.turns)


def test_the_block_of_widgets_shows_something_before_anything_is_trained(store, monkeypatch):
    """Each of its calls, in one namespace: none fails on an empty store, and each shows a view."""
    block = re.search(r"^## Explore in JupyterLab\n.*?```python\n(.*?)```", TEXT, re.M | re.DOTALL)[1]
    defined: dict = {}
    shown = []
    for statement in ast.parse(block).body:
        if isinstance(statement, ast.Expr):
            shown.append(eval(compile(ast.Expression(statement.value), "README", "eval"), defined))
        else:
            exec(compile(ast.Module([statement], []), "README", "exec"), defined)
    assert len(shown) == 5 and all(isinstance(view, HTML) and view.data for view in shown)
    assert "No policy trains now" in shown[1].data and "has logged trajectories" in shown[2].data
