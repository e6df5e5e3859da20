"""Trajectories as JSON records, as a run logs them (`analysis.trajectory_index` reads a run's log).

A record holds `question`, `golden_answers`, `turns` (the fields of `trajectory.Turn`), `stop_reason`,
`answer` and `reward` (null if the engine failed). Records of training also hold (older runs may lack them):

    group       index of its question in the step, from 0
    advantage   of the whole trajectory (PPO, whose critic gives each token its own: the reward)
    tokens      in order: a policy token as [text, log-probability]; observation tokens between them as their
                number (the loss mask leaves them out)
    watched     true: not part of training, but one of the run's first questions answered again, greedily
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict
from itertools import groupby

from zs_lib.rl.trajectory import Trajectory


def to_record(
    trajectory: Trajectory, reward: float, decode: Callable[[list[int]], str] | None = None
) -> dict:
    """Make a trajectory's record; `reward` is NaN if the engine failed, `decode` adds the tokens."""
    record = {
        "question": trajectory.question.question,
        "golden_answers": list(trajectory.question.golden_answers),
        "turns": [asdict(turn) for turn in trajectory.turns],
        "stop_reason": trajectory.stop_reason,
        "answer": trajectory.answer,
        "reward": None if math.isnan(reward) else reward,
    }
    return record | ({"tokens": _tokens(trajectory, decode)} if decode else {})


def _tokens(trajectory: Trajectory, decode: Callable[[list[int]], str]) -> list:
    tokens: list = []
    for mine, part in groupby(
        zip(trajectory.mask, trajectory.ids, trajectory.logprobs, strict=True), key=lambda one: one[0]
    ):
        part = list(part)
        tokens += (
            [[decode([token]), round(logprob, 2)] for _, token, logprob in part] if mine else [len(part)]
        )
    return tokens
