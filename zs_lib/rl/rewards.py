"""The reward of a trajectory: a row of REWARDS. To add one, add a function of a trajectory and its row."""

from __future__ import annotations

from collections.abc import Callable

from zs_lib.qa.scoring import cover_em, em, f1
from zs_lib.rl.trajectory import Trajectory


def _score(metric: Callable[[str | None, tuple[str, ...]], float]) -> Callable[[Trajectory], float]:
    return lambda trajectory: metric(trajectory.answer, trajectory.question.golden_answers)


REWARDS: dict[str, Callable[[Trajectory], float]] = {
    "f1": _score(f1),  # the paper's (section 3.5), since EM and cover-EM encourage long answers
    "em": _score(em),  # Search-R1's
    "cover_em": _score(cover_em),  # what ZeroSearch's released scorer calls EM
}
"""Name -> function from a trajectory to its reward in [0, 1]; 0 without an answer."""


def reward(trajectory: Trajectory, name: str) -> float:
    """Compute the named reward of a trajectory; NaN if its engine failed, so that it leaves the batch."""
    return float("nan") if trajectory.failed else REWARDS[name](trajectory)
