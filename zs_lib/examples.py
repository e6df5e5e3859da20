"""What the quick start shows: a policy before and after training on a few held-out questions, and documents of
every kind for the same query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from zs_lib import models, qa, simulator
from zs_lib.config import EvaluationConfig, PolicyArm
from zs_lib.engines import SearchRequest, SearchResult, build_engine
from zs_lib.errors import ConfigError
from zs_lib.evaluate import pick
from zs_lib.generate import Generator
from zs_lib.qa import Question
from zs_lib.rollout import Trajectory, rollout
from zs_lib.runs import Run, RunStore
from zs_lib.wording import NOUNS, query


def heldout_questions(count: int) -> list[Question]:
    """`count` test questions of one and of two hops in turn, drawn by id: the same ones every time."""
    one = pick(qa.load_questions(subset="natural", split="test"), count)
    two = pick([question for question in qa.load_questions(subset="bridge", split="test") if qa.is_chain(question)], count)
    return [question for pair in zip(one, two, strict=False) for question in pair][:count]


def training_questions(each: int) -> list[Question]:
    """`each` questions of one hop and of two about training entities, which a simulator serves, though no pair was
    made from them."""
    _, held_out = simulator.split_questions(qa.load_questions(subset=qa.TRAINED_ON, split="train"))
    return pick([question for question in held_out if qa.is_chain(question)], each)


def before_and_after(arm: PolicyArm, run: Run, questions: Sequence[Question],
                     evaluation: EvaluationConfig) -> dict[str, list[Trajectory]]:
    """Greedy trajectories: before training, after it, and after it without an engine."""
    engine, cfg = build_engine(evaluation.engine), replace(arm.rollout, temperature=0.0)
    def ask(model, engine):
        loaded = models.load(model)
        keys = [("example", question.id) for question in questions]
        return rollout(questions, Generator(loaded.model, loaded.tokenizer), engine, cfg, keys)

    return {"Before training:": ask(arm.backbone, engine), "After training:": ask(run.model_dir, engine),
            "After training, without search:": ask(run.model_dir, None)}


def documents_for(arm: PolicyArm, question: Question, store: RunStore | None = None) -> dict[str, SearchResult]:
    """Documents for the good query of the question's last hop: the real engine's, useful ones, noisy ones, and
    useful ones for a query that does not say what it is about."""
    if arm.simulator is None:
        raise ConfigError(f"The arm {arm.name!r} has no simulator: name one whose engine is simulated.")
    made = simulator.ensure(arm.simulator, 0, store or RunStore())
    engine, k = build_engine("simulated", model=made.model_dir, arm=arm.simulator), arm.rollout.num_documents
    hop = question.hops[-1]
    good, bad = query(NOUNS[hop.relation], hop.entity), NOUNS[hop.relation]

    def request(query: str, noisy: bool) -> SearchRequest:
        return SearchRequest(query, question.question, question.golden_answers, noisy, ("example", query))

    real, = build_engine("bm25").search([request(good, False)], k)
    useful, noisy, off = engine.search([request(good, False), request(good, True), request(bad, False)], k)
    return {f"BM25: {good}": real, f"useful: {good}": useful, f"noisy: {good}": noisy, f"useful: {bad}": off}


def check_quick_start(run: Run) -> pd.DataFrame:
    """Whether training raised the reward, as the run's summary says."""
    first, last = run.summary["first_reward"], run.summary["last_reward"]
    verdict = "holds" if last > first else "does not hold"
    return pd.DataFrame([{"statement": "training reward rose", "first": first, "last": last, "verdict": verdict}]).round(3)
