"""The methods of Table 3: ways to answer questions with a language model, trained or not, and an engine.

A method is one function with the interface of `search`, and one row of METHODS. R1, Search-R1 and ZeroSearch
are `search` by policies trained with no engine, a real one, a simulated one (R1 without an engine). All
prompts and tags are `protocol`'s, so methods differ only in what is searched and when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from zs_lib import protocol
from zs_lib.config.arms import RolloutConfig
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult
from zs_lib.protocol import Action
from zs_lib.qa import Question
from zs_lib.rl.rollout import cut_documents, rollout
from zs_lib.rl.trajectory import Trajectory, Turn
from zs_lib.rng import Key

if TYPE_CHECKING:
    from zs_lib.models.generator import Generator


Method = Callable[
    [Sequence[Question], "Generator", SearchEngine | None, RolloutConfig, Sequence[Key]], list[Trajectory]
]


def search(questions, generator, engine, cfg, keys) -> list[Trajectory]:
    """Let the model search when it wants to: trained policies, and RA-Agent if it was not trained."""
    return rollout(questions, generator, engine, cfg, keys)


def direct(questions, generator, engine, cfg, keys) -> list[Trajectory]:
    """Answer at once (Direct Answer)."""
    return rollout(questions, generator, None, cfg, keys, opening=protocol.tag("answer"))


def cot(questions, generator, engine, cfg, keys) -> list[Trajectory]:
    """Think, then answer, without search (chain of thought)."""
    return _think_and_answer(questions, generator, cfg, keys, [""] * len(questions))


def rag(questions, generator, engine, cfg, keys) -> list[Trajectory]:
    """Search once for the question as it stands, think, then answer (retrieval-augmented generation)."""
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


def search_o1(questions, generator, engine, cfg, keys) -> list[Trajectory]:
    """Search as `search` does, but show the model its own reading of the documents (arXiv 2501.05366)."""
    return rollout(questions, generator, _Reader(engine, generator, cfg), cfg, keys)


METHODS: dict[str, Method] = {
    "direct": direct,
    "cot": cot,
    "rag": rag,
    "search": search,
    "search-o1": search_o1,
}


def _think_and_answer(questions, generator, cfg, keys, contexts) -> list[Trajectory]:
    """Force a thought, then an answer: the model may not search instead."""
    prompts = [
        protocol.policy_prompt(question.question, cfg.template) + context
        for question, context in zip(questions, contexts, strict=True)
    ]
    thoughts = _think(prompts, generator, cfg, keys)
    contexts = [
        context + protocol.tag("think") + thought + protocol.end_tag("think")
        for context, thought in zip(contexts, thoughts, strict=True)
    ]
    opening = protocol.tag("answer")
    return rollout(questions, generator, None, cfg, keys, contexts=contexts, opening=opening)


def _think(
    prompts: Sequence[str], generator: Generator, cfg: RolloutConfig, keys: Sequence[Key]
) -> list[str]:
    """Sample a thought after each prompt and "<think>"; its text up to "</think>", or as far as it came."""
    ids = [generator.encode_prompt(prompt + protocol.tag("think")) for prompt in prompts]
    end, keys = protocol.end_tag("think"), [(*key, "think") for key in keys]
    completions = generator.generate(ids, keys, cfg.max_turn_tokens, cfg.temperature, (end,))
    return [generator.decode(completion.ids).partition(end)[0] for completion in completions]


def _search_text(request: SearchRequest, result: SearchResult) -> str:
    return protocol.format_search(request.query) + protocol.format_observation(result.documents)


def _shorten(
    request: SearchRequest, result: SearchResult, generator: Generator, cfg: RolloutConfig, thoughts: int
) -> SearchResult:
    """Cut documents to the context window if not even one more turn fits after them.

    What is cut leaves space for so many thoughts before that turn, where it can.
    """
    before = protocol.policy_prompt(request.question, cfg.template) + protocol.format_search(request.query)
    tags = protocol.tag("think") + protocol.end_tag("think") + protocol.tag("answer")
    taken = len(generator.encode_prompt(before)) + len(generator.encode(tags)) + cfg.max_turn_tokens
    room = cfg.max_context_tokens - taken
    limits = (room - thoughts * cfg.max_turn_tokens, room)
    return replace(result, documents=cut_documents(result.documents, limits, generator.encode))


def _after_search(
    trajectory: Trajectory, request: SearchRequest, result: SearchResult, cut: bool
) -> Trajectory:
    """Add the search that was made for the model as its first turn; failed if that search failed."""
    turn = Turn(
        protocol.format_search(request.query),
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
        prompts = [
            protocol.policy_prompt(requests[i].question, self.cfg.template)
            + _search_text(requests[i], results[i])
            for i in found
        ]
        thoughts = _think(prompts, self.generator, self.cfg, [(*requests[i].key, "read") for i in found])
        for i, thought in zip(found, thoughts, strict=True):
            results[i] = SearchResult((thought.strip(),), "ok")
        return results
