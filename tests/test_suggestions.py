"""What notebooks suggest to try next: each override, really run, changes what the notebook shows."""

import ast
import json
import re
from contextlib import suppress

import nbformat
import pandas as pd
import pytest
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure
from study_fixtures import study_rows

from zs_lib import config
from zs_lib.analysis import drawing, results
from zs_lib.errors import DataError
from zs_lib.launch.notebooks import NOTEBOOKS as FOLDER
from zs_lib.pipeline import ensure
from zs_lib.runs import RunStore
from zs_lib.ui import notebook

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TOUR = FOLDER / "README.md"


def suggested() -> list[tuple[str, dict]]:
    """Every override that a notebook or the tour suggests, with the number of the notebook that it is for."""
    rows = [("", line) for line in TOUR.read_text(encoding="utf-8").splitlines() if line.startswith("| [")]
    prose = [
        (path.name[:2], line)
        for path in NOTEBOOKS
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "markdown"
        for line in cell.source.splitlines()
    ]
    found = []
    for own, line in rows + prose:
        for text in re.findall(r"`overrides = (\{.+?\})`", line):
            elsewhere = re.search(r"` in (\d\d) or (\d\d)", line)
            numbers = elsewhere.groups() if elsewhere else [own or line[3:5]]
            found += [(number, ast.literal_eval(text)) for number in numbers]
    return list({str(one): one for one in found}.values())


SMALLEST = {
    "policy.steps": 3,
    "policy.prompts_per_step": 2,
    "policy.group_size": 3,
    "policy.rollout.draws": "rollout",  # what so few share would leave no difference to learn from
    "simulator.num_questions": 6,
    "simulator.max_tokens": 40,
    "simulator.steps": 1,
    "evaluation.questions_per_subset": 1,
    "evaluation.fidelity_questions": 2,
}
"""Values of `smoke` that are made smaller still."""
FASTER = {"policy.learning_rate": 1e-2}
"""Where overrides concern the training of policies: three steps must change what a policy does."""
SCORED = {
    "policy.backbone": "tiny-S-instruct",
    "policy.learning_rate": 1e-3,
    "policy.curriculum.base": 1e-3,
    "policy.rollout.max_searches": 2,
    "policy.rollout.max_turn_tokens": 24,
    "evaluation.questions_per_subset": 4,
}
"""In notebook 05, which shows scores alone: noise from the first step, a policy that follows the format, and
more questions."""


def smallest(overrides: dict) -> dict:
    """SMALLEST, with overrides of one of its values one above it."""
    return SMALLEST | {
        name: SMALLEST[name] + 1 if name in SMALLEST else value for name, value in overrides.items()
    }


class Shown:
    """What a notebook shows at `smoke` with these overrides, by cell: tables, documents, curves.

    Its own cells run in this process; of the runs that a cell wants, only that of the main arm is made.
    """

    def __init__(self, number: str, overrides: dict, monkeypatch):
        (path,) = FOLDER.glob(f"{number}_*.ipynb")
        self.seen, self.cell = {}, ""
        monkeypatch.setattr(notebook, "run", self.run)
        monkeypatch.setattr(notebook, "display", self.note)
        monkeypatch.setattr(notebook, "show_config", lambda *_: None)  # it would only repeat the override
        monkeypatch.setattr(drawing, "picture", lambda *_: b"")
        monkeypatch.setattr(notebook, "write_bytes", lambda *_: None)
        monkeypatch.setitem(results.TABLES, "study_rows", lambda study, _: study_rows(study))
        values = {"profile": "smoke", "seeds": 1, "jobs": 1, "overrides": json.dumps(overrides)}
        values["train"] = ["draws"]  # in notebook 12 alone
        for cell in nbformat.read(path, 4).cells:
            # without the cells that teach, which need no run: the smoke run has them
            if cell.cell_type == "code" and not cell.metadata.get("tags"):
                self.cell, body = cell.id, ast.parse(cell.source).body
                last = ast.Expression(body.pop().value) if isinstance(body[-1], ast.Expr) else None
                with suppress(DataError, ValueError):  # a cell that needs what the other runs have left
                    exec(compile(ast.Module(body, []), self.cell, "exec"), values)
                    value = last and eval(compile(last, self.cell, "eval"), values)
                    if isinstance(value, pd.DataFrame):
                        self.note(value)

    def run(self, wanted, *_) -> list:
        main = [(arm, seed) for arm, seed in wanted if arm.name == "zerosearch"] or wanted
        return [ensure(*main[0], RunStore())]

    def note(self, value, **options) -> None:
        """Curves, tables without times, and documents; not what names a run, which tells no effect."""
        if isinstance(value, Figure):
            value = [line.get_xydata().tolist() for axes in value.axes for line in axes.lines]
        elif isinstance(value, pd.DataFrame):
            value = value.drop(columns="seconds", errors="ignore").to_csv()
        elif isinstance(value, (HTML, Markdown)):
            value = value.data
        self.seen.setdefault(self.cell, []).append(value)


@pytest.fixture(scope="module")
def suggestions(tmp_path_factory):
    """A run store that all suggested overrides share, and what each notebook shows there without them."""
    return RunStore(tmp_path_factory.mktemp("suggestions") / "runs"), {}


@pytest.mark.parametrize(("number", "overrides"), suggested(), ids=str)
def test_a_suggested_override_changes_what_the_notebook_shows(number, overrides, suggestions, monkeypatch):
    """It is really run: the runs that the notebook's main arm needs, and the notebook's own cells."""
    config.load_profile("tiny", overrides)
    store, plain = suggestions
    monkeypatch.setenv("ZS_RUNS", str(store.root))
    trains = any(name.startswith("policy.") for name in overrides)
    faster = SCORED if number == "05" else FASTER if trains else {}
    if (number, *faster) not in plain:
        plain[number, *faster] = Shown(number, SMALLEST | faster, monkeypatch).seen
    shown = Shown(number, smallest(overrides) | faster, monkeypatch).seen
    differs = [cell for cell, outputs in shown.items() if outputs != plain[number, *faster].get(cell)]
    assert 0 < len(differs) < len(shown)


def test_every_notebook_and_the_tour_suggest_overrides():
    assert len(suggested()) > 12
