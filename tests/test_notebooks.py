"""The notebooks: thin, all of one form, and each runs from top to bottom at `smoke`."""

import ast
import json
import os
import re
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import nbformat
import pytest
from run_fixtures import CountingArm

from zs_lib import config, studies
from zs_lib.analysis import paper
from zs_lib.config import paths
from zs_lib.config.values import digest
from zs_lib.launch import notebooks
from zs_lib.launch.notebooks import parameters
from zs_lib.models.load import shipped
from zs_lib.pipeline import ensure
from zs_lib.ui import notebook
from zs_lib.ui.notebook import PARAMETERS

SECRET = "planted-f00d-key"
"""Stands in the environment, and must not be found in anything that was written."""
FOLDER = notebooks.NOTEBOOKS
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
TOUR = FOLDER / "README.md"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    cells = nbformat.read(path, 4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and set(parameters(path)) == set(PARAMETERS)
    for cell in cells:
        if cell.cell_type == "code":
            assert cell.source.count("\n") < 15 and not re.search(
                r"^\s*(def |class |!|%)", cell.source, re.M
            ), cell.source
            assert not any(output.output_type == "error" for output in cell.outputs)
    text = path.read_text(encoding="utf-8")
    assert str(paths.ROOT) not in text and not re.search(r'"/(?:root|home|tmp|work)/', text)


def test_no_jobs_show_what_is_finished_and_make_nothing(store, capsys):
    made = ensure(CountingArm(), 1, store)
    shown = notebook.run([(CountingArm(), 0), (CountingArm(), 1)], jobs=0)
    assert [run.path for run in shown] == [made.path] and not store.get(CountingArm(), 0)
    assert capsys.readouterr().out.startswith("1 of 2 runs are not finished")


def test_the_tour_lists_each_by_its_title():
    rows = re.findall(r"^\| \[(.+?)\]\((.+?)\) \|", TOUR.read_text(encoding="utf-8"), re.M)
    assert rows == [
        (nbformat.read(path, 4).cells[0].source.splitlines()[0].removeprefix("# "), path.name)
        for path in NOTEBOOKS
    ]


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
    return found


EXECUTED = {"09"}
"""Notebooks whose overrides change neither the runs nor anything before them: the smoke run tests them."""


@pytest.mark.parametrize(("number", "overrides"), suggested(), ids=str)
def test_a_suggested_override_changes_runs_or_outputs(number, overrides, monkeypatch, store):
    """At `smoke`, without runs: other arms are wanted, or another document or trajectory is shown."""
    config.load_profile("tiny", overrides)
    if number in EXECUTED:
        return
    (path,) = FOLDER.glob(f"{number}_*.ipynb")
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]

    def wanted_and_shown(overrides: dict) -> list:
        seen: list = []

        def run(wanted, *_) -> list:
            seen.append([digest(arm) for arm, _ in wanted])
            return []

        monkeypatch.setattr(notebook, "run", run)
        for name in ("show", "show_config"):  # figures; and what would only repeat the override
            monkeypatch.setattr(notebook, name, lambda *_: None)
        monkeypatch.setattr(notebook, "display", lambda view: seen.append(view.data))
        defined = {"profile": "smoke", "seeds": 1, "jobs": 0, "overrides": overrides}
        for cell in cells:
            if "parameters" not in cell.metadata.get("tags", []):
                with suppress(Exception):  # a cell that needs what a run has left
                    exec(cell.source, defined)
        return seen

    plain = wanted_and_shown({})
    assert plain and wanted_and_shown(overrides) != plain == wanted_and_shown({})


def test_every_notebook_and_the_tour_suggest_overrides():
    assert len(suggested()) > 12 and EXECUTED <= {number for number, _ in suggested()}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_table_is_shown_twice(path):
    shown = [
        output["data"]["text/plain"]
        for cell in nbformat.read(path, 4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result" and "text/html" in output["data"]
    ]
    tables = [text for text in shown if " object" not in text]
    assert len(set(tables)) == len(tables)


def test_no_best_average_of_the_paper_has_the_mark():
    """As 07 says of the paper's tables; the mark is used for single sets."""
    for name in ("main_results", "simulator_choice", "rl_algorithms", "curriculum", "document_mask"):
        assert not paper.with_intervals(name)["Avg"].str.contains("*", regex=False).any()


def test_they_are_small():
    assert all(path.stat().st_size < 500_000 for path in NOTEBOOKS)


@pytest.mark.skipif("tiny-L" not in shipped(), reason="needs the shipped backbones")
def test_smoke_run_of_all_and_again_from_the_store(tmp_path):
    secrets = dict.fromkeys(("SERPAPI_API_KEY", "SERPER_API_KEY", "ZS_SERVE_TOKEN", "HF_TOKEN"), SECRET)
    environment = (
        os.environ | secrets | {"ZS_RUNS": str(tmp_path / "runs"), "ZS_OUTPUTS": str(tmp_path / "outputs")}
    )
    command = [sys.executable, "-m", "zs_lib", "reproduce", "--profile", "smoke"]
    first = subprocess.run([*command, "--full"], env=environment, capture_output=True, text=True, timeout=480)
    assert first.returncode == 0, first.stderr[-3000:]
    executed = sorted((tmp_path / "outputs" / "smoke").glob("*.ipynb"))
    assert [path.name for path in executed] == [path.name for path in NOTEBOOKS]
    summaries = list((tmp_path / "runs").glob("policy-*/summary.json"))
    policies = studies.full(config.load_profile("smoke")).policies
    assert len(summaries) == len(policies) and all(
        "last_reward" in json.loads(path.read_text()) for path in summaries
    )
    written = [
        path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert written == [] and SECRET not in first.stdout + first.stderr
    overridden_cases(environment, tmp_path)
    started = time.monotonic()
    again = subprocess.run(
        [*command, "--only", "03"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0 and time.monotonic() - started < 60  # nothing is trained again
    assert len(list((tmp_path / "runs").glob("policy-*"))) == len(policies)


def overridden_cases(environment: dict, folder: Path) -> None:
    """With the overrides suggested for them, passed to papermill, notebooks of EXECUTED show other cases."""

    def shown(path: Path) -> list:
        (cell,) = (cell for cell in nbformat.read(path, 4).cells if cell.id == "e312d2dc")
        return [output["data"]["text/html"] for output in cell.outputs if "data" in output]

    (path,) = FOLDER.glob("09_*.ipynb")
    plain = shown(folder / "outputs" / "smoke" / path.name)
    for overrides in (json.dumps(overrides) for number, overrides in suggested() if number in EXECUTED):
        values = ["-p", "profile", "smoke", "-p", "overrides", overrides]
        command = [
            sys.executable,
            "-m",
            "papermill",
            "--cwd",
            str(FOLDER),
            str(path),
            str(folder / "09.ipynb"),
        ]
        subprocess.run([*command, *values], env=environment, check=True, capture_output=True, timeout=120)
        assert plain and shown(folder / "09.ipynb") != plain
