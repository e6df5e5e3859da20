"""Score policies and baselines on questions: one row a question, and their means."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

import pandas as pd
from tqdm import tqdm

from zs_lib.config.arms import EvaluationArm, RolloutConfig
from zs_lib.config.contents import unreadable
from zs_lib.config.values import LABEL, digest, identity, pick
from zs_lib.engines import SearchEngine, SearchRequest
from zs_lib.errors import DataError, EngineError, UnreadableError
from zs_lib.evaluation.methods import METHODS
from zs_lib.qa import Question, scoring
from zs_lib.rl.trajectory import Trajectory, answer_in_documents, query_quality
from zs_lib.rng import uniform
from zs_lib.runs import Run
from zs_lib.runs.files import Log

if TYPE_CHECKING:
    from zs_lib.models.generator import Generator


def retrieval_recall(
    questions: Sequence[Question], engine: SearchEngine, ks: tuple[int, ...] = (3, 5)
) -> pd.DataFrame:
    """Recall of good queries ("relation of entity", one a hop): an engine's ceiling for every policy.

    One row a subset and hop; recall@k is the share of queries whose first k documents state the hop's answer,
    questions their number.
    """
    asked = [
        (question.subset, place, hop) for question in questions for place, hop in enumerate(question.hops, 1)
    ]
    requests = [SearchRequest(hop.query, "", ()) for _, _, hop in asked]
    rows = [
        {"subset": subset, "hop": place}
        | {f"recall@{k}": scoring.contains("\n".join(result.documents[:k]), hop.answers) for k in ks}
        for (subset, place, hop), result in zip(asked, engine.search(requests, max(ks)), strict=True)
    ]
    groups = pd.DataFrame(rows).groupby(["subset", "hop"], sort=False)
    return groups.mean().assign(questions=groups.size())


SCORES_FILE = "rows.csv"
"""The file in an evaluation's run folder with one line per question."""
BATCH = 64
"""Questions that are answered together, and lost together by a kill."""
SCORES = ("em", "cover_em", "f1", "searches", "turns", "query_quality", "answer_in_documents")


def read_scores(run: Run) -> pd.DataFrame:
    """Read the table of `evaluate` from a finished evaluation's folder.

    Raises:
        DataError: it is not there, or no such table. RunError: it is not as it was stored, or unreadable.
    """
    empty = {"prediction": [""], "query_quality": [""]}  # nothing else is: Nan is a city, NA a country code
    path = run.file(SCORES_FILE)
    try:
        return pd.read_csv(path, dtype={"id": str, "prediction": str}, keep_default_na=False, na_values=empty)
    except (FileNotFoundError, ValueError) as error:
        raise DataError(
            f"{run.path.name}/{SCORES_FILE} is no table of scores ({error}): delete the run's folder, "
            "evaluate again."
        ) from error
    except OSError as error:
        raise UnreadableError(unreadable(path, error)) from error


def evaluate(
    generator: Generator,
    questions: Sequence[Question],
    engine: SearchEngine | None,
    cfg: RolloutConfig,
    seed: int,
    method: str = "search",
) -> pd.DataFrame:
    """Score greedy rollouts by a method of `methods.METHODS`, one row per question.

    Columns: id, subset, hops (number, 0 if not known), prediction (empty without an answer), em, cover_em, f1
    (in [0, 1]), searches, documents (shown), turns, query_quality (share of this question's searches; empty
    if it has none to judge), answer_in_documents, stop_reason, policy_tokens and seconds (tokens sampled and
    wall time a question, means of these questions).

    Greedy, because the original samples at validation, so that its scores move from one validation to the
    next. `seed` reaches a simulated engine only.

    Raises:
        EngineError: a search failed: its question cannot be scored, and leaving it out would compare policies
            on different questions.
    """
    started, written = time.perf_counter(), generator.tokens
    keys = [(seed, question.id) for question in questions]
    answer = pick("method", method, METHODS)
    trajectories = answer(questions, generator, engine, replace(cfg, temperature=0.0), keys)
    seconds = (time.perf_counter() - started) / max(1, len(questions))
    failed = [t for t in trajectories if t.stop_reason == "engine_failed"]
    if failed:
        cause = next(turn.error for turn in failed[0].turns if turn.error)
        raise EngineError(
            f"The search engine failed {len(failed)} of {len(questions)} questions ({cause}): try again."
        )
    means = {"policy_tokens": (generator.tokens - written) / max(1, len(questions)), "seconds": seconds}
    return pd.DataFrame([_row(trajectory) | means for trajectory in trajectories])


