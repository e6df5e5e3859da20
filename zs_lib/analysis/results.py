"""Tidy tables from stored runs: one row per observation, read by column name, written as CSV.

    study_rows   study, label, arm: which arms belong to which table (`studies`)
    training     arm, seed, step, and the metrics that a training step logs
    evaluation   arm, seed, simulator_seed (of the run that trained it), and the scores of each question; arm
                 "start" is the untrained policy
    robustness   arm, seed, engine, noise, f1: core arms with other engines, or noise, at test time
    fidelity     simulator, recipe, backbone, questions_from, seed, and what `simulator.fidelity` measures
    fidelity_queries  simulator, questions_from, seed, and one row per query of `simulator.fidelity`
    tuning       simulator, step, loss: supervised fine-tuning
    pairs        how often the judges agree
    retrieval    subset, hop, questions, recall@3, recall@5 of the real engine
    seconds      arm, seed, phase, seconds: training time by phase
    cost         arm, seed, and what training took: see `cost_table`
    provenance   kind, arm, seed, run: the runs behind the tables, with code version and machine

`record_tables` writes them to `data/results/<profile>/` (`record`), from which the figures are redrawn, and
`record_variations` some of them for `studies.VARIATIONS` to `variations/` in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import numpy as np
import pandas as pd

from zs_lib import qa, studies
from zs_lib.analysis import record
from zs_lib.analysis.record import Tables
from zs_lib.config import Profile, load_profile, paths
from zs_lib.config.arms import EvaluationArm, FormatSFTArm, PolicyArm, SimulatorArm
from zs_lib.config.contents import refuse_unreadable
from zs_lib.config.engines import simulates
from zs_lib.engines import SearchEngine, SearchRequest, build_engine
from zs_lib.errors import ConfigError, DataError, RunError
from zs_lib.evaluation.evaluate import SCORES_FILE
from zs_lib.pipeline import needs
from zs_lib.qa import Question, scoring
from zs_lib.runs import Run, RunStore
from zs_lib.simulator import QUERIES_FILE
from zs_lib.studies import (
    evaluation_runs,
    fidelity_runs,
    policy_runs,
    robustness_runs,
    searching_runs,
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
"""Columns that a recorded table must have; without them another version wrote it."""
OPTIONAL = ("fidelity_queries",)
"""Tables that older records lack: empty then."""
START = "start"
"""Name of the policy before training, among the evaluated arms."""


def study_rows(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Collect the rows of every study whose arms are all in the profile and evaluated with seed 0."""
    evaluations = [(EvaluationArm.of_policy(arm, profile.evaluation), 0) for arm in profile.policies]
    evaluated = {arm.name for arm, _, _ in _finished(evaluations, store)}
    return rows_of(profile, studies.STUDIES | studies.VARIATIONS, lambda arms: evaluated.issuperset(arms))


def rows_of(
    profile: Profile, names: Iterable[str], kept: Callable[[list[str]], bool] = lambda arms: True
) -> pd.DataFrame:
    """List the rows of studies, by default with runs or without: of those for whose arms' names `kept` holds.

    A study of which the profile lacks the core arm has none.
    """
    rows = []
    for study in names:
        with suppress(ConfigError):
            arms = {label: arm.name for label, arm in studies.study_arms(profile, study).items()}
            rows += [(study, *row) for row in arms.items()] if kept(list(arms.values())) else []
    return pd.DataFrame(rows, columns=NEEDED["study_rows"])


def training_table(profile: Profile, store: RunStore, growing: bool = False) -> pd.DataFrame:
    """Collect the metrics of every step of every finished policy; with `growing`, also of unfinished ones."""
    return _stack(
        run.metrics().assign(arm=arm.name, seed=seed)
        for arm, seed in policy_runs(profile)
        if (run := store.get(arm, seed)) and (growing or run.finished)
    )


