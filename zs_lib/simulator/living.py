"""Engines that change while a policy trains on them: a real share, wrong answers as noise, self-search.

`rl.train` calls `LivingEngine.prepare` before each step. All that changes is a function of the arm, the seed,
the step, and what the run holds of the steps before, so a resumed run ends as one that was never stopped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from zs_lib.config.arms import PolicyArm
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult
from zs_lib.engines.simulated import SimulatedEngine
from zs_lib.models.generator import Generator
from zs_lib.qa import Question, scoring
from zs_lib.rl.curriculum import noise_probability
from zs_lib.rng import seeded

DRAWS = 20
"""Draws of a wrong answer, of which the first that is not right counts."""


class LivingEngine(SearchEngine):
    """The engine of an arm that is `living`: `engine`, changed before each step; None for "self".

    Its counters (`tokens`, `real_searches`) are those of `engine`.
    """

    def __init__(self, engine: SearchEngine | None, arm: PolicyArm, questions: Sequence[Question]):
        self.engine, self.arm, self.name = engine, arm, arm.engine
        self.questions = {question.question: question for question in questions}
        self.answers = answers_by_kind(questions)

    def __getattr__(self, counter: str):
        return getattr(self.engine, counter)

    def prepare(self, step: int, last: Mapping[str, float] | None, generator: Generator) -> dict[str, float]:
        """Change for a step of the training; returns metrics of it.

        `last` are the metrics of the step before, None at the first; `generator` samples from the policy.
        """
        arm = self.arm
        if arm.engine == "self" and self.engine is None:
            self.engine = SimulatedEngine(generator, arm.simulator)
        if arm.real_share_schedule is None:
            return {}
        before = last and {**last, "noise_probability": last["real_share"]}
        self.engine.real_share = noise_probability(step, arm.steps, arm.real_share_schedule, before)
        return {"real_share": self.engine.real_share}

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        if self.arm.curriculum and self.arm.curriculum.noise == "adversarial":
            requests = [self.mislead(request) if request.noisy else request for request in requests]
        return self.engine.search(requests, num_documents)

    def mislead(self, request: SearchRequest) -> SearchRequest:
        """Ask for useful documents of a wrong answer of the question's kind instead.

        The request's key draws it. If there is none, the request stays noisy by its keyword.
        """
        question, rng = self.questions[request.question], seeded((*request.key, "decoy"))
        drawn = (rng.choice(self.answers[answer_kind(question)]) for _ in range(DRAWS))
        right = question.golden_answers
        wrong = (a for a in drawn if not (scoring.contains(a, right) or scoring.contains_answer(right, [a])))
        answer = next(wrong, None)
        return replace(request, golden_answers=(answer,), noisy=False) if answer else request


def answers_by_kind(questions: Sequence[Question]) -> dict[str, list[str]]:
    """List the first right answer of each question under its `answer_kind`, equal ones once."""
    kinds: dict[str, dict[str, None]] = {}
    for question in questions:
        kinds.setdefault(answer_kind(question), {})[question.golden_answers[0]] = None
    return {kind: list(answers) for kind, answers in kinds.items()}


def answer_kind(question: Question) -> str:
    """Name the kind of a question's answer: its last hop's relation, where that is known, else its form.

    Forms are: yes or no, a number, so many words.
    """
    if question.is_chain:
        return question.hops[-1].relation
    answer = scoring.normalize_answer(question.golden_answers[0])
    if answer in ("yes", "no"):
        return "yes or no"
    return "number" if any(map(str.isdigit, answer)) else f"{len(answer.split())} words"
