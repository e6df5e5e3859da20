"""Labels, colours, sizes and style of figures, and their parts: curves, intervals, heat maps, legends."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping
from io import BytesIO
from itertools import cycle
from operator import itemgetter
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.legend_handler import HandlerErrorbar
from PIL import Image

from zs_lib.analysis.collapse import collapse_warnings
from zs_lib.analysis.results import START
from zs_lib.analysis.statistics import BOTH, ONE_SEED, QUERIES, SEEDS

WINDOW = 5
"""Steps in the moving mean of a training curve: one step is the mean of only tens of rollouts."""
ARMS = {
    START: ("before RL", "#9a9a9a"),
    "zerosearch": ("ZeroSearch", "#1f6fb4"),
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
MARKERS = "osD^vP"
GREY = "#555555"
WIDTHS = {"page": 6.9, "column": 3.3}
"""Inches: the text of a page, and one column of two."""
FORMATS = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
"""Format of a file → the metadata that it leaves out, so that it has the same bytes each time."""
INTERVALS = {
    BOTH: "95% over seeds and questions",
    SEEDS: "95% over seeds",
    ONE_SEED: "95% over questions, one seed",
    QUERIES: "95% over queries alone",
}
"""What an interval is over → its name in legends."""
RANGE = "range over seeds"
STYLE = {
    "figure.dpi": 110,
    "savefig.dpi": 200,
    "pdf.fonttype": 42,  # TrueType, embedded: Type 3 fonts are refused by some publishers
    "svg.fonttype": "path",
    "svg.hashsalt": "figures",  # the same bytes each time
    "font.size": 8.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.25,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": "small",
    "xtick.labelsize": "small",
    "ytick.labelsize": "small",
    "axes.titlesize": "medium",
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "figure.constrained_layout.use": True,
}


def style(width: str) -> dict[str, Any]:
    """Return the settings of matplotlib for a figure of WIDTHS."""
    return STYLE | {"font.size": 8.0 if width == "page" else 7.0}


def narrow(figure: Figure) -> bool:
    """Tell whether a figure is as wide as a column rather than a page."""
    return figure.get_figwidth() < sum(WIDTHS.values()) / 2


def panels(figure: Figure, count: int, a_row: int, **more: Any) -> list[Axes]:
    """Make `count` panels, `a_row` of them a row on a page; in a column one a row, or half as many."""
    columns = -(-a_row // 2) if narrow(figure) else a_row
    found = list(figure.subplots(-(-count // columns), columns, squeeze=False, **more).flat)
    for axes in found:
        axes.tick_params(labelbottom=True, labelleft=True)
    for axes in found[count:]:
        axes.remove()
    return found[:count]


def entries(*shown: Axes) -> dict[str, Any]:
    """Collect the legend of these panels: label → handle, each label once, those of intervals last."""
    found: dict[str, Any] = {}
    for axes in shown:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    last = {RANGE, *INTERVALS.values()}
    return {label: found[label] for label in sorted(found, key=lambda label: label in last)}


def legend(figure: Figure, *shown: Axes) -> None:
    """Put one legend for these panels (or all) below them, in as many columns as fit."""
    found = entries(*shown or figure.axes)
    if found:
        width = 0.43 * plt.rcParams["font.size"] * max(map(len, found)) + 28  # points
        columns = min(len(found), max(1, int(72 * figure.get_figwidth() // width)))
        bars = {ErrorbarContainer: HandlerErrorbar(xerr_size=1.1, yerr_size=0.6)}
        place = {"loc": "outside lower center", "ncols": columns}
        figure.legend(found.values(), found.keys(), handler_map=bars, **place)


def finish(figure: Figure, text: str = "") -> None:
    """Write a small line below a figure, lay it out above that line, and keep this layout."""
    size = 0.65 * plt.rcParams["font.size"]
    text = textwrap.fill(text, int(72 * figure.get_figwidth() / (0.56 * size)))
    height = (1.3 * size * (text.count("\n") + 1) + 3) / 72 / figure.get_figheight() if text else 0.0
    figure.text(0.995, 0.25 * height, text, fontsize=size, color="#777777", ha="right").set_in_layout(False)
    if isinstance(engine := figure.get_layout_engine(), ConstrainedLayoutEngine):
        # once laid out, an axis may choose ticks that are a digit wider: the padding has room for it
        engine.set(rect=(0, height, 1, 1 - height), w_pad=0.08)
        engine.execute(figure)
        figure.set_layout_engine("none")
    for each in figure.legends:
        each.set_bbox_to_anchor((0, height, 1, 1 - height))


def picture(figure: Figure, ending: str = "png", **how: Any) -> bytes:
    """Write a figure in one of FORMATS: 200 dots an inch in 256 colours, or with its fonts embedded."""
    buffer = BytesIO()
    with plt.rc_context(STYLE):
        figure.savefig(buffer, format=ending, metadata=FORMATS[ending], **how)
    if ending == "png":  # a third of the size
        full, buffer = Image.open(buffer).convert("RGB"), BytesIO()
        few = full.quantize(method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
        few.save(buffer, "PNG", dpi=[how.get("dpi", STYLE["savefig.dpi"])] * 2)
    return buffer.getvalue()


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
        band(axes, wide.rolling(WINDOW, min_periods=1).mean(), color, label=labels.get(arm, arm), lw=1.4)
    axes.set_xlabel("RL step")


def reward_parts(axes: Axes, table: pd.DataFrame) -> bool:
    """Plot the parts of rewards that are sums, thin and without their weights; False if there are none."""
    parts = [name for name in table if name.startswith("reward_") and table[name].notna().any()]
    for name, color in zip(parts, cycle(SERIES[1:]), strict=False):
        mean = table.groupby("step")[name].mean().rolling(WINDOW, min_periods=1).mean()
        axes.plot(mean.index, mean, color=color, ls="--", lw=1, label=name.removeprefix("reward_"))
    return bool(parts)


def band(axes: Axes, wide: pd.DataFrame, color: str, **line: Any) -> None:
    """Plot the mean over the columns, one a seed, as a line, and their range as a band."""
    axes.plot(wide.index, wide.mean(axis=1), color=color, **line)
    if wide.shape[1] > 1:
        axes.fill_between(wide.index, wide.min(axis=1), wide.max(axis=1), color=color, alpha=0.15, lw=0)
        axes.fill_between([], [], [], color=GREY, alpha=0.2, lw=0, label=RANGE)


def mark_warnings(table: pd.DataFrame, axes: Axes) -> None:
    """Mark early warnings of collapse (`collapse`) on the reward curves, each at its first step."""
    named = {}
    for (arm, _), part in table.groupby(["arm", "seed"], sort=False):
        log = part.sort_values("step").reset_index(drop=True)
        smooth = log["reward"].rolling(WINDOW, min_periods=1).mean().set_axis(log["step"])
        for warning in collapse_warnings(log):
            mark = warning.step, smooth[warning.step]
            named[arm, warning.name] = min(named.get((arm, warning.name), mark), mark, key=itemgetter(0))
    names = list(dict.fromkeys(name for _, name in named))
    for (arm, name), (step, reward) in named.items():
        mark = {"marker": "X*Pdp"[names.index(name) % 5], "ms": 7, "mec": "white", "ls": ""}
        axes.plot(step, reward, color=COLORS.get(arm, GREY), zorder=5, **mark)
    for name in names:
        mark = {"marker": "X*Pdp"[names.index(name) % 5], "ms": 7, "mec": "white", "ls": ""}
        axes.plot([], [], color=GREY, label=f"warning: {name.replace('_', ' ')}", **mark)


def label_of(arm: str) -> str:
    """Name an arm in figures; its own name where LABELS has none."""
    return LABELS.get(arm, arm)


def color_of(arm: str) -> str:
    """Pick the colour of an arm: a variant's is its core arm's, or that of its simulator's recipe."""
    recipes = {"=naive-": COLORS["zerosearch-naive"], "=prompted-": COLORS[START]}
    core = COLORS.get(arm) or COLORS.get(arm.partition("/")[0], GREY)
    return next((color for recipe, color in recipes.items() if recipe in arm), core)


