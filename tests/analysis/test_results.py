"""Recorded tables of another version are refused with a reason."""

import shutil

import pandas as pd
import pytest

from zs_lib.analysis import results
from zs_lib.errors import DataError


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
