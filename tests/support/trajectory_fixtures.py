"""A two-hop question, and turns of trajectories about it."""

from __future__ import annotations

from zs_lib.protocol import parse_action
from zs_lib.qa import Hop, Question
from zs_lib.rl.trajectory import Turn

LYON = Question(
    "1",
    "Which currency is used where Lyon lies?",
    ("euro",),
    "bridge",
    "train",
    (Hop("Lyon", "country", ("France",)), Hop("France", "currency", ("euro",))),
)


def search(query: str, *documents: str) -> Turn:
    text = f"<search>{query}</search>"
    return Turn(text, parse_action(text), query, documents, False, "ok")
