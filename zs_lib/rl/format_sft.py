"""Format SFT: a few supervised steps on well-formed trajectories before RL (the field's "cold start").

Not in the paper, whose models need none: for models that cannot follow the policy's template at all, since
without a valid action there is no reward to learn from. It teaches the format. How to search is left to RL,
so half of the examples search with the question's own words where that finds the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from zs_lib import protocol
from zs_lib.config.arms import FormatSFT
from zs_lib.engines import SearchEngine, SearchRequest
from zs_lib.models.encoding import encode_text
from zs_lib.qa import Question, scoring

PLAIN_SHARE = 0.5
"""Share of examples with one search in the question's own words, if its documents then state the answer."""
Lesson = list[tuple[str, bool]]
"""One example: its texts in order, each with whether the policy writes it."""


def lesson_rows(
    questions: Sequence[Question], engine: SearchEngine, tokenizer, cfg: FormatSFT, seed: int
) -> list[dict[str, list[int]]]:
    """Make the training rows, one per question, as many as the steps take; the seed picks the questions."""
    drawn = Random(f"{seed}/warm-up").sample(questions, min(len(questions), cfg.steps * cfg.batch_size))
    return [encode_lesson(lesson(question, engine, cfg), tokenizer) for question in drawn]


def lesson(question: Question, engine: SearchEngine, cfg: FormatSFT) -> Lesson:
    """Write a well-formed trajectory: one search per hop, or one in the question's words, then the answer."""
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
    """Search for each (query, thought) and return (query, thought, documents)."""
    requests = [SearchRequest(asked, question.question, question.golden_answers) for asked, _ in steps]
    found = engine.search(requests, cfg.num_documents)
    return [(asked, thought, result.documents) for (asked, thought), result in zip(steps, found, strict=True)]


def encode_lesson(texts: Lesson, tokenizer, ended: bool = False) -> dict[str, list[int]]:
    """Tokenise a lesson as a row for TRL, each text on its own as in a rollout.

    The row has input_ids, and completion_mask with 1 on what the policy writes. `ended`: with EOS after each
    turn, for samplers that have no stop strings.
    """
    ids, mask = [], []
    for number, (text, written) in enumerate(texts):
        new = encode_text(tokenizer, text, start=number == 0)
        new = [*new, tokenizer.eos_token_id] if written and ended else new
        ids += new
        mask += [int(written)] * len(new)
    return {"input_ids": ids, "completion_mask": mask}
