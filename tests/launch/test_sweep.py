"""Sweeps: the points of a grid by hand, what is refused, and one in real processes, killed and resumed."""

import os
import subprocess
import sys
import time

import pandas as pd
import pytest
from run_fixtures import PATHS

from zs_lib import cli, qa
from zs_lib.analysis.results import read_scores
from zs_lib.evaluation.evaluate import SCORES_FILE
from zs_lib.launch.sweep import expand, plan
from zs_lib.runs import Run

RATES, GROUPS = ("policy.learning_rate", [1e-4, 1e-3]), ("policy.group_size", [4, 6])


def test_a_grid_is_all_combinations_in_order():
    rate, group = RATES[0], GROUPS[0]
    assert expand([RATES, GROUPS]) == [
        {rate: 1e-4, group: 4},
        {rate: 1e-4, group: 6},
        {rate: 1e-3, group: 4},
        {rate: 1e-3, group: 6},
    ]
    assert expand([(group, [4, 6, 4])]) == [{group: 4}, {group: 6}]


def test_ranges_are_covered_evenly_and_more_trials_keep_the_points_of_fewer():
    ranges = [("rate", (1e-4, 1e-2, True)), ("group", (4, 6, False))]
    points = expand([], ranges, 64)
    assert all(point in points for point in expand([], ranges, 5))
    rates, groups = pd.DataFrame(points).T.to_numpy()
    assert rates.min() >= 1e-4 and rates.max() <= 1e-2 and abs((rates < 1e-3).mean() - 0.5) < 0.05
    assert set(groups) == {4, 5, 6} and all(type(point["group"]) is int for point in points)
    both = expand([GROUPS], ranges[:1], 2)
    assert [list(point.values()) for point in both] == [
        [point["rate"], size] for point in expand([], ranges[:1], 2) for size in (4, 6)
    ]


def test_arms_are_named_for_what_differs_from_the_profile():
    points = expand([("policy.learning_rate", [2e-4, 1e-3])])  # the first is the profile's own
    planned = plan("search-r1", points, "smoke", {"seeds": 2})
    assert list(planned.rows) == ["learning_rate=0.0002", "learning_rate=0.001"]
    assert [(arm.name, arm.split, seed) for arm, seed in planned.runs] == [
        ("search-r1", "dev", 0),
        ("search-r1", "dev", 1),
        ("search-r1/learning_rate=0.001", "dev", 0),
        ("search-r1/learning_rate=0.001", "dev", 1),
    ]


GRID = "policy.learning_rate=1e-4,1e-3"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "The grid of the sweep is empty"),
        (["--grid", "policy.learning_rate="], "The grid of policy.learning_rate is empty"),
        (["--grid", "policy.speed=1,2"], "Unknown override 'policy.speed'. Known: "),
        (["--grid", "policy.learning_rate=1e-4,2"], "learning_rate = 2.0 is out of range (0 to 1)"),
        (["--grid", "policy.learning_rate=1e-4,fast"], "'fast' is no float"),
        (["--grid", "policy.reward=f1,luck"], "Unknown reward 'luck'. Known: "),
        (["--grid", GRID, "--grid", "policy.learning_rate=2e-4"], "policy.learning_rate is given twice"),
        (["--grid", GRID, "--set", "policy.learning_rate=1e-4"], "policy.learning_rate is given twice"),
        (["--grid", "policy.curriculum.p_end=0.1,0.5"], "that makes no difference to 'search-r1'"),
        (["--grid", GRID, "--seeds", "0"], "Profile.seeds = 0 is out of range"),
        (["--grid", GRID, "--trials", "3"], "Ranges need a number of trials"),
        (["--range", "policy.learning_rate=1e-2:1e-4", "--trials", "3"], "The range 0.01:0.0001 is empty"),
        (["--range", "policy.steps=0:9:log", "--trials", "3"], "The range 0:9 is empty, or not above 0"),
        (["--grid", GRID, "--out", "/dev/null"], "--out names no folder"),
    ],
)
def test_what_is_wrong_is_one_error_before_any_run(arguments, message, capsys, store):
    assert cli.main(["sweep", "search-r1", "--profile", "smoke", *arguments]) == 1
    shown = capsys.readouterr()
    assert message in shown.err and shown.err.count("\n") == 1 and shown.out == ""
    assert not store.list()


