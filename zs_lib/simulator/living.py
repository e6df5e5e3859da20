"""Engines that change while a policy trains on them: a real share, wrong answers as noise, self-search, and a
simulator that is tuned again on the policy's own queries.

`rl.train` calls `LivingEngine.prepare` before each step. All that changes is a function of the arm, the seed,
the step, and what the run holds of the steps before, so a resumed run ends as one that was never stopped.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Sequence
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
from zs_lib.rl.train import Training
from zs_lib.rng import seeded
from zs_lib.runs import Run, RunStore
from zs_lib.simulator import pairs

DRAWS = 20
"""Draws of a wrong answer, of which the first that is not right counts."""
REFRESHED = "simulators"
"""Folder in a policy's run: a store of its refreshed simulators, whose "seed" is the step after which."""


class LivingEngine(SearchEngine):
    """The engine of an arm that is `living`: `engine`, changed before each step; None for "self".

    Its counters (`tokens`, `real_searches`) are those of `engine`. `judge` names the model that judges the
    pairs of a refresh.
    """

    def __init__(self, engine: SearchEngine | None, arm: PolicyArm, questions: Sequence[Question], judge=""):
        self.engine, self.arm, self.name, self.judge, self.refreshed = engine, arm, arm.engine, judge, 0
        self.questions = {question.question: question for question in questions}
        self.answers = defaultdict(dict)  # kind -> its answers, as keys in order
        for question in questions:
            self.answers[answer_kind(question)][question.golden_answers[0]] = None

    def __getattr__(self, counter: str):
        return getattr(self.engine, counter)

    def prepare(self, step: int, training: Training) -> dict[str, float]:
        """Change for a step of the training; returns metrics of it.

        Raises:
            RunError: the run lacks a refreshed simulator of an earlier step.
        """
        arm, last = self.arm, training.last
        if arm.engine == "self" and self.engine is None:
            self.engine = SimulatedEngine(training.generator, arm.simulator)
        if every := arm.simulator_refresh:  # a resumed run finds the earlier ones
            for due in range(self.refreshed + every, step, every):
                self._refresh(due, step, training)
        if arm.real_share_schedule is None:
            return {}
        before = last and {**last, "noise_probability": last["real_share"]}
        self.engine.real_share = noise_probability(step, arm.steps, arm.real_share_schedule, before)
        return {"real_share": self.engine.real_share}

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        if self.arm.curriculum and self.arm.curriculum.noise == "adversarial":
            requests = [self._mislead(request) if request.noisy else request for request in requests]
        return self.engine.search(requests, num_documents)

    def _mislead(self, request: SearchRequest) -> SearchRequest:
        """Ask for useful documents of a wrong answer of the question's kind instead, drawn by the key.

        If there is none, the request stays noisy by its keyword.
        """
        question, rng = self.questions[request.question], seeded((*request.key, "decoy"))
        known, right = list(self.answers[answer_kind(question)]), question.golden_answers
        drawn = (rng.choice(known) for _ in range(DRAWS))
        wrong = (a for a in drawn if not (scoring.contains(a, right) or scoring.contains_answer(right, [a])))
        answer = next(wrong, None)
        return replace(request, golden_answers=(answer,), noisy=False) if answer else request

    def _refresh(self, due: int, step: int, training: Training) -> None:
        """Take the simulator as tuned again after step `due`: found in the run, or made before the next."""
        simulator = replace(self.arm.simulator, tracker="none")
        store = RunStore(training.run.path / REFRESHED)
        found, path = store.get(simulator, due), store.path(simulator, due)
        if due < step - 1 and not (found and found.finished):
            raise RunError(f"{path} is missing or unfinished: delete {training.run.path}, and train again.")
        generator = getattr(self.engine, "simulated", self.engine).generator
        made = store.complete(simulator, due, partial(self._tune, generator, training), together=True)
        generator.model.load_state_dict(load_model(made.model_dir, simulator.dtype).model.state_dict())
        generator.sync()
        self.refreshed = due

    def _tune(self, simulated: Generator, training: Training, run: Run) -> dict:
        """Tune a copy of the simulator by one epoch of new pairs, which `run` gets with the model.

        They are of the questions since the last refresh, asked again with the real engine, and of the recipe
        "grounded" unless the simulator's is "naive". It stays as it was where the policy found something
        useful always or never.
        """
        arm, simulator, seed, due = self.arm, self.arm.simulator, training.run.seed, run.seed
        count, number = arm.simulator_refresh * arm.prompts_per_step, due // arm.simulator_refresh
        questions, _ = pairs.split_questions(epochs(training.questions, count, seed, number))
        how = replace(simulator.pairs, collection=arm.rollout)
        real = build_engine(simulator.engine, split="train")
        found = pairs.collect_pairs(how, questions, training.generator, real, (seed, due))
        judge = load_generator(self.judge, simulator.dtype)
        found = pairs.judge_pairs(found, judge, simulator.pairs.rollout)
        pairs.write_pairs(run, found)
        loaded = LoadedModel(copy.deepcopy(simulated.model), simulated.tokenizer)
        summary = {"pairs": len(found), "useful": sum(pair.useful for pair in found), "steps": 0}
        try:
            chosen = pairs.training_examples(found, simulator.recipe, due)
        except DataError:
            chosen = []
        if chosen:
            rows = pairs.encode_examples(chosen, loaded.tokenizer, simulator.template, simulator.thinking)
            epoch = replace(simulator, steps=math.ceil(len(rows) / simulator.batch_size))
            summary |= fine_tune(run, loaded, rows, epoch, None)
        save_model(run, loaded, simulator.dtype)
        return summary


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
