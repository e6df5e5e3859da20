"""Your own engine, reward and files, as notebook 13 shows them: functions to copy into a file mine.py."""

from __future__ import annotations

import json
import os

from zs_lib.launch.notebooks import OUTPUTS
from zs_lib.rl.trajectory import Trajectory

FOLDER = OUTPUTS / "mine"
CAPITALS = {"Norway": "Oslo", "Peru": "Lima", "Kenya": "Nairobi", "Japan": "Tokyo"}


def search(queries: list[str], num_documents: int) -> list[list[str]]:
    """Give at most `num_documents` texts for each query, best first: a search engine."""
    found = []
    for query in queries:
        best = sorted(CAPITALS, key=lambda country: country not in query)
        found.append([f"The capital of {name} is {CAPITALS[name]}." for name in best[:num_documents]])
    return found


def words(trajectory: Trajectory) -> float:
    """Count the answer's words: a part of a reward (or a list: one number a turn)."""
    return len((trajectory.answer or "").split())


def write_files() -> tuple[str, str]:
    """Write questions and a corpus as JSON lines; their paths, relative to the working directory."""
    questions = [
        {"question": f"what is the capital of {country}?", "golden_answers": [city]}
        for country, city in CAPITALS.items()
    ]
    passages = [
        {"id": country, "contents": f'"{country}"\nThe capital of {country} is {city}.'}
        for country, city in CAPITALS.items()
    ]
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name, rows in (("questions.jsonl", questions), ("corpus.jsonl", passages)):
        (FOLDER / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return os.path.relpath(FOLDER / "questions.jsonl"), os.path.relpath(FOLDER / "corpus.jsonl")
