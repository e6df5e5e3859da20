"""`zs bench`: how fast it is, beside others in the same run; recorded in data/results/bench, told in BENCHMARKS.md.

Each benchmark is a function that yields rows (case, who, measure, value, unit). Peers' loops are written here, beside what
they are compared with; the library does not need them.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime

import pandas as pd

from zs_lib import config
from zs_lib.files import write_text
from zs_lib.provenance import provenance
from zs_lib.values import pick

RECORDS = config.ROOT / "data" / "results" / "bench"
BENCHMARKS = {
    "machine": "machine.measure",
    "rollouts": "rollouts.measure",
    "step": "step.measure",
    "simulator": "simulator.measure",
    "start": "start.measure",
    "growth": "growth.measure",
    "whole": "start.whole",
    "vllm": "vllm.measure",
}
"""Name → module and function."""
ASKED_FOR = ("whole", "vllm")
"""Twenty minutes, and what needs vLLM: only when asked for by name."""


def run(names: list[str], small: bool = False) -> None:
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


def rows(name: str, small: bool = False) -> Iterator[dict]:
    """What a benchmark measures, one after the other."""
    module, function = BENCHMARKS[name].split(".")
    return getattr(importlib.import_module(f"zs_lib.bench.{module}"), function)(small)


def _measure(name: str, small: bool) -> None:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # everybody on the same processor, whose peak is measured
    measured = []
    for row in rows(name, small):
        print(
            f"{name}: {row['case']}, {row['who']}: {row['measure']} {row['value']:.4g} {row['unit']}",
            flush=True,
        )
        measured.append(row)
    if small:
        return
    from zs_lib.bench import page

    RECORDS.mkdir(parents=True, exist_ok=True)
    table = pd.DataFrame(measured).assign(**_circumstances())
    write_text(RECORDS / f"{name}.csv", table.to_csv(index=False, lineterminator="\n", float_format="%.6g"))
    page.write()


def load() -> dict[str, pd.DataFrame]:
    """The recorded benchmarks, by name."""
    files = {name: RECORDS / f"{name}.csv" for name in BENCHMARKS}
    return {name: pd.read_csv(path, dtype={"sources": str}) for name, path in files.items() if path.exists()}


def _recorded(name: str) -> bool:
    """Whether there is a record of this code and kind of machine."""
    now, record = _circumstances(), load().get(name)
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
