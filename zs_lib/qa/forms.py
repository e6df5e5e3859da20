"""Columns of questions and passages as the data sets in use name them.

Questions: FlashRAG, Search-R1, verl, HotpotQA, 2WikiMultiHopQA, MuSiQue, NQ-open, TriviaQA, PopQA, SQuAD.
Passages: wiki-18, title and text, BEIR, DPR, MS MARCO. What is not unambiguous is not guessed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from zs_lib.qa.files import as_list

ANSWERS = ("answers", "answer", "possible_answers")
"""Columns of golden answers, where there is no `golden_answers`."""
IDS = ("id", "_id", "docid", "doc_id", "pid")
Columns = Mapping[str, str]
"""Our column -> theirs, with dots into nested ones: {"golden_answers": "extra_info.answer"}."""


class RowError(ValueError):
    """A row is wrong; the message becomes a DataError that names its place."""


def question_row(row: dict, columns: Columns | None = None) -> dict:
    """Name a row's columns `question`, `golden_answers` (a list of texts) and `id`, where it has them.

    Raises:
        RowError: an answer is no text or number, there are several columns of answers, or `columns` names one
            that is not there.
    """
    row = _renamed(row, columns)
    if row.get("answerable") is False:  # MuSiQue's other half
        raise RowError("it is not answerable, so no answer is right: leave it out")
    for name in ("question",) if "golden_answers" in row else ("question", *ANSWERS):
        if name not in row and len(same := [known for known in row if known.lower() == name]) == 1:
            row[name] = row[same[0]]
    if "question" not in row and isinstance(asked := _at(row, "extra_info.question"), str):
        row["question"] = asked
    if "id" not in row and "_id" in row:
        row["id"] = row["_id"]
    if "golden_answers" in row:
        row["golden_answers"] = _texts(row["golden_answers"])
    elif (answers := _answers(row)) is not None:
        row["golden_answers"] = _texts(answers)
    return row


def passage_row(row: dict, columns: Columns | None = None) -> tuple[object, object]:
    """Find a passage's id ("" if it has none) and contents; a title stands on a line before the text.

    Raises:
        RowError: `columns` names one that is not there.
    """
    row = _renamed(row, columns)
    known = next((row[name] for name in IDS if name in row), "")
    text = row.get("contents", row.get("text"))
    if "contents" not in row and isinstance(text, str) and isinstance(title := row.get("title"), str):
        text = titled(title, text)
    return known, text


def titled(title: str | None, text: str | None) -> str:
    """Join title and text as in a wiki-18 passage, the title on a line of its own."""
    return "\n".join(filter(None, (title, text)))


def _renamed(row: dict, columns: Columns | None) -> dict:
    found = dict(row)
    for ours, theirs in (columns or {}).items():
        if (value := row.get(theirs, _at(row, theirs))) is None:
            raise RowError(f"no column {theirs} (there are: {', '.join(row)})")
        found[ours] = value
    return found


def _at(row: object, path: str) -> object:
    """The value at a dotted path; None if there is none."""
    for name in path.split("."):
        row = row.get(name) if isinstance(row, dict) else None
    return row


def _answers(row: dict) -> object:
    """The answers of a row without `golden_answers`: of several columns, the one that holds all of them."""
    found = {name: _texts(row[name]) for name in ANSWERS if row.get(name) is not None}
    if "answer" in found and row.get("answer_aliases"):  # MuSiQue's
        found["answer"] = list(dict.fromkeys([*found["answer"], *_texts(row["answer_aliases"])]))
    if not found:
        return _at(row, "reward_model.ground_truth")
    every = {text for texts in found.values() for text in texts}
    if whole := [texts for texts in found.values() if set(texts) == every]:
        return whole[0]
    raise RowError(f"which answers are right, {' or '.join(found)}?")


def _texts(value: object) -> list[str]:
    """Golden answers as texts, from a text, a number, a list of them, or an object that holds such a list."""
    if isinstance(value, dict):
        for name in ("target", "text"):  # Search-R1's ground truth, SQuAD's answers
            if name in value:
                return _texts(value[name])
        if isinstance(value.get("value"), str):  # TriviaQA's
            return list(dict.fromkeys([value["value"], *_texts(value.get("aliases") or [])]))
    elif isinstance(value, str):
        spelt = as_list(value)
        return [value] if not spelt else _texts(spelt)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return [str(int(value)) if value == int(value) else str(value)]
    elif isinstance(value, list) and all(isinstance(one, (str, int, float)) for one in value):
        return [text for one in value for text in ([one] if isinstance(one, str) else _texts(one))]
    raise RowError(f"no golden_answers in {value!r:.100}: they are a text, a number or a list of these")
