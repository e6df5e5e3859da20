"""Which questions a step asks, as one row of SELECTIONS; to add one, add its function and its row.

A selection is a function of (questions, number, seed, step, past) and of nothing else; `past` is what the
run's log of groups holds (`remember`), so that a resumed run chooses as one that was never killed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from statistics import fmean

from zs_lib.qa import Question
from zs_lib.rng import permutation, uniform

Past = dict[str, dict]
"""Id of a question → when it was last asked: step, noise_probability and reward (the group's mean)."""


def remember(past: Past, groups: Iterable[Mapping]) -> None:
    """Add groups of the run's log, in its order; one whose engine failed every rollout tells nothing."""
    for group in groups:
        rewards = [reward for reward in group["rewards"] if reward is not None]
        if rewards:
            last = {name: group[name] for name in ("step", "noise_probability")}
            past[group["question"]] = last | {"reward": fmean(rewards)}


def epochs(
    questions: Sequence[Question], count: int, seed: int, step: int, past: Past | None = None
) -> list[Question]:
    """Go through all questions in shuffled epochs: each once before any comes again."""
    split = [divmod(place, len(questions)) for place in range((step - 1) * count, step * count)]
    return [questions[permutation(len(questions), seed, epoch)[place]] for epoch, place in split]


def pass_rates(questions: Sequence[Question], count: int, seed: int, step: int, past: Past) -> list[Question]:
    """Ask every second question again, drawn in proportion to p (1 - p); the others come by `epochs`.

    p is the mean reward, in [0, 1], when it was last asked. p (1 - p) is what a group baseline can learn from
    it ("learnability", arXiv 2408.15099): what is always or never solved is not asked again. The draw is
    without replacement (Efraimidis and Spirakis: the largest u^(1/weight)).
    """

    def luck(question: Question) -> float:
        rate = past[question.id]["reward"]
        return uniform((seed, step, question.id), 0, "ask again") ** (1 / (rate * (1 - rate)))

    known = [q for q in questions if q.id in past and 0 < past[q.id]["reward"] < 1]
    again = sorted(known, key=luck, reverse=True)[: count // 2]
    fresh = epochs(questions, count, seed, step)
    return [*chain.from_iterable(zip(fresh, again, strict=False)), *fresh[len(again) :]][:count]


SELECTIONS: dict[str, Callable[[Sequence[Question], int, int, int, Past], list[Question]]] = {
    "epochs": epochs,
    "pass_rates": pass_rates,
}
"""Name → (questions, number, seed, step from 1, past) → the step's questions, in order."""
