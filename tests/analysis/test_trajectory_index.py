"""The index of logged trajectories: filters, groups, and logs that grow or are cut back."""

import json

from log_fixtures import finished, log, record, unfinished

from zs_lib.analysis import trajectory_index
from zs_lib.analysis.trajectory_index import LOG, TrajectoryLog, groups, select, watched


def test_filters_and_groups(store):
    found = TrajectoryLog(finished(store))
    assert [entry.reward for entry in select(found.entries, reward=(0.5, 1.0))] == [1.0] * 6
    assert (
        len(select(found.entries, noisy=False)) == 6
        and not select(found.entries, turns=(3, 9))
        and not select(found.entries, stop_reason="length")
    )
    grouped = groups(found.entries)
    assert list(grouped)[:2] == [(1, 0, "q0 of 1?"), (1, 0, "q1 of 1?")] and all(
        len(part) == 2 for part in grouped.values()
    )
    assert [one["reward"] for one in found.read(grouped[2, 0, "q1 of 2?"])] == [0.0, 1.0]
    failed = list(found.entries[:1])
    failed[0] = type(failed[0])(**vars(failed[0]) | {"reward": None})
    assert select(failed) and not select(failed, reward=(0.0, 0.5))  # it has no reward that could be low
    penalised = [type(failed[0])(**vars(failed[0]) | {"reward": -0.2})]  # of a sum
    assert select(penalised, reward=(0.0, 0.5)) and not select(penalised, reward=(0.1, 1.0))


def test_a_log_that_grows_is_indexed_as_far_as_it_is_whole(store):
    run = unfinished(store, steps=1)
    found = TrajectoryLog(run)
    line = json.dumps({"step": 2, **record(watched=True)})
    with (run.path / LOG).open("a") as file:
        file.write(line[:40])
        file.flush()
        assert not found.refresh() and len(found.entries) == 4
        file.write(line[40:] + "\n")
    assert found.refresh() and not found.refresh()
    assert list(watched(found.entries)) == ["q?"] and found.read(found.entries[-1:])[0]["answer"] == "Oslo"


def test_a_run_that_was_cut_back_is_indexed_anew(store):
    run = unfinished(store, steps=3)
    found = TrajectoryLog(run)
    run.logged(LOG).cut(lambda row: row["step"] <= 1)  # as when a killed run goes on from its checkpoint
    log(run, 1, first=2)
    assert found.refresh() and [entry.step for entry in found.entries] == [1] * 4 + [2] * 4
    assert found.read(found.entries[-1:])[0]["step"] == 2


def test_a_sample_has_the_watched_questions_and_the_first_middle_and_last_steps(store, monkeypatch, tmp_path):
    run = unfinished(store, steps=5)
    with (run.path / LOG).open("a") as file:
        file.write(json.dumps({"step": 4, **record(watched=True), "tokens": [3]}) + "\n")
    monkeypatch.setattr(trajectory_index, "RECORDS", tmp_path)
    (tmp_path / "smoke").mkdir()
    trajectory_index.record_sample("smoke", run)
    found = trajectory_index.load_sample("smoke")
    assert sorted({one["step"] for one in found}) == [1, 3, 4, 5] and len(found) == 3 * 4 + 1
    assert all(one["run"] == run.path.name and "tokens" not in one for one in found)
    assert trajectory_index.load_sample("tiny") == []