def evaluation_table(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Collect the scores of every question in every finished evaluation."""
    return _stack(
        read_scores(run).assign(
            arm=evaluated_name(arm, profile), seed=seed, simulator_seed=_simulator_seed(arm, seed)
        )
        for arm, seed, run in _finished(evaluation_runs(profile), store)
    )


def _simulator_seed(arm: EvaluationArm, seed: int) -> int:
    """Seed of the simulator that an evaluated policy was trained with; 0 without one."""
    needed = needs(arm.policy, seed) if arm.policy else []
    return next((number for one, number in needed if isinstance(one, SimulatorArm)), 0)


def read_scores(run: Run) -> pd.DataFrame:
    """Read the table of `evaluate` from a finished evaluation's folder.

    Raises:
        DataError: it is not there, or no such table. RunError: it is not as it was stored, or unreadable.
    """
    empty = {"prediction": [""], "query_quality": [""]}  # nothing else is: Nan is a city, NA a country code
    path = run.file(SCORES_FILE)
    try:
        with refuse_unreadable(path):
            return pd.read_csv(
                path, dtype={"id": str, "prediction": str}, keep_default_na=False, na_values=empty
            )
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"{run.path.name}/{SCORES_FILE} is no table of scores ({error}): delete the run's folder, "
            "evaluate again."
        ) from error


def evaluated_name(arm: EvaluationArm, profile: Profile) -> str:
    """Name an evaluated arm; an untrained model other than the first policy's is named for the difference."""
    first, name = profile.policies[0], arm.name
    if arm.policy:
        return name
    if arm.backbone != first.backbone:
        name += f"/backbone={arm.backbone.rsplit('/', 1)[-1]}"
    return name if arm.format_sft == first.format_sft else name + "/format_sft=off"


def robustness_table(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Collect the mean F1 with other engines, with noise at test time, and of the plain evaluation."""
    plain = [
        (EvaluationArm.of_policy(arm, profile.evaluation), seed) for arm, seed in searching_runs(profile)
    ]
    return pd.DataFrame(
        {
            "arm": arm.name,
            "seed": seed,
            "engine": arm.engine,
            "noise": arm.noise,
            "f1": run.summary["mean"]["f1"],
        }
        for arm, seed, run in _finished(plain + robustness_runs(profile), store)
    )


def fidelity_table(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Collect fidelity, one row per simulator, its seed and kind of question."""
    return pd.DataFrame(
        {
            "simulator": arm.simulator.name,
            "recipe": arm.simulator.recipe,
            "backbone": arm.simulator.backbone,
            "questions_from": arm.questions_from,
            "seed": seed,
            **run.summary,
        }
        for arm, seed, run in _finished(fidelity_runs(profile), store)
    )


def fidelity_queries_table(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Collect whether the documents of each query stated the answer, of runs that stored it."""
    return _stack(
        pd.read_csv(run.file(QUERIES_FILE)).assign(
            simulator=arm.simulator.name, questions_from=arm.questions_from, seed=seed
        )
        for arm, seed, run in _finished(fidelity_runs(profile), store)
        if (run.path / QUERIES_FILE).exists()
    )


def tuning_table(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Collect the loss by step of every fine-tuned simulator and every format SFT."""
    tuned = {f"format SFT of {arm.name}": arm for arm in _format_sft_arms(profile)}
    tuned |= {arm.name: arm for arm in profile.simulators if arm.fine_tuned}
    return _stack(
        run.metrics().assign(simulator=label)
        for label, arm in tuned.items()
        for _, _, run in _finished([(arm, 0)], store)
    )


def pairs_table(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Collect the LLM judge's agreement with plain answer containment on the training pairs."""
    arms = dict.fromkeys(arm.pairs for arm in profile.simulators if arm.fine_tuned)
    return pd.DataFrame(run.summary for _, _, run in _finished([(arm, 0) for arm in arms], store))


def retrieval_table(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Measure the real engine's recall for good queries, on the test questions."""
    recall = retrieval_recall(qa.load_questions(split="test"), build_engine(profile.evaluation.engine))
    return recall.reset_index()


def retrieval_recall(questions: Sequence[Question], engine: SearchEngine) -> pd.DataFrame:
    """Measure the recall of good queries ("relation of entity", one a hop): the ceiling of every policy.

    One row a subset and hop; recall@k is the share of queries whose first k documents state the hop's answer,
    questions their number.
    """
    asked = [(q.subset, place, hop) for q in questions for place, hop in enumerate(q.hops, 1)]
    requests = [SearchRequest(hop.query, "", ()) for _, _, hop in asked]
    rows = [
        {"subset": subset, "hop": place}
        | {f"recall@{k}": scoring.contains("\n".join(found.documents[:k]), hop.answers) for k in (3, 5)}
        for (subset, place, hop), found in zip(asked, engine.search(requests, 5), strict=True)
    ]
    groups = pd.DataFrame(rows).groupby(["subset", "hop"], sort=False)
    return groups.mean().assign(questions=groups.size())


def seconds_table(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Collect the seconds of training by arm, seed and phase."""
    return _stack(
        _seconds(run).rename_axis("phase").reset_index(name="seconds").assign(arm=arm.name, seed=seed)
        for arm, seed, run in _finished(policy_runs(profile), store)
    )


def provenance_table(profile: Profile, store: RunStore) -> pd.DataFrame:
    """List the finished runs behind the tables, with code version and machine."""
    wanted = [(arm, 0) for arm in _format_sft_arms(profile)] + study_runs(profile)
    return pd.DataFrame(
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
    )


def cost_table(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Collect what training took, one row per finished policy run.

    Columns: arm, seed, queries, real_queries (answered by a real engine), policy_tokens and simulator_tokens
    (generated in training), and seconds of rollout (without search), search and update.
    """
    finished = _finished(policy_runs(profile), store)
    return pd.DataFrame({"arm": arm.name, "seed": seed} | _counts(arm, run) for arm, seed, run in finished)


def _counts(arm: PolicyArm, run: Run) -> dict[str, float]:
    log = run.metrics()
    answered = (log["searches"] * (1 - log["failed"])).sum()
    queries = answered * arm.prompts_per_step * arm.group_size
    if arm.engine == "mixed":
        real = log["real_searches"].sum() if "real_searches" in log else 0
    else:
        real = 0 if simulates(arm.engine) else queries
    return {
        "queries": round(queries),
        "real_queries": round(real),
        "policy_tokens": log["rollout_tokens"].sum(),
        "simulator_tokens": log["search_tokens"].sum(),
        **_seconds(run),
    }


def _seconds(run: Run) -> pd.Series:
    """Seconds of a training by phase."""
    return run.timing().drop(columns="step").sum()


def _format_sft_arms(profile: Profile) -> list[FormatSFTArm]:
    """The format SFT that policies start from, each once."""
    needed = (arm for policy in profile.policies for arm, _ in needs(policy, seed=0))
    return list(dict.fromkeys(arm for arm in needed if isinstance(arm, FormatSFTArm)))


TABLES: dict[str, Callable[[Profile, RunStore], pd.DataFrame]] = {
    "study_rows": study_rows,
    "training": training_table,
    "evaluation": evaluation_table,
    "robustness": robustness_table,
    "fidelity": fidelity_table,
    "fidelity_queries": fidelity_queries_table,
    "tuning": tuning_table,
    "pairs": pairs_table,
    "retrieval": retrieval_table,
    "seconds": seconds_table,
    "cost": cost_table,
    "provenance": provenance_table,
}
"""Name → (profile, store) → table; the module's docstring lists their columns."""


def collect_tables(profile: Profile, store: RunStore) -> Tables:
    """Make every table from the runs in the store."""
    return {name: table(profile, store) for name, table in TABLES.items()}


def record_tables(core: Profile, store: RunStore, shrink: bool = False) -> list[str]:
    """Write the tables of a profile and its studies to `data/results/<profile>/`; name unfinished runs.

    Studies may be recorded before they are complete: their unfinished runs are left out. The record is
    replaced as a whole, however the process is killed, and only by a richer one, without `shrink`.

    Raises:
        RunError: a run of the profile itself is not finished. DataError: the record would lose rows, arms or
            seeds; says which.
    """
    if missing := _unfinished(study_runs(core), store):
        raise RunError(
            f"{len(missing)} runs are not finished ({', '.join(missing[:4])}, …): "
            f"`zs reproduce --profile {core.name} --seeds {core.seeds}` makes them."
        )
    profile = studies.full(core)
    record.write(RECORDS / core.name, collect_tables(profile, store), shrink)
    return _unfinished(study_runs(profile), store)


def variances_table(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Average the variance of rewards (n - 1) within trained groups, by policy run that logged its groups."""
    rows = []
    for arm, seed, run in _finished(policy_runs(profile), store):
        if (run.path / "groups.jsonl").exists():
            rewards = [np.array(group["rewards"], float) for group in run.groups() if group["trained"]]
            rows.append((arm.name, seed, np.mean([np.nanvar(group, ddof=1) for group in rewards])))
    return pd.DataFrame(rows, columns=["arm", "seed", "reward_variance"])


VARIED = {name: TABLES[name] for name in ("training", "evaluation", "seconds", "provenance")}
VARIED["variances"] = variances_table
"""Tables recorded of variations, beside their `rows_of`."""


def record_variations(profile: Profile, store: RunStore, shrink: bool = False) -> list[str]:
    """Write the tables of a profile's variations to `data/results/<profile>/variations/`.

    Arms may be recorded before they have all runs, or any. Returns the names of unfinished trainings.

    Raises:
        DataError: as of `record_tables`.
    """
    varied = studies.only(profile, *studies.VARIATIONS)
    tables = {name: table(varied, store) for name, table in VARIED.items()}
    tables["study_rows"] = rows_of(profile, studies.VARIATIONS)
    record.write(RECORDS / profile.name / "variations", tables, shrink)
    return _unfinished(policy_runs(varied), store)


def load_variations(profile: str) -> Tables:
    """Read the recorded tables of a profile's variations; if it has none, empty ones and their rows.

    Raises:
        DataError: a file is damaged.
    """
    names = (*VARIED, "study_rows")
    tables = record.read(RECORDS / profile / "variations", names, optional=names)
    if tables["study_rows"].empty:
        tables["study_rows"] = rows_of(load_profile(profile), studies.VARIATIONS)
    return tables


def _unfinished(wanted: Iterable[tuple], store: RunStore) -> list[str]:
    return [
        f"{arm.name} s{seed}" for arm, seed in wanted if not ((run := store.get(arm, seed)) and run.finished)
    ]


def load_tables(profile: str) -> Tables:
    """Read the recorded tables of a profile.

    Raises:
        DataError: nothing is recorded for this profile, or a file is damaged.
    """
    if profile not in (known := recorded_profiles()):
        raise DataError(
            f"No results are recorded for the profile {profile!r} (recorded: {', '.join(known) or 'none'}): "
            f"run `zs reproduce --profile {profile}`, then `zs runs record --profile {profile}`."
        )
    return record.read(RECORDS / profile, TABLES, OPTIONAL, NEEDED)


def recorded_profiles() -> list[str]:
    """List the profiles with recorded tables (benchmarks are recorded beside them)."""
    return sorted(
        folder.name
        for folder in RECORDS.glob("*")
        if any(record.file_of(folder, name).exists() for name in TABLES)
    )


def _finished(wanted: Iterable[tuple], store: RunStore) -> Iterable[tuple[object, int, Run]]:
    for arm, seed in wanted:
        run = store.get(arm, seed)
        if run and run.finished:
            yield arm, seed, run


def _stack(frames: Iterable[pd.DataFrame]) -> pd.DataFrame:
    frames = [frame for frame in frames if len(frame)]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
