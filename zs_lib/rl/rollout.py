"""The multi-turn loop: the policy writes, the engine answers, until there is an answer or no turn is left.

Tokens in, tokens out: a trajectory's ids are the ids that were sampled and the ids of the observations, each
tokenised on its own; the loss mask is built as they are appended. Only what the policy wrote is parsed.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

from zs_lib import protocol
from zs_lib.config.arms import RolloutConfig
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult
from zs_lib.engines.searches import Searches
from zs_lib.qa import Question
from zs_lib.rl.trajectory import StopReason, Trajectory, Turn
from zs_lib.rng import Key, draw_keys, uniform

if TYPE_CHECKING:
    from zs_lib.models.generator import Completion, Generator
    from zs_lib.models.kv_cache import KVCache


CUTS = (r"""(?<=[.!?…]\s)|(?<=[.!?…]["')\]”’]\s)|(?<=[。！？])""", r"(?<=\s)(?=\S)", "")
"""Where a document may be cut: after a sentence, a word, a character."""


Prefix = tuple[Trajectory, int]
"""A trajectory, and the turn before which a rollout goes on from its tokens."""


@dataclass
class _Rollout:
    """A trajectory under construction."""

    question: Question
    key: Key
    prompt_ids: list[int]
    lead: str
    """What the first turn's text begins with besides what is sampled."""
    generator: Generator
    cfg: RolloutConfig
    noise: float
    """The probability that a search asks for noisy documents."""
    last: int
    """Number of the last turn, in which a search is not made."""
    ids: list[int] = field(default_factory=list)
    mask: list[bool] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    turns: list[Turn] = field(default_factory=list)
    stop_reason: StopReason | None = None
    answer: str | None = None
    request: SearchRequest | None = None
    """The search whose documents it waits for."""

    @property
    def goes_on(self) -> bool:
        """Whether it is not over; a next turn that does not fit ends it."""
        if self.stop_reason is None and self.request is None and self.room < 0:
            self.stop_reason = "length"
        return self.stop_reason is None

    @property
    def room(self) -> int:
        """Number of tokens that may still come before a last turn; negative if no turn fits."""
        taken = len(self.prompt_ids) + len(self.ids)
        return self.cfg.max_context_tokens - taken - self.cfg.max_turn_tokens

    @property
    def thinks(self) -> bool:
        """Whether the policy is a thinking model, whose thoughts are not parsed."""
        return self.cfg.thinking and self.generator.thinks

    def text(self, ids: list[int]) -> str:
        """The text of a turn of which these ids were sampled."""
        return ("" if self.turns else self.lead) + self.generator.decode(ids)

    def append(self, ids: list[int], logprobs: list[float] | None = None) -> None:
        """Append tokens: the policy's with their log-probabilities, an observation's without."""
        self.ids += ids
        self.mask += [logprobs is not None] * len(ids)
        self.logprobs += logprobs if logprobs is not None else [0.0] * len(ids)

    def act(self, text: str) -> None:
        """Record the policy's turn and act on it; a search that may be made is requested."""
        action = protocol.parse_action(protocol.after_thoughts(text) if self.thinks else text)
        self.turns.append(Turn(text, action))
        if action.kind == "answer":
            self.stop_reason, self.answer = "answer", action.text
        elif len(self.turns) > self.last:
            self.stop_reason = "max_turns" if action.kind == "search" else "invalid"
        elif action.kind == "invalid":
            self.show(self.generator.encode(protocol.format_invalid_notice()))
        else:
            self.request = self.request_for(action.text)

    def request_for(self, query: str) -> SearchRequest:
        """Make the request for the newest turn's search."""
        noise, documents = draw_keys(self.cfg.draws, self.key, len(self.turns) - 1, query)
        return SearchRequest(
            query=query,
            question=self.question.question,
            golden_answers=self.question.golden_answers,
            noisy=uniform(*noise, "noise") < self.noise,
            key=documents,
        )

    def receive(self, result: SearchResult) -> None:
        """Record the newest turn's search and show what it found."""
        request, self.request = self.request, None
        shown: tuple[str, ...] = ()
        if result.status == "failed":
            self.stop_reason = "engine_failed"
        else:
            shown = self.observe(result.documents)
        self.turns[-1] = replace(
            self.turns[-1],
            query=request.query,
            documents=shown,
            noisy=request.noisy,
            status=result.status,
            error=result.error,
            cut=result.status == "ok" and shown != result.documents,
        )

    def observe(self, documents: tuple[str, ...]) -> tuple[str, ...]:
        """Append documents as an observation, cut to what the context window can take; returns those shown.

        Documents that fit before another turn are shown whole. Others are cut to an equal share of what is
        left, for later searches may follow, or to all of it if a share does not hold a sentence.
        """
        later = self.last - len(self.turns)
        share = (self.room - later * self.cfg.max_turn_tokens) // (later + 1)
        shown = cut_documents(documents, (share, self.room), self.generator.encode)
        ids = self.generator.encode(protocol.format_observation(shown or documents))
        return shown if self.show(ids) else ()

    def show(self, ids: list[int]) -> bool:
        """Append an observation, or end the rollout if no turn would fit after it; True if appended."""
        if len(ids) > self.room:
            self.stop_reason = "length"
            return False
        self.append(ids)
        return True

    def begin_with(self, prefix: Prefix) -> None:
        """Take over what a trajectory had before a turn."""
        trajectory, turn = prefix
        end = trajectory.token_turns.index(turn)
        self.ids, self.mask = trajectory.ids[:end], trajectory.mask[:end]
        self.logprobs, self.turns = trajectory.logprobs[:end], list(trajectory.turns[:turn])

    def finish(self) -> Trajectory:
        tokens = self.prompt_ids, self.ids, self.mask, self.logprobs
        return Trajectory(self.question, *tokens, tuple(self.turns), self.stop_reason, self.answer)


def rollout(
    questions: Sequence[Question],
    generator: Generator,
    engine: SearchEngine | None,
    cfg: RolloutConfig,
    keys: Sequence[Key],
    noise_probability: float | Sequence[float] = 0.0,
    contexts: Sequence[str] | None = None,
    opening: str = "",
    prefixes: Sequence[Prefix] | None = None,
) -> list[Trajectory]:
    """Sample one trajectory per question, in order; all randomness is a function of each rollout's key.

    There are at most `cfg.max_searches` + 1 turns (without an engine: one), and the last one cannot search. A
    turn begins only where it fits into the context window at full length. A rollout that waits for an engine
    with `lanes` does not hold up the others. Each search asks for noisy documents with probability
    `noise_probability`, one for all or one a rollout (the simulated engine's curriculum; real engines ignore
    it).

    Methods that write a part of the completion themselves (`evaluation.methods`) give `contexts`, a text
    after each prompt that is never parsed, and an `opening`, with which the first turn begins; both count as
    prompt, and are not trained. With a chat template they begin the assistant's turn. With `prefixes` (of
    trajectories that had neither) each rollout goes on from one.
    """
    rollouts, count, last = [], len(questions), cfg.max_searches if engine else 0
    contexts = contexts or [""] * count
    noise = noise_probability if isinstance(noise_probability, Sequence) else [noise_probability] * count
    for question, key, context, share in zip(questions, keys, contexts, noise, strict=True):
        ids = encode_policy_prompt(question.question, generator, cfg) + generator.encode(context + opening)
        one = _Rollout(question, key, ids, opening, generator, cfg, share, last)
        if one.thinks and generator.decode(ids).rstrip().endswith(protocol.tag("think")):
            one.lead = protocol.tag("think")  # a thought that the chat template opened (DeepSeek-R1)
        rollouts.append(one)
    for one, prefix in zip(rollouts, prefixes or (), strict=bool(prefixes)):
        one.begin_with(prefix)
    kv_cache = generator.new_cache()  # of this call only: before the next one, the weights may change
    with Searches(engine, cfg.num_documents) as searches:
        while going := [one for one in rollouts if one.goes_on]:
            ready = [one for one in going if one.request is None]
            kv_cache.awaited = [tuple(one.prompt_ids + one.ids) for one in going if one.request]
            for one, completion in zip(ready, _write(ready, kv_cache) if ready else (), strict=True):
                one.append(completion.ids, completion.logprobs)
                one.act(one.text(completion.ids))
            waiting = [one for one in going if one.request]
            block = all(one.request for one in going if one.stop_reason is None)
            found = searches.answers([one.request for one in waiting], block)
            for one in waiting:
                if one.request in found:
                    one.receive(found[one.request])
    return [one.finish() for one in rollouts]


def _write(going: list[_Rollout], kv_cache: KVCache) -> list[Completion]:
    """Sample a turn of each; one that a tag inside a thought has stopped goes on."""
    generator, cfg = going[0].generator, going[0].cfg

    def sample(numbers: list[int], max_tokens: int) -> list[Completion]:
        """Continue some of the turns; the key of what continues a turn has its place in it, too."""
        return generator.generate(
            [going[i].prompt_ids + going[i].ids + (done[i].ids if done else []) for i in numbers],
            [
                (*going[i].key, len(going[i].turns), "policy", *([len(done[i].ids)] if done else []))
                for i in numbers
            ],
            max_tokens,
            cfg.temperature,
            protocol.STOP_STRINGS,
            kv_cache,
        )

    done: list[Completion] = []
    done = sample(list(range(len(going))), cfg.max_turn_tokens)
    while unfinished := [i for i, one in enumerate(going) if _goes_on(one, done[i])]:
        left = cfg.max_turn_tokens - max(len(done[i].ids) for i in unfinished)
        for i, new in zip(unfinished, sample(unfinished, left), strict=True):
            joined = done[i].ids + new.ids, done[i].logprobs + new.logprobs
            done[i] = replace(new, ids=joined[0], logprobs=joined[1])
    return done


def _goes_on(one: _Rollout, written: Completion) -> bool:
    """Whether a turn is not over: stopped inside a thought, or cut short for another's sake (`_write`)."""
    if not one.thinks or len(written.ids) >= one.cfg.max_turn_tokens or written.stop_reason == "eos":
        return False
    return written.stop_reason == "length" or not protocol.after_thoughts(one.text(written.ids))


def encode_policy_prompt(question: str, generator: Generator, cfg: RolloutConfig) -> list[int]:
    """Encode the policy's prompt for a question, by the model's chat template if it has one."""
    prompt = protocol.policy_prompt(question, cfg.template, cfg.examples)
    return generator.encode_prompt(prompt, thinking=cfg.thinking)


def token_budget(cfg: RolloutConfig, searches: bool) -> int:
    """Count the tokens that a policy may write in one rollout at most; without searches it has one turn."""
    return cfg.max_turn_tokens * (cfg.max_searches + 1 if searches else 1)


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
            fitting = bisect_right(
                range(len(parts) + 1), limit, 1, key=lambda count, parts=parts: size(_join(parts[:count]))
            )
            if fitting > 1:
                return _join(parts[: fitting - 1])
    return ()


def _join(parts: Sequence[tuple[int, str]]) -> tuple[str, ...]:
    """Join (document, part) pairs to documents again."""
    by_document = groupby(parts, key=itemgetter(0))
    return tuple("".join(part for _, part in mine).rstrip() for _, mine in by_document)