def whiskers(
    axes: Axes,
    scores: pd.DataFrame,
    places: Iterable[float],
    colors: Iterable[str],
    upright: bool = False,
    limits: tuple[float, float] = (0.0, 1.0),
    **marker: Any,
) -> None:
    """Plot scores and their intervals; one over questions or queries alone is thin, dashed, without caps.

    It leaves out the variance between seeds, so that it must not look as sure as the others; its marker is
    hollow. Student's intervals may pass 0 and 1, where no F1 is: they end at `limits`.
    """
    marker = {"ls": "", "marker": "o", "ms": 4} | marker
    for place, row, color in zip(places, scores.itertuples(), colors, strict=True):
        low, high = np.clip([row.low, row.high], *limits)  # NaN, where there is no interval, stays
        length = {"yerr" if upright else "xerr": [[row.f1 - low], [high - row.f1]]}
        at = (place, row.f1) if upright else (row.f1, place)
        _errorbar(axes, at, row.over, color=color, **length, **marker)
    for over in dict.fromkeys(scores["over"]):
        if over:  # its name in the legend
            length = {"yerr" if upright else "xerr": [[], []]}
            _errorbar(axes, ([], []), over, color=GREY, label=INTERVALS[over], **length, **marker)


def _errorbar(axes: Axes, at: tuple, over: str, **how: Any) -> None:
    alone = over in (ONE_SEED, QUERIES)
    drawn = axes.errorbar(
        *at, **how, **({"lw": 0.9, "mfc": "white"} if alone else {"lw": 1.3, "capsize": 2.5})
    )
    if alone:
        drawn[2][0].set_linestyle((0, (3, 2)))


