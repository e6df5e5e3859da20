"""Tables of whatever runs lie in the store: names, differences, and all that can be made of them."""

from dataclasses import replace

import pandas as pd
import pytest

from zs_lib import cli, config, studies
from zs_lib.analysis import figures, results, stored, tables
from zs_lib.config.arms import EvaluationArm
from zs_lib.errors import RunError
from zs_lib.evaluation.evaluate import SCORES_FILE
from zs_lib.launch import notebooks
from zs_lib.runs import RunStore

LONG = ("claims", "ledger")
SMOKE = config.load_profile("smoke")
MAIN, REAL = SMOKE.policy("zerosearch"), SMOKE.policy("search-r1")


LOGGED = {"turns": 2.0, "query_quality": 0.5, "entropy": 1.0, "kl": 0.0, "noise_probability": 0.1} | {
    "searches": 1.0, "failed": 0.0, "rollout_tokens": 9, "search_tokens": 4, "answer_in_documents": 0.5
}  # fmt: skip


def train(store: RunStore, *arms, seeds: int = 1) -> list:
    """Runs of two steps of each arm and seed."""

    def work(run):
        for step in (1, 2):
            run.log(step, reward=0.1 * step + run.seed / 100, **LOGGED)
            run.log_timing(step, rollout=1.0, search=1.0, update=1.0)
        return {"last_reward": 0.2}

    return [store.complete(arm, seed, work) for arm in arms for seed in range(seeds)]


def test_(store: RunStore, arm, seeds: int = 1, f1: float = 0.5, **changes) -> list:
    """Evaluations of an arm's policies, by other settings than the profile's with `changes`."""
    rows = [
        {
            "id": f"{subset}/{number}",
            "subset": subset,
            "hops": 1,
            "prediction": "x",
            "em": number % 2,
            "f1": f1,
        }
        | {"searches": 1, "documents": 3, "turns": 2, "query_quality": 1.0, "answer_in_documents": True}
        | {"cover_em": 0, "stop_reason": "answer", "policy_tokens": 9.0, "seconds": 0.1}
        for subset in ("natural", "bridge")
        for number in range(4)
    ]

    def work(run):
        pd.DataFrame(rows).to_csv(run.path / SCORES_FILE, index=False)
        return {"mean": {"f1": f1}}

    made = replace(EvaluationArm.of_policy(arm, SMOKE.evaluation), **changes)
    return [store.complete(made, seed, work) for seed in range(seeds)]


test_.__test__ = False


def test_tables_of_a_whole_study_are_those_that_would_be_recorded(store):
    """Also for a variant and its study, and with noise at test time."""
    main, variant = studies.study_arms(SMOKE, "masks").values()
    for arm in (MAIN, REAL, variant):
        train(store, arm, seeds=2)
        test_(store, arm, seeds=2)
    test_(store, MAIN, noise=0.5)
    found, full = stored.collect(SMOKE, store), studies.full(replace(SMOKE, seeds=2))
    assert main == MAIN and not found.notes and set(found.tables) == set(results.TABLES)
    for name, make in results.TABLES.items():
        if name != "retrieval":
            assert found.tables[name].equals(make(full, store)), name
    assert set(found.tables["study_rows"]["study"]) == {"masks"} and len(found.tables["robustness"]) == 5


def test_every_arm_has_a_name_that_tells_it_apart(store):
    slower, other = (
        replace(MAIN, steps=MAIN.steps + 5),
        replace(MAIN, steps=7, group_size=8, learning_rate=0.5),
    )
    far = replace(other, max_grad_norm=0.5, warmup_ratio=0.5)
    mine, sweep = (
        replace(REAL, name="mine", steps=9),
        replace(REAL, name="search-r1/steps=9", steps=9, group_size=9),
    )
    mine_too = replace(mine, steps=8)
    train(store, MAIN, slower, other, far, mine, sweep, mine_too)
    test_(store, slower, split="dev", f1=0.25)
    test_(store, slower, f1=0.75)
    found = stored.collect(SMOKE, store)
    assert list(found.tables["training"]["arm"].unique()) == [
        "zerosearch",
        "mine",
        "mine/steps=8",
        "search-r1/steps=9,group_size=9",
        "zerosearch/steps=7,group_size=8,learning_rate=0.5",
        "zerosearch/steps=7,group_size=8,learning_rate=0.5,max_grad_norm=0.5,warmup_ratio=0.5",
        f"zerosearch/steps={slower.steps}",
    ]
    scores = found.tables["evaluation"].groupby("arm")["f1"].mean()
    name = f"zerosearch/steps={slower.steps}"
    assert scores.to_dict() == {name: 0.75, f"{name} (split=dev)": 0.25}
    (note,) = found.notes
    assert note.startswith("Not of the profile smoke as it is (--set changes it): mine; mine/steps=8; ")


