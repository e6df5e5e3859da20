"""Variations of the method (`studies.VARIATIONS`): their settings, scores and costs, and how runs collapsed.

`tables` are those of `results.load_variations`, or of the run store.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from zs_lib.analysis.collapse import WINDOW, collapse_step, collapse_warnings
from zs_lib.analysis.results import Tables
from zs_lib.analysis.summaries import heldout_table, study_labels
from zs_lib.config.values import differences

COLUMNS = ("seeds", "f1", "low", "high", "over", "searches", "seconds", "tokens", "reward_variance")
"""Columns of `scores`, beside the arm."""


def settings(arms: Mapping[str, Any]) -> pd.Series:
    """List by label the dotted values in which an arm differs from the first one."""
    first = next(iter(arms.values()))
    told = {
        label: ", ".join(f"{name} = {value}" for name, value in differences(arm, first).items())
        for label, arm in arms.items()
    }
    return pd.Series(told, name="setting").rename_axis("row")


def scores(tables: Tables, study: str) -> pd.DataFrame:
    """Average held-out scores and costs by row of a study; NaN where a row has no run.

    Columns: arm, seeds (trained), f1 with its 95% interval (low, high, over), searches a question; of a
    training step the seconds (the fastest seed's, because others may have shared the machine) and the tokens
    that policy and simulator wrote; reward_variance in a group.
    """
    frame = study_labels(tables, study).rename("row").to_frame()
    training, evaluation = tables["training"], tables["evaluation"]
    if len(training):
        tokens = training.assign(tokens=training["rollout_tokens"] + training["search_tokens"])
        runs = tokens.groupby(["arm", "seed"])["tokens"].agg(["mean", "size"])
        seconds = tables["seconds"].groupby(["arm", "seed"])["seconds"].sum() / runs["size"]
        by_arm = pd.DataFrame({"tokens": runs["mean"], "seconds": seconds}).groupby("arm")
        frame = frame.join(by_arm.agg({"tokens": "mean", "seconds": "min"}))
        frame = frame.join(by_arm.size().rename("seeds"))
    if len(tables["variances"]):
        frame = frame.join(tables["variances"].groupby("arm")["reward_variance"].mean())
    if len(evaluation):
        held_out = heldout_table(evaluation[evaluation["arm"].isin(frame.index)])
        frame = frame.join(held_out.reindex(columns=["f1", "low", "high", "over", "searches"]))
    return frame.reset_index().set_index("row").reindex(columns=["arm", *COLUMNS])


def endings(tables: Tables) -> pd.DataFrame:
    """Tell of each run of the study `collapse` how it ended, one row each.

    Columns: row, seed, best and last (moving means of the reward), collapse (`collapse_step`), warning and at
    (the first, and its step), lead (steps between both), and warnings (name -> step, without that of the
    falling reward itself). NaN where there is none.
    """
    labels, training = study_labels(tables, "collapse"), tables["training"]
    rows = []
    for (arm, seed), part in training.groupby(["arm", "seed"], sort=False) if len(training) else ():
        if arm not in labels:
            continue
        log = part.sort_values("step").reset_index(drop=True)
        reward = log["reward"].rolling(WINDOW, min_periods=1).mean()
        early = {one.name: one.step for one in collapse_warnings(log) if one.name != "reward_drop"}
        (warning, at), end = [*early.items(), (None, np.nan)][0], collapse_step(log) or np.nan
        rows.append((labels[arm], seed, reward.max(), reward.iloc[-1], end, warning, at, end - at, early))
    names = ["row", "seed", "best", "last", "collapse", "warning", "at", "lead", "warnings"]
    return pd.DataFrame(rows, columns=names).sort_values("seed", kind="stable")


def collapses(tables: Tables) -> pd.DataFrame:
    """Summarise `endings` by repair, in the study's order; NaN where it has no run.

    Columns: seeds, collapsed (how many of them), the most frequent first warning, and medians of the others.
    """
    runs = endings(tables).groupby("row")
    warning = runs["warning"].agg(lambda names: names.mode().get(0, "none"))
    frame = pd.DataFrame({"seeds": runs.size(), "collapsed": runs["collapse"].count(), "warning": warning})
    medians = runs[["best", "last", "at", "collapse", "lead"]].median()
    return frame.join(medians).reindex(study_labels(tables, "collapse").to_list())


def leads(tables: Tables) -> pd.DataFrame:
    """Tell of each early warning in how many runs it held before the collapse, and in how many without one.

    The lead is in steps, the median over the runs where it is positive.
    """
    runs = endings(tables)
    held = [(name, run.collapse - step) for run in runs.itertuples() for name, step in run.warnings.items()]
    by_name = pd.DataFrame(held, columns=["warning", "lead"]).groupby("warning")["lead"]
    return pd.DataFrame(
        {
            "before a collapse": by_name.agg(lambda lead: (lead > 0).sum()),
            "of": runs["collapse"].count(),
            "median lead": by_name.agg(lambda lead: lead[lead > 0].median()),
            "false alarms": by_name.agg(lambda lead: lead.isna().sum()),
            "of others": runs["collapse"].isna().sum(),
        }
    ).sort_values("before a collapse", ascending=False, kind="stable")
