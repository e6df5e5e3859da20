"""Token-in/token-out generation with a transformers model: reproducible, batched, measured. (By vLLM: `vllm_backend`.)

The decode loop is ours, because it needs what `model.generate` does not give: randomness that is a function
of (key, position) and of nothing else, rows that leave the batch when they are done, and the
log-probabilities of the very ids that were sampled. The model's forward is transformers' own.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from zs_lib.draws import Key, uniform
from zs_lib.errors import ModelError
from zs_lib.prefix import Prefix, can_share, sharing

MIN_SHARED_PREFIX = 16
"""Shorter common prefixes are not worth a forward pass of their own."""
PREFILL_TOKENS = {"cpu": 1536, "cuda": 32768}
"""Tokens of one prefill pass: on a CPU its activations should stay in the cache (30% faster at width 256)."""


@dataclass(frozen=True)
class Completion:
    """What was sampled after one prompt.

    `logprobs[i]` is the log-probability of `ids[i]` under softmax(logits / temperature), the distribution it
    was sampled from; for greedy decoding (temperature 0) under softmax(logits). A trainer that wants ratios
    divides by the same temperature. The id that ended the completion (EOS, or the end of a stop string) is
    included.
    """

    ids: list[int]
    logprobs: list[float]
    stop_reason: Literal["stop", "eos", "length"]


class Generator:
    """A model and its tokenizer as a function from prompts to completions.

    `tokens` and `seconds` add up over calls (sampled ids, wall time), `tokens_per_second` is their ratio.
    """

    def __init__(self, model, tokenizer, max_batch: int = 128):
        self.model, self.tokenizer, self.max_batch = model, tokenizer, max_batch
        self.tokens, self.seconds = 0, 0.0
        self._stops: dict[tuple[str, ...], _StopStrings] = {}
        declared = model.generation_config.eos_token_id if model.generation_config else None
        declared = declared if isinstance(declared, list) else [declared]
        self._eos = {*declared, tokenizer.eos_token_id} - {None}
        self.context = getattr(model.config, "max_position_embeddings", None)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0

    def encode_prompt(self, text: str) -> list[int]:
        """Ids of a text that starts a sequence, after what the tokenizer puts first (its BOS, if any)."""
        return self.tokenizer(text).input_ids

    def encode(self, text: str) -> list[int]:
        """Ids of a text that continues a sequence."""
        return self.tokenizer(text, add_special_tokens=False).input_ids

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, tags kept, end-of-sequence tokens left out."""
        return _decode(self.tokenizer, [i for i in ids if i not in self._eos])

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        keys: Sequence[Key],
        max_tokens: int,
        temperature: float,
        stop: tuple[str, ...] = (),
    ) -> list[Completion]:
        """Continue each prompt (non-empty id list) by up to `max_tokens` ids; completions in that order.

        The token at position t of a prompt with key k is drawn with `uniform(k, t, "token")`, so a completion
        does not depend on the rest of the batch. Temperature 0 is greedy. A completion ends with an EOS, with
        the token that completes one of the `stop` strings, or at `max_tokens`. Puts the model into eval mode.
        Raises ModelError if a prompt is empty or does not fit the model's context together with `max_tokens`.
        """
        self._check(prompts, keys, max_tokens)
        started = time.perf_counter()
        completions = self._write(prompts, keys, max_tokens, temperature, stop)
        self.tokens += sum(len(completion.ids) for completion in completions)
        self.seconds += time.perf_counter() - started
        return completions

    def sync(self) -> None:
        """To be called when the model's weights have changed; nothing to do here, where it is the model that writes."""

    @torch.inference_mode()
    def _write(self, prompts, keys, max_tokens: int, temperature: float, stop: tuple[str, ...]) -> list[Completion]:
        self.model.eval()
        if stop not in self._stops:
            self._stops[stop] = _StopStrings(self.tokenizer, stop)
        rows = [_Row(tuple(prompt), key) for prompt, key in zip(prompts, keys, strict=True)]
        by_length = sorted(rows, key=lambda row: len(row.prompt))  # similar lengths together: little padding
        for start in range(0, len(rows), self.max_batch):
            chunk = by_length[start : start + self.max_batch]
            self._complete(chunk, max_tokens, temperature, self._stops[stop])
        return [Completion(row.ids, row.logprobs, row.stop_reason) for row in rows]

    def _check(self, prompts, keys, max_tokens: int) -> None:
        if len(prompts) != len(keys):
            raise ValueError(f"{len(prompts)} prompts came with {len(keys)} keys")
        if any(len(prompt) == 0 for prompt in prompts):
            raise ModelError("Cannot continue an empty prompt: give at least one token.")
        longest = max(map(len, prompts), default=0)
        if self.context and longest + max_tokens > self.context:
            raise ModelError(
                f"A prompt of {longest} tokens and {max_tokens} new ones exceed the model's context of "
                f"{self.context}: shorten the prompt, or lower the profile's token limits."
            )

    def _complete(self, rows: list[_Row], max_tokens: int, temperature: float, stops: _StopStrings) -> None:
        """Sample until every row is done. Those leave the batch: a step's cost grows with its rows."""
        batch = _Batch(self.model, rows, max_tokens)
        logits = batch.prefill()
        with sharing(self.model) if batch.prefix else nullcontext():
            for position in range(max_tokens):
                ids, logprobs = _sample(logits, [row.key for row in batch.rows], position, temperature)
                for row, token, logprob in zip(batch.rows, ids.tolist(), logprobs.tolist(), strict=True):
                    row.ids.append(token)
                    row.logprobs.append(logprob)
                    if token in self._eos:
                        row.stop_reason = "eos"
                    elif stops.complete(row.ids):
                        row.stop_reason = "stop"
                ids = batch.drop_finished(ids)
                if not batch.rows or position == max_tokens - 1:
                    return
                logits = batch.step(ids)


