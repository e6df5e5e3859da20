"""Figures from tidy tables; to add one, add a function of (tables, figure) with `@draws`.

A figure reads stored results by column name, never trains, and states at its foot which profile, seeds and
runs it shows. Notebooks draw it from the run store, `zs figures` from `data/results/<profile>/`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from zs_lib import studies
from zs_lib.analysis import cost, method, results, summaries, variations
from zs_lib.analysis.drawing import (
    SERIES,
    STYLE,
    WINDOW,
    band,
    bars,
    color_of,
    core_color,
    curve,
    forest,
    heat,
    label_of,
    mark_warnings,
    points,
    reward_parts,
    whiskers,
)
from zs_lib.analysis.results import START, Tables
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
    """A figure: its function, its size in inches, and what it needs."""

    draw: Draw
    size: tuple[float, float]
    needs: tuple[str, ...] = ()
    """Tables."""
    studies: tuple[str, ...] = ()
    source: str | None = None
    """Line at the foot of a figure that shows no runs; None: its profile, seeds and runs."""
    ending: str = "png"
    """Format in which git keeps it."""
    varied: bool = False
    """Whether its tables are those of the profile's variations (`results.load_variations`)."""


FIGURES: dict[str, Drawing] = {}
"""Name of the file (its number is the notebook's) → how it is drawn."""


def draws(name: str, size: tuple[float, float], **more: Any) -> Callable[[Draw], Draw]:
    """Register the decorated function in FIGURES; `more` are fields of `Drawing`."""

    def register(draw: Draw) -> Draw:
        FIGURES[name] = Drawing(draw, size, **more)
        return draw

    return register


draws("method", method.SIZE, source="", ending="svg")(lambda tables, figure: method.draw_method(figure))


@draws("01_retrieval", (12.0, 3.4), needs=("retrieval",))
def draw_retrieval(tables: Tables, figure: Figure) -> None:
    """Draw the recall of the real engine for good queries, by subset and hop."""
    axes = figure.subplots()
    table = tables["retrieval"]
    table = table.assign(row=table["subset"] + "\nhop " + table["hop"].astype(str)).set_index("row")
    bars(axes, table, {"recall@3": ("recall@3", "#1f6fb4"), "recall@5": ("recall@5", "#a6cee3")})
    axes.set(
        ylim=(0, 1.05), ylabel="share of good queries", title="BM25 finds the fact that a good query asks for"
    )
    axes.tick_params(axis="x", labelsize=7)
    figure.legend(loc="outside upper right", ncols=2)


@draws("02_tuning", (6.2, 3.4), needs=("tuning",))
def draw_tuning(tables: Tables, figure: Figure) -> None:
    """Draw the loss of supervised fine-tuning."""
    axes = figure.subplots()
    for simulator, part in tables["tuning"].groupby("simulator", sort=False):
        # batches are sorted by length, so their losses come in waves
        loss = part["loss"].rolling(WINDOW, min_periods=1).mean()
        style = "--" if simulator.startswith("naive") else "-"
        axes.plot(part["step"], loss, label=simulator, lw=1.6, ls=style)
    axes.set(
        xlabel="fine-tuning step", ylabel="loss (nats a token)", title="Simulators learn to write documents"
    )
    axes.legend(ncols=2, fontsize=8)


FIDELITY_BARS = {
    "answer_good": ("good query, useful documents", "#2a9d5c"),
    "answer_bad": ("bad query", "#e08214"),
    "leak": ("good query, noisy documents", "#8a4fa3"),
}


