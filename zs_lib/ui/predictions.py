"""Predictions for a file of questions, kept as they are made: no question is answered twice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from tqdm import tqdm

from zs_lib.config.arms import RolloutConfig
from zs_lib.config.values import LABEL, digest, identity
from zs_lib.engines import SearchEngine
from zs_lib.errors import DataError
from zs_lib.evaluation.evaluate import evaluate
from zs_lib.qa import Question
from zs_lib.runs.files import Log

if TYPE_CHECKING:
    from zs_lib.models.generator import Generator

BATCH = 64
"""Questions that are answered together, and lost together by a kill."""


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
    """Evaluate, appending each row to `path` as a JSON line as soon as its batch is scored.

    Rows have three more columns: `question`, `who` and `key`; those of older files lack `record`. A result is
    found again by its key alone, so another question, golden answer, model or setting under the same name is
    a new one. The file keeps rows of other keys.

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
