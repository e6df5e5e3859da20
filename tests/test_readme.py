"""README and the tour: short, links and commands that work, and numbers that are recorded."""

from __future__ import annotations

import ast
import json
import re
import shlex
from contextlib import nullcontext, suppress

import pytest
from IPython.display import HTML

from zs_lib import cli, config, studies
from zs_lib.analysis import claims, ledger, results, summaries, tables
from zs_lib.analysis.tables import README
from zs_lib.config import paths
from zs_lib.launch import notebooks

PAGES = {
    path.name if path.parent == paths.ROOT else "tour": path
    for path in (README, README.with_name("CONTRIBUTING.md"), paths.ROOT / "notebooks" / "README.md")
}
TEXT, CONTRIBUTING, TOUR = (path.read_text(encoding="utf-8") for path in PAGES.values())


def test_the_readme_can_be_read_in_minutes():
    assert len(TEXT) <= 9000


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = PAGES[page].read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)]+)\)", text):
        target, _, place = link.partition("#")
        if not link.startswith("https://"):
            found = PAGES[page].parent / target if target else PAGES[page]
            assert found.exists(), link
            assert not place or place in anchors(found.read_text(encoding="utf-8")), link


def test_every_command_is_one_of_the_command_line():
    lines = re.findall(r"(?:^|`)(?:\.venv/bin/)?zs ([a-z][^`\n]+)", TEXT + CONTRIBUTING + TOUR, re.M)
    found = set()
    for line in lines:
        with suppress(SystemExit) if line.endswith("--help") else nullcontext():
            found.add(cli.PARSER.parse_args(shlex.split(line, comments=True)).command)
    assert {cli._reproduce, cli._figures, cli._report} <= found and len(lines) > 10


def test_the_first_experiment_is_one_that_the_notebook_takes():
    """README's change of a hyper-parameter: values of the profile, for a notebook with that parameter."""
    (line,) = re.findall(r"^\.venv/bin/papermill (.+)$", TEXT, re.M)
    notebook, _, _, name, overrides = shlex.split(line)
    assert name in notebooks.parameters(paths.ROOT / notebook)
    study = studies.select(config.load_profile("tiny", json.loads(overrides)))
    arm = study.policy("zerosearch")  # also where the override makes it equal to zerosearch-naive
    assert len(study.policies) == 3
    full = config.load_profile("tiny").policy("zerosearch")
    assert arm.simulator.recipe == "prompted" and 4 * arm.steps == full.steps  # "a quarter of the steps"


def test_the_statement_that_the_readme_quotes_holds():
    told = tables.statements(TINY)
    assert f"[{COUNTS[len(told)]} tested statements]" in TEXT.lower()
    (least,) = told.index[told.index.str.contains("0.9 times")]
    assert told["verdict"][least] == "holds" and "at least 0.9 times as good" in TEXT


def test_the_block_of_widgets_shows_something_before_anything_is_trained(store, monkeypatch):
    """Each of its calls, in one namespace: none fails on an empty store, and each shows a view."""
    block = re.search(r"^## Explore in JupyterLab\n.*?```python\n(.*?)```", TOUR, re.M | re.DOTALL)[1]
    defined: dict = {}
    shown = []
    for statement in ast.parse(block).body:
        if isinstance(statement, ast.Expr):
            shown.append(eval(compile(ast.Expression(statement.value), "README", "eval"), defined))
        else:
            exec(compile(ast.Module([statement], []), "README", "exec"), defined)
    assert len(shown) == 6 and all(isinstance(view, HTML) and view.data for view in shown)
    assert "No policy trains now" in shown[1].data and "has logged trajectories" in shown[2].data


# figures in its prose

TINY, SMOL = (results.load_tables(profile) for profile in ("tiny", "smol"))
COUNTS = {14: "fourteen"}
WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
SIZES = "SML"


def start(name: str) -> float:
    evaluation = TINY["evaluation"]
    arm = "start" if name == "tiny-S" else f"start/backbone={name}"
    return evaluation.loc[evaluation["arm"] == arm, "f1"].mean()


def reading(name: str) -> str:
    read = json.loads((paths.BACKBONES / name / "build.json").read_text())["read"]["test"]
    return f"{read['one_hop']:.2f}/{read['chain']:.2f}"


