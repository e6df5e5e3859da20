"""Run the benchmarks of `zs bench`; recorded in data/results/bench, shown in figures/benchmarks.md.

Each benchmark is a function that yields rows (case, who, measure, value, unit), ours and those of peers in
the same run. Peers' loops are written in this package, since the library does not need them.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pandas as pd

from zs_lib.config.values import pick
from zs_lib.runs.files import write_text
from zs_lib.runs.provenance import provenance
from zs_lib.tools.bench import growth, machine, page, rollouts, simulator, start, step, vllm
from zs_lib.tools.bench.page import RECORDS, load_records

BENCHMARKS: dict[str, Callable[[bool], Iterator[dict]]] = {
    "machine": machine.measure,
    "rollouts": rollouts.measure,
    "step": step.measure,
    "simulator": simulator.measure,
    "start": start.measure,
    "growth": growth.measure,
    "whole": start.whole,
    "vllm": vllm.measure,
}
"""Name → function that measures it; its argument: whether the smallest sizes suffice."""
BY_NAME_ONLY = ("whole", "vllm")
"""Benchmarks that run only if they are named: they take twenty minutes, or need vLLM."""


def run_benchmarks(names: list[str], small: bool = False) -> None:
    """Measure and record these benchmarks, by default those without a record of this code and machine.

    Each is measured in its own process if there are several. `small`: the smallest sizes, printed and not
    recorded.

    Raises:
        ConfigError: there is no such benchmark.
    """
    for name in names:
        pick("benchmark", name, BENCHMARKS)
    if len(names) == 1:
        _measure(names[0], small)
        return
    for name in names or _missing(small):
        command = [sys.executable, "-W", "ignore", "-m", "zs_lib", "bench", name]
        subprocess.run(command + (["--small"] if small else []), check=True)


def _missing(small: bool) -> list[str]:
    named = [name for name in BENCHMARKS if name not in BY_NAME_ONLY]
    return named if small else [name for name in named if not _recorded(name)]


def _measure(name: str, small: bool) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # all on the same processor, whose peak is measured
    measured = []
    for row in BENCHMARKS[name](small):
        value = f"{row['measure']} {row['value']:.4g} {row['unit']}"
        print(f"{name}: {row['case']}, {row['who']}: {value}", flush=True)
        measured.append(row)
    if small:
        return
    RECORDS.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(measured).assign(**_conditions())
    write_text(RECORDS / f"{name}.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    page.write()


def _recorded(name: str) -> bool:
    """Whether there is a record of this code and kind of machine."""
    now, record = _conditions(), load_records().get(name)
    keys = ("sources", "machine", "threads")
    return record is not None and all((record[key] == now[key]).all() for key in keys)


def _conditions() -> dict:
    """The conditions of a measurement; `load` is the machine's load average of the last minute."""
    import torch

    made = provenance()
    versions = {name: made["packages"][name] for name in ("torch", "transformers", "trl")}
    machine = f"{made['machine']['system']} {made['machine']['processor']}, {made['machine']['cores']} cores"
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "machine": machine,
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        **versions,
        "sources": made["code"]["sources"],
    }
