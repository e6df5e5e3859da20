"""The reward of a trajectory: a weighted sum of parts, like "f1 + 0.1 * format - 0.05 * searches".

A part is a row of REWARDS, an LLM judge ("judge:MODEL", "judge:MODEL@URL", `rl.judge`) or a function of your
own ("python:MODULE.FUNCTION"): from a trajectory to a number, which comes with its last turn, or to a list of
one number a turn. To add one, add a function and its row.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Real

from zs_lib.config.values import reject_unknown
from zs_lib.engines.custom import find_function
from zs_lib.errors import ConfigError, RewardError
from zs_lib.qa import scoring
from zs_lib.rl.judge import Judge
from zs_lib.rl.trajectory import Trajectory, query_quality

Part = Callable[[Trajectory], float | list[float]]


def _score(metric: Callable[[str | None, tuple[str, ...]], float]) -> Part:
    return lambda trajectory: metric(trajectory.answer, trajectory.question.golden_answers)


def well_formed(trajectory: Trajectory) -> float:
    """Give 1 to a trajectory that ends with an answer and has no invalid action, else 0."""
    valid = all(turn.action.kind != "invalid" for turn in trajectory.turns)
    return float(valid and trajectory.answer is not None)


def searches(trajectory: Trajectory) -> list[float]:
    """Count each turn's search: what it costs."""
    return [float(turn.query is not None) for turn in trajectory.turns]


def redundancy(trajectory: Trajectory) -> list[float]:
    """Give each turn the share of its documents that were shown before (StepSearch's P, arXiv 2505.15107)."""
    seen: set[str] = set()
    shares = []
    for turn in trajectory.turns:
        shares.append(sum(text in seen for text in turn.documents) / max(1, len(turn.documents)))
        seen.update(turn.documents)
    return shares


def information_gain(trajectory: Trajectory) -> list[float]:
    """Give each turn the share of the golden information that its documents are the first to show.

    StepSearch's G (arXiv 2505.15107), the mean over golden documents of how far the turn raises the best
    similarity so far; here a document is golden for a hop if it contains one of the hop's answers, as
    similarity 1 or 0. A question without hops has one piece: its golden answer. The sum is in [0, 1].
    """
    question = trajectory.question
    pieces = [hop.answers for hop in question.hops] or [question.golden_answers]
    missing, gains = list(pieces), []
    for turn in trajectory.turns:
        left = [answers for answers in missing if not scoring.contains_answer(turn.documents, answers)]
        gains.append((len(missing) - len(left)) / len(pieces))
        missing = left
    return gains


def good_queries(trajectory: Trajectory) -> list[float]:
    """Give each good search its share of all searches, so that the sum is in [0, 1]; 0 to other turns.

    A query is good if it names the entity of an open hop (`rl.trajectory.query_quality`); where no hops are
    known, if its documents contain a golden answer.
    """
    golden, verdicts = trajectory.question.golden_answers, iter(query_quality(trajectory))
    return [
        (turn.query is not None and next(verdicts, scoring.contains_answer(turn.documents, golden)))
        / max(1, trajectory.num_searches)
        for turn in trajectory.turns
    ]


REWARDS: dict[str, Part] = {
    "f1": _score(scoring.f1),  # the paper's (section 3.5), since EM and cover-EM encourage long answers
    "em": _score(scoring.em),  # Search-R1's
    "cover_em": _score(scoring.cover_em),  # what ZeroSearch's released scorer calls EM
    "format": well_formed,
    # Penalties of arXiv 2602.19526, with negative weights: F1 alone teaches to avoid answers.
    "no_search": lambda trajectory: float(trajectory.num_searches == 0),
    "no_answer": lambda trajectory: float(trajectory.answer is None),
    "searches": searches,
    "redundancy": redundancy,
    "information_gain": information_gain,
    "query_quality": good_queries,
}
"""Name -> function from a trajectory to its reward, at its end or turn by turn; 0 without an answer."""
ADDRESSED = ("judge:MODEL", "judge:MODEL@URL", "python:MODULE.FUNCTION")
_TERM = re.compile(r"\s*([+-]?)\s*(?:(\d*\.?\d+(?:[eE][+-]?\d+)?)\s*\*\s*)?([A-Za-z_]\w*(?::\S+)?)\s*")


