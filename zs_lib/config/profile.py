"""Profiles: a study at one size, as TOML files that state every value of its arms.

Nothing else in the library asks which profile runs. Layout of a file:

    extends      another profile, whose values hold where this one has none; rows are added to its rows
    name, seeds, benchmark, tracker, backbones, instructs      of the whole study
    [format_sft]    if there is one: for every policy that does not say `format_sft = false`
    [simulator]  values that all simulators share     [[simulators]]  one row an arm: what differs
    [policy]     values that all policies share       [[policies]]    one row an arm: what differs
                 (with [policy.objective], [policy.rollout], [policy.curriculum])
    [evaluation]                                                  [resources]     of a run

A policy's `simulator` is the name of one of the simulators: "<recipe>-<backbone>".
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass, field
from typing import Annotated, Any

from zs_lib.config import paths
from zs_lib.config.arms import EvaluationConfig, PolicyArm, SimulatorArm, TrackerName
from zs_lib.config.engines import simulates
from zs_lib.config.values import LABEL, Checked, among, from_dict, pick, reject_unknown, within
from zs_lib.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Share(Checked):
    """The share of a machine that one run takes (`launch.placement`; on a cluster, Ray or SLURM)."""

    cpus: Annotated[int, within(1, 10_000)] = 1
    """Also the number of threads; only runs with equal numbers are equal bit for bit."""
    gpus: Annotated[int, within(0, 1000)] = 0
    """For this run alone: 0: it is made on CPUs, whatever the machine has; several: each has a process."""
    sharding: Annotated[str, among("none", "fsdp2", "deepspeed")] = "none"
    """Whether each of several GPUs holds the whole model, or a part of it (`launch/fsdp2.yaml`,
    `launch/deepspeed.yaml`)."""

    def __str__(self) -> str:
        return f"{self.cpus} CPU and {self.gpus} GPU"


@dataclass(frozen=True, kw_only=True)
class Resources:
    """The shares of machines by kind of run."""

    simulator: Share = Share()
    policy: Share = Share()
    evaluation: Share = Share()
    """Also the share of every other kind: fidelity, pairs, format SFT."""

    def of(self, kind: str) -> Share:
        """Return the share of a kind of run."""
        return getattr(self, kind, self.evaluation)


@dataclass(frozen=True, kw_only=True)
class Profile(Checked):
    """A study at one size, as the notebooks run it."""

    name: str = field(metadata=LABEL)
    seeds: Annotated[int, within(1, 1000)]
    """Runs of each policy arm: seeds 0 to seeds - 1."""
    benchmark: str
    """"embedded" (facts shipped in data/benchmark), "hub", or your own questions (`qa.load_benchmark`)."""
    tracker: TrackerName = "none"
    """Where the metrics of runs also go."""
    backbones: tuple[str, ...]
    """The base models of the study, smallest first."""
    instructs: tuple[str, ...]
    """Their instruct variants, which have seen well-formed trajectories or follow instructions."""
    simulators: tuple[SimulatorArm, ...]
    policies: tuple[PolicyArm, ...]
    evaluation: EvaluationConfig
    resources: Resources = field(default=Resources(), metadata=LABEL, compare=False)

    def __post_init__(self):
        super().__post_init__()
        for kind, arms in (("policies", self.policies), ("simulators", self.simulators)):
            names = [arm.name for arm in arms]
            if twice := next((name for name in names if names.count(name) > 1), None):
                raise ConfigError(f"Two {kind} are called {twice!r}: rename or remove one of them.")

    def policy(self, name: str) -> PolicyArm:
        """Find the policy arm of this name; ConfigError, which lists the names, if there is none."""
        return pick("policy", name, {arm.name: arm for arm in self.policies})

    def simulator(self, name: str) -> SimulatorArm:
        """Find the simulator of this name; ConfigError, which lists the names, if there is none."""
        return pick("simulator", name, {arm.name: arm for arm in self.simulators})


def profiles() -> list[str]:
    """List the profiles' names, smallest first."""
    order = ["smoke", "tiny", "smol", "smol-sizes", "paper", "paper-lora"]
    found = [path.stem for path in paths.PROFILES.glob("*.toml")]
    return sorted(found, key=lambda name: (order.index(name) if name in order else len(order), name))