def evaluate_subsets(
    generator: Generator,
    questions: Sequence[Question],
    engine: SearchEngine | None,
    arm: EvaluationArm,
    run: Run,
) -> pd.DataFrame:
    """`evaluate` subset by subset, reporting the run's progress; subsets in the order of their first
    question."""
    subsets = list(dict.fromkeys(question.subset for question in questions))
    tables = []
    for number, subset in enumerate(subsets):
        run.progress("evaluating", number, len(subsets))
        part = [question for question in questions if question.subset == subset]
        tables.append(evaluate(generator, part, engine, arm.rollout, run.seed, arm.method))
    return pd.concat(tables, ignore_index=True)


@dataclass(frozen=True)
class Setup:
    """Everything that the answers to a question depend on, besides the question itself."""

    who: str = field(metadata=LABEL)
    """Model, method and engine as people name them."""
    method: str
    rollout: RolloutConfig
    weights: str = ""
    """Digest of the model's files."""
    engine: str = ""
    """Digest of the engine's name, settings and corpus."""
    generator: str = "transformers"
    """One of `arms.GENERATORS`."""

    def keys(self, questions: Iterable[Question]) -> dict[str, str]:
        """Name each question's result by a digest of its text, golden answers and this setup; id -> key."""
        setup = identity(self)
        return {question.id: digest({"question": asdict(question), "setup": setup}) for question in questions}


def evaluate_to_file(
    path: Path, questions: Sequence[Question], generator: Generator, engine: SearchEngine | None, setup: Setup
) -> pd.DataFrame:
    """`evaluate`, appending each row to `path` as a JSON line as soon as its batch is scored.

    Rows have three more columns: `question`, `who` and `key`. A result is found again by its key alone, so
    another question, golden answer, model or setting under the same name is a new one. The file keeps rows
    of other keys.

    Raises:
        DataError: the file holds answers of another `who`.
        RunError: it is damaged.
    """
    log = Log(path, "name another file, or delete it", id=str, who=str)
    log.cut()
    rows = log.rows()
    if others := {row["who"] for row in rows} - {setup.who}:
        raise DataError(f"{path} holds the answers of {others.pop()}, not of {setup.who}: name another file.")
    known = {row.get("key"): row for row in rows}
    keys = setup.keys(tqdm(questions, desc="naming", unit="question", leave=False, delay=1, disable=None))
    missing = [question for question in questions if keys[question.id] not in known]
    with tqdm(total=len(questions), initial=len(questions) - len(missing), unit="question") as bar:
        for start in range(0, len(missing), BATCH):
            part = missing[start : start + BATCH]
            texts, names = [question.question for question in part], [keys[question.id] for question in part]
            table = evaluate(generator, part, engine, setup.rollout, 0, setup.method)
            new = table.assign(question=texts, who=setup.who, key=names).to_dict("records")
            log.append(new)
            known |= {row["key"]: row for row in new}
            bar.update(len(part))
    return pd.DataFrame([known[keys[question.id]] for question in questions])


def pick_questions(questions: Sequence[Question], per_subset: int) -> list[Question]:
    """At most `per_subset` questions of each subset, drawn by their ids alone."""
    drawn = sorted(questions, key=lambda question: uniform((question.id,), 0, "evaluation"))
    subsets = dict.fromkeys(question.subset for question in questions)
    return [q for subset in subsets for q in [q for q in drawn if q.subset == subset][:per_subset]]


def summarise(table: pd.DataFrame) -> dict:
    """Means over questions per subset, and over subsets (the paper's average) under "mean"; JSON types."""
    subsets = {
        subset: {"questions": len(part), **{score: _mean(part[score]) for score in SCORES}}
        for subset, part in table.groupby("subset", sort=False)
    }
    means = {score: _mean(pd.Series([part[score] for part in subsets.values()])) for score in SCORES}
    return {"questions": len(table), "mean": means, "subsets": subsets}


def _row(trajectory: Trajectory) -> dict:
    question = trajectory.question
    quality = query_quality(trajectory)
    return {
        "id": question.id,
        "subset": question.subset,
        "hops": len(question.hops),
        "prediction": trajectory.answer,
        "em": scoring.em(trajectory.answer, question.golden_answers),
        "cover_em": scoring.cover_em(trajectory.answer, question.golden_answers),
        "f1": scoring.f1(trajectory.answer, question.golden_answers),
        "searches": trajectory.num_searches,
        "documents": sum(len(turn.documents) for turn in trajectory.turns),
        "turns": len(trajectory.turns),
        "query_quality": fmean(quality) if quality else None,
        "answer_in_documents": answer_in_documents(trajectory),
        "stop_reason": trajectory.stop_reason,
    }


def _mean(values: pd.Series) -> float | None:
    mean = pd.to_numeric(values).mean()  # leaves out what is missing
    return None if pd.isna(mean) else float(mean)
