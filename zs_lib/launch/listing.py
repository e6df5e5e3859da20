"""The run store as a table: whose profile each arm is of, what was overridden, its seeds, state and date."""

from __future__ import annotations

from datetime import datetime

import pandas as pd

from zs_lib.analysis.find import written_ns
from zs_lib.analysis.stored import arm_of, origin, told
from zs_lib.errors import ZeroSearchError
from zs_lib.launch.progress import state_and_label
from zs_lib.runs import Run, RunStore


def list_runs(store: RunStore) -> pd.DataFrame:
    """Tabulate the store, a row for each arm and state of its runs, by kind and name.

    Columns: run (the folder's name without its seed), arm, seeds, state, profile (the one that knows the arm,
    empty if none does), date (of the newest run, local), and differences (values that are not the profile's).
    """
    found: dict[tuple[str, str, str], list[tuple[Run, str]]] = {}
    for run in store.list():
        state, label = state_and_label(run)
        found.setdefault((run.kind, run.digest, state), []).append((run, label))
    rows = []
    for (kind, digest, state), pairs in found.items():
        runs, (first, label) = [run for run, _ in pairs], pairs[0]
        try:
            profile, values = origin(arm_of(first))
        except ZeroSearchError:  # damaged, or of another version
            profile, values = "?", {}
        date = datetime.fromtimestamp(max(map(written_ns, runs)) / 1e9).strftime("%Y-%m-%d %H:%M")
        seeds = _spans(sorted(run.seed for run in runs))
        rows.append((f"{kind}-{digest}", label, seeds, state, profile, date, told(values)))
    columns = ["run", "arm", "seeds", "state", "profile", "date", "differences"]
    order = sorted(rows, key=lambda row: (row[0].partition("-")[0], row[1]))
    return pd.DataFrame(order, columns=columns)


def _spans(seeds: list[int]) -> str:
    """Seeds in order as text: "0-4, 7"."""
    spans: list[list[int]] = []
    for seed in seeds:
        if spans and spans[-1][-1] == seed - 1:
            spans[-1] = [spans[-1][0], seed]
        else:
            spans.append([seed])
    return ", ".join("-".join(map(str, span)) for span in spans)
