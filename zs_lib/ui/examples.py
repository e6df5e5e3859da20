"""Examples for notebooks: a policy before and after training, cases by rule, documents for one query."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from zs_lib import pipeline, qa
from zs_lib.config.arms import EvaluationArm, EvaluationConfig, PolicyArm, SimulatorArm
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult, build_engine
from zs_lib.errors import ConfigError
from zs_lib.evaluation.evaluate import pick_questions
from zs_lib.models.load import load_generator
from zs_lib.qa import Question, scoring
from zs_lib.rl.rollout import rollout
from zs_lib.rl.trajectory import Trajectory, answer_in_documents
from zs_lib.rng import uniform
from zs_lib.runs import Run, RunStore
from zs_lib.simulator.pairs import split_questions


def heldout_questions(count: int) -> list[Question]:
    """Pick `count` test questions, of one and of two hops in turn: always the same ones."""
    one_hop = qa.load_questions(subset="natural", split="test")
    two_hop = [q for q in qa.load_questions(subset="bridge", split="test") if q.is_chain]
    pairs = zip(pick_questions(one_hop, count), pick_questions(two_hop, count), strict=False)
    return [question for pair in pairs for question in pair][:count]


def training_questions(each: int) -> list[Question]:
    """Pick `each` questions of each subset that the simulator knows, but saw no pair of in its SFT."""
    _, held_out = split_questions(qa.load_questions(subset=qa.TRAINED_ON, split="train"))
    return pick_questions([question for question in held_out if question.is_chain], each)


def before_and_after(
    arm: PolicyArm, run: Run, questions: Sequence[Question], evaluation: EvaluationConfig
) -> dict[str, list[Trajectory]]:
    """Roll out greedily before training, after it, and after it without an engine, as an evaluation does."""
    engine, cfg = build_engine(evaluation.engine), EvaluationArm.of_policy(arm, evaluation).rollout

    def ask(model: str | Path, engine: SearchEngine | None) -> list[Trajectory]:
        keys = [("example", question.id) for question in questions]
        return rollout(questions, load_generator(model, arm.dtype), engine, cfg, keys)

    return {
        "Before training:": ask(arm.backbone, engine),
        "After training:": ask(run.model_dir, engine),
        "After training, without search:": ask(run.model_dir, None),
    }


def documents_for(
    arm: PolicyArm, question: Question, store: RunStore | None = None
) -> dict[str, SearchResult]:
    """Search for a question's last hop: a real engine's documents, and a simulator's useful and noisy ones.

    The query is the hop's good one; the last column has useful documents for one that names no entity.

    Raises:
        ConfigError: the arm has no simulator.
    """
    if arm.simulator is None:
        raise ConfigError(f"The arm {arm.name!r} has no simulator: name one whose engine is simulated.")
    store, k = store or RunStore(), arm.rollout.num_documents
    engine = _simulated(arm.simulator, store)
    good, bad = question.hops[-1].query, question.hops[-1].noun

    def request(query: str, noisy: bool) -> SearchRequest:
        return SearchRequest(query, question.question, question.golden_answers, noisy, ("example", query))

    (real,) = build_engine("bm25").search([request(good, False)], k)
    useful, noisy, vague = engine.search([request(good, False), request(good, True), request(bad, False)], k)
    return {
        f"BM25: {good}": real,
        f"useful: {good}": useful,
        f"noisy: {good}": noisy,
        f"useful: {bad}": vague,
    }


def cases(arm: PolicyArm, run: Run, evaluation: EvaluationConfig, count: int = 40) -> dict[str, Trajectory]:
    """Find the first trajectory of each kind among `count` held-out questions of two hops, as evaluated.

    - "success": the right answer (EM)
    - "failure": a wrong answer, or none, though a document stated the right one
    - "repaired": the right answer although the first search found no hop's answer

    The order of the questions depends on their ids alone. A kind that does not occur is left out.
    """
    chains = [q for q in qa.load_questions(subset=("bridge", "compositional"), split="test") if q.is_chain]
    questions = sorted(chains, key=lambda question: uniform((question.id,), 0, "case"))[:count]
    keys = [("case", question.id) for question in questions]
    evaluated = EvaluationArm.of_policy(arm, evaluation)
    engine = pipeline.engine_for(evaluated, RunStore())
    trajectories = rollout(
        questions, load_generator(run.model_dir, arm.dtype), engine, evaluated.rollout, keys
    )
    found: dict[str, Trajectory] = {}
    for trajectory in trajectories:
        for kind in _kinds(trajectory):
            found.setdefault(kind, trajectory)
    return found


def _kinds(trajectory: Trajectory) -> list[str]:
    right = scoring.em(trajectory.answer, trajectory.question.golden_answers) == 1
    if not right:
        return ["failure"] if answer_in_documents(trajectory) else []
    searches = [turn for turn in trajectory.turns if turn.query is not None]
    answers = [answer for hop in trajectory.question.hops for answer in hop.answers]
    helped = bool(searches) and scoring.contains_answer(searches[0].documents, answers)
    return ["success"] if helped or len(searches) < 2 else ["success", "repaired"]


def documents_by_simulator(
    simulators: Sequence[SimulatorArm], question: Question, noisy: bool, query: str = ""
) -> dict[str, SearchResult]:
    """Search with each simulator for a query, by default the good one of the last hop (Table 10)."""
    query, store = query or question.hops[-1].query, RunStore()
    request = SearchRequest(query, question.question, question.golden_answers, noisy, ("example", query))
    written = {}
    for arm in simulators:
        (written[f"{arm.name}: {query}"],) = _simulated(arm, store).search([request], arm.num_documents)
    return written


def _simulated(arm: SimulatorArm, store: RunStore) -> SearchEngine:
    """A simulator's engine; its run is made if the store does not have it."""
    pipeline.ensure(arm, pipeline.SIMULATOR_SEED, store)
    return pipeline.simulator_engine(arm, pipeline.SIMULATOR_SEED, store)


def check_quick_start(run: Run) -> pd.DataFrame:
    """Test whether training raised the reward, by the run's summary."""
    first, last = run.summary["first_reward"], run.summary["last_reward"]
    verdict = "holds" if last > first else "does not hold"
    return pd.DataFrame(
        [{"statement": "training reward rose", "first": first, "last": last, "verdict": verdict}]
    ).round(3)
