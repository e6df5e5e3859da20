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
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pandas as pd

from zs_lib import config, evaluate, studies
from zs_lib.arms import EvaluationArm, FidelityArm, PolicyArm, WarmUpArm
from zs_lib.config import Profile
from zs_lib.cost import measured
from zs_lib.errors import DataError, RunError
from zs_lib.methods import METHODS
from zs_lib.runs import Run, RunStore

RECORDS = config.ROOT / "data" / "results"
TABLES = (
    "study_rows",
    "training",
    "evaluation",
    "robustness",
    "fidelity",
    "tuning",
    "pairs",
    "retrieval",
    "seconds",
    "cost",
    "provenance",
)
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
QUESTIONS_FROM = ("held out", "test")
MOST_TEST_QUESTIONS = 150
"""Of a simulator's fidelity: enough to see that it hardly knows entities that it never met; no bound is tested on them."""

FIDELITY_COLUMNS = [
    "answer_good",
    "answer_first",
    "answer_last",
    "answer_bad",
    "leak",
    "short",
    "words",
    "distinct_2",
    "auc",
]
"""What a fidelity table shows to people, in this order."""

Tables = dict[str, pd.DataFrame]


# the arms of a study ------------------------------------------------------------------------------------------------


def policy_runs(profile: Profile) -> list[tuple]:
    """(arm, seed) of every policy of the study."""
    return [(arm, seed) for arm in profile.policies for seed in range(profile.seeds)]


def warm_ups(profile: Profile) -> list[WarmUpArm]:
    """What the policies begin with, each once."""
    return list(
        dict.fromkeys(
            WarmUpArm(backbone=arm.backbone, benchmark=arm.benchmark, how=arm.warm_up)
            for arm in profile.policies
            if arm.warm_up
        )
    )


def fidelity_runs(profile: Profile) -> list[tuple]:
    """(arm, seed) of the fidelity of every simulator, on both kinds of questions."""
    count = profile.evaluation.fidelity_questions
    counts = {"held out": count, "test": min(count, MOST_TEST_QUESTIONS)}
    return [
        (FidelityArm(simulator=arm, questions_from=source, num_questions=counts[source]), 0)
        for arm in profile.simulators
        for source in QUESTIONS_FROM
    ]


def baseline_runs(profile: Profile) -> list[tuple]:
    """(arm, seed) of the evaluations without training: of every backbone that a policy starts from, by each method."""
    first = {(arm.backbone, arm.warm_up): arm for arm in reversed(profile.policies)}
    starts = dict.fromkeys((arm.backbone, arm.warm_up) for arm in profile.policies)
    return [
        (EvaluationArm.of_backbone(first[start], profile.evaluation, method), 0)
        for start in starts
        for method in profile.evaluation.baselines
    ]


def robustness_runs(profile: Profile) -> list[tuple]:
    """(arm, seed) of arms that search, with each of the other engines, and with each share of noise."""
    cfg, main = profile.evaluation, next(arm for arm in profile.policies if arm.simulator)
    changes = [
        {"engine": engine, "simulator": main.simulator if engine == "simulated" else None}
        for engine in cfg.engines
    ]
    changes += [{"noise": share} for share in cfg.noise]
    return [
        (replace(EvaluationArm.of_policy(arm, cfg), **change), seed)
        for arm, seed in _searching(profile)
        for change in changes
    ]


def _searching(profile: Profile) -> list[tuple]:
    """(arm, seed) of the core arms that search, and of those trained with another real engine."""
    return [
        (arm, seed)
        for arm, seed in policy_runs(profile)
        if arm.engine != "none" and ("/" not in arm.name or "/engine=" in arm.name)
    ]


def evaluation_runs(profile: Profile) -> list[tuple]:
    """(arm, seed) of every evaluation: the backbones', and the policies'."""
    return baseline_runs(profile) + [
        (EvaluationArm.of_policy(arm, profile.evaluation), seed) for arm, seed in policy_runs(profile)
    ]


def study_runs(profile: Profile) -> list[tuple]:
    """(arm, seed) of everything: the policies first, for they take longest."""
    return (
        policy_runs(profile)
        + [(arm, 0) for arm in profile.simulators]
        + fidelity_runs(profile)
        + evaluation_runs(profile)
        + robustness_runs(profile)
    )


