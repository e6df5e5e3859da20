"""Write figures/benchmarks.md from the recorded benchmarks: every target beside what was measured."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pandas as pd

from zs_lib.analysis.tables import markdown
from zs_lib.config import paths
from zs_lib.runs.files import write_text

RECORDS = paths.ROOT / "data" / "results" / "bench"


def load_records() -> dict[str, pd.DataFrame]:
    """Read the recorded benchmarks, by name."""
    return {path.stem: pd.read_csv(path, dtype={"sources": str}) for path in sorted(RECORDS.glob("*.csv"))}


PAGE = paths.ROOT / "figures" / "benchmarks.md"
TRIED = RECORDS / "tried.md"
"""Optimisations that did not help: prose, written by hand."""
INTRODUCTION = """\
# Benchmarks

`zs bench` measures and writes this page; `zs bench rollouts` repeats one benchmark, `zs bench whole` the \
twenty minutes of the whole study. A peer's value is from the same run. A target is a ratio (how many \
times as fast as the peer) or a bound. "Of the peak" is the least number of operations that the work needs \
(`machine.forward_flops`; for BM25 of bytes), over seconds and the measured peak.
"""


@dataclass(frozen=True)
class Target:
    """A target: a value of at most `bound`.

    With a `peer`: at least `bound` times as fast as it. With a `base` (another case): at most `bound` times
    its value. Without a bound, the value is only reported.
    """

    what: str
    benchmark: str
    case: str
    """The case, or the beginning of its name."""
    measure: str
    bound: float = math.nan
    peer: str = ""
    base: str = ""
    unit: str = "s"
    """Unit of a bound on a value."""
    who: str = "ours"


SMOL, TINY = "12 trajectories, 134.5M", "72 trajectories, 1.6M"
SAMPLED, SAME, SERVED = "64 rollouts, SmolLM2", "64 rollouts, same texts", "one server, 64 rollouts"
ROLLOUTS = "speed in rollouts"
TARGETS = (
    Target("Rollouts a second: TRL's tool loop", "rollouts", SAMPLED, ROLLOUTS, 2, peer="TRL"),
    Target("Rollouts a second: the original's loop", "rollouts", SAMPLED, ROLLOUTS, 3, peer="original"),
    Target("Tokens a second: TRL's tool loop", "rollouts", SAMPLED, "speed", peer="TRL"),
    Target("Tokens a second: the original's loop", "rollouts", SAMPLED, "speed", peer="original"),
    Target("Tokens a second, same texts: TRL's tool loop", "rollouts", SAME, "speed", 1.2, peer="TRL"),
    Target("Tokens a second, same texts: the original's", "rollouts", SAME, "speed", 3, peer="original"),
    Target("Tokens a second, one vLLM server: verifiers", "vllm", SERVED, "speed", peer="verifiers"),
    Target(
        "Rollouts by vLLM: vLLM on the turns", "vllm", "64 rollouts", "speed", 0.8, peer="vLLM on the turns"
    ),
    Target("Rollouts by vLLM: vLLM alone", "vllm", "64 rollouts", "speed", 0.8, peer="vLLM alone"),
    Target("Step, tiny, KL", "step", f"{TINY}, KL 0.001", "time", 2, peer="TRL"),
    Target("Step, tiny, without KL", "step", f"{TINY}, without KL", "time", 2, peer="TRL"),
    Target("Step, tiny, none idle", "step", f"{TINY}, without KL, none idle", "time", 2, peer="TRL"),
    Target("Step, 135M, none idle", "step", f"{SMOL}, without KL, none idle", "time", 2.5, peer="TRL"),
    *(
        Target(f"Simulator: {n}", "simulator", f"{n} queries at once", "speed", peer="transformers")
        for n in (1, 8, 32, 128)
    ),
    Target("Simulator: greedy, every query four times", "simulator", "greedy", "speed", peer="transformers"),
    Target("Simulator: a step's rollouts wait for it", "simulator", "72 rollouts", "waiting for documents"),
    Target(
        "Simulator, served: longest wait of two runs",
        "simulator",
        "2 runs",
        "longest wait",
        2.5,
        unit="times the mean",
        who="ours, served",
    ),
    Target("`import zs_lib`", "start", "import zs_lib", "time", 0.5),
    Target("`zs --help`", "start", "zs --help", "time", 0.7),
    Target("`zs figures`", "start", "zs figures", "time", 15),
    Target("A notebook on a filled store", "start", "notebook", "time", 10),
    Target("Smoke run of all notebooks", "whole", "smoke", "time", 90),
    Target("`make reproduce` after set-up", "whole", "make reproduce", "time", 480),
    Target(
        "4,096 rollouts: time of one", "growth", "4096 rollouts", "time a rollout", 1.2, base="64 rollouts"
    ),
    Target("Memory of a further rollout", "growth", "64 to 4096 rollouts", "memory a rollout"),
    Target("A million passages: memory", "growth", "1,000,000 passages", "memory of the index"),
    Target("10 million passages on disk: time a query", "growth", "10,000,000 passages", "time a query"),
    Target("100,000 trajectories: explore", "growth", "100,000 trajectories", "time to explore"),
    Target("100,000 trajectories: a step", "growth", "100,000 trajectories", "time to show a step", 1),
    Target("10,000 runs: list", "growth", "10,000 runs", "time to list", 1),
)


def write() -> None:
    """Write figures/benchmarks.md from the recorded benchmarks."""
    records = load_records()
    judged = pd.DataFrame([_judged(target, records) for target in TARGETS])
    parts = [INTRODUCTION, "## Targets\n", markdown(judged.set_index("target"))]
    for name, table in records.items():
        first = table.iloc[0]
        versions = ", ".join(f"{package} {first[package]}" for package in ("torch", "transformers", "trl"))
        machine = f"{first['machine']}, {first['threads']} threads, load {first['load']} at the end"
        made = f"{first['date']}, {machine}, {versions}"
        shown = table[["case", "who", "measure", "value", "unit"]].assign(
            value=[_number(value) for value in table["value"]]
        )
        parts.append(f"## {name}\n\n{made}.\n\n{markdown(shown.set_index('case'))}")
    if TRIED.exists():
        parts.append(TRIED.read_text(encoding="utf-8"))
    write_text(PAGE, "\n".join(parts).rstrip("\n") + "\n")


def _judged(target: Target, records: dict[str, pd.DataFrame]) -> dict[str, str]:
    """A row of the table of targets."""
    table = records.get(target.benchmark)
    value, unit = _find(table, target.case, target.who, target.measure)
    timed = target.measure.startswith(("time", "speed"))
    peak, _ = _find(table if timed else None, target.case, "ours", "of the peak")
    beside, _ = _find(table, target.base or target.case, target.peer or "ours", target.measure)
    faster_is_less = target.peer and target.measure == "time"
    ratio = beside / value if faster_is_less else value / beside
    compared = target.peer or target.base
    reached = ratio if compared else value
    met = reached >= target.bound if target.peer else reached <= target.bound
    of = "times" if target.base else target.unit
    aim = f"≥ {target.bound:g} times" if target.peer else f"≤ {target.bound:g} {of}"
    if math.isnan(value):
        verdict = "not measured"
    elif math.isnan(target.bound):
        verdict = "stated"
    else:
        verdict = "met" if met else "missed"
    return {
        "target": target.what,
        "aim": "" if math.isnan(target.bound) else aim,
        "here": _number(value, unit),
        "beside": f"{compared}: {_number(beside, unit)}" if compared and beside == beside else "",
        "ratio": _number(ratio) if compared else "",
        "of the peak": _number(peak),
        "": verdict,
    }


def _find(table: pd.DataFrame | None, case: str, who: str, measure: str) -> tuple[float, str]:
    """Value and unit of the first case with this name, or else this beginning; NaN if there is none."""
    if table is None:
        return math.nan, ""
    rows = table[(table["who"] == who) & (table["measure"] == measure)]
    named = pd.concat([rows[rows["case"] == case], rows[rows["case"].str.startswith(case)]])
    return (math.nan, "") if named.empty else (named.iloc[0]["value"], named.iloc[0]["unit"])


def _number(value: float, unit: str = "") -> str:
    if math.isnan(value):
        return ""
    return f"{value:,.0f} {unit}".strip() if value >= 1000 else f"{value:.3g} {unit}".strip()