def test_a_study_with_one_override_has_its_names_under_that_override(store):
    """So that its figures and claims are those of the profile; without it each name tells the difference."""
    shorter = config.load_profile("smoke", {"policy.steps": 5, "evaluation.questions_per_subset": 5})
    for arm in shorter.policies:
        train(store, arm)
        test_(store, arm, questions_per_subset=5)
    found = stored.collect(SMOKE, store)
    names = [f"{arm.name}/steps=5" for arm in SMOKE.policies]
    assert list(found.tables["training"]["arm"].unique()) == sorted(names)
    assert len(found.notes) == 1 and all(name in found.notes[0] for name in names)
    assert set(found.tables["evaluation"]["arm"]) == {f"{name} (questions_per_subset=5)" for name in names}
    found = stored.collect(shorter, store)
    assert not found.notes
    for name in ("training", "evaluation"):
        assert list(found.tables[name]["arm"].unique()) == [arm.name for arm in SMOKE.policies]


def test_named_runs_alone_with_their_evaluations(store):
    train(store, MAIN, REAL, seeds=2)
    test_(store, MAIN, seeds=2)
    test_(store, REAL, seeds=2)
    found = stored.collect(SMOKE, store, [f"{store.path(REAL, 1).name[:-3]}@1", "zerosearch"]).tables
    for name in ("training", "evaluation", "seconds", "cost"):
        seeds = found[name].groupby("arm")["seed"].unique().map(list).to_dict()
        assert seeds == {"zerosearch": [0, 1], "search-r1": [1]}, name
    with pytest.raises(RunError, match="No run is called 'nothing'"):
        stored.collect(SMOKE, store, ["nothing"])


def test_what_cannot_be_shown_is_told_and_left_out(store):
    with pytest.raises(RunError, match="None of these runs is finished"):
        stored.collect(SMOKE, store)
    damaged, unfinished, _ = train(store, MAIN, replace(MAIN, steps=3), REAL)
    (damaged.path / "run.json").write_text("{")
    (unfinished.path / "summary.json").unlink()
    found = stored.collect(SMOKE, store)
    assert set(found.tables["training"]["arm"]) == {"search-r1"}
    told = " ".join(found.notes)
    assert (
        f"{damaged.path.name} is left out: " in told
        and f"{unfinished.path.name} is left out: it is not" in told
    )


@pytest.mark.parametrize("chosen", ["zerosearch", "mine", "evaluation-"])
def test_whatever_lies_in_the_store_is_drawn_or_named(chosen, store, tmp_path, capsys, monkeypatch):
    """Without touching the record. (To write pictures and test claims takes longest: elsewhere.)"""
    monkeypatch.setattr(figures, "picture", lambda *_, **__: b"drawn")
    monkeypatch.setattr(
        tables, "OURS", {name: each for name, each in tables.OURS.items() if name not in LONG}
    )
    mine = replace(REAL, name="mine/own", steps=9)
    train(store, MAIN, REAL, mine)
    for arm in (MAIN, REAL, mine):
        test_(store, arm)
    store.complete(SMOKE.simulators[0], 0, lambda run: run.log(1, loss=1.0) or {})
    name = "mine/own" if chosen == "mine" else chosen
    before = {path: path.stat().st_mtime_ns for path in results.RECORDS.rglob("*")}
    asked = ["--from-store", "--profile", "smoke", "--runs", name, "--out", str(tmp_path)]
    assert cli.main(["figures", *asked]) == 0
    shown = capsys.readouterr()
    names = [*figures.FIGURES, *figures.OWN, *tables.OURS, *tables.OWN]
    drawn = {path.stem for path in tmp_path.rglob("*.*")}
    for each in names:
        assert (each in drawn) != (f"{each} is not drawn: " in shown.err), each
    own = {"own_training", "own_heldout"} & drawn
    assert own == {"evaluation-": {"own_heldout"}, "simulator-": set()}.get(
        chosen, {"own_training", "own_heldout"}
    )
    assert not any(name.startswith("12_") for name in drawn)  # no variation was run
    assert ("04_heldout" in drawn) == (chosen not in ("mine", "simulator-"))
    assert {path: path.stat().st_mtime_ns for path in results.RECORDS.rglob("*")} == before


def test_commands_choose_from_the_store(store, tmp_path, capsys, monkeypatch):
    train(store, MAIN)
    test_(store, MAIN, f1=0.625)
    asked = ["--from-store", "--profile", "smoke"]
    assert cli.main(["tables", "own_heldout", *asked]) == 0
    assert "| zerosearch | 0.625 |" in capsys.readouterr().out
    assert cli.main(["claims", *asked, "--out", str(tmp_path)]) == 0 and "no runs" in capsys.readouterr().out
    assert "no runs" in (tmp_path / "claims.csv").read_text() and (tmp_path / "ledger.tex").exists()
    monkeypatch.setattr(notebooks, "choose", lambda: [])
    assert cli.main(["report", *asked, "--out", str(tmp_path)]) == 0
    assert "0.625" in (tmp_path / "index.html").read_text()
    for wrong in (
        ["figures", *asked],
        ["tables", "--runs", "zerosearch"],
        ["claims", "--set", "policy.steps=3"],
    ):
        assert cli.main(wrong) == 1
        assert "--out" in (told := capsys.readouterr().err) or "--from-store" in told