# runs → tables ------------------------------------------------------------------------------------------------------


def study_rows(profile: Profile, store: RunStore) -> pd.DataFrame:
    """The rows of every study whose arms the profile has, and which was evaluated with one seed at least."""
    names = {arm.name for arm in profile.policies}
    found = {study: studies.rows(profile, study) for study in studies.STUDIES}
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
        evaluate.rows(run).assign(arm=_name(arm, profile), seed=seed)
        for arm, seed, run in _finished(evaluation_runs(profile), store)
    )


def _name(arm: EvaluationArm, profile: Profile) -> str:
    """The arm's name; of an untrained model other than the first policy's, with what is other, as `studies` writes it."""
    first, name = profile.policies[0], arm.name
    if arm.policy:
        return name
    if arm.backbone != first.backbone:
        name += f"/backbone={arm.backbone.rsplit('/', 1)[-1]}"
    return name if arm.warm_up == first.warm_up else name + "/warm_up=off"


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
                    "way": arm.simulator.way,
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
    tuned = {f"warm-up {arm.name}": arm for arm in warm_ups(profile)} | {
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
    from zs_lib.engines.recall import retrieval_recall

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


def cost(profile: Profile, store: RunStore) -> pd.DataFrame:
    """Queries, tokens and seconds of every finished training."""
    return measured(profile, store)


def provenance(profile: Profile, store: RunStore) -> pd.DataFrame:
    """The finished runs behind the tables."""
    simulators = [(arm, 0) for arm in (*warm_ups(profile), *profile.simulators)]
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


def collect(profile: Profile, store: RunStore) -> Tables:
    """Every table of the study, from what the store has."""
    return {name: globals()[name](profile, store) for name in TABLES}


def record(profile: Profile, store: RunStore, core: Profile, folder: Path | None = None) -> list[str]:
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
    for name, table in collect(profile, store).items():
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


def load(profile: str, folder: Path | None = None) -> Tables:
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


# tables for people --------------------------------------------------------------------------------------------------


def core(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the core arms and their start, without the variants of `studies` and the untrained methods."""
    return table[~table["arm"].str.contains("/") & ~table["arm"].isin(METHODS)]


def heldout_table(table: pd.DataFrame, score: str = "f1") -> pd.DataFrame:
    """Held-out `score` by arm: mean over subsets' questions with its 95% interval over seeds and questions, the
    number of seeds and questions, and the ratio to the start."""
    from zs_lib.metrics import hierarchical_bootstrap

    rows = {}
    for arm, part in table.groupby("arm", sort=False):
        matrix = part.pivot_table(index="seed", columns="id", values=score)
        mean, low, high = hierarchical_bootstrap(matrix.to_numpy())
        rows[arm] = {
            score: mean,
            "low": low,
            "high": high,
            "seeds": matrix.shape[0],
            "questions": matrix.shape[1],
            "searches": part["searches"].mean(),
            "query_quality": part["query_quality"].mean(),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")
    if START in frame.index:
        frame["ratio"] = frame[score] / frame.loc[START, score]
    return frame


def subset_table(table: pd.DataFrame, score: str = "em") -> pd.DataFrame:
    """Mean `score` by arm and subset, in percent, with the average over subsets: the shape of the paper's Table 3."""
    frame = 100 * table.pivot_table(index="arm", columns="subset", values=score, sort=False)
    return frame.assign(Avg=frame.mean(axis=1)).round(1)


def base_and_instruct(tables: Tables) -> tuple[str, str]:
    """The arms of ZeroSearch from the first backbone that is there as base and as instruct model (Figures 4a-b).

    Raises:
        DataError: there is none.
    """
    rows = tables["study_rows"]
    labels = dict(zip(rows["label"].str.lower(), rows["arm"], strict=True)) if len(rows) else {}
    for label, arm in labels.items():
        if label.startswith(f"{studies.TRAINED[studies.MAIN].lower()}, ") and f"{label}-instruct" in labels:
            return arm, labels[f"{label}-instruct"]
    raise DataError(
        "The study 'methods', with a base and an instruct model, is not stored: `zs reproduce --full` makes its runs."
    )


def study_scores(tables: Tables, study: str, score: str = "f1") -> pd.DataFrame:
    """`heldout_table` of a study's rows that were evaluated, in the study's order, by label instead of arm.

    Raises:
        DataError: the study's rows are not among the tables.
    """
    table, evaluated = tables["study_rows"], tables["evaluation"]
    part = table[table["study"] == study].set_index("arm")["label"]
    if part.empty:
        raise DataError(
            f"The rows of the study '{study}' are not stored: `zs reproduce --full` makes their runs."
        )
    scores = heldout_table(evaluated[evaluated["arm"].isin([*part.index, START])], score)
    found = [arm for arm in part.index if arm in scores.index]
    return scores.loc[found].assign(arm=found).rename(index=part).rename_axis("row")


def study_table(tables: Tables, study: str, score: str = "em") -> pd.DataFrame:
    """A study's rows by subset in percent, with their average, the 95% interval over seeds and all questions, and the
    seeds: the paper's shape."""
    table = tables["study_rows"]
    labels = table[table["study"] == study].set_index("arm")["label"]
    evaluated = tables["evaluation"]
    scores = study_scores(tables, study, score)
    frame = subset_table(evaluated[evaluated["arm"].isin(labels.index)], score)
    frame = frame.rename(index=labels).reindex(scores.index)
    interval = [
        f"{100 * low:.1f} to {100 * high:.1f}"
        for low, high in zip(scores["low"], scores["high"], strict=True)
    ]
    return frame.assign(interval=interval, seeds=scores["seeds"])


def methods_table(tables: Tables, score: str = "em") -> pd.DataFrame:
    """Table 3: backbone and method by subset, in percent, with the average, and the number of seeds.

    Raises:
        DataError: the study's rows are not among the tables.
    """
    rows, table = tables["study_rows"], tables["evaluation"]
    if "methods" not in set(rows["study"]):
        raise DataError(
            "The rows of the study 'methods' are not stored: `zs reproduce --full` makes their runs."
        )
    core = (
        rows.loc[rows["arm"] == studies.MAIN, "label"][rows["study"] == "methods"].iloc[0].rpartition(", ")[2]
    )
    names = {
        "direct": "Direct Answer",
        "cot": "CoT",
        "rag": "RAG",
        START: "RA-Agent",
        "search-o1": "Search-o1",
    } | studies.TRAINED
    parts = table["arm"].str.partition("/backbone=")
    # an arm that names no backbone has the core's
    table = table.assign(method=parts[0].map(names), backbone=parts[2].where(parts[1] != "", core))
    table = table[table["method"].notna()]
    frame = 100 * table.pivot_table(index=["backbone", "method"], columns="subset", values=score, sort=False)
    backbones, order = list(dict.fromkeys(table["backbone"])), list(names.values())
    seeds = table.groupby(["backbone", "method"])["seed"].nunique()
    frame = frame.assign(Avg=frame.mean(axis=1)).round(1).assign(seeds=seeds)
    return frame.loc[sorted(frame.index, key=lambda key: (backbones.index(key[0]), order.index(key[1])))]


def effort_table(tables: Tables) -> pd.DataFrame:
    """What an answer takes, by arm: mean searches, documents, tokens written, and seconds a question on this machine."""
    columns = ["searches", "documents", "policy_tokens", "seconds"]
    return tables["evaluation"].groupby("arm", sort=False)[columns].mean().round(2)


def phases(table: pd.DataFrame, count: int = 5) -> pd.DataFrame:
    """A training table of one arm as means over `count` equal phases."""
    columns = [
        "reward",
        "em",
        "turns",
        "searches",
        "query_quality",
        "answer_in_documents",
        "invalid_actions",
        "dead_groups",
        "entropy",
        "kl",
        "noise_probability",
    ]
    phase = pd.cut(table["step"], min(count, table["step"].nunique()), precision=0).rename("steps")
    return table.groupby(phase, observed=True)[columns].mean().round(3)


def warnings(runs: Iterable[Run]) -> pd.DataFrame:
    """The early warnings of collapse in the summaries of policy runs, one row each."""
    rows = [
        {"arm": run.label, "seed": run.seed, **warning} for run in runs for warning in run.summary["warnings"]
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "step", "name", "message"])
