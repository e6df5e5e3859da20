"""One kill of `make chaos` in the suite, and that its comparison can fail. The rest: chaos.py."""

from __future__ import annotations

import chaos
import faults
import fuzz
import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from zs_lib.config import paths


@pytest.mark.parametrize("phase", ["evaluation"])
def test_a_killed_phase_ends_like_one_that_was_not(phase):
    seconds, whole = chaos.measure(phase)
    trial = chaos.kill(phase, 0.6, seconds, whole)
    assert whole and trial.survived, trial


def test_the_outcome_tells_weights_and_logs_apart_but_no_times(tmp_path):
    def outcome(weight: float, logged: str, seconds: float):
        save_file({"w": np.array([weight])}, tmp_path / "x.safetensors", {"seconds": str(seconds)})
        (tmp_path / "metrics.jsonl").write_text(logged)
        (tmp_path / "timing.jsonl").write_text(str(seconds))
        return chaos.outcome(tmp_path)

    same = outcome(1.0, "a", 1.0)
    assert len(same) == 2 and outcome(1.0, "a", 2.0) == same
    assert outcome(1.0 + 1e-12, "a", 1.0) != same != outcome(1.0, "b", 1.0)
    assert not chaos.Trial("policy", 0.5, True, "", "model.safetensors", 0, 0).survived
    assert not chaos.Trial("policy", 0.5, True, "", "", 0, 1).survived


def test_the_page_says_what_the_records_say():
    page = (paths.ROOT / "tests" / "RELIABILITY.md").read_text(encoding="utf-8")
    kills, cases = pd.read_csv(chaos.RECORD), pd.read_csv(fuzz.RECORD)
    for phase, trials in kills.groupby("phase", sort=False):
        assert (
            f"| {phase} | {trials['killed'].sum()} | {(trials['killed'] & trials['survived']).sum()} |"
            in page
        )
    assert f"{kills['killed'].sum()} kills, {(~kills['survived']).sum()} lost" in page
    assert (
        f"{cases['cases'].sum():,} cases of {len(cases)} properties, {cases['failures'].sum()} failures"
        in page
    )
    assert cases["cases"].sum() >= 100_000
    spoilt, trained = (
        pd.read_csv(faults.RECORDS / "faults.csv"),
        pd.read_csv(faults.RECORDS / "faults_training.csv"),
    )
    passing = spoilt[spoilt["fault"].isin(["hang", "drip", "reset", "429", "500"]) & (spoilt["rate"] == 0.1)]
    assert (
        spoilt["wrong"].sum() == 0
        and f"{spoilt['requests'].sum():,} requests in {len(spoilt)} combinations" in page
    )
    assert f"the longest search took {spoilt['longest_search_s'].max():.1f} s" in page
    assert f"{passing['failed'].sum()} of {passing['requests'].sum():,} requests failed" in page
    first, second, third = trained["last_reward"]
    assert f"the last rewards were {first:.2f}, {second:.2f} and {third:.2f}" in page
