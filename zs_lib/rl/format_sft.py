"""Format SFT: a few supervised steps on well-formed trajectories before RL (the field's "cold start").

Ours, for models that cannot follow the policy's template at all: without a valid action there is no reward, and
nothing to learn from. It teaches the format; how to search is left to RL, so half of the lessons search with the
question's own words where that finds the answer. The paper's models need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from zs_lib import protocol
from zs_lib.config.arms import FormatSFT
from zs_lib.engines import SearchEngine, SearchRequest
from zs_lib.qa import Question, scoring

PLAIN_SHARE = 0.5
"""Of the lessons: one search with the question's own words, if the documents then state the answer."""
Lesson = list[tuple[str, bool]]
"""Texts in order, and whether the policy writes them."""


def lesson_rows(
    questions: Sequence[Question], engine: SearchEngine, tokenizer, cfg: FormatSFT, seed: int
) -> list[dict[str, list[int]]]:
    """Training rows of `encode_lesson`, one a question, as many as the steps take; drawn by the seed."""
    drawn = Random(f"{seed}/warm-up").sample(questions, min(len(questions), cfg.steps * cfg.batch_size))
    return [encode_lesson(lesson(question, engine, cfg), tokenizer) for question in drawn]


def lesson(question: Question, engine: SearchEngine, cfg: FormatSFT) -> Lesson:
    """A well-formed trajectory: a search for each hop, or one in the question's own words, then the right answer."""
    plain = [(question.question, "This needs a search.")]
    hops = [(hop.query, f"I need the {hop.noun} of {hop.entity}.") for hop in question.hops]
    searched = None
    if Random(f"{question.id}/warm-up").random() < PLAIN_SHARE:
        searched = _searched(plain, question, engine, cfg)
        if not any(scoring.contains(document, question.golden_answers) for document in searched[-1][2]):
            searched = None
    texts: Lesson = [(protocol.policy_prompt(question.question, cfg.template), False)]
    for query, thought, documents in searched or _searched(hops, question, engine, cfg):
        texts.append((f"{protocol.format_think(thought)}\n{protocol.format_search(query)}", True))
        texts.append((protocol.format_observation(documents), False))
    answer = question.golden_answers[0]
    last = f"{protocol.format_think(f'It is {answer}.')}\n{protocol.format_answer(answer)}"
    return [*texts, (last, True)]


def _searched(
    steps: Sequence[tuple[str, str]], question: Question, engine: SearchEngine, cfg: FormatSFT
) -> list[tuple]:
    """(query, thought, documents) of each step."""
    requests = [SearchRequest(asked, question.question, question.golden_answers) for asked, _ in steps]
    found = engine.search(requests, cfg.num_documents)
    return [(asked, thought, result.documents) for (asked, thought), result in zip(steps, found, strict=True)]


def encode_lesson(texts: Lesson, tokenizer, ended: bool = False) -> dict[str, list[int]]:
    """Tokenise a lesson as a row for TRL, each text on its own as in a rollout.

    input_ids, and completion_mask with 1 on what the policy writes. `ended`: with EOS after each turn, for loops
    that stop at nothing else.
    """
    ids, mask = [], []
    for number, (text, written) in enumerate(texts):
        new = tokenizer(
            text + tokenizer.eos_token * (written and ended), add_special_tokens=number == 0
        ).input_ids
        ids += new
        mask += [int(written)] * len(new)
    return {"input_ids": ids, "completion_mask": mask}