def forest(axes: Axes, scores: pd.DataFrame, columns: Mapping[str, Iterable[str]] | None = None) -> None:
    """Plot mean and interval of each row of `scores`, top down, with columns of text beside it (the F1).

    A row without an arm is a heading. In a column's width, labels are wrapped.
    """
    places = np.arange(len(scores))[::-1]
    shown = scores["f1"].notna().to_numpy()
    whiskers(axes, scores[shown], places[shown], [color_of(arm) for arm in scores["arm"][shown]])
    labels = [textwrap.fill(str(label), 22) if narrow(axes.figure) else label for label in scores.index]
    axes.set_yticks(places, labels)
    for tick, arm in zip(axes.get_yticklabels(), scores["arm"], strict=True):
        tick.set_fontweight("normal" if arm else "bold")
    axes.tick_params(axis="y", length=0)
    if columns is None:
        columns = {"F1": ["" if np.isnan(value) else f"{value:.2f}" for value in scores["f1"]]}
    beside(axes, places, columns)
    axes.set(ylim=(-0.6, len(scores) - 0.4), xlabel="held-out F1")
    axes.grid(axis="y", visible=False)


def beside(axes: Axes, places: Iterable[float], columns: Mapping[str, Iterable[str]]) -> None:
    """Write columns of text at the right of a panel: title → one text for each place."""
    size, left = 0.833 * plt.rcParams["font.size"], 6.0
    how = {"textcoords": "offset points", "fontsize": size, "annotation_clip": False}
    for title, texts in columns.items():
        texts = list(texts)
        axes.annotate(title, (1, 1), (left, 2), xycoords="axes fraction", va="bottom", weight="bold", **how)
        for place, text in zip(places, texts, strict=True):
            axes.annotate(text, (1, place), (left, 0), xycoords=("axes fraction", "data"), va="center", **how)
        left += 0.62 * size * max(map(len, [title, *texts])) + 8


def rows_height(figure: Figure, rows: int, a_row: float = 0.2) -> None:
    """Make a figure as high as its rows, its axis, legend and foot need."""
    figure.set_figheight((1.35 if narrow(figure) else 1.0) + a_row * rows)


def points(axes: Axes, scores: pd.DataFrame, limits: tuple[float, float] = (0.0, 1.0)) -> None:
    """Plot one line with intervals for each value of the column `line`, over the index in its order."""
    order, lines = list(dict.fromkeys(scores.index)), scores["line"].nunique()
    for number, (line, part) in enumerate(scores.groupby("line", sort=False)):
        places = [order.index(label) + 0.12 * (number - (lines - 1) / 2) for label in part.index]
        color, marker = color_of(part["arm"].iloc[0]), MARKERS[number % len(MARKERS)]
        axes.plot(places, part["f1"], color=color, lw=1, alpha=0.6)
        axes.plot([], [], color=color, lw=1, marker=marker, ms=4, label=line)
        whiskers(axes, part, places, [color] * len(part), upright=True, limits=limits, marker=marker)
    axes.set_xticks(range(len(order)), order)
    axes.set_xlim(-0.4, len(order) - 0.6)


def level(axes: Axes, row: Any, color: str, label: str) -> None:
    """Plot a score as a horizontal line with its interval as a band."""
    axes.axhline(row.f1, color=color, lw=1, ls="--", label=label)
    axes.axhspan(row.low, row.high, color=color, alpha=0.12, lw=0)


def heat(axes: Axes, frame: pd.DataFrame) -> None:
    """Plot shares in [0, 1] as a heat map with their values."""
    axes.imshow(frame, cmap="YlGnBu", vmin=0, vmax=1, aspect="auto")
    small = narrow(axes.figure)
    for (row, column), value in np.ndenumerate(frame):
        color = "white" if value > 0.55 else "black"
        size = "x-small" if small else "small"
        axes.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=size, color=color)
    axes.set_xticks(range(frame.shape[1]), frame.columns, rotation=90 if small else 0)
    axes.set_yticks(range(frame.shape[0]), [textwrap.fill(str(i), 22) if small else i for i in frame.index])
    axes.grid(visible=False)
