"""Variations: settings, scores and endings by hand-made tables, and their record."""

import pandas as pd
import pytest

from zs_lib import config, studies
from zs_lib.analysis import figures, results, variations
from zs_lib.runs import RunStore
from zs_lib.ui import sentences

MAIN, GROUP = "zerosearch", "zerosearch/draws=group"
PROFILE = config.load_profile("tiny", {"policy.steps": 2, "policy.rollout.draws": "rollout"})


def made() -> results.Tables:
    """Two seeds of two arms of two steps; of the study `draws` one row was never run."""
    runs = [(arm, seed) for arm in (MAIN, GROUP) for seed in (0, 1)]
    cost = {MAIN: (100, 4.0, 0.25), GROUP: (50, 1.0, 1.0)}
    steps = [
        {"arm": arm, "seed": seed, "step": step, "rollout_tokens": cost[arm][0], "search_tokens": step}
        | {"reward": 0.1}
        for arm, seed in runs
        for step in (1, 2)
    ]
    seconds = [
        {"arm": arm, "seed": seed, "phase": phase, "seconds": cost[arm][1]}
        for arm, seed in runs
        for phase in ("rollout", "update")
    ]
    scores = [
        {"arm": arm, "seed": seed, "id": name, "f1": cost[arm][2], "searches": 1, "query_quality": 1}
        for arm, seed in runs
        for name in "ab"
    ]
    variances = [{"arm": arm, "seed": seed, "reward_variance": seed} for arm, seed in runs]
    tables = {"training": steps, "seconds": seconds, "evaluation": scores, "variances": variances}
    return {name: pd.DataFrame(rows) for name, rows in tables.items()} | {
        "study_rows": results.rows_of(PROFILE, studies.VARIATIONS)
    }


def test_settings_are_what_differs_from_the_first_arm():
    told = variations.settings(studies.study_arms(PROFILE, "living"))
    assert told["fixed"] == "" and told["refreshed"] == "simulator_refresh = 1"
    assert told["real share falls"].startswith("engine = mixed, real_share_schedule.schedule = exponential, ")


def test_scores_are_means_over_seeds_and_a_row_without_runs_has_none():
    found = variations.scores(made(), "draws")
    assert list(found.index) == ["draws by rollout", "draws by group", "draws by query"]
    assert found.loc["draws by rollout", ["seconds", "tokens", "f1"]].to_list() == [4.0, 101.5, 0.25]
    assert found.loc["draws by group", ["seeds", "searches", "reward_variance"]].to_list() == [2, 1, 0.5]
    assert found.loc["draws by query", list(variations.COLUMNS)].isna().all()
    nothing = {name: pd.DataFrame() for name in results.VARIED} | {"study_rows": made()["study_rows"]}
    assert variations.scores(nothing, "draws")["f1"].isna().all() and variations.endings(nothing).empty


def test_a_row_is_compared_with_the_first_by_seed_and_question():
    assert sentences.varied(made(), "draws") == (
        "draws by group: F1 +0.750 (+0.750 to +0.750) over draws by rollout, 2 seed(s): better; 0.51 times "
        "the tokens a step, +0.00 searches a question."
    )
    alone = made() | {"evaluation": made()["evaluation"].query("seed == 0")}
    assert "1 seed(s): undecided" in sentences.varied(alone, "draws")
    assert "no two rows" in sentences.varied(made(), "living")


def test_endings_tell_the_first_warning_and_its_lead():
    """The mean of ten steps is below 0.4 from the sixth zero on; of invalid actions above 0.5 two before."""
    steps = range(1, 41)
    fell = {"reward": [0.8] * 20 + [0.0] * 20, "invalid_actions": [0.0] * 17 + [1.0] * 23}
    kept = {"reward": [0.8] * 40, "invalid_actions": [0.2] * 10 + [1.0] * 30}
    arms = dict.fromkeys(("search-r1/repair=none", "search-r1/repair=KL"))
    log = [
        pd.DataFrame(columns | {"step": steps, "arm": arm, "seed": 0})
        for arm, columns in zip(arms, (fell, kept), strict=True)
    ]
    tables = made() | {"training": pd.concat(log)}
    none, kl = variations.endings(tables).itertuples(index=False)
    assert (none.row, none.collapse, none.warning, none.at, none.lead) == ("none", 26, "format_loss", 23, 3)
    assert kl.row == "KL" and kl.collapse != kl.collapse and kl.at == 14
    warned = variations.leads(tables).loc["format_loss"]
    assert warned.to_list() == [1, 1, 3, 1, 1]
    found = variations.collapses(tables)
    assert found.loc["none", ["seeds", "collapsed"]].to_list() == [1, 1] and found.loc["KL", "collapsed"] == 0
    assert sentences.collapsed(tables).splitlines() == [
        "none: 1 of 1 run(s) collapsed, last reward 0.00; a warning came first in 1, by 3 steps in the "
        "median; false alarms: 0.",
        "KL: 0 of 1 run(s) collapsed, last reward 0.80; false alarms: 1.",
    ]
    drawn = figures.draw("12_collapse", tables)
    assert [axes.get_title("left") for axes in drawn.axes][:3] == ["none", "one update: not run", "KL"]


def test_a_record_names_what_has_no_run_and_is_read_again(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    store, varied = RunStore(tmp_path / "runs"), studies.only(PROFILE, *studies.VARIATIONS).policies
    results.record_variations(PROFILE, store)
    empty = results.load_variations("tiny")
    assert set(empty["study_rows"]["study"]) == set(studies.VARIATIONS)
    assert all(empty[name].empty for name in results.VARIED)

    def work(run):
        run.log(1, reward=0.5)
        run.log_timing(1, rollout=2.0)
        rewards = {True: ([0.0, 1.0], [1.0, 1.0], [0.0, None, 1.0]), False: ([0.0, 0.0],)}
        groups = [{"rewards": one, "trained": kept} for kept, part in rewards.items() for one in part]
        run.log_groups(1, groups)
        return {}

    arm = next(arm for arm in varied if arm.name == GROUP)
    store.complete(arm, 0, work)
    missing = results.record_variations(PROFILE, store)
    assert f"{MAIN} s0" in missing and f"{GROUP} s0" not in missing and len(missing) == len(varied) - 1
    read = results.load_variations("tiny")
    assert read["variances"].loc[0].to_list() == [GROUP, 0, pytest.approx((0.5 + 0.0 + 0.5) / 3)]
    assert len(read["training"]) == len(read["seconds"]) == 1
    (tmp_path / "tiny" / "variations" / "seconds.csv").write_bytes(b"\xff\xfe")
    with pytest.raises(results.DataError, match=r"seconds\.csv"):
        results.load_variations("tiny")
