"""The multi-turn loop: the policy writes, the engine answers, until there is an answer or no turn is left.

Tokens in, tokens out: a trajectory's ids are the ids that were sampled and the ids of the observations, each
tokenised on its own; the loss mask is built as they are appended. Only what the policy wrote is parsed.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from zs_lib import protocol
from zs_lib.config.arms import RolloutConfig
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import BudgetError, EngineError
from zs_lib.qa import Question
from zs_lib.rl.trajectory import StopReason, Trajectory, Turn
from zs_lib.rng import Key, uniform

if TYPE_CHECKING:
    from zs_lib.models.generator import Generator


CUTS = (r"""(?<=[.!?…]\s)|(?<=[.!?…]["')\]”’]\s)|(?<=[。！？])""", r"(?<=\s)(?=\S)", "")
"""Where a document may be cut: after a sentence, a word, a character."""


@dataclass
class _Rollout:
    """A trajectory under construction."""

    question: Question
    key: Key
    prompt_ids: list[int]
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason | None = None
    answer: str | None = None

    def append(self, ids: list[int], logprobs: list[float] | None = None) -> None:
        """Append tokens: the policy's with their log-probabilities, an observation's without."""
        self.ids += ids
        self.mask += [logprobs is not None] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)

    def room(self, cfg: RolloutConfig) -> int:
        """Count the tokens that may still come before a last turn; negative if no turn fits."""
        return cfg.max_context_tokens - len(self.prompt_ids) - len(self.ids) - cfg.max_turn_tokens

    def finish(self) -> Trajectory:
        tokens = self.prompt_ids, self.ids, self.mask, self.logprobs
        return Trajectory(self.question, *tokens, tuple(self.turns), self.stop_reason, self.answer)


def rollout(
    questions: Sequence[Question],
    generator: Generator,
    engine: SearchEngine | None,
    cfg: RolloutConfig,
    keys: Sequence[Key],
    noise_probability: float = 0.0,
    contexts: Sequence[str] | None = None,
    opening: str = "",
) -> list[Trajectory]:
    """Sample one trajectory per question, in order; all randomness is a function of each rollout's key.

    There are at most `cfg.max_searches` + 1 turns (without an engine: one), and the last one cannot search. A
    turn begins only where it fits into the context window at full length. Each search asks for noisy
    documents with probability `noise_probability` (the simulated engine's curriculum; real engines ignore
    it).

    Methods that write a part of the completion themselves (`evaluation.methods`) give `contexts`, a text
    after each prompt that is never parsed, and an `opening`, with which the first turn begins; both count as
    prompt, and are not trained.
    """
    contexts = contexts or [""] * len(questions)
    rollouts = [
        _Rollout(question, key, _encode_prompt(question, context + opening, generator, cfg))
        for question, key, context in zip(questions, keys, contexts, strict=True)
    ]
    last = cfg.max_searches if engine else 0
    kv_cache = generator.new_cache()  # of this call only: before the next one, the weights may change
    for turn in range(last + 1):
        for rolling in _unfinished(rollouts):
            if rolling.room(cfg) < 0:
                rolling.stop_reason = "length"
        going = _unfinished(rollouts)
        if not going:
            break
        completions = generator.generate(
            [rolling.prompt_ids + rolling.ids for rolling in going],
            [(*rolling.key, turn, "policy") for rolling in going],
            cfg.max_turn_tokens,
            cfg.temperature,
            protocol.STOP_STRINGS,
            kv_cache,
        )
        for rolling, completion in zip(going, completions, strict=True):
            text = (opening if turn == 0 else "") + generator.decode(completion.ids)
            rolling.append(completion.ids, completion.logprobs)
            _act(rolling, text, generator, cfg, is_last=turn == last)
        _search(_unfinished(rollouts), turn, generator, engine, cfg, noise_probability)
    return [rolling.finish() for rolling in rollouts]


def token_budget(cfg: RolloutConfig, searches: bool) -> int:
    """Count the tokens that a policy may write in one rollout at most; without searches it has one turn."""
    return cfg.max_turn_tokens * (cfg.max_searches + 1 if searches else 1)


def _encode_prompt(question: Question, after: str, generator: Generator, cfg: RolloutConfig) -> list[int]:
    return generator.encode_prompt(protocol.policy_prompt(question.question, cfg.template) + after)


def _unfinished(rollouts: Sequence[_Rollout]) -> list[_Rollout]:
    return [rolling for rolling in rollouts if rolling.stop_reason is None]


