"""What lies in the run store: how each arm differs from the profiles, and two runs from each other."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from typing import Any

import pandas as pd

from zs_lib import studies
from zs_lib.config import Profile, load_profile, profiles
from zs_lib.config.arms import EvaluationArm
from zs_lib.config.values import differences, digest, flat, from_dict
from zs_lib.errors import ConfigError, RunError
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
        for name in dict.fromkeys((arm.name, arm.name.partition("/")[0]))
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
