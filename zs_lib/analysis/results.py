"""Stored runs → tidy tables: one row an observation, read by column name, written as CSV.

    study_rows   study, label, arm: which arms stand in which table (`studies`)
    training     arm, seed, step, and what a training step logs
    evaluation   arm, seed, and what `evaluate` says of each question; arm "start" is the untrained policy
    robustness   arm, seed, engine, noise, f1: core arms with other engines, or noise, at test time
    fidelity     simulator, way, backbone, questions_from, and what `simulator.fidelity` measures
    tuning       simulator, step, loss: supervised fine-tuning
    pairs        how often the judges agree
    retrieval    subset, hop, questions, recall@3, recall@5 of the real engine
    seconds      arm, seed, phase, seconds: where the time went
    cost         arm, seed, and what `cost.measured` counts
    provenance   kind, arm, seed, run: which runs a table was made from, with code version and machine

`data/results/<profile>/` holds them as recorded by `record`; figures are redrawn from there.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd

from zs_lib import studies
from zs_lib.analysis.cost import measured
from zs_lib.config import Profile, paths
from zs_lib.config.arms import EvaluationArm, PolicyArm
from zs_lib.errors import DataError, RunError
from zs_lib.evaluation.evaluate import read_scores
from zs_lib.runs import Run, RunStore
from zs_lib.studies import (
    _searching,
    evaluation_runs,
    fidelity_runs,
    format_sft_arms,
    policy_runs,
    robustness_runs,
    study_runs,
)

RECORDS = paths.ROOT / "data" / "results"
NEEDED = {
    "study_rows": ("study", "label", "arm"),
    "training": ("arm", "seed", "step", "reward", "turns", "query_quality"),
    "evaluation": ("arm", "seed", "id", "subset", "hops", "f1", "em", "searches", "documents"),
    "robustness": ("arm", "seed", "engine", "noise", "f1"),
    "cost": ("arm", "seed", "queries", "real_queries"),
}
"""Columns without which a recorded table is another version's."""
LONG = ("training", "evaluation")
"""Tables that are recorded compressed: a row a step or a question of every run."""
START = "start"
"""The name of the policy before training among the evaluated arms."""
Tables = dict[str, pd.DataFrame]


def study_rows(profile: Profile, store: RunStore) -> pd.DataFrame:
    """The rows of every study whose arms the profile has, and which was evaluated with one seed at least."""
    names = {arm.name for arm in profile.policies}
    found = {study: studies.study_arms(profile, study) for study in studies.STUDIES}
    return pd.DataFrame(
        [
            {"study": study, "label": label, "arm": arm.name}
            for study, arms in found.items()
            if {arm.name for arm in arms.values()} <= names and _evaluated(arms.values(), profile, store)
            for label, arm in arms.items()
        ],
        columns=["study", "label", "arm"],
    )


def _evaluated(arms: Iterable[PolicyArm], profile: Profile, store: RunStore) -> bool:
    runs = (store.get(EvaluationArm.of_policy(arm, profile.evaluation), 0) for arm in arms)
    return all(run and run.finished for run in runs)


def training(profile: Profile, store: RunStore, growing: bool = False) -> pd.DataFrame:
    """Metrics of every step of every finished policy, or with `growing` of those that have begun, too."""
    return _stack(
        run.metrics().assign(arm=arm.name, seed=seed)
        for arm, seed in policy_runs(profile)
        if (run := store.get(arm, seed)) and (growing or run.finished)
    )