ARM_TABLES = {"simulator": "simulators", "policy": "policies"}
"""Table of shared values -> its rows."""


def load_profile(name: str, overrides: dict[str, Any] | None = None) -> Profile:
    """Read a profile; `overrides` are dotted keys: {"policy.steps": 5, "policy.rollout.temperature": 0.9}.

    An override of a shared value ([policy], [simulator]) holds for every arm, also for those whose row
    differs.

    Raises:
        ConfigError: unknown profile or key, wrong type, value out of range, missing value, name of no
            simulator.
    """
    reject_unknown("profile", [name], profiles())
    table = _read(name)
    if "extends" in table:
        below = table.pop("extends")
        reject_unknown("profile", [below], [other for other in profiles() if other != name])
        below = _read(below)
        table = _merge(below, table) | {rows: below[rows] + table[rows] for rows in ARM_TABLES.values()}
    try:
        return _profile(_override(table, overrides or {}))
    except (ConfigError, RecursionError) as error:
        raise ConfigError(f"Profile '{name}': {error}") from error


def _read(name: str) -> dict:
    try:
        table = tomllib.loads((paths.PROFILES / f"{name}.toml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:  # no UTF-8, no TOML, a thousand brackets
        raise ConfigError(f"The profile '{name}' is no valid TOML ({error}): correct {name}.toml.") from error
    for shared, rows in ARM_TABLES.items():
        values, arms = table.setdefault(shared, {}), table.setdefault(rows, [])
        if not isinstance(arms, list) or not all(isinstance(part, dict) for part in (values, *arms)):
            raise ConfigError(f"Profile '{name}': [{shared}] must be a table, and [[{rows}]] a row an arm.")
    return table


def _override(table: dict, overrides: dict[str, Any]) -> dict:
    """Lay dotted keys that the profile has over it; those of [policy] and [simulator] over each arm's row."""
    reject_unknown("override", overrides, _dotted_keys(table))
    above: dict = {}
    for dotted, value in overrides.items():
        for part in reversed(dotted.split(".")):
            value = {part: value}
        above = _merge(above, value)
    arms = {
        rows: [_merge(row, above.get(shared, {})) for row in table[rows]]
        for shared, rows in ARM_TABLES.items()
    }
    return _merge(table, above) | arms


def _dotted_keys(table: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in table.items():
        if isinstance(value, dict):
            keys += _dotted_keys(value, f"{prefix}{key}.")
        elif key not in ARM_TABLES.values():
            keys.append(prefix + key)
    return keys


def _profile(table: dict) -> Profile:
    of_study = {key: table[key] for key in ("benchmark", "tracker") if key in table}
    format_sft = table.pop("format_sft", None)
    rows = _rows(table, "simulator", of_study | {"format_sft": format_sft})
    simulators = tuple(from_dict(SimulatorArm, row, f"simulators[{i}]") for i, row in enumerate(rows))
    by_name = {arm.name: arm for arm in simulators}
    policies = []
    defaults = {"simulator": None, "curriculum": None, "format_sft": format_sft}
    for row in _rows(table, "policy", defaults | of_study):
        if row["format_sft"] is False:
            row["format_sft"] = None
        if not simulates(str(row.get("engine"))):  # the shared values are for simulated search
            row |= {"simulator": None, "curriculum": None, "simulator_refresh": 0}
        elif row["simulator"] is not None:
            row["simulator"] = pick("simulator", row["simulator"], by_name)
        policies.append(from_dict(PolicyArm, row, f"policy '{row.get('name')}'"))
    return from_dict(Profile, table | {"simulators": simulators, "policies": tuple(policies)}, "the profile")


def _rows(table: dict, kind: str, defaults: dict) -> list[dict]:
    """The arms of a kind, each row laid over the shared values; both tables leave `table`."""
    shared = _merge(defaults, table.pop(kind))
    return [_merge(shared, row) for row in table.pop(ARM_TABLES[kind])]


def _merge(below: dict, above: dict) -> dict:
    """Lay a table over another, and tables in it over those of the same key."""
    nested = {
        key: _merge(below[key], value)
        for key, value in above.items()
        if isinstance(value, dict) and isinstance(below.get(key), dict)
    }
    return below | above | nested
