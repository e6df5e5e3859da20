"""README's sections for people with something of their own: short, and every snippet runs as it stands."""

from __future__ import annotations

import json
import re
import shlex
import sys

import pytest

from zs_lib import cli
from zs_lib.analysis.tables import README
from zs_lib.config import paths

LINES = 10
OWN = ["data", "corpus", "engine", "model", "curriculum"]
SECTIONS = dict(
    re.findall(r"^### (.+?)\n+(.*?)(?=^##|\Z)", README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
)


@pytest.fixture
def desk(tmp_path, monkeypatch, store):
    """A working directory as README takes it: the checkout's data, and files of one's own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # of another test
    (tmp_path / "data").symlink_to(paths.ROOT / "data")
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