@draws("02_fidelity", (11.0, 3.8), needs=("fidelity",))
def draw_fidelity(tables: Tables, figure: Figure) -> None:
    """Draw the share of searches whose documents state the answer, by simulator, query and keyword."""
    table = tables["fidelity"]
    sources = list(dict.fromkeys(table["questions_from"]))
    panels = figure.subplots(1, len(sources), sharey=True, squeeze=False)[0]
    for axes, source in zip(panels, sources, strict=True):
        part = table[table["questions_from"] == source]
        part = part.groupby("simulator", sort=False).mean(numeric_only=True)  # over seeds
        real = part[["real_good", "real_bad"]].iloc[0]
        part = part.rename(lambda name: name.replace("-tiny-", "\n").replace("-", "\n", 1))
        bars(axes, part, FIDELITY_BARS)
        axes.axhline(real["real_good"], color="#2a9d5c", ls=":", lw=1.2)
        axes.axhline(real["real_bad"], color="#e08214", ls=":", lw=1.2)
        axes.set(ylim=(0, 1.05), title=f"questions: {source}")
        axes.tick_params(axis="x", labelsize=7.5)
    figure.axes[0].set_ylabel("share of searches that state the answer")
    figure.legend(
        *figure.axes[0].get_legend_handles_labels(),
        loc="outside upper right",
        ncols=3,
        fontsize=8,
        title="dotted: real engine",
        title_fontsize=8,
    )


@draws("03_curriculum", (9.0, 3.4), needs=("training",))
def draw_curriculum(tables: Tables, figure: Figure) -> None:
    """Draw reward, interaction turns and noise of the main arm: Figures 2c and 3 of the paper."""
    table = tables["training"]
    left, right = figure.subplots(1, 2)
    curve(table, "reward", left, ("zerosearch",))
    mark_warnings(table[table["arm"] == "zerosearch"], left)
    left.set(ylabel="reward (F1)", title="Reward under the curriculum")
    if reward_parts(left, table[table["arm"] == "zerosearch"]):
        left.set_ylabel("reward, and its parts (dashed)")
        left.legend(fontsize=8)
    else:
        left.set_ylim(0, 1)
    noise = left.twinx()
    part = table[(table["arm"] == "zerosearch") & (table["seed"] == table["seed"].min())]
    noise.plot(part["step"], part["noise_probability"], color="#b03a2e", ls=":", lw=1.4)
    noise.set_ylabel("noise probability (dotted)", color="#b03a2e")
    noise.set_ylim(0, 1)
    noise.grid(visible=False)
    noise.spines["right"].set_visible(True)
    curve(table, "turns", right, ("zerosearch",))
    right.set(ylabel="turns a rollout", title="Interaction turns")


@draws("04_engines", (6.6, 3.8), needs=("training",))
def draw_engines(tables: Tables, figure: Figure) -> None:
    """Draw the training reward with real and simulated engines: Figures 2a and 2b of the paper."""
    axes = figure.subplots()
    _draw_rewards(axes, summaries.core(tables["training"]), "Each arm's reward from its own engine")
    axes.legend(loc="upper left", fontsize=8)


def draw_live(tables: Tables, figure: Figure) -> None:
    """Draw the training reward of all arms in the table, while they train."""
    axes = figure.subplots()
    _draw_rewards(axes, tables["training"], "Training now")
    axes.legend(loc="upper left", fontsize=7.5, ncols=2)


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
            axes.legend(fontsize=7)
        buffer = BytesIO()
        figure.savefig(buffer, format="png", dpi=120)  # small: a stored notebook holds six of them
    return buffer.getvalue()


@draws("04_query_quality", (6.6, 3.4), needs=("training",))
def draw_query_quality(tables: Tables, figure: Figure) -> None:
    """Draw query quality during training, by the engine of training."""
    axes = figure.subplots()
    curve(tables["training"], "query_quality", axes, ("zerosearch", "zerosearch-naive", "search-r1"))
    axes.set(
        ylabel="share of queries that name\nthe right entity",
        title="Query quality during training",
        ylim=(0, 1),
    )
    axes.legend(loc="best", fontsize=8)


