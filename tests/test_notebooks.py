"""The notebooks: thin, all of one form, and each runs from top to bottom at `smoke`."""

import json
import os
import re
import subprocess
import sys
import time

import nbformat
import pytest
from run_fixtures import CountingArm

from zs_lib import config, studies
from zs_lib.analysis import cost, paper
from zs_lib.config import paths
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
OWN_PARAMETERS = {"12_variations": ["train"]}
LOAD, DOLLARS = cost.paper_load(), paper.load_table("cost")["total_usd"].iloc[[0, 1, 3]]
NUMBERS = {
    "02_simulator_fine_tuning": ["0.5"],  # the AUC of chance
    "04_real_and_simulated": [f"{paper.QUESTIONS}"],
    "05_choice_of_simulator": [f"{paper.QUESTIONS}"],
    "06_training_choices": [f"{studies.RANDOM_NOISE}", "five points"],
    "08_cost": [
        *(f"{LOAD.queries:,.0f}", f"{LOAD.hours:.0f}", *(f"{usd:.0f}" for usd in DOLLARS)),
        *("88%", "five times", "1,000"),  # claim 12; the original's searches a rollout; the unit of a price
    ],
    "11_real_llm": ["135 million", "twice"],  # SmolLM2, and Gemma's 270 million beside it
    "12_variations": ["0.1", "0.05", "five times", "half"],  # an example; `studies.collapse`, its end
    "13_bring_your_own": ["10", "256", "320", "twice"],  # a budget's dollars; the original's minibatches
}
"""Notebook → the numbers in its prose: of the paper, of the configuration, of definitions."""
NO_PROSE = re.compile(
    r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|^#[^\n]*|^\d\. |(?<![\d.])0\d\b|"
    r"\[(?:1\d|\d{4}\.\d{5})\b|\b(?:[Tt]ables?|[Ff]igures?|section|[Ee]quation|arXiv) [\d.]+(?:[a-d]-?)*|"
    r"\b(?:3|7|14)B\b|\b2Wiki|\b(?:Llama|Qwen) 3\b|\bPython 3.11\b|\b95% (?:interval|sampling error)",
    re.DOTALL | re.MULTILINE,
)
"""Code, formulas, addresses, headings, references, names, and the level of every interval."""
NUMBER = re.compile(
    r"(?<![\w.-])[-+]?(?:\d[\d.,]*)?\d%?(?: million)?|\b(?:half|twice|thirds?|quarters?|tenths?)\b|"
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|some|few|several) "
    r"(?:seconds|minutes|hours|times|percent|points)\b"
)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path):
    cells = nbformat.read(path, 4).cells
    tagged = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert len(tagged) == 1 and set(parameters(path)) == {*PARAMETERS, *OWN_PARAMETERS.get(path.stem, ())}
    for cell in cells:
        if cell.cell_type == "code":
            assert cell.source.count("\n") < 15 and not re.search(
                r"^\s*(def |class |!|%)", cell.source, re.M
            ), cell.source
            assert not any(output.output_type == "error" for output in cell.outputs)
    text = path.read_text(encoding="utf-8")
    assert str(paths.ROOT) not in text and not re.search(r'"/(?:root|home|tmp|work)/', text)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_each_has_exercises_with_folded_solutions_that_check_themselves(path):
    """They are cells, so the smoke run below runs them, and fails where an assertion does."""
    cells = nbformat.read(path, 4).cells
    solutions = [cell for cell in cells if "solution" in cell.metadata.get("tags", [])]
    (exercises,) = (cell.source for cell in cells if cell.source.startswith("## Exercises"))
    assert len(solutions) == len(re.findall(r"^\d\. ", exercises, re.M)) >= 2
    for number, cell in enumerate(solutions, 1):
        # its first line is what JupyterLab shows of a folded cell
        assert cell.source.startswith(f"# Solution {number}\n")
        assert re.search(r"^ *assert ", cell.source, re.M)
        assert cell.metadata.jupyter.source_hidden


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_configuration_is_folded_its_code_and_its_stored_values(path):
    (cell,) = (cell for cell in nbformat.read(path, 4).cells if "show_config(" in cell.source)
    (shown,) = (output["data"]["text/html"] for output in cell.outputs)
    assert cell.metadata.jupyter.source_hidden
    assert re.match(r"<details><summary>Configuration: \d+ values</summary>", shown)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_number_in_prose_is_measured(path):
    """Whatever results could contradict is computed (`ui.sentences`); exercises have numbers of their own."""
    cells = (cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "markdown")
    prose = "\n".join(cell.source for cell in cells if not cell.source.startswith("## Exercises"))
    found = set(NUMBER.findall(NO_PROSE.sub(" ", prose))) - {"0", "1"}
    assert found == set(NUMBERS.get(path.stem, ()))


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
    policies = len(studies.full(config.load_profile("smoke")).policies) + 2  # notebook 13 has two of its own
    assert len(summaries) == policies and all(
        "last_reward" in json.loads(path.read_text()) for path in summaries
    )
    written = [
        path for path in tmp_path.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()
    ]
    assert written == [] and SECRET not in first.stdout + first.stderr
    started = time.monotonic()
    again = subprocess.run(
        [*command, "--only", "03"], env=environment, capture_output=True, text=True, timeout=120
    )
    assert again.returncode == 0 and time.monotonic() - started < 60  # nothing is trained again
    assert len(list((tmp_path / "runs").glob("policy-*"))) == policies
