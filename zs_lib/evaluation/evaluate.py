"""Score policies and baselines on questions: one row a question, and their means."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from statistics import fmean
from typing import TYPE_CHECKING

import pandas as pd

from zs_lib import protocol
from zs_lib.config.arms import EvaluationArm, RolloutConfig
from zs_lib.config.values import pick
from zs_lib.engines import SearchEngine
from zs_lib.errors import EngineError
from zs_lib.evaluation.methods import METHODS
from zs_lib.qa import Question, scoring
from zs_lib.rl.trajectory import Trajectory, answer_in_documents, query_quality, to_record
from zs_lib.rng import uniform
from zs_lib.runs import Run
from zs_lib.runs.files import to_json, write_text

if TYPE_CHECKING:
    from zs_lib.models.generator import Generator


SCORES_FILE = "rows.csv"
"""The file in an evaluation's run folder with one line per question."""
PREDICTIONS_FILE = "predictions.jsonl"
"""The file beside it with their trajectories; older evaluations lack it."""
TOGETHER = 128
"""Questions of several subsets that are answered together at most: a batch of the generator."""
SCORES = ("em", "cover_em", "f1", "searches", "turns", "query_quality", "answer_in_documents")


def evaluate(
    generator: Generator | None,
    questions: Sequence[Question],
    engine: SearchEngine | None,
    cfg: RolloutConfig,
    seed: int,
    method: str = "search",
    training: Sequence[Question] = (),
) -> pd.DataFrame:
    """Score greedy rollouts by a method of `methods.METHODS`, one row per question.

    Columns: id, subset, hops (number, 0 if not known), prediction (empty without an answer), em, cover_em, f1
    (in [0, 1]), searches, documents (shown), turns, query_quality (share of this question's searches; empty
    if it has none to judge), answer_in_documents, stop_reason, policy_tokens and seconds (tokens sampled and
    wall time a question, means of these questions), and record (`rl.trajectory.to_record`; its reward: F1).

    Greedy, because the original samples at validation, so that its scores move from one validation to the
    next. `seed` reaches a simulated engine only. `training`: questions that the method may use; without a
    generator the method must be one that needs none.

    Raises:
        EngineError: a search failed: its question cannot be scored, and leaving it out would compare policies
            on different questions.
    """
    started, before = time.perf_counter(), generator.tokens if generator else 0
    keys = [(seed, question.id) for question in questions]
    answer = pick("method", method, METHODS)
    cfg = replace(cfg, temperature=0.0, template=protocol.method_template(cfg.template, method))
    trajectories = answer(questions, generator, engine, cfg, keys, training)
    seconds, tokens = time.perf_counter() - started, generator.tokens - before if generator else 0
    failed = [t for t in trajectories if t.failed]
    if failed:
        cause = next(turn.error for turn in failed[0].turns if turn.error)
        raise EngineError(
            f"The search engine failed {len(failed)} of {len(questions)} questions ({cause}): try again."
        )
    asked = max(1, len(questions))
    means = {"policy_tokens": tokens / asked, "seconds": seconds / asked}
    return pd.DataFrame([_row(trajectory) | means for trajectory in trajectories])


def evaluate_subsets(
    generator: Generator | None,
    questions: Sequence[Question],
    engine: SearchEngine | None,
    arm: EvaluationArm,
    run: Run,
    training: Sequence[Question] = (),
) -> pd.DataFrame:
    """Score subset by subset, in the order of their first questions, with the run's progress published.

    Small subsets are answered together: a decoding step takes a few rows hardly longer than one.
    """
    subsets: dict[str, list[Question]] = {}
    for question in questions:
        subsets.setdefault(question.subset, []).append(question)
    batches: list[list[Question]] = [[]]
    for part in subsets.values():
        if batches[-1] and len(batches[-1]) + len(part) > TOGETHER:
            batches.append([])
        batches[-1] += part
    tables, done = [], 0
    for batch in batches:
        run.progress("evaluating", done, len(subsets))
        tables.append(evaluate(generator, batch, engine, arm.rollout, run.seed, arm.method, training))
        done += len({question.subset for question in batch})
    return pd.concat(tables, ignore_index=True)


def write_scores(run: Run, table: pd.DataFrame) -> None:
    """Write a table of `evaluate` to SCORES_FILE in its run's folder, and its records to PREDICTIONS_FILE."""
    table.drop(columns="record").to_csv(run.path / SCORES_FILE, index=False)
    lines = (to_json({"id": name, **one}) for name, one in zip(table["id"], table["record"], strict=True))
    write_text(run.path / PREDICTIONS_FILE, "".join(lines))


def pick_questions(questions: Sequence[Question], per_subset: int) -> list[Question]:
    """Pick at most `per_subset` questions of each subset, by their ids alone."""
    drawn = sorted(questions, key=lambda question: uniform((question.id,), 0, "evaluation"))
    subsets = dict.fromkeys(question.subset for question in questions)
    return [q for subset in subsets for q in [q for q in drawn if q.subset == subset][:per_subset]]


def summarise(table: pd.DataFrame) -> dict:
    """Average over questions per subset, and over subsets (the paper's average) under "mean"; JSON types."""
    subsets = {
        subset: {"questions": len(part), **{score: _mean(part[score]) for score in SCORES}}
        for subset, part in table.groupby("subset", sort=False)
    }
    means = {score: _mean(pd.Series([part[score] for part in subsets.values()])) for score in SCORES}
    return {"questions": len(table), "mean": means, "subsets": subsets}


def _row(trajectory: Trajectory) -> dict:
    question, quality = trajectory.question, query_quality(trajectory)
    f1 = scoring.f1(trajectory.answer, question.golden_answers)
    return {
        "id": question.id,
        "subset": question.subset,
        "hops": len(question.hops),
        "prediction": trajectory.answer,
        "em": scoring.em(trajectory.answer, question.golden_answers),
        "cover_em": scoring.cover_em(trajectory.answer, question.golden_answers),
        "f1": f1,
        "searches": trajectory.num_searches,
        "documents": sum(len(turn.documents) for turn in trajectory.turns),
        "turns": len(trajectory.turns),
        "query_quality": fmean(quality) if quality else None,
        "answer_in_documents": answer_in_documents(trajectory),
        "stop_reason": trajectory.stop_reason,
        "record": to_record(trajectory, f1),
    }


def _mean(values: pd.Series) -> float | None:
    mean = pd.to_numeric(values).mean()  # leaves out what is missing
    return None if pd.isna(mean) else float(mean)
