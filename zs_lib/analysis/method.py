"""The drawing of the method in README: question, policy, simulated search engine, reward and update.

The page behind it may be light or dark: text stands on filled boxes alone, and arrows are of a middle grey.
"""

from __future__ import annotations

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

from zs_lib.config.arms import CurriculumConfig
from zs_lib.rl.curriculum import noise_probability

SIZE = (6.9, 2.9)
"""Inches."""
INK, LINE = "#1f2328", "#7a828e"
TURNS = """\
an LLM that thinks,
searches, reads and
answers, in turns:

<think> …
<search> …
<information> …
<answer> …"""
BOXES = {
    "Question": (0.02, 1.5, 1.08, 0.7, "#e6e8eb", "from the\ntraining set"),
    "Policy": (1.55, 0.6, 1.3, 2.28, "#cfe2f6", TURNS),
    "Simulated search engine": (4.5, 1.32, 2.38, 1.56, "#fbe6cc", "an LLM fine-tuned to write documents"),
    "Answer": (3.5, 0.55, 0.95, 0.5, "#e6e8eb", ""),
    "Reward": (5.1, 0.55, 1.6, 0.5, "#e3d7ef", "F1 with the gold answer"),
}
"""Title → left, bottom, width and height in inches, fill, text below the title."""
ARROWS = (
    ((1.1, 1.85), (1.55, 1.85)),
    ((2.85, 2.45), (4.5, 2.45)),
    ((4.5, 1.75), (2.85, 1.75)),
    ((2.85, 0.8), (3.5, 0.8)),
    ((4.45, 0.8), (5.1, 0.8)),
    ((5.9, 0.55), (5.9, 0.17), (2.2, 0.17), (2.2, 0.6)),
)
"""Corners of each arrow, in inches."""
PILLS = (
    (3.68, 2.45, "search query", "#ffffff"),
    (3.68, 1.75, "documents", "#ffffff"),
    (5.1, 2.05, "useful", "#bfe6cd"),
    (5.1, 1.6, "or noisy", "#f3b9a5"),
    (4.05, 0.17, "update by REINFORCE, GRPO or PPO, on the policy's own tokens", "#ffffff"),
)
"""Labels: centre in inches, text, fill."""


def draw_method(figure: Figure) -> None:
    """Draw the method on a figure of SIZE."""
    figure.set_layout_engine("none")
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, SIZE[0]), ylim=(0, SIZE[1]))
    axes.axis("off")
    for title, (left, bottom, width, height, fill, text) in BOXES.items():
        style = {"boxstyle": "round,pad=0,rounding_size=0.08", "fc": fill, "ec": LINE, "lw": 0.8}
        axes.add_patch(FancyBboxPatch((left, bottom), width, height, **style))
        x, top = left + width / 2, bottom + height - 0.17 if text else bottom + height / 2
        axes.text(x, top, title, ha="center", va="center", weight="bold", size=8.5, color=INK)
        axes.text(x, top - 0.14, text, ha="center", va="top", size=7.2, linespacing=1.35, color=INK)
    for corners in ARROWS:
        axes.plot(*np.array(corners[:-1]).T, color=LINE, lw=1.5)
        head = {"arrowstyle": "-|>", "mutation_scale": 11, "shrinkA": 0, "shrinkB": 1}
        axes.add_patch(FancyArrowPatch(*corners[-2:], color=LINE, lw=1.5, **head))
    for x, y, text, fill in PILLS:
        box = {"boxstyle": "round,pad=0.3", "fc": fill, "ec": LINE, "lw": 0.6}
        axes.text(x, y, text, ha="center", va="center", size=7.5, color=INK, bbox=box)
    _draw_curriculum(axes.inset_axes((5.85, 1.55, 0.85, 0.5), transform=axes.transData))


def _draw_curriculum(axes: Axes) -> None:
    """Draw the shape of equation 4: the probability of noisy documents by RL step."""
    curriculum = CurriculumConfig(p_start=0.0, p_end=1.0)
    axes.plot([noise_probability(step, 100, curriculum) for step in range(101)], color="#b03a2e", lw=1.5)
    axes.set(xticks=(), yticks=(), facecolor="none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[:].set_color(INK)
    axes.grid(visible=False)
    axes.set_title("curriculum", loc="center", size=7.2, weight="normal", color=INK, pad=2)
    axes.set_xlabel("RL step", size=6.5, color=INK, labelpad=2)
    axes.set_ylabel("noise", size=6.5, color=INK, labelpad=2)