def _act(rolling: _Rollout, text: str, generator: Generator, cfg: RolloutConfig, is_last: bool) -> None:
    """Record the policy's turn and act on it; a search that may be made is left to `_search`."""
    action = protocol.parse_action(text)
    rolling.turns.append(Turn(text, action))
    if action.kind == "answer":
        rolling.stop_reason, rolling.answer = "answer", action.text
    elif is_last:
        rolling.stop_reason = "max_turns" if action.kind == "search" else "invalid"
    elif action.kind == "invalid":
        _show(rolling, generator.encode(protocol.format_invalid_notice()), cfg)


def _search(
    going: Sequence[_Rollout],
    turn: int,
    generator: Generator,
    engine: SearchEngine | None,
    cfg: RolloutConfig,
    noise_probability: float,
) -> None:
    """Make one batch of searches, for the rollouts whose newest turn asks for one."""
    searching = [rolling for rolling in going if rolling.turns[-1].action.kind == "search"]
    if not searching:
        return
    requests = [
        SearchRequest(
            query=rolling.turns[-1].action.text,
            question=rolling.question.question,
            golden_answers=rolling.question.golden_answers,
            noisy=uniform(rolling.key, turn, "noise") < noise_probability,
            key=(*rolling.key, turn, "search"),
        )
        for rolling in searching
    ]
    for rolling, request, result in zip(searching, requests, _ask(engine, requests, cfg), strict=True):
        if result.status == "failed":
            rolling.stop_reason, shown = "engine_failed", ()
        else:
            shown = _observe(rolling, result.documents, cfg.max_searches - turn - 1, generator, cfg)
        rolling.turns[-1] = replace(
            rolling.turns[-1],
            query=request.query,
            documents=shown,
            noisy=request.noisy,
            status=result.status,
            error=result.error,
            cut=result.status == "ok" and shown != result.documents,
        )


def _ask(engine: SearchEngine, requests: list[SearchRequest], cfg: RolloutConfig) -> list[SearchResult]:
    """Search; an engine that raises has failed each request.

    A spent budget is raised instead: to go on would be to learn only from the rollouts that searched first.
    """
    try:
        return engine.search(requests, cfg.num_documents)
    except BudgetError:
        raise
    except EngineError as error:
        return [SearchResult((), "failed", str(error))] * len(requests)


def _observe(
    rolling: _Rollout, documents: tuple[str, ...], later: int, generator: Generator, cfg: RolloutConfig
) -> tuple[str, ...]:
    """Append documents as an observation, cut to what the context window can take; returns those shown.

    Documents that fit before another turn are shown whole. Others are cut to an equal share of what is left,
    for `later` searches may follow, or to all of it if a share does not hold a sentence.
    """
    room = rolling.room(cfg)
    share = (room - later * cfg.max_turn_tokens) // (later + 1)
    shown = cut_documents(documents, (share, room), generator.encode)
    ids = generator.encode(protocol.format_observation(shown or documents))
    return shown if _show(rolling, ids, cfg) else ()


def _show(rolling: _Rollout, ids: list[int], cfg: RolloutConfig) -> bool:
    """Append an observation, or end the rollout if no turn would fit after it; True if it was appended."""
    if len(ids) > rolling.room(cfg):
        rolling.stop_reason = "length"
        return False
    rolling.append(ids)
    return True


def cut_documents(
    documents: tuple[str, ...], limits: Sequence[int], encode: Callable[[str], list[int]]
) -> tuple[str, ...]:
    """Cut documents so that their observation, tags included, has no more tokens than the limits allow.

    Where the last limit is exceeded, their longest beginning of whole sentences is kept that is within the
    first limit, or the next; where the first sentence is too long, of whole words, or of characters; empty if
    nothing fits. Search-R1 and ZeroSearch cut the end of an observation, too, but between any two tokens, and
    its closing tag with it.
    """

    def size(kept: tuple[str, ...]) -> int:
        return len(encode(protocol.format_observation(kept)))

    if size(documents) <= limits[-1]:
        return documents
    for cut in CUTS:
        parts = [
            (i, part) for i, text in enumerate(documents) for part in re.split(cut, text.strip()) if part
        ]
        for limit in limits:
            if kept := _longest_beginning(parts, lambda kept, limit=limit: size(kept) > limit):
                return kept
    return ()


def _longest_beginning(
    parts: Sequence[tuple[int, str]], too_long: Callable[[tuple[str, ...]], bool]
) -> tuple[str, ...]:
    """Join the most of the first (document, part) again that are not too long; empty if one is."""

    def beginning(count: int) -> tuple[str, ...]:
        by_document = groupby(parts[:count], key=itemgetter(0))
        return tuple("".join(part for _, part in mine).rstrip() for _, mine in by_document)

    counts = range(len(parts) + 1)
    return beginning(bisect_left(counts, True, 1, key=lambda count: too_long(beginning(count))) - 1)