def parse(text: str) -> dict[str, float]:
    """Read a weighted sum: part -> weight, in order; spaces end an address.

    Raises:
        ConfigError: an unknown part, one that comes twice, or no sum.
    """
    weights: dict[str, float] = {}
    at = 0
    while at < len(text) or not weights:
        term = _TERM.match(text, at)
        if term is None or (weights and not term[1]):
            raise ConfigError(
                f"The reward {text!r} cannot be read from {text[at:]!r} on: write a sum, like "
                "'f1 + 0.1 * format - 0.05 * searches'."
            )
        sign, weight, name = term.groups()
        if name.partition(":")[0] not in ("judge", "python") or ":" not in name:
            reject_unknown("reward", [name], (*REWARDS, *ADDRESSED))
        if label(name) in map(label, weights):
            raise ConfigError(f"The reward {text!r} has {label(name)} twice: add up their weights.")
        weights[name], at = float(f"{sign}{weight or 1}"), term.end()
    return weights


def label(name: str) -> str:
    """Name a part in metrics, without its address: "judge", or the name of your function."""
    kind, _, address = name.partition(":")
    return address.rpartition(".")[2] if kind == "python" else kind


@dataclass(frozen=True)
class Score:
    """The reward of one trajectory, as its sum, by turn (at least one) and by part (not weighted).

    All NaN, and no parts, if it leaves the batch: its engine failed, or its judge.
    """

    turns: tuple[float, ...]
    parts: dict[str, float]

    @property
    def total(self) -> float:
        return sum(self.turns)


class Reward:
    """A reward by its text; calling it scores trajectories.

    Raises:
        ConfigError: as `parse`, or a function of yours cannot be imported.
    """

    def __init__(self, text: str):
        self.weights = parse(text)
        self._rows = {name: _find(name) for name in self.weights}
        self.judge = next((row for row in self._rows.values() if isinstance(row, Judge)), None)

    def __call__(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """Score trajectories, in order.

        Raises:
            RewardError: a part raised something, or gave no number, or not one a turn.
        """
        if self.judge:
            self.judge.read([t for t in trajectories if not t.failed])
        return [self._score(trajectory) for trajectory in trajectories]

    def _score(self, trajectory: Trajectory) -> Score:
        turns = [0.0] * max(1, len(trajectory.turns))
        parts = {}
        for name, weight in {} if trajectory.failed else self.weights.items():
            values = self._values(name, trajectory)
            parts[f"reward_{label(name)}"] = sum(values)
            turns = [before + weight * value for before, value in zip(turns, values, strict=True)]
        if not parts or math.isnan(sum(turns)):
            return Score((math.nan,) * len(turns), {})
        return Score(tuple(turns), parts)

    def _values(self, name: str, trajectory: Trajectory) -> list[float]:
        """Compute a part's value of each turn; NaN only from a judge that failed."""
        row, count = self._rows[name], len(trajectory.turns)
        try:
            found = row(trajectory)
        except Exception as error:  # whatever happens in a function of yours
            raise _broken(name, f"raised {type(error).__name__} ({error})", trajectory) from error
        values = [0.0] * (count - 1) + [found] if isinstance(found, Real) else found
        if not isinstance(values, (list, tuple)) or not all(isinstance(value, Real) for value in values):
            raise _broken(name, f"gave {found!r}, neither a number nor a list of numbers", trajectory)
        if len(values) != count and values is found:
            raise _broken(name, f"gave {len(values)} numbers for {count} turns", trajectory)
        if not all(map(math.isfinite, values)) and not isinstance(row, Judge):
            raise _broken(name, f"gave {found!r}, which is not finite", trajectory)
        return [float(value) for value in values] or [0.0]


def _find(name: str) -> Part:
    kind, _, address = name.partition(":")
    if kind == "python":
        return find_function(address, "reward", ConfigError)
    return Judge(address) if kind == "judge" else REWARDS[name]


def _broken(name: str, what: str, trajectory: Trajectory) -> RewardError:
    return RewardError(
        f"The reward '{name}' {what}, for the question {trajectory.question.question!r} and a trajectory of "
        f"{len(trajectory.turns)} turns that ended by {trajectory.stop_reason!r} with the answer "
        f"{trajectory.answer!r}: correct it, then start again; the run goes on from its last checkpoint."
    )