def test_scores_of_the_models_before_rl():
    base, instruct = ([start(f"tiny-{size}{kind}") for size in SIZES] for kind in ("", "-instruct"))
    assert "F1 {:.2f}, {:.2f} and {:.2f} (S, M, L), ".format(*base) in TOUR
    assert "the instruct ones {:.2f}, {:.2f} and {:.2f}.".format(*instruct) in TOUR
    base, instruct = ([reading(f"tiny-{size}{kind}") for size in SIZES] for kind in ("", "-instruct"))
    assert "S {}, M {}, L {}; ".format(*base) + "instruct {}, {}, {}.".format(*instruct) in TOUR


def test_scores_over_all_arms_and_the_engines_recall():
    evaluation = TINY["evaluation"]
    hops = evaluation[evaluation["subset"] == "hops"]
    assert (hops["hops"] > 2).mean() > 0.8  # "mostly"
    f1 = hops.groupby("arm")["f1"].mean()
    told = f"`tiny`: F1 {f1.min():.2f} to {f1.max():.2f} over all arms, the best of them the majority answer"
    assert told in TOUR and f1.idxmax() == "majority"
    assert f"F1 stays at {f1.min():.2f} to {f1.max():.2f}" in TEXT
    assert f"(recall {TINY['retrieval']['recall@3'].min():.2f})" in TOUR


OUTCOMES = ("holds", "does not hold", "undecided", "no runs")


def test_verdicts_on_the_papers_claims():
    found = ledger.verdicts(claims.paper_claims(TINY))["here"]
    holds, fails, open_, missing = (WORDS[(found == v).sum()] for v in OUTCOMES)
    for text in (TEXT, TOUR):
        assert f"twelve claims {holds} hold here, {fails} do not" in text and len(found) == 12
        assert f"{open_} are undecided, and for {missing} (the curriculum) a run is missing" in text
    assert found[7] == found[12] == "does not hold" and found[9] == "no runs"
    naive = "ZeroSearch grounded minus naive simulator: F1"
    assert claims.heldout_statements(TINY)["verdict"][naive] == "undecided"  # "does no harm here"


def test_the_study_with_a_real_llm():
    arm = config.load_profile("smol").policy("zerosearch")
    assert f"{arm.steps} RL steps of {arm.prompts_per_step * arm.group_size} rollouts" in TEXT
    scores = summaries.heldout_table(SMOL["evaluation"])
    parts = [f"{row.f1:.2f} ({row.low:.2f} to {row.high:.2f})" for row in scores.itertuples()]
    before, zerosearch, real = (parts[scores.index.get_loc(n)] for n in ("start", "zerosearch", "search-r1"))
    assert f"goes from {before} before RL to {zerosearch} with ZeroSearch and {real} with Search-R1" in TEXT
    assert f"F1 on {scores['questions'].max()} held-out questions" in TEXT
    assert "learns nothing (0.00)" in TEXT and scores.f1["zerosearch-no-sft"] == 0


ADDED_LATER = {"zerosearch/baseline=none", "zerosearch/curriculum=same-mean"}
"""Arms that the recorded study does not have yet."""


def test_the_sizes_of_the_study_and_the_minutes_of_the_tour():
    """Minutes of training with one seed, as medians over seeds; from 05 on after those of 04."""
    study = config.load_profile("tiny")
    assert f"The others train {len(studies.full(study).policies) - len(study.policies)} more policies" in TEXT
    seconds = TINY["seconds"].groupby(["arm", "seed"])["seconds"].sum().groupby("arm").median()
    names = {
        "05": ["simulators"],
        "06": ["algorithms", "curricula", "masks", "engines", "lengths", "methods"],
        "07": ["methods", "simulators", "lengths"],
        "08": ["engines"],
    }
    core = {arm.name for arm in study.policies}
    wanted = {
        number: {arm.name for arm in studies.select(study, *of).policies} for number, of in names.items()
    }
    wanted = {"00": {"zerosearch"}, "04": core} | {number: arms - core for number, arms in wanted.items()}
    assert set().union(*wanted.values()) - set(seconds.index) == ADDED_LATER
    for number, arms in wanted.items():
        row = re.search(rf"^\| \[{number} .*$", TOUR, re.M)[0].split(" | ")
        assert row[3].split(",")[0].split(" ")[0] == f"{seconds.reindex(sorted(arms)).sum() / 60:.0f}", row
    smol = SMOL["seconds"][lambda table: table["arm"] == "zerosearch"]["seconds"].sum() / 60
    assert f"32 steps of ZeroSearch took {smol:.0f} minutes" in TOUR
    assert f"| {smol:.0f} minutes a policy |" in TEXT
