"""Warnings of collapse: each after its sign, and alone."""

from __future__ import annotations

import pandas as pd
import pytest

from zs_lib.analysis.collapse import collapse_warnings

HEALTHY = {
    "reward": 0.3,
    "zero_variance_groups": 0.4,
    "entropy": 1.0,
    "kl": 0.02,
    "searches": 1.2,
    "query_quality": 0.8,
    "invalid_actions": 0.1,
    "policy_tokens": 40.0,
    "stop_length": 0.1,
    "cut_observations": 0.1,
}


@pytest.mark.parametrize(
    "name, column, bad",
    [
        ("reward_drop", "reward", 0.05),
        ("zero_variance_groups", "zero_variance_groups", 1.0),
        ("entropy_collapse", "entropy", 0.01),
        ("kl_blowup", "kl", 5.0),
        ("no_search", "searches", 0.0),
        ("query_drift", "query_quality", 0.2),
        ("format_loss", "invalid_actions", 2.0),
        ("length_blowup", "policy_tokens", 200.0),
    ],
)
def test_each_warning_comes_after_its_sign_and_alone(name, column, bad):
    log = pd.DataFrame([HEALTHY | {"step": step} for step in range(1, 61)])
    assert collapse_warnings(log) == []
    log.loc[30:, column] = bad  # from step 31 on
    (warning,) = collapse_warnings(log)
    assert warning.name == name and 31 <= warning.step <= 41 and warning.message
    log.loc[31:, column] = HEALTHY[column]  # one bad step only: no warning, unless it is as bad as ten
    assert bad >= 5 * HEALTHY[column] or collapse_warnings(log) == []


def test_what_was_never_measured_warns_of_nothing():
    log = pd.DataFrame([{"step": step, "reward": 0.0, "kl": None} for step in range(30)])
    assert collapse_warnings(log) == [] == collapse_warnings(log.head(3))


@pytest.mark.parametrize(
    "name, column, cure",
    [
        ("context_full", "stop_length", "max_context_tokens"),
        ("documents_cut", "cut_observations", "num_documents"),
    ],
)
def test_settings_that_do_not_fit_are_told_from_the_first_step(name, column, cure):
    log = pd.DataFrame([HEALTHY | {"step": step} for step in range(1, 4)])
    assert collapse_warnings(log) == []
    log.loc[0, column] = 0.9
    for steps in (1, 3):
        (warning,) = collapse_warnings(log.head(steps))
        assert (warning.name, warning.step) == (name, 1) and cure in warning.message
    older = log.drop(columns=column)  # a run from before this was logged
    assert collapse_warnings(older) == []


def test_a_policy_that_begins_with_invalid_actions_and_unlearns_them_is_not_warned_of():
    log = pd.DataFrame([HEALTHY | {"step": step} for step in range(1, 61)])
    log["invalid_actions"] = [0.9] * 20 + [0.6] * 20 + [0.1] * 20
    assert collapse_warnings(log) == []
    log.loc[40:, "invalid_actions"] = 1.9
    assert [warning.name for warning in collapse_warnings(log)] == ["format_loss"]
