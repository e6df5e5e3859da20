"""Figures from tidy tables; to add one, add a function of (tables, figure) with `@draws`.

A figure reads stored results by column name, never trains, and states at its foot which profile, seeds and
runs it shows. Notebooks draw it from the run store, `zs figures` from `data/results/<profile>/`.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from zs_lib import studies
from zs_lib.analysis import claims, cost, method, paper, results, summaries, variations
from zs_lib.analysis.comparisons import levels_lacking
from zs_lib.analysis.drawing import (
    GREY,
    MARKERS,
    SERIES,
    STYLE,
    WIDTHS,
    WINDOW,
    band,
    beside,
    color_of,
    curve,
    entries,
    finish,
    forest,
    heat,
    label_of,
    legend,
    level,
    mark_warnings,
    narrow,
    panels,
    picture,
    points,
    reward_parts,
    rows_height,
    style,
    whiskers,
)
from zs_lib.analysis.results import START, Tables
from zs_lib.analysis.statistics import ONE_SEED, share
from zs_lib.config import paths
from zs_lib.config.values import pick
from zs_lib.errors import DataError
from zs_lib.qa import SUBSETS
from zs_lib.runs.files import write_bytes
from zs_lib.studies import MAIN, TRAINED

FOLDER = paths.ROOT / "figures"
"""Figures of the profile that the README shows; other profiles have a folder in it."""


Draw = Callable[[Tables, Figure], None]


@dataclass(frozen=True)
class Drawing:
    """A figure: its function, its heights in inches, and what it needs."""

    draw: Draw
    heights: tuple[float, float | None]
    """On a page and in a column; None: it is not drawn so narrow."""
    needs: tuple[str, ...] = ()
    """Tables."""
    studies: tuple[str, ...] = ()
    source: str | None = None
    """Line at the foot of a figure that shows no runs; None: its profile, seeds and runs."""
    ending: str = "png"
    """Format in which git keeps it."""
    varied: bool = False
    """Whether its tables are those of the profile's variations (`results.load_variations`)."""
    arms: tuple[str, ...] = ()
    """Arms of which its first table must have one."""

    def height(self, width: str) -> float | None:
        return self.heights[list(WIDTHS).index(width)]


FIGURES: dict[str, Drawing] = {}
"""Name of the file (its number is the notebook's) → how it is drawn."""
OWN: dict[str, Drawing] = {}
"""As FIGURES, of any arms: drawn of the run store, not of the record."""


def draws(name: str, *heights: float | None, own: bool = False, **more: Any) -> Callable[[Draw], Draw]:
    """Register the decorated function in FIGURES or OWN; `more` are fields of `Drawing`."""

    def register(draw: Draw) -> Draw:
        (OWN if own else FIGURES)[name] = Drawing(draw, heights, **more)
        return draw

    return register


draws("method", method.SIZE[1], None, source="", ending="svg")(
    lambda tables, figure: method.draw_method(figure)
)


@draws("01_retrieval", 2.9, 3.4, needs=("retrieval",))
def draw_retrieval(tables: Tables, figure: Figure) -> None:
    """Draw the recall of the real engine for good queries, by subset and hop."""
    axes, table = figure.subplots(), tables["retrieval"]
    places = np.arange(len(table))[::-1]
    for number, column in enumerate(("recall@3", "recall@5")):
        found = [share(row[column], int(row["questions"])) for _, row in table.iterrows()]
        rows = pd.DataFrame([(one.mean, one.low, one.high, one.over) for one in found])
        rows.columns = ["f1", "low", "high", "over"]
        color, marker = SERIES[number], "os"[number]
        axes.plot([], [], marker, color=color, ms=4, label=column)
        whiskers(axes, rows, places + 0.15 - 0.3 * number, [color] * len(rows), marker=marker)
    axes.set_yticks(places, table["subset"] + ", hop " + table["hop"].astype(str))
    axes.set(xlabel="good queries whose fact is found", title="Retrieval by BM25")
    axes.grid(axis="y", visible=False)
    legend(figure)


