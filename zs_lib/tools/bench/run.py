"""`zs bench`: how fast it is, beside others in the same run; recorded in data/results/bench, shown in figures/benchmarks.md.

Each benchmark is a function that yields rows (case, who, measure, value, unit). Peers' loops are written here, beside what
they are compared with; the library does not need them.
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
"""Name -> what measures it: small sizes or not -> rows (case, who, measure, value, unit)."""
ASKED_FOR = ("whole", "vllm")
"""Twenty minutes, and what needs vLLM: only when asked for by name."""


def run_benchmarks(names: list[str], small: bool = False) -> None:
    """Measure and record these benchmarks; without names, those that have no record of this code and machine yet. `small`:
    the smallest sizes, printed and not recorded.

    Several are measured in processes of their own, one after the other. Raises ConfigError for an unknown name.
    """
    for name in names:
        pick("benchmark", name, BENCHMARKS)
    if len(names) == 1:
        _measure(names[0], small)
        return
    for name in names or [
        name for name in BENCHMARKS if name not in ASKED_FOR and not (_recorded(name) and not small)
    ]:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "zs_lib",
            "bench",
            name,
            *(["--small"] if small else []),
        ]
        subprocess.run(command, check=True)


def _measure(name: str, small: bool) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # everybody on the same processor, whose peak is measured
    measured = []
    for row in BENCHMARKS[name](small):
        print(
            f"{name}: {row['case']}, {row['who']}: {row['measure']} {row['value']:.4g} {row['unit']}",
            flush=True,
        )
        measured.append(row)
    if small:
        return
    RECORDS.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(measured).assign(**_circumstances())
    write_text(RECORDS / f"{name}.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    page.write()


def _recorded(name: str) -> bool:
    """Whether there is a record of this code and kind of machine."""
    now, record = _circumstances(), load_records().get(name)
    return record is not None and all(
        (record[key] == now[key]).all() for key in ("sources", "machine", "threads")
    )


def _circumstances() -> dict:
    """What belongs beside a measured number; `load` is what the machine had to do in its last minute."""
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
