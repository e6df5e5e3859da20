"""README's sections for people with something of their own: short, and every snippet runs as it stands."""

from __future__ import annotations

import ast
import json
import re
import shlex
import sys

import pytest
from IPython.display import HTML

from zs_lib import cli, config, studies
from zs_lib.analysis import claims, ledger, results, summaries
from zs_lib.analysis.tables import README
from zs_lib.config import paths

LINES = 10
OWN = ["data", "corpus", "engine", "model", "curriculum", "reward"]
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


def test_every_command_is_one_of_the_command_line():
    lines = re.findall(r"^\.venv/bin/zs (.+)$", TEXT, re.MULTILINE)
    found = [cli.PARSER.parse_args(shlex.split(line, comments=True)).command for line in lines]
    assert cli._sweep in found and len(found) > 15


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


def test_your_own_reward(desk):
    logged = run_snippets("Your own reward", desk)["run"].metrics()
    parts = logged["reward_f1"] - 0.1 * logged["reward_no_answer"] - 0.02 * logged["reward_words"]
    assert logged["reward"].to_list() == pytest.approx(parts.to_list()) and logged["reward_words"].any()


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


# figures in its prose

TINY, SMOL = (results.load_tables(profile) for profile in ("tiny", "smol"))
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
    assert "F1 {:.2f}, {:.2f} and {:.2f} (S, M, L), ".format(*base) in TEXT
    assert "the instruct ones {:.2f}, {:.2f} and {:.2f}.".format(*instruct) in TEXT
    base, instruct = ([reading(f"tiny-{size}{kind}") for size in SIZES] for kind in ("", "-instruct"))
    assert "S {}, M {}, L {}; ".format(*base) + "instruct {}, {}, {}.".format(*instruct) in TEXT


def test_scores_over_all_arms_and_the_engines_recall():
    evaluation = TINY["evaluation"]
    hops = evaluation[evaluation["subset"] == "hops"]
    assert (hops["hops"] > 2).mean() > 0.8  # "mostly"
    f1 = hops.groupby("arm")["f1"].mean()
    told = f"`tiny`: F1 {f1.min():.2f} to {f1.max():.2f} over all arms, the best of them the majority answer"
    assert told in TEXT and f1.idxmax() == "majority"
    assert f"(recall {TINY['retrieval']['recall@3'].min():.2f})" in TEXT


OUTCOMES = ("holds", "does not hold", "undecided", "no runs")


def test_verdicts_on_the_papers_claims():
    found = ledger.verdicts(claims.paper_claims(TINY))["here"]
    holds, fails, open_, missing = (WORDS[(found == v).sum()] for v in OUTCOMES)
    assert f"twelve claims {holds} hold here, {fails} do not" in TEXT and len(found) == 12
    assert found[7] == found[12] == "does not hold" and found[9] == "no runs"
    assert f"{open_} are undecided, and for {missing} (the curriculum) a run is missing" in TEXT
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
    tour = (paths.ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
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
        row = re.search(rf"^\| \[{number} .*$", tour, re.M)[0].split(" | ")
        assert row[3].split(",")[0].split(" ")[0] == f"{seconds.reindex(sorted(arms)).sum() / 60:.0f}", row
    smol = SMOL["seconds"][lambda table: table["arm"] == "zerosearch"]["seconds"].sum() / 60
    assert f"32 steps of ZeroSearch took {smol:.0f} minutes" in tour