@draws("02_tuning", 2.6, 2.7, needs=("tuning",))
def draw_tuning(tables: Tables, figure: Figure) -> None:
    """Draw the loss of supervised fine-tuning."""
    axes = figure.subplots()
    for simulator, part in tables["tuning"].groupby("simulator", sort=False):
        # batches are sorted by length, so their losses come in waves
        loss = part["loss"].rolling(WINDOW, min_periods=1).mean()
        style = "--" if simulator.startswith("naive") else "-"
        axes.plot(part["step"], loss, label=simulator, lw=1.3, ls=style)
    axes.set(xlabel="fine-tuning step", ylabel="loss (nats a token)", title="Fine-tuning of simulators")
    legend(figure)


FIDELITY = {
    "answer_good": ("good query, useful documents", "#2a9d5c", "o"),
    "answer_bad": ("bad query", "#e08214", "s"),
    "leak": ("good query, noisy documents", "#8a4fa3", "D"),
}
"""Rate → its name, colour and marker."""


@draws("02_fidelity", 2.9, 4.9, needs=("fidelity",))
def draw_fidelity(tables: Tables, figure: Figure) -> None:
    """Draw the share of searches whose documents state the answer, by simulator, query and keyword."""
    table = tables["fidelity"]
    sources = list(dict.fromkeys(table["questions_from"]))
    rows_height(figure, (table["simulator"].nunique() + 2) * (len(sources) if narrow(figure) else 1))
    for axes, source in zip(panels(figure, len(sources), 2), sources, strict=True):
        part = table[table["questions_from"] == source]
        part = part.groupby("simulator", sort=False).mean(numeric_only=True)  # over seeds
        places = range(len(part))[::-1]
        for rate, (label, color, marker) in FIDELITY.items():
            axes.plot(part[rate], places, marker, color=color, ms=4.5, label=label)
        for rate in ("good", "bad"):
            _, color, _ = FIDELITY[f"answer_{rate}"]
            label = f"{rate} query, real engine"
            axes.axvline(part[f"real_{rate}"].iloc[0], color=color, ls=":", lw=1.2, label=label)
        axes.set_yticks(places, part.index)
        axes.set(
            xlim=(-0.03, 1.03),
            ylim=(-0.6, len(part) - 0.4),
            title=f"Questions: {source}",
            xlabel="searches that state the answer",
        )
    legend(figure)


@draws("03_curriculum", 2.6, 4.6, needs=("training",), arms=(MAIN,))
def draw_curriculum(tables: Tables, figure: Figure) -> None:
    """Draw reward, interaction turns and noise of the main arm: Figures 2c and 3 of the paper."""
    table = tables["training"]
    left, right = panels(figure, 2, 2)
    curve(table, "reward", left, ("zerosearch",))
    mark_warnings(table[table["arm"] == "zerosearch"], left)
    left.set(ylabel="reward (F1)", title="Reward under the curriculum")
    if reward_parts(left, table[table["arm"] == "zerosearch"]):
        left.set_ylabel("reward, and its parts (dashed)")
    else:
        left.set_ylim(0, 1)
    noise = left.twinx()
    part = table[(table["arm"] == "zerosearch") & (table["seed"] == table["seed"].min())]
    noise.plot(part["step"], part["noise_probability"], color="#b03a2e", ls=":", lw=1.4)
    noise.set_ylabel("noise (dotted)", color="#b03a2e")
    noise.set_ylim(0, 1)
    noise.grid(visible=False)
    noise.spines["right"].set_visible(True)
    curve(table, "turns", right, ("zerosearch",))
    right.set(ylabel="turns a rollout", title="Interaction turns")
    legend(figure, left)


@draws("04_engines", 2.9, 3.2, needs=("training",))
def draw_engines(tables: Tables, figure: Figure) -> None:
    """Draw the training reward with real and simulated engines: Figures 2a and 2b of the paper."""
    axes = figure.subplots()
    _draw_rewards(axes, summaries.core(tables["training"]), "Each arm's reward from its own engine")
    legend(figure)


