"""Recorded tables of another version are refused with a reason; the recall of good queries by hand."""

import shutil

import pandas as pd
import pytest
from engine_fixtures import FixedEngine

from zs_lib import config, qa, studies
from zs_lib.analysis import results
from zs_lib.engines import build_engine
from zs_lib.errors import DataError
from zs_lib.simulator import QUERIES_FILE


def test_a_record_of_another_version_is_told(tmp_path):
    shutil.copytree(results.RECORDS / "tiny", tmp_path / "tiny")
    pd.DataFrame({"arm": ["zerosearch"], "seed": [0]}).to_csv(tmp_path / "tiny" / "cost.csv")
    with pytest.raises(DataError, match="cost.csv .* 'queries'"):
        results.load_tables("tiny", tmp_path / "tiny")
    (tmp_path / "tiny" / "training.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DataError, match="training.csv.gz"):
        results.load_tables("tiny", tmp_path / "tiny")


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