@draws("04_heldout", (7.2, 3.0), needs=("evaluation",))
def draw_heldout(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 with the real engine, over all subsets, with 95% intervals."""
    axes = figure.subplots()
    frame = summaries.heldout_table(summaries.core(tables["evaluation"])).iloc[::-1]
    axes.barh(
        [label_of(arm) for arm in frame.index],
        frame["f1"],
        height=0.62,
        color=[core_color(arm) for arm in frame.index],
    )
    whiskers(axes, frame, range(len(frame)), ["black"] * len(frame))
    for place, (value, high) in enumerate(zip(frame["f1"], frame["high"], strict=True)):
        axes.text(high + 0.02, place, f"{value:.2f}", va="center", fontweight="bold")
    axes.grid(axis="y", visible=False)
    axes.set(
        xlabel="F1 on held-out entities, real engine (95% interval; dotted: one seed)",
        xlim=(0, 1),
        title="Held-out score",
    )


@draws("04_subsets", (9.4, 3.2), needs=("evaluation",))
def draw_subsets(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 by subset (the first single-hop and the first multi-hop one were trained on)."""
    axes = figure.subplots()
    frame = summaries.subset_table(summaries.core(tables["evaluation"]), "f1") / 100
    frame.columns = [f"{name}\n({SUBSETS[name]})" if name in SUBSETS else name for name in frame.columns]
    heat(axes, frame.rename(index=label_of))
    axes.tick_params(axis="x", labelsize=7.5)
    axes.set_title("F1 by subset")


def _marks(tables: Tables, *arms: str) -> dict[str, tuple[float, str]]:
    means = tables["evaluation"].groupby("arm")["f1"].mean()
    return {label_of(arm): (means[arm], core_color(arm)) for arm in arms if arm in means}


@draws("05_simulators", (7.2, 4.6), needs=("study_rows", "evaluation"), studies=("simulators",))
def draw_simulators(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 by the simulator used in training: Table 4 of the paper."""
    axes = figure.subplots()
    forest(axes, summaries.study_scores(tables, "simulators"), _marks(tables, START, "search-r1"))
    axes.set_title("Trained with this simulator")


CHOICES = {
    "algorithms": "Algorithm",
    "curricula": "Noise",
    "masks": "Document tokens",
    "engines": "Engine",
    "lengths": "RL steps",
}


@draws("06_choices", (9.4, 5.4), needs=("study_rows", "evaluation"), studies=tuple(CHOICES))
def draw_choices(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 by algorithm, curriculum, document mask (Tables 5 to 7), engine and RL steps."""
    panels = figure.subplots(2, 3, sharex=True).flat
    panels[-1].remove()
    for axes, (study, title) in zip(panels, CHOICES.items(), strict=False):
        forest(axes, summaries.study_scores(tables, study), {})
        axes.set(title=title, xlabel="held-out F1")


LEARNING = {
    "algorithms": "Algorithm",
    "curricula": "Noise",
    "masks": "Document tokens",
    "methods": "Base and instruct",
}
"""Study → title of its panel of learning curves."""


@draws("06_learning", (9.4, 6.2), needs=("study_rows", "training"), studies=tuple(LEARNING))
def draw_learning(tables: Tables, figure: Figure) -> None:
    """Draw the training reward by algorithm, curriculum, mask, base and instruct model: Figures 4a to 4c."""
    panels = figure.subplots(2, 2, sharey=True).flat
    for axes, (study, title) in zip(panels, LEARNING.items(), strict=True):
        labels = summaries.study_labels(tables, study).to_dict()
        if study == "methods":
            first = next(iter(summaries.base_and_instruct(tables).values()))
            labels = {arm: labels[arm] for arm in first}
        curve(tables["training"], "reward", axes, labels, labels)
        axes.set(title=title, ylim=(0, 1), xlabel="RL step", ylabel="training reward (F1)")
        axes.legend(fontsize=7.5, ncols=2, loc="upper left")


@draws("06_transfer", (11.0, 3.4), needs=("study_rows", "robustness"), studies=("engines",))
def draw_transfer(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 with other engines than in training, and with noise at test time."""
    table = tables["robustness"]
    left, right = figure.subplots(1, 2, width_ratios=(1.1, 1))
    frame = table[table["noise"] == 0].pivot_table(index="arm", columns="engine", values="f1", sort=False)
    heat(left, frame.rename(index=label_of))
    left.set_title("Tested with")
    noisy = table["engine"].isin(table.loc[table["noise"] > 0, "engine"])
    for arm, part in table[noisy].groupby("arm", sort=False):
        wide = part.pivot_table(index="noise", columns="seed", values="f1")
        if len(wide) > 1:
            band(right, wide, core_color(arm), marker="o", ms=4, label=label_of(arm))
    right.set(
        title="Noise at test time",
        xlabel="share of searches that find nothing",
        ylabel="held-out F1",
        ylim=(0, 1),
    )
    right.legend(fontsize=7.5)


@draws("07_methods", (8.4, 3.8), needs=("study_rows", "evaluation"), studies=("methods",))
def draw_methods(tables: Tables, figure: Figure) -> None:
    """Draw the average F1 of every method and backbone: Table 3 of the paper."""
    axes = figure.subplots()
    heat(axes, summaries.methods_table(tables, "f1")["Avg"].unstack("backbone", sort=False) / 100)
    axes.set_title("Average F1 by method and backbone")


@draws(
    "07_scaling",
    (10.6, 3.4),
    needs=("study_rows", "evaluation"),
    studies=("simulators", "methods", "lengths"),
)
def draw_scaling(tables: Tables, figure: Figure) -> None:
    """Draw held-out F1 against simulator size, policy size and number of RL steps."""
    panels = figure.subplots(1, 3, sharey=True)
    simulators = summaries.study_scores(tables, "simulators")
    names = simulators.index.to_series().str.partition("-")
    simulators = simulators.assign(line=names[0]).set_axis(names[2])
    points(panels[0], simulators[simulators["line"].isin(("grounded", "naive", "prompted"))])
    policies = summaries.study_scores(tables, "methods")
    names = policies.index.to_series().str.extract(r"(.+), (.+?)(-[Ii]nstruct)?$")
    kind = np.where(names[2].isna(), "base", "instruct")
    policies = policies.assign(line=names[0] + ", " + kind).set_axis(names[1])
    points(panels[1], policies[policies["line"].str.startswith(TRAINED[MAIN])])
    points(panels[2], summaries.study_scores(tables, "lengths").assign(line=TRAINED[MAIN]))
    for axes, title in zip(panels, ("Simulator", "Policy", "Training"), strict=True):
        axes.set(title=title, ylim=(0, 1))
        axes.legend(fontsize=7.5, loc="upper right")
    panels[0].set_ylabel("held-out F1 (95% interval;\nhollow, dotted: one seed)")


SIMULATOR = "14B"
"""The simulator for which the paper reports 88%."""
LABELLED = {"scaled to zero": -1, "never idle": 0.55}
"""Where a line has its label, as a share of its length (-1: its end); others have it at their beginning."""


@draws("08_break_even", (8.6, 4.4), source="prices quoted (data/prices.csv), speeds modelled, no run")
def draw_break_even(tables: Tables, figure: Figure) -> None:
    """Draw dollars by queries of one training: search engines (dashed), and ways to run the simulator."""
    axes = figure.subplots()
    training = cost.paper_load()
    queries = np.geomspace(1000, 5 * training.rollouts, 60)  # to the five searches that a rollout may make
    engines = pd.concat({count: cost.engine_prices(count)["usd"] for count in queries}, axis=1)
    engines = engines.loc[list(cost.COMPARED)]
    trainings = {count: replace(training, searches=count / training.rollouts) for count in queries}
    ways = pd.concat({count: cost.ways(one, SIMULATOR)["usd"] for count, one in trainings.items()}, axis=1)
    style = {
        "fontsize": 8,
        "textcoords": "offset points",
        "bbox": {"fc": "white", "ec": "none", "alpha": 0.8, "pad": 0.5},
    }
    for name, usd in engines.iterrows():
        axes.plot(queries, usd, color="#555555", ls="--", lw=1.3)
        label = f"{name}\n\\${1000 * usd.iloc[0] / queries[0]:.2f} per 1,000"
        axes.annotate(label, (queries[-1], usd.iloc[-1]), (5, 0), va="center", color="#555555", **style)
    for (name, usd), color in zip(ways.iterrows(), SERIES, strict=False):
        axes.plot(queries, usd, color=color, lw=2)
        place = LABELLED.get(name, 0)
        place, shift = (-1, (5, 0)) if place < 0 else (int(place * len(queries)), (6, -9 if place else 7))
        axes.annotate(name, (queries[place], usd.iloc[place]), shift, va="center", color="#222222", **style)
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
            fontsize=7.5,
            color="#777777",
        )
    axes.set(
        xscale="log",
        yscale="log",
        xlim=(queries[0], queries[-1]),
        ylim=(0.3, None),
        xlabel="queries of one training",
        ylabel="dollars",
        title=f"A {SIMULATOR} simulator on {cost.CARD}, and search engines (dashed)",
    )


VARIED = {"varied": True, "needs": ("training",)}


VARIED_COSTS = {"searches": "searches a question", "tokens": "tokens a training step"}


def draw_variation(study: str, tables: Tables, figure: Figure) -> None:
    """Draw held-out F1, searches and tokens by row of a study of `studies.VARIATIONS`."""
    scores = variations.scores(tables, study).iloc[::-1]
    left, *right = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
    places, colors = range(len(scores)), [SERIES[0]] * (len(scores) - 1) + ["#555555"]  # the first row's
    whiskers(left, scores.fillna({"low": 0, "high": 1}), places, colors, marker="o", ms=5)
    for place, row in zip(places, scores.itertuples(), strict=True):
        lacks = "not run" if np.isnan(row.seeds) else "not evaluated" if np.isnan(row.f1) else f"{row.f1:.3f}"
        at = 0.0 if np.isnan(row.f1) else row.f1
        left.annotate(lacks, (at, place), (4, 4), textcoords="offset points", fontsize=8, color="#555555")
    for axes, (column, label) in zip(right, VARIED_COSTS.items(), strict=True):
        axes.barh(places, scores[column].fillna(0), color=colors, height=0.6)
        axes.set_xlabel(label)
        axes.grid(axis="y", visible=False)
    left.set_yticks(places, scores.index)
    left.grid(axis="y", visible=False)
    label = "held-out F1 (95% interval; dotted: one seed)"
    left.set(title=study.capitalize(), xlabel=label, xlim=(0, 1), ylim=(-0.6, len(scores) - 0.3))


for _study in studies.VARIATIONS:
    if _study != "collapse":
        draws(f"12_{_study}", (8.6, 2.5), **VARIED)(partial(draw_variation, _study))


@draws("12_collapse", (7.6, 3.8), **VARIED)
def draw_collapse(tables: Tables, figure: Figure) -> None:
    """Draw the reward of each seed by repair, with its first warning (circle) and its collapse (cross)."""
    labels, ends = summaries.study_labels(tables, "collapse"), variations.endings(tables)
    panels = figure.subplots(2, -(-len(labels) // 2), sharex=True, sharey=True).flat
    for axes, (arm, label) in zip(panels, labels.items(), strict=False):
        part = tables["training"][lambda table, arm=arm: table["arm"] == arm]
        wide = part.pivot_table(index="step", columns="seed", values="reward")
        smooth = wide.rolling(WINDOW, min_periods=1).mean()
        for row, color in zip(ends[ends["row"] == label].itertuples(), cycle(SERIES), strict=False):
            axes.plot(smooth.index, smooth[row.seed], color=color, lw=1.3)
            for step, marker in ((row.at, "o"), (row.collapse, "X")):
                if not np.isnan(step):
                    axes.plot(step, smooth[row.seed][step], marker, color=color, ms=7, mec="white", zorder=5)
        axes.set(title=label if len(part) else f"{label}: not run", ylim=(-0.02, 1))
    for axes in figure.axes[-len(labels) // 2 :]:
        axes.set_xlabel("RL step")
    figure.supylabel("training reward (F1), a line a seed\n● first warning, ✖ collapse", fontsize=8.5)


def draw(name: str, tables: Tables, provenance: str = "") -> Figure:
    """Draw a figure of FIGURES from tables.

    Raises:
        ConfigError: no figure has this name. DataError: a table that it needs is missing or empty.
    """
    chosen = pick("figure", name, FIGURES)
    if reason := _lacks(chosen, tables):
        raise DataError(f"The figure {name} cannot be drawn: {reason}")
    with plt.rc_context(STYLE):
        figure = plt.figure(figsize=chosen.size)
        chosen.draw(tables, figure)
        foot = provenance if chosen.source is None else chosen.source
        if foot:
            figure.supxlabel(foot, fontsize=6.5, color="#777777", x=0.995, ha="right")
    return figure


def provenance_of(tables: Tables, profile: str) -> str:
    """Write the line at a figure's foot: profile, seeds, the first characters of the core runs' digests."""
    runs = tables.get("provenance", pd.DataFrame())
    if runs.empty:
        return f"profile {profile}"
    policies = runs[runs["kind"] == "policy"]
    core = summaries.core(policies)
    digests = ", ".join(
        f"{arm} {part['run'].iloc[0].split('-')[1][:6]}" for arm, part in core.groupby("arm", sort=False)
    )
    variants = policies["arm"].nunique() - core["arm"].nunique()
    others = f", and {variants} variants (provenance.csv)" if variants else ""
    seeds = policies.groupby("arm")["seed"].nunique()
    count = str(seeds.max()) if seeds.min() == seeds.max() else f"{seeds.min()} to {seeds.max()}"
    return f"profile {profile}; {count} seed(s); runs: {digests}{others}"


def _lacks(chosen: Drawing, tables: Tables) -> str:
    """The reason why a figure cannot be drawn from `tables`; empty if it can."""
    for needed in chosen.needs:
        if needed not in tables or tables[needed].empty:
            return f"it needs the table '{needed}', which is empty: finish its runs first."
    for study in chosen.studies:
        if study not in set(tables["study_rows"]["study"]):
            return f"it needs the study '{study}': `zs reproduce --full` makes its runs."
    return ""


def draw_all(profile: str, folder: Path, tables: Tables | None = None) -> tuple[list[Path], dict[str, str]]:
    """Redraw the figures of a profile from its recorded results (or `tables`) into `folder`.

    Returns the files, and for each figure that cannot be drawn the reason; its outdated file is deleted.
    """
    tables, varied = tables or results.load_tables(profile), results.load_variations(profile)
    folder.mkdir(parents=True, exist_ok=True)
    core = tables | {"provenance": summaries.core(tables["provenance"])}
    written, lacking = [], {}
    for name, chosen in FIGURES.items():
        path = folder / f"{name}.{chosen.ending}"
        shown = varied if chosen.varied else tables
        if reason := _lacks(chosen, shown):
            lacking[name] = reason
            path.unlink(missing_ok=True)
            continue
        figure = draw(name, shown, provenance_of(shown if chosen.varied or chosen.studies else core, profile))
        picture = BytesIO()
        svg = chosen.ending == "svg"
        metadata = {"Date": None} if svg else {"Software": None}
        with plt.rc_context(STYLE):
            figure.savefig(picture, format=chosen.ending, transparent=svg, metadata=metadata)
        plt.close(figure)
        write_bytes(path, picture.getvalue())
        written.append(path)
    return written, lacking
