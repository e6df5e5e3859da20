"""Engines that change while a policy trains on them: a real share, wrong answers as noise, self-search, and a
simulator that is tuned again on the policy's own queries.

`rl.train` calls `LivingEngine.prepare` before each step. All that changes is a function of the arm, the seed,
the step, and what the run holds of the steps before, so a resumed run ends as one that was never stopped.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

from zs_lib.config.arms import PolicyArm
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult, build_engine
from zs_lib.engines.simulated import SimulatedEngine
from zs_lib.errors import DataError, RunError
from zs_lib.models.generator import Generator
from zs_lib.models.load import LoadedModel, load_generator, load_model
from zs_lib.models.sft import fine_tune, save_model
from zs_lib.qa import Question, scoring
from zs_lib.rl.curriculum import noise_probability
from zs_lib.rl.questions import epochs
from zs_lib.rng import seeded
from zs_lib.runs import Run, RunStore
from zs_lib.simulator.pairs import (
    collect_pairs,
    encode_examples,
    judge_pairs,
    split_questions,
    training_examples,
    write_pairs,
)

DRAWS = 20
"""Draws of a wrong answer, of which the first that is not right counts."""
REFRESHED = "simulators"
"""Folder in a policy's run: a store of its refreshed simulators, whose "seed" is the step after which."""


class LivingEngine(SearchEngine):
    """The engine of an arm that is `living`: `engine`, changed before each step; None for "self".

    Its counters (`tokens`, `real_searches`) are those of `engine`. A refresh works in `run`, with the model
    `judge`.
    """

    def __init__(
        self,
        engine: SearchEngine | None,
        arm: PolicyArm,
        questions: Sequence[Question],
        run: Run | None = None,
        judge: str = "",
    ):
        self.engine, self.arm, self.name, self.run, self.judge = engine, arm, arm.engine, run, judge
        self.asked, self.refreshed = questions, 0
        self.questions = {question.question: question for question in questions}
        self.answers = answers_by_kind(questions)

    def __getattr__(self, counter: str):
        return getattr(self.engine, counter)

    def prepare(self, step: int, last: Mapping[str, float] | None, generator: Generator) -> dict[str, float]:
        """Change for a step of the training; returns metrics of it.

        `last` are the metrics of the step before, None at the first; `generator` samples from the policy.

        Raises:
            RunError: the run lacks a refreshed simulator of an earlier step.
        """
        arm = self.arm
        if arm.engine == "self" and self.engine is None:
            self.engine = SimulatedEngine(generator, arm.simulator)
        if (
            every := arm.simulator_refresh
        ):  # a resumed run finds the earlier ones, of which each tunes the last
            for due in range(self.refreshed + every, step, every):
                self._refresh(due, step, generator)
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

    def _refresh(self, due: int, step: int, generator: Generator) -> None:
        """Take the simulator as tuned again after step `due`: found in the run, or made before the next."""
        store, simulator = RunStore(self.run.path / REFRESHED), replace(self.arm.simulator, tracker="none")
        found = store.get(simulator, due)
        if due < step - 1 and not (found and found.finished):
            missing = store.path(simulator, due)
            raise RunError(f"{missing} is missing or unfinished: delete {self.run.path}, and train again.")
        engine: SimulatedEngine = getattr(self.engine, "simulated", self.engine)
        work = partial(self._tune, simulated=engine.generator, policy=generator)
        made = store.complete(simulator, due, work, together=True)
        weights = load_model(made.model_dir, simulator.dtype).model.state_dict()
        engine.generator.model.load_state_dict(weights)
        engine.generator.sync()
        self.refreshed = due

    def _tune(self, run: Run, simulated: Generator, policy: Generator) -> dict:
        """Tune a copy of the simulator by one epoch of new pairs, which `run` gets with the model.

        They are of the questions since the last refresh, asked again with the real engine, and of the recipe
        "grounded" unless the simulator's is "naive". It stays as it was where the policy found something
        useful always or never.
        """
        arm, simulator, due = self.arm, self.arm.simulator, run.seed
        asked = {
            question.id: question
            for step in range(due - arm.simulator_refresh + 1, due + 1)
            for question in epochs(self.asked, arm.prompts_per_step, self.run.seed, step)
        }
        questions, _ = split_questions(list(asked.values()))
        how = replace(simulator.pairs, collection=arm.rollout)
        real = build_engine(simulator.engine, split="train")
        pairs = collect_pairs(how, questions, policy, real, (self.run.seed, due))
        judge = load_generator(self.judge, simulator.dtype)
        pairs = judge_pairs(pairs, judge, simulator.pairs.rollout)
        write_pairs(run, pairs)
        loaded = LoadedModel(copy.deepcopy(simulated.model), simulated.tokenizer)
        try:
            chosen = training_examples(pairs, simulator.recipe, due)
        except DataError:
            chosen = []
        summary = {"pairs": len(pairs), "useful": sum(pair.useful for pair in pairs), "steps": 0}
        if chosen:
            rows = encode_examples(chosen, loaded.tokenizer, simulator.template, simulator.thinking)
            epoch = replace(simulator, steps=math.ceil(len(rows) / simulator.batch_size))
            summary |= fine_tune(run, loaded, rows, epoch, None)
        save_model(run, loaded, simulator.dtype)
        return summary


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
