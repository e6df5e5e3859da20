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
from zs_lib.models.encoding import encode_example, encode_prompt
from zs_lib.qa import Question, scoring

PLAIN_SHARE = 0.5
"""Share of examples with one search in the question's own words, if its documents then state the answer."""
Lesson = list[tuple[str, bool]]
"""One example: its texts in order, each with whether the policy writes it."""


def lesson_rows(
    questions: Sequence[Question], engine: SearchEngine, tokenizer, cfg: FormatSFT, seed: int
) -> list[dict]:
    """Make the training rows, one per question, as many as the steps take; the seed picks the questions."""
    drawn = Random(f"{seed}/warm-up").sample(questions, min(len(questions), cfg.steps * cfg.batch_size))
    rows = []
    for question in drawn:
        (prompt, _), *texts = lesson(question, engine, cfg)
        row = encode_example(tokenizer, encode_prompt(tokenizer, prompt, thinking=cfg.thinking), texts)
        rows.append(row | {"name": question.question})
    return rows


def lesson(question: Question, engine: SearchEngine, cfg: FormatSFT) -> Lesson:
    """Write a well-formed trajectory: one search per hop, or one in the question's words, then the answer."""

    def search(steps: Sequence[tuple[str, str]]) -> list[tuple[str, str, tuple[str, ...]]]:
        """Search for each (query, thought) and return (query, thought, documents)."""
        requests = [SearchRequest(query, question.question, question.golden_answers) for query, _ in steps]
        results = engine.search(requests, cfg.num_documents)
        return [(*step, result.documents) for step, result in zip(steps, results, strict=True)]

    searched = []
    if Random(f"{question.id}/warm-up").random() < PLAIN_SHARE:
        searched = search([(question.question, "This needs a search.")])
    if not searched or not scoring.contains_answer(searched[-1][2], question.golden_answers):
        searched = search([(hop.query, f"I need the {hop.noun} of {hop.entity}.") for hop in question.hops])
    texts: Lesson = [(protocol.policy_prompt(question.question, cfg.template), False)]
    for query, thought, documents in searched:
        texts.append((f"{protocol.tagged('think', thought)}\n{protocol.tagged('search', query)}", True))
        texts.append((protocol.format_observation(documents), False))
    answer = question.golden_answers[0]
    last = f"{protocol.tagged('think', f'It is {answer}.')}\n{protocol.tagged('answer', answer)}"
    return [*texts, (last, True)]
