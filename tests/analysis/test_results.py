"""Recorded tables of another version are refused with a reason; the recall of good queries by hand."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
from engine_fixtures import FixedEngine

from zs_lib import cli, config, qa, studies
from zs_lib.analysis import record, results
from zs_lib.engines import build_engine
from zs_lib.errors import DataError
from zs_lib.simulator import QUERIES_FILE


def test_a_record_of_another_version_is_told(tmp_path, monkeypatch):
    shutil.copytree(results.RECORDS / "tiny", tmp_path / "tiny")
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    pd.DataFrame({"arm": ["zerosearch"], "seed": [0]}).to_csv(tmp_path / "tiny" / "cost.csv")
    with pytest.raises(DataError, match="cost.csv .* 'queries'"):
        results.load_tables("tiny")
    (tmp_path / "tiny" / "training.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="training.csv.gz"):
        results.load_tables("tiny")


@pytest.mark.parametrize("profile", ["smoke", "bench"])
def test_what_is_recorded_is_listed_by_profile_without_the_benchmarks_beside_it(profile):
    assert results.recorded_profiles() == ["smol", "tiny"] and (results.RECORDS / "bench").is_dir()
    with pytest.raises(DataError, match=rf"the profile '{profile}' \(recorded: smol, tiny\)"):
        results.load_tables(profile)


def test_recall_counts_what_a_good_query_finds():
    engine = FixedEngine("Nothing.", "Oslofjord.", "No.", "It is Oslo.")
    hops = (qa.Hop("Bergen", "country", ("Norway",)), qa.Hop("Norway", "capital", ("Oslo",)))
    table = results.retrieval_recall([qa.Question("1", "?", ("Oslo",), "bridge", "test", hops)], engine)
    assert engine.queries == ["country of Bergen", "capital of Norway"]
    assert table.loc[("bridge", 2)].to_dict() == {"recall@3": 0.0, "recall@5": 1.0, "questions": 1}
    assert table.loc[("bridge", 1), "recall@5"] == 0.0


def test_good_queries_find_their_hop_in_every_subset():
    questions = qa.load_questions(split="test")[::8]
    table = results.retrieval_recall(questions, build_engine("bm25"))
    assert set(table.index.get_level_values("subset")) == set(qa.SUBSETS)
    assert (table["recall@5"] >= table["recall@3"]).all() and table["recall@5"].min() > 0.8


def test_stored_queries_of_a_simulator_are_collected_and_older_records_have_none(store):
    profile = config.load_profile("smoke")
    (arm, seed), *_ = studies.fidelity_runs(profile)
    rows = pd.DataFrame({"question": ["a", "a"], "rate": "leak", "query": "?", "answered": [True, False]})

    def work(run):
        rows.to_csv(run.path / QUERIES_FILE, index=False)
        return {"leak": 0.5}

    store.complete(arm, seed, work)
    table = results.fidelity_queries_table(profile, store)
    assert table[rows.columns].equals(rows) and set(table["simulator"]) == {arm.simulator.name}
    assert results.fidelity_table(profile, store)["leak"].tolist() == [table["answered"].mean()]
    assert results.load_tables("tiny")["fidelity_queries"].empty


def rows(runs: dict[str, int], steps: int = 2) -> pd.DataFrame:
    """Rows of `steps` steps by arm and number of seeds."""
    pairs = [(arm, seed) for arm, seeds in runs.items() for seed in range(seeds)]
    return pd.DataFrame(
        [(*pair, step) for pair in pairs for step in range(steps)], columns=["arm", "seed", "step"]
    )


@pytest.mark.parametrize(
    ("then", "change", "poorer"),
    [
        (rows({"a": 2, "b": 3}), None, False),
        (rows({"a": 3, "b": 3}), "rows 10 → 12, a 2 → 3 seed(s)", False),
        (rows({"a": 2, "b": 2, "c": 5}), "rows 10 → 18, b 3 → 2 seed(s), c 0 → 5 seed(s)", True),
        (rows({"a": 2, "c": 4}), "rows 10 → 12, b 3 → 0 seed(s), c 0 → 4 seed(s)", True),
        (rows({"a": 2, "b": 3}, steps=1), "rows 10 → 5", True),
        (pd.DataFrame(), "rows 10 → 0, a 2 → 0 seed(s), b 3 → 0 seed(s)", True),
    ],
    ids=["equal", "more seeds", "fewer seeds of one", "an arm less", "fewer rows", "empty"],
)
def test_what_a_record_would_lose_is_told(then, change, poorer):
    found = record.changes({"training": rows({"a": 2, "b": 3})}, {"training": then})
    expected = [["training.csv.gz", change, poorer]] if change else []
    assert found.to_numpy().tolist() == expected


def test_a_richer_record_is_not_shrunk_unless_asked(tmp_path, monkeypatch, store, capsys):
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    monkeypatch.setattr(studies, "VARIATIONS", {"draws": studies.draws})
    command = ["runs", "record", "--variations", "--profile", "smoke", "--seeds", "2"]
    arms = studies.only(config.load_profile("smoke"), *studies.VARIATIONS).policies[:2]

    def train(arm, seed):
        def work(run):
            run.log(1, reward=0.5)
            run.log_timing(1, rollout=2.0)
            return {}

        return store.complete(arm, seed, work)

    first = [train(arm, seed) for arm in arms for seed in (0, 1)]
    assert cli.main(command) == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "smoke" / "variations").iterdir()}
    shutil.rmtree(first[1].path)
    capsys.readouterr()
    assert cli.main(command) == 1
    shown = capsys.readouterr()
    assert f"training.csv.gz: rows 4 → 3, {arms[0].name} 2 → 1 seed(s)\n" in shown.out
    assert "The record smoke/variations would lose" in shown.err and "--shrink" in shown.err
    assert {path.name: path.read_bytes() for path in (tmp_path / "smoke" / "variations").iterdir()} == before
    assert cli.main([*command, "--shrink"]) == 0 and f"{arms[0].name} 2 → 1" in capsys.readouterr().out
    assert len(results.load_variations("smoke")["training"]) == 3


FILES = (*results.VARIED, "study_rows")


def record_until(folder: Path, limit: int) -> None:
    """Record two seeds and kill this process before the `limit`-th rename of a file."""
    renamed, replace = [], Path.replace

    def counted(path: Path, target: Path) -> Path:
        renamed.append(path)
        if len(renamed) == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(path, target)

    Path.replace, results.RECORDS = counted, folder
    record.write(folder / "tiny" / "variations", {name: rows({"a": 2}) for name in FILES})


def test_a_record_is_replaced_as_a_whole_however_it_is_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "RECORDS", tmp_path)
    seen = set()
    for limit in range(1, 20):
        shutil.rmtree(tmp_path / "tiny", ignore_errors=True)
        old = {name: rows({"a": 1}) for name in FILES}
        record.write(tmp_path / "tiny" / "variations", old)
        process = multiprocessing.get_context("fork").Process(target=record_until, args=(tmp_path, limit))
        process.start()
        process.join(60)
        code = process.exitcode
        read = results.load_variations("tiny")
        found = {read[name]["seed"].nunique() for name in FILES}
        assert len(found) == 1, (limit, found)
        seen |= found
        if code == 0:
            break
        assert code == -signal.SIGKILL
    left = {path.name for path in (tmp_path / "tiny" / "variations").iterdir()}
    assert code == 0 and limit == len(FILES) + 2 and seen == {1, 2} and len(left) == len(FILES)
