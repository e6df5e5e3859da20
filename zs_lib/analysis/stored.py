"""What lies in the run store: how each arm differs from the profiles, and the tables of any of its runs.

`collect` makes the tables of `results` from whatever runs there are, of one's own arms, sweeps and overrides
too; so every table, figure and claim works on them as on the recorded ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pandas as pd

from zs_lib import studies
from zs_lib.analysis import results
from zs_lib.analysis.find import find_runs, written_ns
from zs_lib.analysis.results import Tables
from zs_lib.config import Profile, load_profile, profiles
from zs_lib.config.arms import EvaluationArm, FidelityArm, PolicyArm, SimulatorArm
from zs_lib.config.values import differences, digest, flat, from_dict
from zs_lib.errors import ConfigError, RunError, ZeroSearchError
from zs_lib.pipeline import MAKERS, needs
from zs_lib.runs import Run, RunStore, kind_of


def arm_of(run: Run) -> Any:
    """Rebuild the arm of a run, with its name.

    Raises:
        ConfigError: another version of the library wrote it. RunError: it is damaged.
    """
    kinds = {arm.__name__.lower().removesuffix("arm"): arm for arm in MAKERS}
    if run.kind not in kinds:
        raise ConfigError(f"{run.path.name} is of no kind of arm that this version knows.")
    values, label = run.config, {"name": run.label}
    if run.kind == "policy":
        values = values | label
    elif values.get("policy"):
        values = values | {"policy": values["policy"] | label}
    return from_dict(kinds[run.kind], values, run.path.name)


@cache
def _arms(profile: str) -> dict[tuple[str, str], list[Any]]:
    """Every arm of a profile and its studies, by kind and name."""
    study = _with_studies(load_profile(profile))
    wanted = [arm for arm, _ in studies.study_runs(study)]
    wanted += [needed for arm in (*study.policies, *study.simulators) for needed, _ in needs(arm, 0)]
    found: dict[tuple[str, str], list[Any]] = {}
    for arm in wanted:
        found.setdefault((kind_of(arm), arm.name), []).append(arm)
    return found


@cache
def _with_studies(profile: Profile) -> Profile:
    with suppress(ConfigError):  # a profile of one's own may lack their core arms
        return studies.select(studies.full(profile), *studies.VARIATIONS)
    return profile


def origin(arm: Any) -> tuple[str, dict[str, Any]]:
    """Find the profile that has an arm of this name with the fewest other values, and those values.

    A variant ("zerosearch/steps=16") is also compared with the arm before the slash; "" and no values if no
    profile has either.
    """
    compared = [
        (profile, differences(arm, other))
        for name in dict.fromkeys((arm.name, _core(arm.name)))
        for profile in profiles()
        for other in _arms(profile).get((kind_of(arm), name), ())
    ]
    return min(compared, key=lambda pair: len(pair[1]), default=("", {}))


def told(values: dict[str, Any]) -> str:
    """Write differences as text: "steps=16, objective.clip=0.1"."""
    return ", ".join(f"{name.removeprefix('policy.')}={value}" for name, value in values.items())


def compare_runs(store: RunStore, first: Run, second: Run) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Tabulate the settings in which two runs differ, and their final scores, a column a run.

    Scores are the numbers of their summaries, and of a policy its evaluations' mean F1, EM and searches.
    """
    names = [f"{run.path.name} ({run.label})" for run in (first, second)]
    files = [{name: content[:12] for name, content in run.contents.items()} for run in (first, second)]
    values = [flat(arm_of(run)) | files[number] for number, run in enumerate((first, second))]
    settings = pd.DataFrame(values, index=names, dtype=object).T.rename_axis("setting").fillna("none")
    differing = [str(one) != str(other) for one, other in settings.to_numpy()]
    scores = pd.DataFrame([_scores(store, run) for run in (first, second)], index=names).T
    return settings[differing], scores.rename_axis("score")


def _scores(store: RunStore, run: Run) -> dict[str, float]:
    found = {}
    for one in (run, *(evaluations_of(store, [run]) if run.kind == "policy" else ())):
        if one.finished:
            means = one.summary.get("mean", one.summary)
            what = "" if one is run else f"{_tested(arm_of(one))}: "
            found |= {what + name: value for name, value in means.items() if isinstance(value, (int, float))}
    return found


def _tested(arm: EvaluationArm) -> str:
    """Say by what an evaluation tested its policy."""
    return f"{arm.split}, {arm.engine}" + (f", noise {arm.noise:g}" if arm.noise else "")


def evaluations_of(store: RunStore, policies: Iterable[Run]) -> list[Run]:
    """List the evaluations of these policy runs."""
    trained, found = {(run.digest, run.seed) for run in policies}, []
    for run in store.list():
        if run.kind == "evaluation":
            with suppress(RunError):
                policy = run.config.get("policy")
                if policy and (digest(policy, run.contents), run.seed) in trained:
                    found.append(run)
    return found


@dataclass(frozen=True)
class Stored:
    """Tables of finished runs of the store; made by `collect`."""

    tables: Tables
    """As of `results.load_tables`, without the recall of the real engine, which no run measures."""
    varied: Tables
    """As of `results.load_variations`."""
    notes: tuple[str, ...]
    """Sentences: which arms are in no study, and which runs were left out."""