def build_generator(backend: str, model, tokenizer) -> Generator:
    """What writes with this model: a name of `arms.GENERATORS`. ModelError where vLLM is asked for and not installed."""
    if backend == "vllm":
        from zs_lib.vllm_backend import VllmGenerator

        return VllmGenerator(model, tokenizer)
    return Generator(model, tokenizer)


@dataclass
class _Row:
    """One prompt on its way to a completion."""

    prompt: tuple[int, ...]
    key: Key
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: str = "length"  # unless something else stops it earlier

    @property
    def finished(self) -> bool:
        return self.stop_reason != "length"


class _Batch:
    """The unfinished rows, their key/value cache, and which cache positions each row may look at.

    Cache layout: left padding | prompt | new tokens. So new tokens of all rows stand at the same place, and appending is one
    slice assignment per layer. What all prompts begin with is not in it: `prefix` keeps that once (`prefix.sharing`).
    """

    def __init__(self, model, rows: list[_Row], max_tokens: int):
        self.model, self.rows, self.device = model, list(rows), model.device
        self.shared = _shared_prefix([row.prompt for row in rows]) if can_share(model) else 0
        self.prefix: Prefix = ()
        self.width = max(len(row.prompt) for row in rows) - self.shared  # of padding and what is left of a prompt
        lengths = torch.tensor([len(row.prompt) for row in rows], device=self.device)
        columns = torch.arange(self.width + max_tokens, device=self.device)
        self.visible = columns >= self.width + self.shared - lengths[:, None]  # (rows, width + max_tokens) bool
        self.positions = lengths[:, None]  # (rows, 1): the position of the next token
        self.max_tokens = max_tokens
        self.cache: Cache | None = None

    def prefill(self) -> torch.Tensor:
        """Run the prompts through the model; (rows, vocabulary) logits of the first new token."""
        prefix = None
        if self.shared:
            prefix = self._forward([self.rows[0].prompt[: self.shared]], DynamicCache())[0]
            self.prefix = [(layer.keys[0], layer.values[0]) for layer in prefix.layers]
        rests = [row.prompt[self.shared :] for row in self.rows]
        logits, start = [], 0
        budget = PREFILL_TOKENS.get(self.device.type, PREFILL_TOKENS["cuda"])
        while start < len(rests):  # rows come sorted by length, so one slice needs hardly any padding
            count = max(1, min(len(rests) - start, budget // len(rests[start])))
            count = max(1, min(count, budget // len(rests[start + count - 1])))
            cache, last = self._forward(rests[start : start + count], _expanded(prefix, count))
            self._store(cache, start, count)
            logits.append(last)
            start += count
        return torch.cat(logits)

    def _forward(self, prompts: list[tuple[int, ...]], cache: DynamicCache):
        """Append left-padded prompts to a cache visible throughout; the cache, logits of the last id."""
        seen, width = cache.get_seq_length(), max(map(len, prompts))
        pads = torch.tensor([width - len(prompt) for prompt in prompts], device=self.device)[:, None]
        padded = [[0] * (width - len(prompt)) + list(prompt) for prompt in prompts]
        columns = torch.arange(width, device=self.device)
        real = columns >= pads  # (n, width)
        # A padding position sees itself, since a query that sees nothing would come out as NaN.
        itself = columns[:, None] == columns
        mask = (columns[:, None] >= columns) & real[:, None, :] | itself
        mask = torch.cat([mask.new_ones(len(prompts), width, seen), mask], dim=-1)[:, None]
        positions = (columns - pads).clamp(min=0) + seen
        output = self.model(
            input_ids=torch.tensor(padded, device=self.device),
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return cache, output.logits[:, -1]

    def _store(self, cache: DynamicCache, start: int, count: int) -> None:
        """Copy a prefilled slice of rows to its place in the batch's own cache."""
        if self.cache is None:
            self.cache = Cache(layers=[_Room(self, layer.keys, layer.values) for layer in cache.layers])
        for room, layer in zip(self.cache.layers, cache.layers, strict=True):
            room.place(slice(start, start + count), layer.keys[:, :, self.shared :], layer.values[:, :, self.shared :])

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Append one id (rows,) to each row; (rows, vocabulary) logits of the next."""
        end = self.cache.get_seq_length() + 1
        output = self.model(
            input_ids=ids[:, None],
            attention_mask=self.visible[:, None, None, :end],
            position_ids=self.positions,
            past_key_values=self.cache,
            use_cache=True,
            **({"prefix": self.prefix} if self.prefix else {}),
        )
        self.positions = self.positions + 1
        return output.logits[:, -1]

    def drop_finished(self, ids: torch.Tensor) -> torch.Tensor:
        """Let finished rows go; returns the ids (rows,) of those that stay, in their new order.

        Rows from the end move into the gaps, so only as many rows are copied as have finished.
        """
        stay = [i for i, row in enumerate(self.rows) if not row.finished]
        if len(stay) == len(self.rows):
            return ids
        gaps = [i for i in range(len(stay)) if self.rows[i].finished]
        movers = [i for i in stay if i >= len(stay)]
        order = list(range(len(stay)))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
        self.rows = [self.rows[i] for i in order]
        index = torch.tensor(order, dtype=torch.long, device=self.device)
        self.visible, self.positions = self.visible[index], self.positions[index]
        for room in self.cache.layers:
            room.keep(gaps, movers, len(stay))
        return ids[index]


class _Room(DynamicLayer):
    """One layer's keys and values, in room allocated once: appending copies one position, not all of them."""

    def __init__(self, batch: _Batch, keys: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.rows, self.length = len(batch.rows), batch.width
        # Zeros, because padding is multiplied by an attention weight of 0, and 0 times rubbish can be NaN.
        self.room = [
            like.new_zeros(self.rows, like.shape[1], batch.width + batch.max_tokens, like.shape[3])
            for like in (keys, values)
        ]
        self._look()

    def _look(self) -> None:
        self.keys, self.values = (room[: self.rows, :, : self.length] for room in self.room)

    def place(self, rows: slice, keys: torch.Tensor, values: torch.Tensor) -> None:
        """Put prefilled rows (n, heads, at most width, d) in their places, to the right."""
        for room, new in zip(self.room, (keys, values), strict=True):
            room[rows, :, self.length - new.shape[2] : self.length] = new

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Append the new positions; all keys and values so far (transformers' cache interface)."""
        end = self.length + key_states.shape[2]
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            room[: self.rows, :, self.length : end] = new
        self.length = end
        self._look()
        return self.keys, self.values

    def keep(self, gaps: list[int], movers: list[int], rows: int) -> None:
        """Shrink to `rows` rows, after row `movers[i]` has taken the place of row `gaps[i]`."""
        for room in self.room:
            for gap, mover in zip(gaps, movers, strict=True):
                room[gap, :, : self.length] = room[mover, :, : self.length]
        self.rows = rows
        self._look()


class _StopStrings:
    """Tells whether the newest id completes a stop string, however many tokens the string is made of."""

    def __init__(self, tokenizer, stop: tuple[str, ...]):
        self.tokenizer, self.stop = tokenizer, stop
        self.width = max(
            map(len, stop), default=0
        )  # every token of a stop string carries at least one of its characters
        pieces = tokenizer.batch_decode(
            [[i] for i in range(len(tokenizer))], clean_up_tokenization_spaces=False
        )
        # Only these ids can complete a stop string; for all others the text need not be looked at.
        self.candidates = {i for i, piece in enumerate(pieces) if any(string[-1] in piece for string in stop)}

    def complete(self, ids: list[int]) -> bool:
        if ids[-1] not in self.candidates:
            return False
        tail = _decode(self.tokenizer, ids[-self.width :])
        return any(string in tail for string in self.stop)


def _sample(
    logits: torch.Tensor, keys: Sequence[Key], position: int, temperature: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """One id per row of (n, vocabulary) logits, and its log-probability (float64), both (n,).

    Inverse CDF in float64, so that the choice depends on the batch's float32 noise as rarely as can be. Few passes over the
    vocabulary, since with a large one they cost as much as a tenth of the model.
    """
    logits = logits.double()
    if temperature not in (0, 1):
        logits = logits / temperature
    highest = logits.amax(-1, keepdim=True)
    weights = (logits - highest).exp_()
    if temperature > 0:
        cdf = weights.cumsum_(-1)
        draws = torch.tensor(
            [uniform(key, position, "token") for key in keys], dtype=cdf.dtype, device=cdf.device
        )
        # right=True: the first id whose CDF exceeds the draw, so an id of probability 0 is never chosen.
        ids = torch.searchsorted(cdf, draws[:, None] * cdf[:, -1:], right=True).clamp(max=cdf.shape[-1] - 1)
        total = cdf[:, -1:]
    else:
        ids = logits.argmax(-1, keepdim=True)
        total = weights.sum(-1, keepdim=True)
    return ids[:, 0], (logits.gather(-1, ids) - highest - total.log())[:, 0]


def _shared_prefix(prompts: list[tuple[int, ...]]) -> int:
    """Length of the prefix that all prompts share, an id of each at least left over; 0 if not worth it."""
    if len(prompts) == 1:
        return 0
    shared = min(len(os.path.commonprefix(prompts)), min(map(len, prompts)) - 1)
    return shared if shared >= MIN_SHARED_PREFIX else 0


def _expanded(prefix: DynamicCache | None, count: int) -> DynamicCache:
    """A cache that starts with the same prefix in `count` rows; the prefix itself is not touched."""
    cache = DynamicCache()
    for i, layer in enumerate(prefix.layers if prefix else ()):
        cache.update(layer.keys.expand(count, -1, -1, -1), layer.values.expand(count, -1, -1, -1), i)
    return cache


def _decode(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
