"""Three questions, an engine and a policy whose scores are known."""

from arm_fixtures import rollout_config
from engine_fixtures import FixedEngine

from zs_lib.qa import Hop, Question

CFG = rollout_config()
FOUND = FixedEngine("Paris it is")
QUESTIONS = [
    Question(
        "a", "capital of France?", ("Paris",), "natural", "test", (Hop("France", "capital", ("Paris",)),)
    ),
    Question(
        "b", "capital of Spain?", ("Madrid",), "natural", "test", (Hop("Spain", "capital", ("Madrid",)),)
    ),
    Question("c", "is it?", ("yes",), "bridge", "test"),
]


def write(context, key):
    if "is it?" in context:
        return "dunno"
    return "<answer> Paris </answer>" if "Paris" in context else "<search> capital of France </search>"