def draw_live(tables: Tables, figure: Figure) -> None:
    """Draw the training reward of all arms in the table, while they train."""
    with plt.rc_context(STYLE):
        figure.set_layout_engine("constrained")
        _draw_rewards(figure.subplots(), tables["training"], "Training now")
        legend(figure)
        finish(figure)


def _draw_rewards(axes: Axes, table: pd.DataFrame, title: str) -> None:
    curve(table, "reward", axes)
    mark_warnings(table, axes)
    axes.set(ylabel="training reward (F1)", title=title, ylim=(0, 1))


PANELS = {
    "reward": "Reward (F1)",
    "turns": "Turns a rollout",
    "query_quality": "Queries that name their entity",
    "noise_probability": "Noise probability",
    "entropy": "Entropy (nats a token)",
    "kl": "KL to the reference (nats a token)",
}
"""Monitored metrics of a training: column of the log → title."""


def draw_panel(table: pd.DataFrame, column: str) -> bytes:
    """Draw one of PANELS as a small PNG: moving means by arm, with 95% intervals for the reward."""
    with plt.rc_context(STYLE):
        figure = Figure(figsize=(4.2, 2.5))
        axes = figure.subplots()
        curve(table, column, axes)
        if column == "reward":
            for arm, part in table.groupby("arm", sort=False):
                rolling = part.groupby("step")[column].mean().rolling(WINDOW, min_periods=1)
                mean, error = rolling.mean(), 1.96 * rolling.std() / rolling.count() ** 0.5
                low, high = mean - error, mean + error
                axes.fill_between(mean.index, low, high, color=color_of(arm), alpha=0.25, lw=0)
            mark_warnings(table, axes)
        parts = column == "reward" and reward_parts(axes, table)
        if column in ("reward", "query_quality", "noise_probability") and not parts:
            axes.set_ylim(-0.02, 1.02)
        axes.set_title(PANELS[column])
        if table["arm"].nunique() > 1 or parts:
            axes.legend()
    return picture(figure, dpi=120)  # small: a stored notebook holds six of them


ENGINES = (MAIN, "zerosearch-naive", "search-r1")
"""Core arms that search."""


@draws("04_query_quality", 2.7, 3.0, needs=("training",), arms=ENGINES)
def draw_query_quality(tables: Tables, figure: Figure) -> None:
    """Draw query quality during training, by the engine of training."""
    axes = figure.subplots()
    curve(tables["training"], "query_quality", axes, ENGINES)
    axes.set(ylabel="queries that name\nthe right entity", title="Query quality during training", ylim=(0, 1))
    legend(figure)


