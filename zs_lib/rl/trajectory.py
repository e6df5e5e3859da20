"""A trajectory, the metrics that training and evaluation report about it, and its record in a run's log."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate, groupby
from statistics import fmean
from typing import Literal

from zs_lib.protocol import Action
from zs_lib.qa import Question, scoring

StopReason = Literal["answer", "max_turns", "length", "invalid", "engine_failed"]
STOPS: tuple[StopReason, ...] = ("answer", "max_turns", "length", "invalid")
"""Stop reasons of trajectories that did not fail."""


@dataclass(frozen=True)
class Turn:
    """One turn: the text that the policy wrote, its action, and the search result that it was shown.

    `query` is None unless a search was made (the last turn's search is not executed); `documents` are those
    that the policy was shown; `noisy` says whether noisy ones were requested; `status` and `error` are the
    search result's; `cut` says whether the documents found were shortened, or dropped, to fit the context.
    """

    text: str
    action: Action
    query: str | None = None
    documents: tuple[str, ...] = ()
    noisy: bool = False
    status: Literal["", "ok", "empty", "failed"] = ""
    error: str = ""
    cut: bool = False


@dataclass(frozen=True)
class Trajectory:
    """One rollout. `ids`, `mask` and `logprobs` have one entry per token after the prompt.

    mask: True on tokens that the policy wrote, False on observations; logprobs: of the policy's tokens at the
    sampling temperature (see `models.generator.Completion`), 0.0 on observations. stop_reason: "answer";
    "max_turns" (another search in the last turn); "invalid" (no action in the last turn); "length" (the
    context window cannot take another turn); "engine_failed" (to be left out of the loss).
    """

    question: Question
    prompt_ids: list[int]
    ids: list[int]
    mask: list[bool]
    logprobs: list[float]
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    answer: str | None

    @property
    def failed(self) -> bool:
        """Whether its engine failed, so that it leaves the batch."""
        return self.stop_reason == "engine_failed"

    def trained(self, mask_documents: bool) -> list[bool]:
        """Tell which tokens are trained: the policy's own, or documents too; none if the engine failed."""
        return [not self.failed and (mine or not mask_documents) for mine in self.mask]

    def sampler_logprobs(self) -> list[float]:
        """Return `logprobs` with NaN where the policy did not write."""
        return [p if mine else math.nan for p, mine in zip(self.logprobs, self.mask, strict=True)]

    @property
    def num_searches(self) -> int:
        """Number of searches that were made (and paid for)."""
        return sum(turn.query is not None for turn in self.turns)

    @property
    def token_turns(self) -> list[int]:
        """The turn of each token, from 0; an observation's is that of the turn before it."""
        begins = [mine and not before for mine, before in zip(self.mask, [False, *self.mask], strict=False)]
        return [turn - 1 for turn in accumulate(begins)]


def trajectory_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float | None]:
    """Compute means over trajectories (leave failed ones out); None where there is nothing to average.

    - f1, em: of the final answer, 0 without one; in [0, 1]
    - turns, searches, invalid_actions: number per trajectory
    - query_quality: share of all searches whose query is good (see `query_quality`); None if no question
      states its hops
    - answer_in_documents: share of trajectories that were shown a gold answer
    - cut_observations: number per trajectory of observations that were cut to fit the context window
    - stop_answer, stop_max_turns, stop_length, stop_invalid: share of trajectories by `stop_reason`
    - prompt_tokens, completion_tokens: number per trajectory; policy_tokens: those of the completion that the
      policy wrote
    - entropy: mean of -log p over the policy's tokens, in nats at the sampling temperature: an unbiased
      estimate that needs no second forward pass and includes zero-variance groups
    """
    return {
        "f1": _mean(scoring.f1(t.answer, t.question.golden_answers) for t in trajectories),
        "em": _mean(scoring.em(t.answer, t.question.golden_answers) for t in trajectories),
        "turns": _mean(len(t.turns) for t in trajectories),
        "searches": _mean(t.num_searches for t in trajectories),
        "invalid_actions": _mean(sum(u.action.kind == "invalid" for u in t.turns) for t in trajectories),
        "query_quality": _mean(good for t in trajectories for good in query_quality(t)),
        "answer_in_documents": _mean(answer_in_documents(t) for t in trajectories),
        "cut_observations": _mean(sum(turn.cut for turn in t.turns) for t in trajectories),
        **{f"stop_{reason}": _mean(t.stop_reason == reason for t in trajectories) for reason in STOPS},
        "prompt_tokens": _mean(len(t.prompt_ids) for t in trajectories),
        "completion_tokens": _mean(len(t.ids) for t in trajectories),
        "policy_tokens": _mean(sum(t.mask) for t in trajectories),
        "entropy": _mean(
            -p for t in trajectories for p, mine in zip(t.logprobs, t.mask, strict=True) if mine
        ),
    }


def query_quality(trajectory: Trajectory) -> list[bool]:
    """Tell for each search whether its query is good: it names the entity of a hop that is still open.

    A hop is open until a document has shown one of its answers, so repeating a query that found its answer is
    not good. Empty if the question states no hops.
    """
    open_hops, verdicts = list(trajectory.question.hops), []
    if not open_hops:
        return []
    for turn in trajectory.turns:
        if turn.query is None:
            continue
        verdicts.append(scoring.contains(turn.query, [hop.entity for hop in open_hops]))
        shown = "\n".join(turn.documents)
        open_hops = [hop for hop in open_hops if not scoring.contains(shown, hop.answers)]
    return verdicts


def answer_in_documents(trajectory: Trajectory) -> bool:
    """Tell whether one of the documents that the policy was shown contains a gold answer."""
    documents = [document for turn in trajectory.turns for document in turn.documents]
    return scoring.contains_answer(documents, trajectory.question.golden_answers)


def _mean(values) -> float | None:
    values = [float(value) for value in values]
    return fmean(values) if values else None


def to_record(
    trajectory: Trajectory, reward: float, decode: Callable[[list[int]], str] | None = None
) -> dict:
    """Make the JSON record of a trajectory in a run's log (`analysis.trajectory_index` reads the log).

    Keys: question, golden_answers, turns (the fields of `Turn`), stop_reason, answer, and reward (NaN, of a
    failed engine, is null). With `decode` also tokens, in order: a policy token as [text, log-probability],
    observation tokens between them as their number (the loss mask leaves them out). Training adds, though
    older runs may lack them:

    - group: index of its question in the step, from 0
    - advantage: of the whole trajectory (PPO, whose critic gives each token its own: the reward)
    - turn_advantages: with credit by turn, those that were trained
    - watched: true if it was not trained: one of the run's first questions answered again, greedily
    """
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
    entries = zip(trajectory.mask, trajectory.ids, trajectory.logprobs, strict=True)
    for mine, part in groupby(entries, key=lambda entry: entry[0]):
        part = list(part)
        tokens += [[decode([i]), round(logprob, 2)] for _, i, logprob in part] if mine else [len(part)]
    return tokens
