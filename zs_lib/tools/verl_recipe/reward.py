"""The reward of a trajectory, in the form of verl's custom reward functions."""

from __future__ import annotations

from zerosearch import protocol, scoring

METRICS = {"f1": scoring.f1, "em": scoring.em, "cover_em": scoring.cover_em}


def compute_score(
    data_source: str,
    solution_str: str,
    ground_truth: dict,
    extra_info: dict | None = None,
    metric: str = "f1",
    **kwargs,
) -> dict[str, float]:
    """Score a trajectory's answer by a name of METRICS: the reward as "score" (0 without an answer), and EM.

    The answer is the one that `loop.py` read from the policy's own last turn. With another agent loop it is
    read from what follows the last observation, since documents and the prompt's example are never graded.
    """
    if extra_info is not None and "answer" in extra_info:
        answer = extra_info["answer"]
    else:
        action = protocol.parse_action(solution_str.rpartition(protocol.end_tag("information"))[2])
        answer = action.text if action.kind == "answer" else None
    golden = list(ground_truth["target"])
    return {"score": METRICS[metric](answer, golden), "em": scoring.em(answer, golden)}
