"""Tables for readers, from the tidy tables of `results`: means, intervals, and the paper's own shapes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

import pandas as pd

from zs_lib import studies
from zs_lib.analysis.collapse import collapse_warnings
from zs_lib.analysis.results import START, Tables
from zs_lib.analysis.statistics import ONE_SEED, two_way
from zs_lib.errors import DataError
from zs_lib.evaluation.methods import METHODS
from zs_lib.runs import Run

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
"""Columns of the fidelity table that notebooks show, in this order."""
METHOD_LABELS = {
    "majority": "Majority answer",
    "direct": "Direct Answer",
    "cot": "CoT",
    "rag": "RAG",
    START: "RA-Agent",
    "search-o1": "Search-o1",
} | studies.TRAINED
"""Evaluated arm → name of its method in the paper's Table 3, in its order, below the floor of all."""


def core(table: pd.DataFrame) -> pd.DataFrame:
    """Keep the core arms and their start, without variants (`studies`) and untrained methods.

    Raises:
        DataError: there is none.
    """
    found = table[~table["arm"].str.contains("/") & ~table["arm"].isin(METHODS)] if len(table) else table
    if found.empty:
        raise DataError("None of these runs is of a core arm, which are those without a slash in their name.")
    return found


def heldout_table(table: pd.DataFrame, score: str = "f1") -> pd.DataFrame:
    """Average the held-out `score` by arm, with its 95% interval.

    Columns: the score, low, high, over (what the interval is over: `statistics`), seeds, questions, searches,
    query_quality, and the ratio to the start.
    """
    rows = {}
    for arm, part in table.groupby("arm", sort=False):
        matrix = part.pivot_table(index="seed", columns="id", values=score)
        found = two_way(matrix.to_numpy())
        rows[arm] = {
            score: found.mean,
            "low": found.low,
            "high": found.high,
            "over": found.over,
            "seeds": matrix.shape[0],
            "questions": matrix.shape[1],
            "searches": part["searches"].mean(),
            "query_quality": part["query_quality"].mean(),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index").rename_axis("arm")
    if START in frame.index:
        frame["ratio"] = frame[score] / frame.loc[START, score]
    return frame


def subset_table(table: pd.DataFrame, score: str = "em", by: str | list[str] = "arm") -> pd.DataFrame:
    """Average `score` in percent `by` arm and subset, and over subsets: the shape of Table 3."""
    frame = 100 * table.pivot_table(index=by, columns="subset", values=score, sort=False)
    return frame.assign(Avg=frame.mean(axis=1)).round(1)


def base_and_instruct(tables: Tables) -> dict[str, tuple[str, str]]:
    """Find the arms of ZeroSearch from each base model and its instruct model, by backbone (Figures 4a-b).

    Raises:
        DataError: no backbone has both.
    """
    rows = tables["study_rows"]
    labels = dict(zip(rows["label"].str.lower(), rows["arm"], strict=True)) if len(rows) else {}
    found = {
        row.label.partition(", ")[2]: (row.arm, labels[f"{row.label.lower()}-instruct"])
        for row in rows.itertuples()
        if row.label.startswith(f"{studies.TRAINED[studies.MAIN]}, ")
        and f"{row.label.lower()}-instruct" in labels
    }
    if not found:
        raise DataError(
            "The study 'methods', with a base and an instruct model, is not stored: "
            "`zs reproduce --full` makes its runs."
        )
    return found


def study_labels(tables: Tables, study: str) -> pd.Series:
    """Look up the labels of a study's rows by their arm, in the study's order.

    Raises:
        DataError: the study's rows are not among the tables.
    """
    table = tables["study_rows"]
    labels = table[table["study"] == study].set_index("arm")["label"]
    if labels.empty:
        raise DataError(f"The study '{study}' is not stored: `zs reproduce --full` makes its runs.")
    return labels


def study_scores(tables: Tables, study: str, score: str = "f1") -> pd.DataFrame:
    """Make the `heldout_table` of a study's evaluated rows, in its order and by label instead of arm.

    Raises:
        DataError: the study's rows are not among the tables.
    """
    labels, evaluated = study_labels(tables, study), tables["evaluation"]
    scores = heldout_table(evaluated[evaluated["arm"].isin([*labels.index, START])], score)
    found = [arm for arm in labels.index if arm in scores.index]
    return scores.loc[found].assign(arm=found).rename(index=labels).rename_axis("row")


def study_table(tables: Tables, study: str) -> pd.DataFrame:
    """Tabulate a study's EM in percent by subset, as in the paper, with their average.

    The interval is the 95% interval of the average over seeds and all questions; of one seed it stands in
    brackets, since it is over questions alone and says nothing of another seed.
    """
    labels, evaluated = study_labels(tables, study), tables["evaluation"]
    scores = study_scores(tables, study, "em")
    frame = subset_table(evaluated[evaluated["arm"].isin(labels.index)])
    frame = frame.rename(index=labels).reindex(scores.index)
    low, high = 100 * scores["low"], 100 * scores["high"]
    interval = low.map("{:.1f}".format) + " to " + high.map("{:.1f}".format)
    interval = interval.mask(scores["over"] == ONE_SEED, "[" + interval + "]")
    return frame.assign(interval=interval, seeds=scores["seeds"])


def methods_table(tables: Tables) -> pd.DataFrame:
    """Make Table 3: EM in percent by backbone, method and subset, their average, and number of seeds.

    Raises:
        DataError: the study's rows are not among the tables.
    """
    table, rows = by_method(tables), ["backbone", "method"]
    seeds = table.groupby(rows)["seed"].nunique()
    frame = subset_table(table, by=rows).assign(seeds=seeds)
    return frame.loc[table.drop_duplicates(rows).set_index(rows).index]


def by_method(tables: Tables) -> pd.DataFrame:
    """Name the backbone and method of each evaluation of Table 3, and sort by both, in the paper's order.

    Raises:
        DataError: the study's rows are not among the tables.
    """
    core_backbone = study_labels(tables, "methods")[studies.MAIN].rpartition(", ")[2]
    names = {method: method for method in METHODS if method != "search"} | METHOD_LABELS
    table = tables["evaluation"]
    parts = table["arm"].str.partition("/backbone=")
    # an arm that names no backbone has the core's
    backbone = parts[2].where(parts[1] != "", core_backbone)
    table = table.assign(method=parts[0].map(names), backbone=backbone)
    table = table[table["method"].notna()]
    floor = table["method"] == METHOD_LABELS["majority"]  # of no backbone, so of each
    blocks = [table[floor].assign(backbone=name) for name in table["backbone"].unique()]
    table = pd.concat([table[~floor], *blocks])
    backbones, methods = list(table["backbone"].unique()), list((METHOD_LABELS | names).values())
    place = table["backbone"].map(backbones.index) * len(methods) + table["method"].map(methods.index)
    return table.iloc[place.argsort(kind="stable")]


def method_scores(tables: Tables) -> pd.DataFrame:
    """Make the `heldout_table` of Table 3: a row for each backbone and method, which are columns of it."""
    table = by_method(tables)
    found = heldout_table(table.assign(arm=table["backbone"] + "|" + table["method"]))
    names = found.index.to_series().str.partition("|")
    return found.assign(backbone=names[0], method=names[2])


def effective_noise(tables: Tables) -> pd.DataFrame:
    """Tabulate how noisy each arm's training was, where its simulator's fidelity is stored.

    noise: mean probability of noisy documents; leak: share of them that state the answer all the same (good
    queries, held-out questions); effective: noise times (1 - leak). An arm that names no simulator has the
    main one's.
    """
    simulators, fidelity = study_labels(tables, "simulators"), tables["fidelity"]
    if fidelity.empty:
        raise DataError("The fidelity of no simulator is stored: `zs reproduce` measures it.")
    leaks = fidelity[fidelity["questions_from"] == "held out"].groupby("simulator")["leak"].mean()
    noise = tables["training"].groupby("arm", sort=False)["noise_probability"].mean()
    main = {arm: simulators.get(studies.MAIN) for arm in noise.index if arm.startswith(f"{studies.MAIN}/")}
    frame = pd.DataFrame({"simulator": pd.Series(main | simulators.to_dict()), "noise": noise})
    frame = frame.reindex(noise.index).assign(leak=frame["simulator"].map(leaks))
    return frame.assign(effective=frame["noise"] * (1 - frame["leak"])).dropna().round(3)


def effort_table(tables: Tables) -> pd.DataFrame:
    """Average searches, documents, generated tokens and seconds (on this machine) per question, by arm."""
    columns = ["searches", "documents", "policy_tokens", "seconds"]
    return tables["evaluation"].groupby("arm", sort=False)[columns].mean().round(2)


def phases(table: pd.DataFrame) -> pd.DataFrame:
    """Average the metrics of one arm's training over five phases of equally many steps."""
    columns = [
        "reward",
        "em",
        "turns",
        "searches",
        "query_quality",
        "answer_in_documents",
        "invalid_actions",
        "zero_variance_groups",
        "entropy",
        "kl",
        "noise_probability",
    ]
    phase = pd.cut(table["step"], min(5, table["step"].nunique()), precision=0).rename("steps")
    return table.groupby(phase, observed=True)[columns].mean().round(3)


def warnings(runs: Iterable[Run]) -> pd.DataFrame:
    """List early warnings of collapse in policy runs, one row each."""
    rows = [
        {"arm": run.label, "seed": run.seed, **asdict(warning)}
        for run in runs
        for warning in collapse_warnings(run.metrics())
    ]
    return pd.DataFrame(rows, columns=["arm", "seed", "step", "name", "message"])
