"""Old names in the recorded results, and their new ones; delete this file once the study is recorded anew."""

from __future__ import annotations

import pandas as pd

COLUMNS = {"dead_groups": "zero_variance_groups", "way": "recipe"}
PARTS = {
    "zerosearch-cold": "zerosearch-no-sft",
    "/warm_up=off": "/format_sft=off",
    "warm-up ": "format SFT of ",
    "warmup": "formatsft",
}
"""Part of a value in the columns "arm", "simulator" and "kind" → what it is called now."""


def with_new_names(table: pd.DataFrame) -> pd.DataFrame:
    """Rename the columns and values of a recorded table that still have their old names."""
    table = table.rename(columns=COLUMNS)
    for column in {"arm", "simulator", "kind"}.intersection(table):
        table[column] = table[column].map({name: _new(name) for name in table[column].unique()})
    return table


def _new(name: str) -> str:
    for old, new in PARTS.items():
        name = name.replace(old, new)
    return name
