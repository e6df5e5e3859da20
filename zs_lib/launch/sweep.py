"""Sweep: one arm over a grid of overrides and seeds, compared on dev questions, never on test questions.

A grid is all combinations of the values given for some fields. Ranges add quasi-random points, known before
the first run: so they are all checked at once and made side by side, and more trials keep the runs of fewer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from scipy.stats import qmc

from zs_lib import config, studies
from zs_lib.analysis.drawing import STYLE, WIDTHS, finish, forest, legend, picture, rows_height
from zs_lib.analysis.results import read_scores
from zs_lib.analysis.summaries import heldout_table
from zs_lib.config import Profile
from zs_lib.config.arms import EvaluationArm
from zs_lib.config.values import digest
from zs_lib.errors import ConfigError
from zs_lib.runs import RunStore
from zs_lib.runs.files import write_bytes

Point = dict[str, Any]
"""Overrides of one point: dotted key of the profile -> value."""
Range = tuple[float, float, bool]
"""Lowest and highest number, whole ones if both are; whether each decade has equally many."""
NOT_TRAINED = ("seeds", "evaluation.")
"""Fields that do not change how a policy is trained."""


def expand(
    grid: Sequence[tuple[str, Sequence]], ranges: Sequence[tuple[str, Range]] = (), trials: int = 0
) -> list[Point]:
    """List the points of a grid in its order, each with `trials` points of the ranges (Halton's sequence).

    Raises:
        ConfigError: a field is given twice or has no value, nothing varies, or ranges lack trials.
    """
    keys = [key for key, _ in (*ranges, *grid)]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise ConfigError(f"{twice} is given twice: give all its values in one grid, or one range.")
    if empty := next((key for key, values in grid if not values), None if keys else "the sweep"):
        raise ConfigError(f"The grid of {empty} is empty: give values, as policy.learning_rate=1e-4,1e-3.")
    if bool(ranges) != (trials > 0):
        raise ConfigError("Ranges need a number of trials (at least 1), and trials a range: give both.")
    shares = qmc.Halton(len(ranges), rng=0).random(trials).T if ranges else ()
    spread = [_spread(*limits, column) for (_, limits), column in zip(ranges, shares, strict=True)]
    drawn = sorted(zip(*spread, strict=True)) or [()]
    rows = product(drawn, product(*(values for _, values in grid)))
    points = [dict(zip(keys, (*one, *chosen), strict=True)) for one, chosen in rows]
    return [point for number, point in enumerate(points) if point not in points[:number]]


def _spread(low: float, high: float, log: bool, shares: Sequence[float]) -> list[float]:
    """The numbers at these shares, in [0, 1), of a range; to three digits unless they are whole."""
    if not low < high or (log and low <= 0):
        raise ConfigError(f"The range {low}:{high} is empty{', or not above 0' * log}: correct its limits.")
    whole = isinstance(low, int) and isinstance(high, int)
    top = high + whole
    numbers = [low * (top / low) ** share if log else low + share * (top - low) for share in shares]
    return [math.floor(number) if whole else float(f"{number:.3g}") for number in numbers]


@dataclass(frozen=True)
class Sweep:
    """The runs of a sweep, and what they differ in; made by `plan`."""

    arm: str
    study: Profile
    """The profile, without what differs."""
    rows: dict[str, tuple[Point, EvaluationArm]]
    """Label -> a point, and the evaluation of its policy on dev questions."""

    @property
    def runs(self) -> list[tuple[EvaluationArm, int]]:
        """List (arm, seed) of every evaluation; each needs the run of its policy."""
        return [(made, seed) for _, made in self.rows.values() for seed in range(self.study.seeds)]

    def table(self, store: RunStore) -> pd.DataFrame:
        """Tabulate the finished runs: a row a point, its overrides, mean F1 with its 95% interval and what
        that is over, mean searches, steps, and seconds of training (mean over seeds)."""
        scores, seconds = [], dict.fromkeys(self.rows, 0.0)
        for label, (_, made) in self.rows.items():
            for seed in range(self.study.seeds):
                scores.append(read_scores(store.get(made, seed)).assign(arm=label, seed=seed))
                timing = store.get(made.policy, seed).timing().drop(columns="step")
                seconds[label] += timing.sum().sum() / self.study.seeds  # not every phase is in every step
        columns = ["f1", "low", "high", "over", "seeds", "questions", "searches"]
        steps = [made.policy.steps for _, made in self.rows.values()]
        points = pd.DataFrame([point for point, _ in self.rows.values()], index=list(self.rows))
        means = heldout_table(pd.concat(scores))[columns]
        return points.join(means).assign(steps=steps, seconds=seconds).rename_axis("point")

    def write(self, store: RunStore, folder: Path | None = None) -> tuple[pd.DataFrame, list[Path]]:
        """Write the table as CSV, and its figure as PNG, into a folder (by default one of the store)."""
        digests = [digest(made) for _, made in self.rows.values()]
        folder = folder or store.root / f"sweep-{digest({'arms': digests, 'seeds': self.study.seeds})}"
        table = self.table(store)
        with plt.rc_context(STYLE):
            figure = Figure(figsize=(WIDTHS["page"], 1))
            rows_height(figure, len(table))
            axes = figure.subplots()
            forest(axes, table.assign(arm=self.arm))
            axes.set(title=f"{self.arm}, by override", xlabel="F1 on dev questions")
            legend(figure)
            runs = ", ".join(digest(made.policy)[:6] for _, made in self.rows.values())
            finish(figure, f"profile {self.study.name}; {self.study.seeds} seed(s); runs: {runs}")
        files = {"sweep.csv": table.to_csv(float_format="%.6g").encode(), "sweep.png": picture(figure)}
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            write_bytes(folder / name, content)
        return table, [folder / name for name in files]


def plan(name: str, points: Sequence[Point], profile: str, overrides: Mapping[str, Any]) -> Sweep:
    """Check every point of an arm's sweep before any run; `overrides` hold for all of them.

    Each arm is named for its differences from the profile's: "search-r1/steps=16,learning_rate=0.0001".

    Raises:
        ConfigError: no such profile, arm or field, a value is out of range, a field is given twice, or makes
            no difference to the arm.
    """
    plain, rows, seen = studies.full(config.load_profile(profile)).policy(name), {}, {}
    if both := [key for key in points[0] if key in overrides]:
        raise ConfigError(f"{both[0]} is given twice: once for all arms, and once to differ.")
    for point in points:
        study, label = config.load_profile(profile, {**overrides, **point}), _named(point)
        arm = studies.full(study).policy(name)
        if digest(arm) != digest(plain):
            trained = {key: v for key, v in {**overrides, **point}.items() if not key.startswith(NOT_TRAINED)}
            arm = replace(arm, name=f"{name}/{_named(trained)}")
        made = replace(EvaluationArm.of_policy(arm, study.evaluation), split="dev")
        if (same := seen.setdefault(digest(made), label)) != label:
            raise ConfigError(f"'{same}' and '{label}' are one arm: that makes no difference to '{name}'.")
        rows[label] = point, made
    return Sweep(name, config.load_profile(profile, overrides), rows)


def _named(point: Point) -> str:
    return ",".join(f"{key.removeprefix('policy.')}={value}" for key, value in point.items())
