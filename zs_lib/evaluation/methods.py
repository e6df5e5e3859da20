"""The methods of Table 3: ways to answer questions with a language model, trained or not, and an engine.

A method is one function with the interface of `search`, and one row of METHODS. R1, Search-R1 and ZeroSearch
are `search` by policies trained with no engine, a real one, a simulated one (R1 without an engine). All
prompts and tags are `protocol`'s. A method that needs other words than the policies has a template of its own
(`protocol.method_template`); a base model is shown training questions with their answers, besides.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from zs_lib import protocol
from zs_lib.config.arms import RolloutConfig
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import ConfigError
from zs_lib.protocol import Action
from zs_lib.qa import Question
from zs_lib.rl.rollout import cut_documents, encode_policy_prompt, rollout
from zs_lib.rl.trajectory import Trajectory, Turn
from zs_lib.rng import Key

if TYPE_CHECKING:
    from zs_lib.models.generator import Generator


Method = Callable[..., list[Trajectory]]
"""(questions, generator, engine, cfg, keys, training), one key a question: `training` are the questions that
the method may use, as examples in its prompt; all of them for `majority`."""


def majority(questions, generator, engine, cfg, keys, training=()) -> list[Trajectory]:
    """Give the most frequent training answer of the question's relation: the floor, with no model at all.

    Questions whose last step is not known (comparisons, the hub's sets) share one answer.
    """
    if not training:
        raise ConfigError("The method 'majority' needs training questions: evaluate it by `zs reproduce`.")
    counts: dict[str, Counter] = defaultdict(Counter)
    for question in training:
        counts[_relation(question)][question.golden_answers[0]] += 1
    every = sum(counts.values(), Counter())
    answers = [counts.get(_relation(question), every).most_common(1)[0][0] for question in questions]
    return [
        Trajectory(question, [], [], [], [], (), "answer", answer)
        for question, answer in zip(questions, answers, strict=True)
    ]


def _relation(question: Question) -> str:
    return question.hops[-1].relation if question.is_chain else ""


def search(questions, generator, engine, cfg, keys, training=()) -> list[Trajectory]:
    """Let the model search when it wants to: trained policies, and RA-Agent if it was not trained."""
    return rollout(questions, generator, engine, cfg, keys)


def direct(questions, generator, engine, cfg, keys, training=()) -> list[Trajectory]:
    """Answer at once (Direct Answer)."""
    cfg = _with_examples(cfg, training, thinks=False)
    return rollout(questions, generator, None, cfg, keys, opening=protocol.tag("answer"))


def cot(questions, generator, engine, cfg, keys, training=()) -> list[Trajectory]:
    """Think, then answer, without search (chain of thought)."""
    cfg = _with_examples(cfg, training)
    return _think_and_answer(questions, generator, cfg, keys, [""] * len(questions))


def rag(questions, generator, engine, cfg, keys, training=()) -> list[Trajectory]:
    """Search once for the question as it stands, think, then answer (retrieval-augmented generation)."""
    cfg = _with_examples(cfg, training, searches=True)
    requests = [
        SearchRequest(question.question, question.question, question.golden_answers, key=(*key, 0, "search"))
        for question, key in zip(questions, keys, strict=True)
    ]
    results = engine.search(requests, cfg.num_documents)
    shown = [_shorten(*found, generator, cfg, thoughts=1) for found in zip(requests, results, strict=True)]
    contexts = [_search_text(request, result) for request, result in zip(requests, shown, strict=True)]
    answered = _think_and_answer(questions, generator, cfg, keys, contexts)
    return [
        _after_search(trajectory, request, result, cut=result != found)
        for trajectory, request, result, found in zip(answered, requests, shown, results, strict=True)
    ]


def search_o1(questions, generator, engine, cfg, keys, training=()) -> list[Trajectory]:
    """Search as `search` does, but show the model its own reading of the documents (arXiv 2501.05366).

    As there, a model that has searched to the end must answer from what it has read.
    """
    cfg = _with_examples(cfg, training, searches=True)
    found = rollout(questions, generator, _Reader(engine, generator, cfg), cfg, keys)
    late = [i for i, one in enumerate(found) if one.stop_reason in ("max_turns", "invalid")]
    if not late:
        return found
    contexts = ["".join(map(_turn_text, found[i].turns[:-1])) for i in late]
    asked, keys = [questions[i] for i in late], [(*keys[i], "last") for i in late]
    answered = _think_and_answer(asked, generator, cfg, keys, contexts)
    for i, last in zip(late, answered, strict=True):
        found[i] = replace(last, turns=(*found[i].turns[:-1], *last.turns))
    return found


def _turn_text(turn: Turn) -> str:
    searched = turn.query is not None
    shown = protocol.format_observation(turn.documents) if searched else protocol.format_invalid_notice()
    return turn.text + shown


METHODS: dict[str, Method] = {
    "direct": direct,
    "cot": cot,
    "rag": rag,
    "search": search,
    "search-o1": search_o1,
    "majority": majority,
}


def _with_examples(
    cfg: RolloutConfig, training: Sequence[Question], thinks: bool = True, searches: bool = False
) -> RolloutConfig:
    """Show training questions in the form in which the method lets the model answer.

    The thought states each hop, and what a search finds is that statement; where the hops are not known, it
    states the answer.
    """
    texts = []
    for question in training:
        steps = [f"The {hop.noun} of {hop.entity} is {hop.answers[0]}." for hop in question.hops]
        thought = " ".join(steps) or f"It is {question.golden_answers[0]}."
        texts.append(
            f"Question: {' '.join(question.question.split())}\n"
            + (protocol.tagged("search", question.question) if searches else "")
            + (protocol.format_observation(steps or [thought]) if searches else "")
            + (protocol.tagged("think", thought) if thinks else "")
            + f"{protocol.tagged('answer', question.golden_answers[0])}\n"
        )
    return replace(cfg, examples="".join(texts))


def _think_and_answer(questions, generator, cfg, keys, contexts) -> list[Trajectory]:
    """Force a thought, then an answer: the model may not search instead."""
    thoughts = _think([question.question for question in questions], contexts, generator, cfg, keys)
    contexts = [
        context + protocol.tag("think") + thought + protocol.end_tag("think")
        for context, thought in zip(contexts, thoughts, strict=True)
    ]
    opening = protocol.tag("answer")
    return rollout(questions, generator, None, cfg, keys, contexts=contexts, opening=opening)


def _think(
    questions: Sequence[str],
    contexts: Sequence[str],
    generator: Generator,
    cfg: RolloutConfig,
    keys: Sequence[Key],
) -> list[str]:
    """Sample a thought after each prompt, context and "<think>": up to "</think>", or as far as it came."""
    opening = protocol.THOUGHT_OPENINGS.get(cfg.template, "")
    ids = [
        encode_policy_prompt(question, generator, cfg)
        + generator.encode(context + protocol.tag("think") + opening)
        for question, context in zip(questions, contexts, strict=True)
    ]
    end, keys = protocol.end_tag("think"), [(*key, "think") for key in keys]
    completions = generator.generate(ids, keys, cfg.max_turn_tokens, cfg.temperature, (end,))
    return [opening + generator.decode(completion.ids).partition(end)[0] for completion in completions]


def _search_text(request: SearchRequest, result: SearchResult) -> str:
    return protocol.tagged("search", request.query) + protocol.format_observation(result.documents)


def _shorten(
    request: SearchRequest, result: SearchResult, generator: Generator, cfg: RolloutConfig, thoughts: int
) -> SearchResult:
    """Cut documents to the context window if not even one more turn fits after them.

    What is cut leaves space for so many thoughts before that turn, where it can.
    """
    before = encode_policy_prompt(request.question, generator, cfg) + generator.encode(
        protocol.tagged("search", request.query)
    )
    tags = protocol.tag("think") + protocol.end_tag("think") + protocol.tag("answer")
    taken = len(before) + len(generator.encode(tags)) + cfg.max_turn_tokens
    room = cfg.max_context_tokens - taken
    limits = (room - thoughts * cfg.max_turn_tokens, room)
    return replace(result, documents=cut_documents(result.documents, limits, generator.encode))


def _after_search(
    trajectory: Trajectory, request: SearchRequest, result: SearchResult, cut: bool
) -> Trajectory:
    """Add the search that was made for the model as its first turn; failed if that search failed."""
    turn = Turn(
        protocol.tagged("search", request.query),
        Action("search", request.query),
        request.query,
        result.documents,
        status=result.status,
        error=result.error,
        cut=cut,
    )
    failed = {"stop_reason": "engine_failed", "answer": None} if result.status == "failed" else {}
    return replace(trajectory, turns=(turn, *trajectory.turns), **failed)


class _Reader(SearchEngine):
    """An engine whose documents the model reads first: it is shown one document, its thought about them."""

    name = "reader"

    def __init__(self, engine: SearchEngine, generator: Generator, cfg: RolloutConfig):
        self.engine, self.generator, self.cfg = engine, generator, cfg

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        results = [
            _shorten(request, result, self.generator, self.cfg, thoughts=0)
            for request, result in zip(requests, self.engine.search(requests, num_documents), strict=True)
        ]
        found = [i for i, result in enumerate(results) if result.status == "ok"]
        if not found:
            return results
        questions = [requests[i].question for i in found]
        contexts = [_search_text(requests[i], results[i]) for i in found]
        keys = [(*requests[i].key, "read") for i in found]
        thoughts = _think(questions, contexts, self.generator, self.cfg, keys)
        for i, thought in zip(found, thoughts, strict=True):
            results[i] = SearchResult((thought.strip(),), "ok")
        return results