def evaluation(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Scores of every question by every finished evaluation."""
    return _stack(
        read_scores(run).assign(arm=_name(arm, profile), seed=seed)
        for arm, seed, run in _finished(evaluation_runs(profile), store)
    )


def _name(arm: EvaluationArm, profile: Profile) -> str:
    """The arm's name; of an untrained model other than the first policy's, with what is other, as `studies` writes it."""
    first, name = profile.policies[0], arm.name
    if arm.policy:
        return name
    if arm.backbone != first.backbone:
        name += f"/backbone={arm.backbone.rsplit('/', 1)[-1]}"
    return name if arm.format_sft == first.format_sft else name + "/format_sft=off"


def robustness(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Mean F1 with other engines, and with noise at test time; the evaluation itself included."""
    plain = [(EvaluationArm.of_policy(arm, profile.evaluation), seed) for arm, seed in _searching(profile)]
    return pd.DataFrame(
        [
            {
                "arm": arm.name,
                "seed": seed,
                "engine": arm.engine,
                "noise": arm.noise,
                "f1": run.summary["mean"]["f1"],
            }
            for arm, seed, run in _finished(plain + robustness_runs(profile), store)
        ]
    )


def fidelity(profile: Profile, store: RunStore) -> pd.DataFrame:
    """One row a simulator and kind of question."""
    return _stack(
        pd.DataFrame(
            [
                {
                    "simulator": arm.simulator.label,
                    "recipe": arm.simulator.recipe,
                    "backbone": arm.simulator.backbone,
                    "questions_from": arm.questions_from,
                    **run.summary,
                }
            ]
        )
        for arm, _, run in _finished(fidelity_runs(profile), store)
    )


def tuning(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Loss of every fine-tuned simulator, and of every warm-up, by step."""
    tuned = {f"warm-up {arm.name}": arm for arm in format_sft_arms(profile)} | {
        arm.label: arm for arm in profile.simulators if arm.fine_tuned
    }
    return _stack(
        run.metrics().assign(simulator=label)
        for label, arm in tuned.items()
        for _, _, run in _finished([(arm, 0)], store)
    )


def pairs(profile: Profile, store: RunStore) -> pd.DataFrame:
    """How the LLM judge and plain containment agree on the training pairs."""
    arms = dict.fromkeys(arm.pairs for arm in profile.simulators if arm.fine_tuned)
    return _stack(pd.DataFrame([run.summary]) for _, _, run in _finished([(arm, 0) for arm in arms], store))


def retrieval(profile: Profile, store: RunStore) -> pd.DataFrame:
    """What a good query finds with the real engine, on the test questions."""
    from zs_lib import qa
    from zs_lib.engines import build_engine
    from zs_lib.evaluation.evaluate import retrieval_recall

    return retrieval_recall(
        qa.load_questions(split="test"), build_engine(profile.evaluation.engine)
    ).reset_index()


def seconds(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Seconds of training by phase."""
    return _stack(
        run.timing()
        .drop(columns="step")
        .sum()
        .rename_axis("phase")
        .rename("seconds")
        .reset_index()
        .assign(arm=arm.name, seed=seed)
        for arm, seed, run in _finished(policy_runs(profile), store)
    )


def provenance(profile: Profile, store: RunStore) -> pd.DataFrame:
    """The finished runs behind the tables."""
    simulators = [(arm, 0) for arm in (*format_sft_arms(profile), *profile.simulators)]
    wanted = (
        simulators
        + fidelity_runs(profile)
        + policy_runs(profile)
        + evaluation_runs(profile)
        + robustness_runs(profile)
    )
    return pd.DataFrame(
        [
            {
                "kind": run.kind,
                "arm": arm.name,
                "seed": seed,
                "run": run.path.name,
                **run.record.get("code", {}),
                **run.record.get("machine", {}),
                "torch": run.record.get("packages", {}).get("torch"),
            }
            for arm, seed, run in _finished(wanted, store)
        ]
    )


TABLES: dict[str, Callable[[Profile, RunStore], pd.DataFrame]] = {
    "study_rows": study_rows,
    "training": training,
    "evaluation": evaluation,
    "robustness": robustness,
    "fidelity": fidelity,
    "tuning": tuning,
    "pairs": pairs,
    "retrieval": retrieval,
    "seconds": seconds,
    "cost": measured,
    "provenance": provenance,
}
"""Name -> (profile, store) -> table; the module's docstring says what each holds."""


def collect_tables(profile: Profile, store: RunStore) -> Tables:
    """Every table of the study, from what the store has."""
    return {name: table(profile, store) for name, table in TABLES.items()}


def record_tables(profile: Profile, store: RunStore, core: Profile, folder: Path | None = None) -> list[str]:
    """Write the tables as CSV files into `data/results/<profile>/` (or `folder`); the maintainers' step.

    A study may be recorded while it grows: the runs that are not finished are left out, and named in what is returned.

    Raises:
        RunError: a run of `core`, the part that must be whole, is not finished.
    """

    def unfinished(part: Profile) -> list[str]:
        return [
            f"{arm.name} s{seed}"
            for arm, seed in study_runs(part)
            if not ((run := store.get(arm, seed)) and run.finished)
        ]

    if missing := unfinished(core):
        raise RunError(
            f"{len(missing)} runs are not finished ({', '.join(missing[:4])}, …): "
            f"`zs reproduce --profile {core.name} --seeds {core.seeds}` makes them."
        )
    folder = folder or RECORDS / profile.name
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in collect_tables(profile, store).items():
        compression = (
            {"method": "gzip", "mtime": 0} if name in LONG else None
        )  # no time: equal tables are equal files
        table.to_csv(
            folder / _file(name),
            index=False,
            float_format="%.6g",
            lineterminator="\n",
            compression=compression,
        )
    return unfinished(profile)


def load_tables(profile: str, folder: Path | None = None) -> Tables:
    """The recorded tables of a profile.

    Raises:
        DataError: nothing was recorded for this profile, or a file is damaged.
    """
    folder = folder or RECORDS / profile
    if not folder.is_dir():
        recorded = ", ".join(sorted(path.name for path in RECORDS.glob("*") if path.is_dir())) or "none"
        raise DataError(
            f"No results are recorded for the profile {profile!r} (recorded: {recorded}): "
            f"run `zs reproduce --profile {profile}`, then `zs runs record --profile {profile}`."
        )
    return {name: _read(folder / _file(name), NEEDED.get(name, ())) for name in TABLES}


def _file(name: str) -> str:
    return f"{name}.csv.gz" if name in LONG else f"{name}.csv"


def _read(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path)
    except pd.errors.EmptyDataError:
        return pd.DataFrame()
    except (OSError, ValueError, EOFError, zlib.error) as error:
        raise DataError(
            f"{path.name} of the recorded results cannot be read ({error}): "
            "restore it with `git checkout`, or record it again."
        ) from error
    if lacking := [column for column in needed if column not in table]:
        raise DataError(
            f"{path.name} was recorded by another version (it lacks the column {lacking[0]!r}): record it again "
            "with `zs runs record`."
        )
    return table


def _finished(wanted: Iterable[tuple], store: RunStore) -> Iterable[tuple[object, int, Run]]:
    for arm, seed in wanted:
        run = store.get(arm, seed)
        if run and run.finished:
            yield arm, seed, run


def _stack(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
