"""A warm-up in the format: a few supervised steps on well-formed trajectories, before anything else.

Ours, for models that cannot follow the policy's template at all: with no valid action there is no reward, and with none
nothing to learn from. What it teaches is the form; how to search is left to RL, so half of the lessons search with the
question's own words where that finds the answer. The paper's models need none.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

from zs_lib import metrics, models, protocol, qa
from zs_lib.arms import WarmUp, WarmUpArm
from zs_lib.engines import SearchEngine, SearchRequest, build_engine
from zs_lib.fine_tuning import Progress, fine_tune, keep
from zs_lib.qa import Question
from zs_lib.runs import Run, RunStore
from zs_lib.wording import NOUNS, query

PLAIN_SHARE = 0.5
"""Of the lessons: one search with the question's own words, if the documents then state the answer."""

Lesson = list[tuple[str, bool]]
"""Texts in order, and whether the policy writes them."""


def start(backbone: str, how: WarmUp | None, benchmark: str, store: RunStore) -> str:
    """The name of the model after its warm-up, which is made now if the store has none; without one, of the backbone."""
    return (
        str(ensure(WarmUpArm(backbone=backbone, benchmark=benchmark, how=how), 0, store).model_dir)
        if how
        else backbone
    )


def ensure(arm: WarmUpArm, seed: int, store: RunStore, progress: Progress | None = None) -> Run:
    """The finished warm-up of this arm and seed: found in the store, or made now."""

    def work(run: Run) -> dict:
        loaded, how = models.load(arm.backbone, arm.how.dtype), arm.how
        questions = [
            question for question in qa.load_benchmark(arm.benchmark, "train") if qa.is_chain(question)
        ]
        asked = Random(f"{seed}/warm-up").sample(questions, min(len(questions), how.steps * how.batch_size))
        engine = build_engine(how.engine, split="train")
        rows = [encode(lesson(question, engine, how), loaded.tokenizer) for question in asked]
        summary = {"backbone": arm.backbone, "examples": len(rows)} | fine_tune(
            run, loaded, rows, how, seed, progress
        )
        keep(run, loaded, how.dtype)
        return summary

    return store.ensure(arm, seed, work, together=True)


def lesson(question: Question, engine: SearchEngine, how: WarmUp) -> Lesson:
    """A well-formed trajectory: a search for each hop of the question, or one in its own words, then the right answer."""
    plain = [(question.question, "This needs a search.")]
    hops = [
        (query(NOUNS[hop.relation], hop.entity), f"I need the {NOUNS[hop.relation]} of {hop.entity}.")
        for hop in question.hops
    ]
    searched = None
    if Random(f"{question.id}/warm-up").random() < PLAIN_SHARE:
        searched = _searched(plain, question, engine, how)
        if not any(metrics.contains(document, question.golden_answers) for document in searched[-1][2]):
            searched = None
    texts: Lesson = [(protocol.policy_prompt(question.question, how.template), False)]
    for asked, thought, documents in searched or _searched(hops, question, engine, how):
        texts.append((f"<think> {thought} </think>\n<search> {asked} </search>", True))
        texts.append((protocol.format_observation(documents), False))
    answer = question.golden_answers[0]
    return [*texts, (f"<think> It is {answer}. </think>\n<answer> {answer} </answer>", True)]


def _searched(
    steps: Sequence[tuple[str, str]], question: Question, engine: SearchEngine, how: WarmUp
) -> list[tuple]:
    """(query, thought, documents) of each step."""
    requests = [SearchRequest(asked, question.question, question.golden_answers) for asked, _ in steps]
    found = engine.search(requests, how.num_documents)
    return [(asked, thought, result.documents) for (asked, thought), result in zip(steps, found, strict=True)]


def encode(texts: Lesson, tokenizer, ended: bool = False) -> dict[str, list[int]]:
    """A row for TRL, each text tokenised on its own as in a rollout: input_ids, and completion_mask with 1 on what the
    policy writes; `ended`: with EOS after each turn, for loops that stop at nothing else."""
    ids, mask = [], []
    for number, (text, written) in enumerate(texts):
        new = tokenizer(
            text + tokenizer.eos_token * (written and ended), add_special_tokens=number == 0
        ).input_ids
        ids += new
        mask += [int(written)] * len(new)
    return {"input_ids": ids, "completion_mask": mask}
