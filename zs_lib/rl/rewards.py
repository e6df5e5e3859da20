"""The reward of a trajectory: one row a reward. To add one, add a function of a trajectory and its row."""

from __future__ import annotations

from collections.abc import Callable

from zs_lib.qa.scoring import cover_em, em, f1
from zs_lib.rl.trajectory import Trajectory


def _score(metric: Callable[[str | None, tuple[str, ...]], float]) -> Callable[[Trajectory], float]:
    return lambda trajectory: metric(trajectory.answer, trajectory.question.golden_answers)


REWARDS: dict[str, Callable[[Trajectory], float]] = {
    "f1": _score(f1),  # the paper (section 3.5): EM and cover-EM invite long answers, it says
    "em": _score(em),  # Search-R1's
    "cover_em": _score(cover_em),  # what ZeroSearch's released scorer calls EM
}
"""Name -> reward in [0, 1] of a trajectory; 0 without an answer."""


def reward(trajectory: Trajectory, name: str) -> float:
    """The reward of this name; NaN if the engine failed the trajectory, which then leaves the batch."""
    return float("nan") if trajectory.stop_reason == "engine_failed" else REWARDS[name](trajectory)