@draws("04_heldout", 2.0, 2.4, needs=("evaluation",))
def draw_heldout(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 with the real engine, over all subsets, with 95% intervals."""
    axes = figure.subplots()
    frame = summaries.heldout_table(summaries.core(tables["evaluation"]))
    forest(axes, frame.assign(arm=frame.index).rename(index=label_of))
    axes.set(xlabel="F1 on held-out entities, real engine", xlim=(0, 1), title="Held-out score")
    legend(figure)


@draws("04_subsets", 2.2, 3.0, needs=("evaluation",))
def draw_subsets(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 by subset (the first single-hop and the first multi-hop one were trained on)."""
    axes = figure.subplots()
    frame = summaries.subset_table(summaries.core(tables["evaluation"]), "f1") / 100
    between = " " if narrow(figure) else "\n"
    frame.columns = [f"{one}{between}({SUBSETS[one]})" if one in SUBSETS else one for one in frame.columns]
    heat(axes, frame.rename(index=label_of))
    axes.tick_params(axis="x", labelsize="x-small")
    axes.set_title("F1 by subset")


PAPERS_LINES = {"SFT": ("fine-tuned (paper)", MAIN), "Prompt": ("prompted", f"{MAIN}/simulator=prompted-")}
"""How Table 4 begins the names of a line of simulators → its name here, and an arm of its colour."""


@draws("05_simulators", 3.1, 5.2, needs=("study_rows", "evaluation"), studies=("simulators",))
def draw_simulators(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 by the size of the simulator used in training, beside Table 4 of the paper."""
    ours, papers = panels(figure, 2, 2)
    scores = summaries.study_scores(tables, "simulators")
    names = scores.index.to_series().str.partition("-")
    sized = (names[2] != "").to_numpy()
    points(ours, scores.assign(line=names[0])[sized].set_axis(names[2][sized]))
    start = summaries.heldout_table(tables["evaluation"].query("arm == @START"))
    real = scores[scores["arm"] == "search-r1"]
    for row, label in ((real, "real engine"), (start, "before RL")):
        for one in row.itertuples():
            level(ours, one, color_of("search-r1" if row is real else START), label)
    once = levels_lacking(tables, ("fine-tuning",)) or "several fine-tunings of each"
    ours.set(ylim=(0, 1), title="Here: held-out F1", xlabel=f"simulator ({once})", ylabel="F1")
    table = paper.load_table("simulator_choice").set_index("search_engine")
    error = paper.Z * paper.standard_errors(table)[paper.AVERAGE]
    em = pd.DataFrame({"f1": table[paper.AVERAGE], "over": ONE_SEED})
    em = em.assign(low=em["f1"] - error, high=em["f1"] + error)
    parts = em.index.to_series().str.partition("-")
    sized = parts[0].isin(PAPERS_LINES).to_numpy()
    told = parts[0][sized].map(PAPERS_LINES)
    points(papers, em[sized].assign(line=told.str[0], arm=told.str[1]).set_axis(parts[2][sized]), (0, 100))
    for row, arm, label in (("Google", "search-r1", "real engine"), ("Base Model", START, "before RL")):
        level(papers, em.loc[row], color_of(arm), label)
    papers.set(ylim=(0, 50), title="The paper (Table 4)", xlabel="simulator (one run)", ylabel="EM (%)")
    legend(figure)


CHOICES = {
    "algorithms": "Algorithm",
    "curricula": "Noise",
    "masks": "Document tokens",
    "engines": "Engine",
    "lengths": "RL steps",
}


@draws("06_choices", 5.4, 6.2, needs=("study_rows", "evaluation"), studies=tuple(CHOICES))
def draw_choices(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 by algorithm, curriculum, document mask (Tables 5 to 7), engine and RL steps."""
    parts = []
    for study, title in CHOICES.items():
        parts += [pd.DataFrame({"arm": ""}, index=[title]), summaries.study_scores(tables, study)]
    rows = pd.concat(parts)
    rows_height(figure, len(rows), 0.18)
    forest(figure.subplots(), rows)
    legend(figure)


LEARNING = {
    "algorithms": "Algorithm",
    "curricula": "Noise",
    "masks": "Document tokens",
    "methods": "Base and instruct",
}
"""Study → title of its panel of learning curves."""


@draws("06_learning", 4.6, 7.2, needs=("study_rows", "training"), studies=tuple(LEARNING))
def draw_learning(tables: Tables, figure: Figure) -> None:
    """Draw the training reward by algorithm, curriculum, mask, base and instruct model: Figures 4a to 4c."""
    for axes, (study, title) in zip(panels(figure, len(LEARNING), 2), LEARNING.items(), strict=True):
        labels = summaries.study_labels(tables, study).to_dict()
        if study == "methods":
            first = next(iter(summaries.base_and_instruct(tables).values()))
            labels = {arm: labels[arm].rpartition(", ")[2] for arm in first}
        curve(tables["training"], "reward", axes, labels, labels)
        axes.set(title=title, ylim=(0, 1), xlabel="RL step", ylabel="training reward (F1)")
        named = entries(axes)
        axes.legend(named.values(), named.keys(), ncols=2, loc="upper left")


@draws("06_transfer", 2.6, 4.8, needs=("study_rows", "robustness"), studies=("engines",))
def draw_transfer(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 with other engines than in training, and with noise at test time."""
    table = tables["robustness"]
    left, right = panels(figure, 2, 2)
    frame = table[table["noise"] == 0].pivot_table(index="arm", columns="engine", values="f1", sort=False)
    heat(left, frame.rename(index=label_of))
    left.set_title("Tested with")
    noisy = table["engine"].isin(table.loc[table["noise"] > 0, "engine"])
    for arm, part in table[noisy].groupby("arm", sort=False):
        wide = part.pivot_table(index="noise", columns="seed", values="f1")
        if len(wide) > 1:
            band(right, wide, color_of(arm), marker="o", ms=4, label=label_of(arm))
    right.set(
        title="Noise at test time",
        xlabel="share of searches that find nothing",
        ylabel="held-out F1",
        ylim=(0, 1),
    )
    legend(figure, right)


@draws("07_methods", 4.6, 5.0, needs=("study_rows", "evaluation"), studies=("methods",))
def draw_methods(tables: Tables, figure: Figure) -> None:
    """Draw the F1 of every method and backbone: Table 3 of the paper."""
    axes, scores = figure.subplots(), summaries.method_scores(tables)
    methods, backbones = (list(dict.fromkeys(scores[column])) for column in ("method", "backbone"))
    rows_height(figure, len(methods), 0.1 + 0.06 * len(backbones))
    for number, (backbone, color) in enumerate(zip(backbones, cycle(SERIES), strict=False)):
        part = scores[scores["backbone"] == backbone]
        shift = 0.12 * (number - (len(backbones) - 1) / 2)
        places = [methods.index(one) + shift for one in part["method"]]
        marker = MARKERS[number % len(MARKERS)]
        axes.plot([], [], marker, color=color, ms=4, label=backbone)
        whiskers(axes, part, places, [color] * len(part), marker=marker)
    for place in range(1, len(methods)):
        axes.axhline(place - 0.5, color=GREY, lw=0.4)
    axes.set_yticks(range(len(methods)), methods)
    axes.grid(axis="y", visible=False)
    axes.set(
        ylim=(len(methods) - 0.5, -0.5), xlim=(0, 1), xlabel="held-out F1", title="Methods and backbones"
    )
    axes.tick_params(axis="y", length=0)
    legend(figure)


@draws("07_scaling", 2.7, 4.8, needs=("study_rows", "evaluation"), studies=("methods", "lengths"))
def draw_scaling(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 against the size of the policy and the number of RL steps."""
    size, steps = panels(figure, 2, 2)
    policies = summaries.study_scores(tables, "methods")
    names = policies.index.to_series().str.extract(r"(.+), (.+?)(-[Ii]nstruct)?$")
    kind = np.where(names[2].isna(), "base", "instruct")
    policies = policies.assign(line=kind).set_axis(names[1])
    policies = policies[(names[0] == TRAINED[MAIN]).to_numpy()]
    points(size, policies.assign(arm=np.where(policies["line"] == "base", MAIN, "zerosearch-naive")))
    points(steps, summaries.study_scores(tables, "lengths").assign(line="base"))
    for axes, title in ((size, "Size of the policy"), (steps, "Length of training")):
        axes.set(title=title, ylim=(0, 1), ylabel="held-out F1")
    legend(figure)


SIMULATOR = "14B"
"""The simulator for which the paper reports 88%."""
LABELLED = {"scaled to zero": (-1, (5, 0), "left"), "never idle": (36, (-6, 5), "right")}
"""Line → the point at which it has its label, the shift in points, and the side; by default at its left."""


@cache
def _dollars() -> tuple[np.ndarray, pd.DataFrame, pd.DataFrame]:
    """Price numbers of queries: the numbers, and dollars by engine and by way to run the simulator."""
    training = cost.paper_load()
    queries = np.geomspace(1000, 5 * training.rollouts, 60)  # to the five searches that a rollout may make
    engines = pd.concat({count: cost.engine_prices(count)["usd"] for count in queries}, axis=1)
    trainings = {count: replace(training, searches=count / training.rollouts) for count in queries}
    ways = pd.concat({count: cost.ways(one, SIMULATOR)["usd"] for count, one in trainings.items()}, axis=1)
    return queries, engines.loc[list(cost.COMPARED)], ways


@draws("08_break_even", 3.6, 3.6, source="prices quoted (data/prices.csv), speeds modelled, no run")
def draw_break_even(tables: Tables, figure: Figure) -> None:
    """Draw dollars by queries of one training: search engines (dashed), and ways to run the simulator."""
    axes, training, (queries, engines, ways) = figure.subplots(), cost.paper_load(), _dollars()
    style = {
        "fontsize": "small",
        "textcoords": "offset points",
        "bbox": {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.5},
    }
    for name, usd in engines.iterrows():
        axes.plot(queries, usd, color="#555555", ls="--", lw=1.3)
        label = f"{name}\n\\${1000 * usd.iloc[0] / queries[0]:.2f} per 1,000"
        axes.annotate(label, (queries[-1], usd.iloc[-1]), (5, 0), va="center", color="#555555", **style)
    for (name, usd), color in zip(ways.iterrows(), SERIES, strict=False):
        axes.plot(queries, usd, color=color, lw=2)
        place, shift, side = LABELLED.get(name, (0, (6, 7), "left"))
        where = {"va": "center", "ha": side, "color": "#222222"}
        axes.annotate(name, (queries[place], usd.iloc[place]), shift, **where, **style)
    for searches in (1, 5):
        axes.axvline(searches * training.rollouts, color="#999999", ls=":", lw=1)
        axes.annotate(
            f"{searches} a rollout",
            (searches * training.rollouts, 0.02),
            (-4, 0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            rotation=90,
            ha="right",
            fontsize="x-small",
            color="#777777",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(queries[0], queries[-1]),
        ylim=(0.3, None),
        xlabel="queries of one training",
        ylabel="dollars",
        title=f"{SIMULATOR} simulator on {cost.CARD}; engines dashed",
    )


VARIED = {"varied": True, "needs": ("training",)}


def draw_variation(study: str, tables: Tables, figure: Figure) -> None:
    """Draw held-out F1, searches and tokens by row of a study of `studies.VARIATIONS`."""
    scores = variations.scores(tables, study)
    rows_height(figure, len(scores))
    lacks = np.where(scores["seeds"].isna(), "not run", "not evaluated")
    texts = {"F1": "{:.3f}", "searches": "{:.2f}", "tokens a step": "{:,.0f}"}
    columns = {
        title: ["–" if np.isnan(value) else form.format(value) for value in scores[title.split()[0].lower()]]
        for title, form in texts.items()
    }
    columns["F1"] = np.where(scores["f1"].isna(), lacks, columns["F1"])
    axes = figure.subplots()
    forest(axes, scores.assign(over=scores["over"].fillna("")), columns)
    axes.set(title=study.capitalize(), xlim=(0, 1))
    legend(figure)


for _study in studies.VARIATIONS:
    if _study != "collapse":
        draws(f"12_{_study}", 2.0, 2.4, studies=(_study,), **VARIED)(partial(draw_variation, _study))


@draws("12_collapse", 3.6, 4.8, studies=("collapse",), **VARIED)
def draw_collapse(tables: Tables, figure: Figure) -> None:
    """Draw the reward of each seed by repair, with its first warning (circle) and its collapse (cross)."""
    labels, ends = summaries.study_labels(tables, "collapse"), variations.endings(tables)
    shown = panels(figure, len(labels), 3)
    for axes, (arm, label) in zip(shown, labels.items(), strict=True):
        part = tables["training"][lambda table, arm=arm: table["arm"] == arm]
        wide = part.pivot_table(index="step", columns="seed", values="reward")
        smooth = wide.rolling(WINDOW, min_periods=1).mean()
        for row, color in zip(ends[ends["row"] == label].itertuples(), cycle(SERIES), strict=False):
            axes.plot(smooth.index, smooth[row.seed], color=color, lw=1)
            for step, marker in ((row.at, "o"), (row.collapse, "X")):
                if not np.isnan(step):
                    axes.plot(step, smooth[row.seed][step], marker, color=color, ms=6, mec="white", zorder=5)
        axes.set(title=label if len(part) else f"{label}: not run", ylim=(-0.02, 1), xlabel="RL step")
    for label, mark in {"one seed": "-", "first warning": "o", "collapse": "X"}.items():
        shown[0].plot([], [], mark, color=GREY, mec="white", ms=6, lw=1, label=label)
    figure.supylabel("training reward (F1)", fontsize="medium")
    legend(figure)


VERDICTS = {
    "holds": ("o", "#009e73"),
    "equal": ("s", "#0072b2"),
    "undecided": ("D", "#8a8a8a"),
    "does not hold": ("X", "#d55e00"),
    "reported": ("d", "#cc79a7"),
}
"""Verdict → its marker and colour."""
CLAIM_TICKS = (-30, -5, -1, 0, 1, 5, 30)


@draws("10_claims", 8.6, 9.0, needs=("study_rows", "evaluation", "training", "fidelity"))
def draw_claims(tables: Tables, figure: Figure) -> None:
    """Draw every statement of the claims: distance from its aim in its margins, and verdict."""
    found = claims.paper_claims(tables).reset_index()
    run = found[found["estimate"].notna()].reset_index(drop=True)
    sign, bound = np.where(run["bound"].str.startswith("<"), -1, 1), pd.to_numeric(run["bound"].str[2:])
    scaled = {
        name: sign * (run[name] - bound.fillna(0)) / run["margin"] for name in ("estimate", "low", "high")
    }
    run = run.assign(f1=scaled["estimate"], low=scaled["low"], high=scaled["high"])
    small, places = narrow(figure), np.arange(len(run))[::-1]
    rows_height(figure, len(run) + 2, 0.18 if small else 0.15)
    axes = figure.subplots()
    axes.set_xscale("symlog", linthresh=1)
    axes.xaxis.set_major_locator(FixedLocator(CLAIM_TICKS))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.axvspan(-1, 1, color=GREY, alpha=0.1, lw=0, label="within the margin")
    axes.axvline(0, color=GREY, lw=1)
    for verdict, (marker, color) in VERDICTS.items():
        part = (run["verdict"] == verdict).to_numpy()
        axes.plot([], [], marker, color=color, ms=4, label=verdict)
        whiskers(axes, run[part], places[part], [color] * part.sum(), limits=(-1e9, 1e9), marker=marker)
    labels = run["claim"].astype(str) + "  " + run["statement"]
    labels = [textwrap.fill(label, 45 if small else 90) for label in labels]
    axes.set_yticks(places, labels, fontsize="x-small")
    for place in places[(run["claim"] != run["claim"].shift(-1)).to_numpy()]:
        axes.axhline(place - 0.5, color=GREY, lw=0.4)  # between claims
    if not small:
        told = [f"{row.estimate:+.3f} {row.bound and f'({row.bound})'}" for row in run.itertuples()]
        beside(axes, places, {"effect (aim)": told})
    axes.set(ylim=(-0.6, len(run) - 0.4), title="Claims of the paper")
    axes.set_xlabel(f"margins above the aim\n(log beyond 1; not run: {len(found) - len(run)})")
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    legend(figure)


@draws("own_training", 3.4, 3.4, needs=("training",), own=True)
def draw_own_training(tables: Tables, figure: Figure) -> None:
    """Draw the training reward of every arm, a few a panel."""
    arms = tables["training"]["arm"].unique()
    parts = [arms[start : start + len(SERIES)] for start in range(0, len(arms), len(SERIES))]
    rows_height(figure, -(-len(parts) // (1 if narrow(figure) else 2)), 2.4)
    for axes, part in zip(panels(figure, len(parts), min(2, len(parts))), parts, strict=True):
        curve(tables["training"], "reward", axes, part)
        axes.set(ylabel="training reward (F1)", ylim=(0, 1))
        found = entries(axes)
        axes.legend(found.values(), found.keys(), fontsize="x-small")


@draws("own_heldout", 2.0, 2.4, needs=("evaluation",), own=True)
def draw_own_heldout(tables: Tables, figure: Figure) -> None:
    """Draw the held-out F1 of every arm, and of evaluations by other settings."""
    frame = summaries.heldout_table(tables["evaluation"])
    rows_height(figure, len(frame) + 1)
    forest(figure.subplots(), frame.assign(arm=frame.index).rename(index=label_of))
    legend(figure)


def draw(name: str, tables: Tables, provenance: str = "", width: str = "page") -> Figure:
    """Draw a figure of FIGURES or OWN from tables, in a width of `drawing.WIDTHS`.

    Raises:
        ConfigError: no figure or width has this name. DataError: a table that it needs is missing or empty.
    """
    chosen, inches = pick("figure", name, FIGURES | OWN), pick("width", width, WIDTHS)
    if reason := _lacks(chosen, tables, width):
        raise DataError(f"The figure {name} cannot be drawn: {reason}")
    with plt.rc_context(style(width)):
        figure = plt.figure(figsize=(inches, chosen.height(width)))
        chosen.draw(tables, figure)
        finish(figure, provenance if chosen.source is None else chosen.source)
    return figure


def provenance_of(tables: Tables, profile: str) -> str:
    """Write the line at a figure's foot: profile, seeds, the first characters of the core runs' digests."""
    runs = tables.get("provenance", pd.DataFrame())
    if runs.empty:
        return f"profile {profile}"
    policies = runs[runs["kind"] == "policy"]
    core = policies[~policies["arm"].str.contains("/")]
    digests = ", ".join(
        f"{arm} {part['run'].iloc[0].split('-')[1][:6]}" for arm, part in core.groupby("arm", sort=False)
    )
    variants = policies["arm"].nunique() - core["arm"].nunique()
    told = [digests] * bool(digests) + [f"{variants} variants (provenance.csv)"] * bool(variants)
    seeds = policies.groupby("arm")["seed"].nunique()
    count = str(seeds.max()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    return f"profile {profile}; {count} seed(s); runs: {', and '.join(told)}"


def _lacks(chosen: Drawing, tables: Tables, width: str) -> str:
    """The reason why a figure cannot be drawn from `tables`; empty if it can."""
    if not chosen.height(width):
        return f"it has no layout as narrow as a {width}."
    for needed in sorted(set(chosen.needs) - ({"study_rows"} if chosen.studies else set())):
        if needed not in tables or tables[needed].empty:
            return f"it needs the table '{needed}', which is empty: finish its runs first."
    if chosen.arms and not set(chosen.arms) & set(tables[chosen.needs[0]]["arm"]):
        return f"it needs runs of {' or '.join(chosen.arms)}."
    for study in chosen.studies:
        if study not in set(tables["study_rows"]["study"]):
            how = "notebook 12" if chosen.varied else "`zs reproduce --full`"
            return f"it needs the study '{study}': {how} makes its runs."
    return ""


def draw_all(
    profile: str,
    folder: Path,
    tables: Tables | None = None,
    width: str = "page",
    formats: Sequence[str] = (),
    varied: Tables | None = None,
) -> tuple[list[Path], dict[str, str]]:
    """Redraw the figures of a profile from its recorded results, or from `tables`, into `folder`.

    `formats`: those of `drawing.FORMATS`; by default the one that git keeps. `varied`: the tables of
    variations; with them OWN are drawn, too. Returns the files, and for each figure that cannot be drawn the
    reason; its outdated files are deleted.
    """
    wanted = FIGURES | (OWN if varied else {})
    tables, varied = tables or results.load_tables(profile), varied or results.load_variations(profile)
    folder.mkdir(parents=True, exist_ok=True)
    runs = tables["provenance"]
    core = tables | {"provenance": runs[~runs["arm"].str.contains("/")] if len(runs) else runs}
    written, lacking = [], {}
    for name, chosen in wanted.items():
        if chosen.source is not None and FOLDER in folder.parents:
            continue  # it shows no run of any profile, and FOLDER has it
        files = [folder / f"{name}.{ending}" for ending in formats or [chosen.ending]]
        shown = varied if chosen.varied else tables
        every = chosen.varied or chosen.studies or name in OWN
        try:
            figure = draw(name, shown, provenance_of(shown if every else core, profile), width)
        except DataError as error:
            lacking[name] = str(error).rpartition(" cannot be drawn: ")[2]
            for path in files:
                path.unlink(missing_ok=True)
            continue
        for path in files:
            write_bytes(path, picture(figure, path.suffix[1:], transparent=chosen.ending == "svg"))
        plt.close(figure)
        written += files
    return written, lacking
