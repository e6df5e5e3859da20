"""Labels, colours and style of figures, and their parts: curves, bars, intervals, heat maps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import cycle
from operator import itemgetter
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from zs_lib.analysis.collapse import collapse_warnings
from zs_lib.analysis.results import START
from zs_lib.analysis.statistics import ONE_SEED

WINDOW = 5
"""Steps in the moving mean of a training curve: one step is the mean of only tens of rollouts."""
ARMS = {
    START: ("before RL", "#9a9a9a"),
    "zerosearch": ("ZeroSearch (grounded simulator)", "#1f6fb4"),
    "zerosearch-naive": ("ZeroSearch (naive simulator)", "#e08214"),
    "zerosearch-no-sft": ("ZeroSearch (no format SFT)", "#c0392b"),
    "zerosearch-270m": ("ZeroSearch (270M simulator)", "#56b4e9"),
    "search-r1": ("Search-R1 (real engine)", "#2a9d5c"),
    "r1": ("R1 (no search)", "#8a4fa3"),
    "search-r1/engine=dense": ("Search-R1 (dense engine)", "#00707a"),
}
"""Arm → its name and its colour in all figures."""
LABELS, COLORS = ({arm: row[column] for arm, row in ARMS.items()} for column in (0, 1))
SERIES = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00")
"""Colours of other lines, for readers with colour-blindness too (Okabe and Ito)."""
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 160,
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "axes.titlesize": 10.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
    "svg.hashsalt": "figures",  # the same bytes each time
}


def curve(
    table: pd.DataFrame, column: str, axes: Axes, arms: Iterable[str] = (), labels: Mapping[str, str] = LABELS
) -> None:
    """Plot the moving mean of `column` over steps, one line per arm (of `arms`, or all).

    The line is the mean over seeds, the band their range.
    """
    shown = [
        (arm, part)
        for arm, part in table.groupby("arm", sort=False)
        if (not arms or arm in arms) and part[column].notna().any()
    ]
    for number, (arm, part) in enumerate(shown):
        color = COLORS.get(arm, SERIES[number % len(SERIES)])
        wide = part.pivot_table(index="step", columns="seed", values=column)
        band(axes, wide.rolling(WINDOW, min_periods=1).mean(), color, label=labels.get(arm, arm), lw=1.8)
    axes.set_xlabel("RL step")


def reward_parts(axes: Axes, table: pd.DataFrame) -> bool:
    """Plot the parts of rewards that are sums, thin and without their weights; False if there are none."""
    parts = [name for name in table if name.startswith("reward_") and table[name].notna().any()]
    for name, color in zip(parts, cycle(SERIES[1:]), strict=False):
        mean = table.groupby("step")[name].mean().rolling(WINDOW, min_periods=1).mean()
        axes.plot(mean.index, mean, color=color, ls="--", lw=1, label=name.removeprefix("reward_"))
    return bool(parts)


def band(axes: Axes, wide: pd.DataFrame, color: str, **line: Any) -> None:
    """Plot the mean over the columns as a line, and their range as a band."""
    axes.plot(wide.index, wide.mean(axis=1), color=color, **line)
    if wide.shape[1] > 1:
        axes.fill_between(wide.index, wide.min(axis=1), wide.max(axis=1), color=color, alpha=0.15, lw=0)


def mark_warnings(table: pd.DataFrame, axes: Axes) -> None:
    """Mark early warnings of collapse (`collapse`) on the reward curves, each at its first step."""
    named = {}
    for (arm, _), part in table.groupby(["arm", "seed"], sort=False):
        log = part.sort_values("step").reset_index(drop=True)
        smooth = log["reward"].rolling(WINDOW, min_periods=1).mean().set_axis(log["step"])
        for warning in collapse_warnings(log):
            mark = warning.step, smooth[warning.step]
            named[arm, warning.name] = min(named.get((arm, warning.name), mark), mark, key=itemgetter(0))
    for (arm, name), (step, reward) in named.items():
        axes.plot(step, reward, marker="X", ms=8, color=core_color(arm), mec="white", ls="", zorder=5)
        axes.annotate(
            name.replace("_", " "),
            (step, reward),
            xytext=(4, 6),
            textcoords="offset points",
            fontsize=7.5,
            color=core_color(arm),
            bbox={"fc": "white", "ec": "none", "alpha": 0.85, "pad": 1},
            zorder=4,
        )


def bars(axes: Axes, frame: pd.DataFrame, columns: dict[str, tuple[str, str]]) -> None:
    """Plot grouped bars: one group per row, one bar for each of `columns` (column → (label, colour))."""
    width = 0.8 / len(columns)
    for number, (column, (label, color)) in enumerate(columns.items()):
        places = [x + (number - (len(columns) - 1) / 2) * width for x in range(len(frame))]
        axes.bar(places, frame[column], width * 0.92, color=color, label=label)
    axes.set_xticks(range(len(frame)), frame.index)
    axes.grid(axis="x", visible=False)


def label_of(arm: str) -> str:
    """Name an arm in figures; its own name where LABELS has none."""
    return LABELS.get(arm, arm)


def core_color(arm: str) -> str:
    """Pick the colour of a core arm; dark grey where COLORS has none."""
    return COLORS.get(arm, "#555555")


def color_of(arm: str) -> str:
    """Pick the colour of an arm: a variant's is its core arm's, or that of its simulator's recipe."""
    recipes = {"=naive-": COLORS["zerosearch-naive"], "=prompted-": COLORS[START]}
    core = COLORS.get(arm, core_color(arm.partition("/")[0]))
    return next((color for recipe, color in recipes.items() if recipe in arm), core)