def collect(profile: Profile, store: RunStore, names: Sequence[str] = ()) -> Stored:
    """Make every table of the finished runs in the store, or of those of these `names` (`find_runs`).

    An arm of the profile and its studies has its name there. Any other is named for what differs from the arm
    that has its name: "zerosearch/steps=16". An evaluation by other settings than the profile's is a row of
    its own: "zerosearch (split=dev)".

    Raises:
        RunError: no run has such a name, or none is finished.
    """
    study, notes = _with_studies(profile), []
    runs, arms = _finished(_chosen(store, names), notes)
    if not runs:
        raise RunError(
            "None of these runs is finished: `zs runs list` shows the store, `zs train` makes one."
        )
    policies, known = _named(study, arms.values()), {arm.name for arm in study.policies}
    if unknown := [arm.name for arm in policies.values() if arm.name not in known]:
        notes.append(f"Not of the profile {study.name} as it is (--set changes it): {'; '.join(unknown)}.")
    simulators = _simulators(study, arms.values(), notes)
    seeds = 1 + max(run.seed for run in runs.values())
    view = replace(study, policies=tuple(policies.values()), simulators=simulators, seeds=seeds)
    chosen = _Chosen(runs)
    made = {name: make for name, make in results.TABLES.items() if name not in ("study_rows", "retrieval")}
    tables = {name: make(view, chosen) for name, make in made.items()}
    others = [key for key in runs if key[0] == "evaluation" and key not in chosen.asked]
    scores = [_other_scores(arms[key], runs[key], policies, profile) for key in others if arms[key].policy]
    tables["evaluation"] = pd.concat([tables["evaluation"], *scores], ignore_index=True)
    trained, evaluated = (set(tables[name].get("arm", ())) for name in ("training", "evaluation"))
    every = studies.STUDIES | studies.VARIATIONS
    whole = results.rows_of(study, every, lambda arms: evaluated.issuperset(arms))
    begun = results.rows_of(study, every, lambda arms: sum(arm in trained for arm in arms) > 1)
    tables |= {"retrieval": pd.DataFrame(), "study_rows": whole}
    varied = {name: tables[name] for name in results.VARIED if name in tables}
    varied |= {"variances": results.variances_table(view, chosen), "study_rows": begun}
    return Stored(tables, varied, tuple(notes))


Key = tuple[str, str, int]
"""Kind, digest of the settings without what their files hold, seed."""


def _key(arm: Any, seed: int) -> Key:
    return kind_of(arm), digest(arm, {}), seed


class _Chosen:
    """The runs that tables are made of, in place of the store."""

    def __init__(self, runs: dict[Key, Run]):
        self.runs, self.asked = runs, set()

    def get(self, arm: Any, seed: int) -> Run | None:
        self.asked.add(_key(arm, seed))
        return self.runs.get(_key(arm, seed))


def _chosen(store: RunStore, names: Sequence[str]) -> list[Run]:
    """The named runs, with the evaluations of the policies among them; all without names."""
    if not names:
        return store.list()
    named = {run.path: run for name in names for run in find_runs(store, name)}
    policies = [run for run in named.values() if run.kind == "policy"]
    return list((named | {run.path: run for run in evaluations_of(store, policies)}).values())


def _finished(runs: Iterable[Run], notes: list[str]) -> tuple[dict[Key, Run], dict[Key, Any]]:
    """The finished runs and their arms; of equal settings, whose files have changed, the newest."""
    found, arms = {}, {}
    for run in sorted(runs, key=written_ns):
        if not run.finished:
            notes.append(f"{run.path.name} is left out: it is not finished.")
            continue
        try:
            arm = arm_of(run)
        except ZeroSearchError as error:
            notes.append(f"{run.path.name} is left out: {error}")
            continue
        key = _key(arm, run.seed)
        if key in found:
            notes.append(f"{found[key].path.name} is left out: the files that it names have changed since.")
        found[key], arms[key] = run, arm
    return found, arms


def _named(study: Profile, arms: Iterable[Any]) -> dict[str, PolicyArm]:
    """The policies that have runs or evaluations, by the digest of their settings, each with its own name."""
    own = [arm if isinstance(arm, PolicyArm) else getattr(arm, "policy", None) for arm in arms]
    known = {digest(arm, {}): arm.name for arm in study.policies}
    bases, named = {arm.name: arm for arm in study.policies}, {}
    for key, arm in {digest(arm, {}): arm for arm in own if arm}.items():
        name = known.get(key) or next(
            (name for name in (arm.name, _core(arm.name)) if name in bases), arm.name
        )
        while values := differences(arm, bases.setdefault(name, arm)):
            name += "/" + told(values).replace(", ", ",")
        named[key] = replace(arm, name=name)
    order = [*known.values(), *sorted(arm.name for arm in named.values())]
    return dict(sorted(named.items(), key=lambda item: order.index(item[1].name)))


def _core(name: str) -> str:
    """The name of the arm that a variant's begins with."""
    return name.partition("/")[0]


def _simulators(study: Profile, arms: Iterable[Any], notes: list[str]) -> tuple[SimulatorArm, ...]:
    """The simulators that have runs or fidelity, one of a name: the profile's, else the first."""
    own = [arm.simulator if isinstance(arm, FidelityArm) else arm for arm in arms]
    found = {arm: None for arm in own if isinstance(arm, SimulatorArm)}
    named = {arm.name: arm for arm in study.simulators if arm in found}
    for arm in found:
        if named.setdefault(arm.name, arm) != arm:
            notes.append(f"A simulator {arm.name} is left out, for another has its name: choose by --runs.")
    return tuple(named.values())


def _other_scores(
    arm: EvaluationArm, run: Run, policies: dict[str, PolicyArm], profile: Profile
) -> pd.DataFrame:
    """The scores of an evaluation by other settings than the profile's."""
    policy = policies[digest(arm.policy, {})]
    values = differences(arm, EvaluationArm.of_policy(policy, profile.evaluation))
    name = f"{policy.name} ({told(values)})"
    return results.read_scores(run).assign(arm=name, seed=run.seed, simulator_seed=0)