@pytest.mark.parametrize("wrong", [["--grid", "policy.steps"], ["--range", "policy.steps=1:many"]])
def test_what_cannot_be_read_is_a_usage_error_with_an_example(wrong, capsys):
    with pytest.raises(SystemExit):
        cli.main(["sweep", "search-r1", *wrong])
    assert "like policy." in capsys.readouterr().err


def test_its_table_by_hand(store):
    """F1 of seed s on two questions: s/2 and 1 at the first rate, 1/4 and 1/4 at the other; seed s trains for
    3 + s seconds."""
    planned = plan("r1", expand([RATES]), "smoke", {"seeds": 2, "policy.steps": 5})

    def train(run: Run) -> dict:
        run.log_timing(1, rollout=1.0, update=1.0)
        run.log_timing(2, rollout=1.0 + run.seed)
        return {}

    def evaluate(run: Run) -> dict:
        rows = pd.DataFrame({"id": ["a", "b"], "prediction": "", "searches": 2, "query_quality": 1.0})
        first = run.label.endswith("=0.0001")
        rows.assign(f1=[run.seed / 2, 1.0] if first else 0.25).to_csv(run.path / SCORES_FILE, index=False)
        return {}

    for made, seed in planned.runs:
        store.complete(made.policy, seed, train)
        store.complete(made, seed, evaluate)
    table = planned.table(store)
    assert table["f1"].tolist() == [0.625, 0.25] and table["seconds"].tolist() == [3.5, 3.5]
    assert table["steps"].tolist() == [5, 5] and table["seeds"].tolist() == table["questions"].tolist() == [
        2,
        2,
    ]
    assert table.loc["learning_rate=0.001", ["low", "high"]].tolist() == [0.25, 0.25]  # nothing varies
    assert table["low"].iloc[0] < 0.625 < table["high"].iloc[0]
    _, files = planned.write(store)
    assert [file.parent.parent for file in files] == [store.root] * 2 and not store.verify()


def test_a_sweep_that_is_killed_goes_on_where_it_was(store, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PYTHONPATH", PATHS)
    values = ("policy.steps=2", "policy.checkpoint_every=1", "evaluation.questions_per_subset=2")
    command = ["sweep", "r1", "--profile", "smoke", "--seeds", "1", "--jobs", "1"]
    command += ["--grid", "policy.learning_rate=1e-4,1e-2", "--out", str(tmp_path / "out")]
    command += [word for value in values for word in ("--set", value)]
    process = subprocess.Popen([sys.executable, "-m", "zs_lib", *command], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not list(store.root.glob("policy-*/checkpoint-*/state.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.kill()
    process.wait()
    [begun] = store.list()
    while begun.running and time.monotonic() < deadline:  # its worker ends by itself
        time.sleep(0.02)
    started = os.stat(begun.path / "run.json").st_mtime_ns
    assert not (tmp_path / "out").exists()

    assert cli.main(command) == 0
    shown = capsys.readouterr().out
    assert os.stat(begun.path / "run.json").st_mtime_ns == started and begun.finished
    runs = [run for run in store.list() if run.finished]
    assert [run.kind for run in runs] == ["evaluation", "evaluation", "policy", "policy"]
    dev = {question.id for question in qa.load_benchmark("embedded", "dev")}
    assert all(set(read_scores(run)["id"]) <= dev for run in runs[:2])
    table = pd.read_csv(tmp_path / "out" / "sweep.csv").set_index("point")
    assert table["policy.learning_rate"].to_dict() == {
        "learning_rate=0.0001": 1e-4,
        "learning_rate=0.01": 1e-2,
    }
    assert (table[["seeds", "questions", "steps"]] == [1, 4, 2]).all(axis=None)
    assert (tmp_path / "out" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert "test questions were not asked" in shown and str(tmp_path / "out" / "sweep.png") in shown