def whiskers(
    axes: Axes,
    scores: pd.DataFrame,
    places: Iterable[float],
    colors: Iterable[str],
    upright: bool = False,
    **marker: Any,
) -> None:
    """Plot the intervals of F1; one over the questions of one seed alone is thin, dotted, without ends.

    It leaves out the variance between seeds, so that it must not look as sure as the others; its marker is
    hollow. Student's intervals may pass 0 and 1, where no F1 is: they end there.
    """
    for place, row, color in zip(places, scores.itertuples(), colors, strict=True):
        one_seed = row.over == ONE_SEED
        style = {"lw": 1.1, "capsize": 0, "mfc": "white"} if one_seed else {"lw": 1.4, "capsize": 3}
        low, high = max(0.0, row.low), min(1.0, row.high)
        length = {"yerr" if upright else "xerr": [[row.f1 - low], [high - row.f1]]}
        at = (place, row.f1) if upright else (row.f1, place)
        drawn = axes.errorbar(*at, color=color, ls="", **length, **style, **marker)
        if one_seed:
            drawn[2][0].set_linestyle(":")


def forest(axes: Axes, scores: pd.DataFrame, marks: dict[str, tuple[float, str]]) -> None:
    """Plot mean and interval of each row of `scores`, top down.

    `marks`: label → (value, colour) of a vertical line.
    """
    places = range(len(scores))[::-1]
    colors = [color_of(arm) for arm in scores["arm"]]
    whiskers(axes, scores, places, colors, marker="o", ms=5)
    for place, value in zip(places, scores["f1"], strict=True):
        axes.text(value, place + 0.2, f"{value:.2f}", ha="center", va="bottom", fontsize=8)
    for label, (value, color) in marks.items():
        axes.axvline(value, color=color, ls=":", lw=1.4, label=label)
    axes.set_yticks(places, scores.index)
    axes.set(ylim=(-0.6, len(scores) - 0.3), xlabel="held-out F1 (95% interval; dotted: of one seed)")
    axes.grid(axis="y", visible=False)
    if marks:
        axes.legend(loc="best", fontsize=8)


def points(axes: Axes, scores: pd.DataFrame) -> None:
    """Plot one line with intervals for each value of the column `line`, over the index in its order."""
    order = list(dict.fromkeys(scores.index))
    for number, (line, part) in enumerate(scores.groupby("line", sort=False)):
        places = [order.index(label) + 0.06 * number for label in part.index]
        color, style = color_of(part["arm"].iloc[0]), ("-", "--", ":")[number % 3]
        axes.plot(places, part["f1"], color=color, ls=style, lw=1.4, label=line)
        whiskers(axes, part, places, [color] * len(part), upright=True, marker="o", ms=4)
    axes.set_xticks(range(len(order)), order)


def heat(axes: Axes, frame: pd.DataFrame) -> None:
    """Plot shares in [0, 1] as a heat map with their values."""
    axes.imshow(frame, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    for (row, column), value in np.ndenumerate(frame):
        color = "white" if value > 0.55 else "black"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=8.5, color=color)
    axes.set_xticks(range(frame.shape[1]), frame.columns, fontsize=8)
    axes.set_yticks(range(frame.shape[0]), frame.index)
    axes.grid(visible=False)
