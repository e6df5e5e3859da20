"""Token-in/token-out generation with a transformers model: reproducible, batched, measured. (By vLLM: `vllm_backend`.)

The decode loop is ours, because it needs what `model.generate` does not give: randomness that is a function
of (key, position) and of nothing else, rows that leave the batch when they are done, and the
log-probabilities of the very ids that were sampled. The model's forward is transformers' own.
"""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from typing import Literal

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from zs_lib.draws import Key, uniform
from zs_lib.errors import ModelError
from zs_lib.past import Past
from zs_lib.prefix import KeyValues, can_share, sharing

MIN_SHARED_PREFIX = 16
"""Shorter common prefixes are not worth a forward pass of their own."""
BLOCK = 128
"""Ids of a vocabulary that are summed up at once (`_sample`)."""
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
        past: Past | None = None,
    ) -> list[Completion]:
        """Continue each prompt (non-empty id list) by up to `max_tokens` ids; completions in that order.

        The token at position t of a prompt with key k is drawn with `uniform(k, t, "token")`, so a completion
        does not depend on the rest of the batch. Temperature 0 is greedy. A completion ends with an EOS, with
        the token that completes one of the `stop` strings, or at `max_tokens`. Puts the model into eval mode.
        What `past` knows from earlier calls is not read again, which changes nothing but rounding.
        Raises ModelError if a prompt is empty or does not fit the model's context together with `max_tokens`.
        """
        self._check(prompts, keys, max_tokens)
        started = time.perf_counter()
        completions = self._write(prompts, keys, max_tokens, temperature, stop, past)
        self.tokens += sum(len(completion.ids) for completion in completions)
        self.seconds += time.perf_counter() - started
        return completions

    def sync(self) -> None:
        """To be called when the model's weights have changed; nothing to do here, where it is the model that writes."""

    @torch.inference_mode()
    def _write(self, prompts, keys, max_tokens: int, temperature: float, stop: tuple[str, ...], past: Past | None = None) -> list[Completion]:
        self.model.eval()
        if stop not in self._stops:
            self._stops[stop] = _StopStrings(self.tokenizer, stop)
        rows = [_Row(tuple(prompt), key) for prompt, key in zip(prompts, keys, strict=True)]
        remember, past = past is not None, Past() if past is None else past
        _share(self.model, [row.prompt for row in rows], past)
        by_length = sorted(rows, key=lambda row: len(row.prompt))  # similar lengths together: little padding
        for start in range(0, len(rows), self.max_batch):
            batch = _Batch(self.model, by_length[start : start + self.max_batch], max_tokens, past, remember)
            self._complete(batch, max_tokens, temperature, self._stops[stop])
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

    def _complete(self, batch: _Batch, max_tokens: int, temperature: float, stops: _StopStrings) -> None:
        """Sample until every row is done. Those leave the batch: a step's cost grows with its rows."""
        logits = batch.prefill()
        with sharing(self.model) if batch.past.shared else nullcontext():
            for position in range(max_tokens):
                ids, logprobs = _sample(logits, [row.key for row in batch.rows], position, temperature)
                for row, token, logprob in zip(batch.rows, ids.tolist(), logprobs.tolist(), strict=True):
                    row.ids.append(token)
                    row.logprobs.append(logprob)
                    if token in self._eos:
                        row.stop_reason = "eos"
                    elif stops.complete(row.ids):
                        row.stop_reason = "stop"
                    elif position == max_tokens - 1:
                        row.stop_reason = "length"
                ids = batch.drop_finished(ids)
                if not batch.rows:
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
    stop_reason: str | None = None


class _Batch:
    """The unfinished rows, their keys and values, and which of them each row may look at.

    Columns: left padding | own part of the prompt | new tokens. So new tokens of all rows stand at the same place, and appending
    is one slice assignment per layer. What all prompts begin with is not among them: `past.prefix` (`prefix.sharing`).
    """

    def __init__(self, model, rows: list[_Row], max_tokens: int, past: Past, remember: bool):
        self.model, self.past, self.remember, self.device = model, past, remember, model.device
        found = [past.find(row.prompt) for row in rows]
        unread = [row.prompt[len(past.shared) + count :] for row, (count, _) in zip(rows, found, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(unread[i]))  # for prefill, where padding costs most
        self.rows, self.unread = [rows[i] for i in order], [unread[i] for i in order]
        self.end = max(map(self._own, rows))  # the column after what has been read
        lengths = torch.tensor([len(row.prompt) for row in self.rows], device=self.device)
        self.positions = torch.arange(self.end + max_tokens, device=self.device) + lengths[:, None] - self.end
        """(rows, columns): where in its text stands what is there."""
        self.visible = self.positions >= len(past.shared)
        known = [(self.end - len(unread[i]) - found[i][0], *found[i]) for i in order]
        layers = range(model.config.get_text_config(decoder=True).num_hidden_layers)
        self.cache = Cache(layers=[_Room(layer, self.end + max_tokens, known) for layer in layers])

    def _own(self, row: _Row) -> int:
        """Ids of the prompt that are its own."""
        return len(row.prompt) - len(self.past.shared)

    def prefill(self) -> torch.Tensor:
        """Read what is not known of the prompts; (rows, vocabulary) logits of the first new token."""
        logits, start = [], 0
        budget = PREFILL_TOKENS.get(self.device.type, PREFILL_TOKENS["cuda"])
        while start < len(self.unread):
            count = max(1, min(len(self.unread) - start, budget // len(self.unread[start])))
            count = max(1, min(count, budget // len(self.unread[start + count - 1])))
            logits.append(self._read(slice(start, start + count)))
            start += count
        return torch.cat(logits)

    def _read(self, rows: slice) -> torch.Tensor:
        """Read the ends of the prompts of these rows, padded on the left; logits of the last ids."""
        unread = self.unread[rows]
        longest = max(map(len, unread))
        seen, new = slice(self.end - max(map(self._own, self.rows[rows])), self.end), slice(self.end - longest, self.end)
        columns = torch.arange(self.end, device=self.device)
        mask = (columns[new, None] >= columns[seen]) & self.visible[rows, None, seen]
        mask = torch.cat([mask.new_ones(*mask.shape[:2], len(self.past.shared)), mask], dim=-1)[:, None]
        ids = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in unread], device=self.device)
        lengths = torch.tensor([len(ids) for ids in unread], device=self.device)
        real = columns[new] >= self.end - lengths[:, None]
        return self._forward(ids, mask, _Window(rows, seen, new, real[:, None, :, None], self.past.prefix))

    def step(self, ids: torch.Tensor) -> torch.Tensor:
        """Append one id (rows,) to each row; (rows, vocabulary) logits of the next."""
        window = _Window(slice(0, len(self.rows)), slice(0, self.end + 1), slice(self.end, self.end + 1))
        self.end += 1
        prefix = {"prefix": self.past.prefix} if self.past.shared else {}
        return self._forward(ids[:, None], self.visible[:, None, None, window.seen], window, **prefix)

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, window: _Window, **options) -> torch.Tensor:
        """Logits (n, vocabulary) of the last of ids (n, new), whose keys and values go to, and are looked up in, a window."""
        for room in self.cache.layers:
            room.window = window
        positions = self.positions[window.rows, window.new].clamp(min=0)
        return self.model(input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True,
                          logits_to_keep=1, **options).logits[:, -1]  # fmt: skip

    def drop_finished(self, ids: torch.Tensor) -> torch.Tensor:
        """Let finished rows go, into `past`; returns the ids (rows,) of those that stay, in their new order.

        Rows from the end move into the gaps, so only as many rows are copied as have finished.
        """
        stay = [i for i, row in enumerate(self.rows) if not row.stop_reason]
        if len(stay) == len(self.rows):
            return ids
        for i, row in enumerate(self.rows):
            if row.stop_reason and self.remember:
                self.keep(i)
        gaps = [i for i in range(len(stay)) if self.rows[i].stop_reason]
        movers = [i for i in stay if i >= len(stay)]
        order = list(range(len(stay)))
        for gap, mover in zip(gaps, movers, strict=True):
            order[gap] = mover
            for room in self.rooms:
                room.copy(mover, gap, self.end)
        self.rows = [self.rows[i] for i in order]
        index = torch.tensor(order, dtype=torch.long, device=self.device)
        self.visible, self.positions = self.visible[index], self.positions[index]
        return ids[index]

    def keep(self, i: int) -> None:
        """Let `past` know what has been read of row i."""
        text = (*self.rows[i].prompt, *self.rows[i].ids[:-1])  # the newest id has not been read
        own = slice(self.end - len(text) + len(self.past.shared), self.end)
        self.past.keep(text, [(keys[i, :, own], values[i, :, own]) for keys, values in (room.room for room in self.rooms)])

    @property
    def rooms(self) -> list[_Room]:
        """Those in use: some models' last layers look into another's."""
        return [room for room in self.cache.layers if room.is_initialized]


@dataclass(frozen=True)
class _Window:
    """What of the rooms a forward pass is about: rows, the columns that it looks at, and the last of these, to which it adds.

    `real`, (rows, 1, new, 1) bool: what is not padding, which is not put into the room (it may be NaN, since it may see nothing).
    `prefix` stands before the columns; a step has none, because there `sharing` reads it.
    """

    rows: slice
    seen: slice
    new: slice
    real: torch.Tensor | None = None
    prefix: KeyValues = ()


class _Room(DynamicLayer):
    """One layer's keys and values, in room allocated once: appending copies one position, not all of them."""

    def __init__(self, layer: int, columns: int, known: list[tuple[int, int, KeyValues]]):
        """`known`: for each row the first column, the number and the keys and values of what need not be read."""
        super().__init__()
        self.layer, self.columns, self.known, self.window = layer, columns, known, None

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Make the room, and put in its place what is known of each row (transformers' cache interface)."""
        super().lazy_initialization(key_states, value_states)
        self.room = [
            like.new_empty(len(self.known), like.shape[1], self.columns, like.shape[3]) for like in (key_states, value_states)
        ]
        for room in self.room:  # because padding is multiplied by an attention weight of 0, and 0 times rubbish can be NaN
            room[:, :, : self.window.seen.stop] = 0
        for i, (start, count, kept) in enumerate(self.known):
            if count:
                for room, own in zip(self.room, kept[self.layer], strict=True):
                    room[i, :, start : start + count] = own[:, :count]
        self.known = []  # so that its memory is free

    def update(self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs):
        """Put new keys and values into the window; all of it (transformers' cache interface)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        at = self.window
        for room, new in zip(self.room, (key_states, value_states), strict=True):
            place = room[at.rows, :, at.new]
            place.copy_(new if at.real is None else torch.where(at.real, new, place))
        seen = [room[at.rows, :, at.seen] for room in self.room]
        if at.prefix:
            prefix = at.prefix[self.layer]
            seen = [torch.cat([first.expand(len(own), -1, -1, -1), own], 2) for first, own in zip(prefix, seen, strict=True)]
        return seen

    def copy(self, source: int, target: int, end: int) -> None:
        for room in self.room:
            room[target, :, :end] = room[source, :, :end]


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

    Inverse CDF: of blocks of the vocabulary first, then within the block, so that no sum in float64 runs over all of it. With a
    large vocabulary such passes cost as much as a tenth of the model.
    """
    logits = logits.float()
    (rows, size), highest = logits.shape, logits.amax(-1, keepdim=True)
    blocks = torch.empty(rows, -(-size // BLOCK), BLOCK, device=logits.device)
    flat = blocks.view(rows, -1)
    flat[:, size:] = -torch.inf
    torch.sub(logits, highest, out=flat[:, :size])
    sums = flat.div_(temperature or 1).exp_().view_as(blocks).sum(-1)
    if temperature > 0:
        draws = torch.tensor([[uniform(key, position, "token")] for key in keys], dtype=torch.float64, device=logits.device)
        block, rest = _pick(sums, draws)
        within, _ = _pick(blocks.take_along_dim(block[..., None], 1)[:, 0], rest)
        ids = (block * BLOCK + within).clamp(max=size - 1)
    else:
        ids = logits.argmax(-1, keepdim=True)
    total = sums.sum(-1, keepdim=True, dtype=torch.float64)
    return ids[:, 0], ((logits.gather(-1, ids) - highest).double() / (temperature or 1) - total.log())[:, 0]


def _pick(weights: torch.Tensor, draws: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Index in proportion to weights (n, k) by draws (n, 1) from [0, 1), and where within its share the draw lies, which is one, too."""
    cdf = weights.cumsum(-1, dtype=torch.float64)
    target = draws * cdf[:, -1:]
    # right=True: the first whose CDF exceeds the draw, so one of weight 0 is never chosen.
    index = torch.searchsorted(cdf, target, right=True).clamp(max=weights.shape[-1] - 1)
    rest = 1 - (cdf.gather(-1, index) - target) / weights.gather(-1, index)
    return index, rest.clamp(min=0)


def _share(model, prompts: list[tuple[int, ...]], past: Past) -> None:
    """Have `past` begin with what all prompts begin with, know what several begin with, and forget what is of no use to them."""
    if past.fits(prompts):
        past.forget_others(prompts)
    else:
        shared = _shared_prefix(prompts) if can_share(model) else ()
        cache = DynamicCache()
        if shared:
            model(input_ids=torch.tensor([shared], device=model.device), past_key_values=cache, use_cache=True, logits_to_keep=1)
        past.restart(shared, [(layer.keys[0], layer.values[0]) for layer in cache.layers])
    for _, level in groupby(sorted(_beginnings(prompts, len(past.shared))), key=itemgetter(0)):
        texts = [text for _, text in level if len(text) - len(past.shared) - past.find(text)[0] >= MIN_SHARED_PREFIX]
        if texts:
            batch = _Batch(model, [_Row(text, ()) for text in texts], 0, past, True)
            batch.prefill()
            for i in range(len(texts)):
                batch.keep(i)


def _beginnings(prompts: list[tuple[int, ...]], length: int, depth: int = 0) -> Iterator[tuple[int, tuple[int, ...]]]:
    """Of prompts that are alike in their first `length` ids: what several of them begin with beyond these, and what several of
    those begin with beyond that, and so on; each with its depth."""
    alike = defaultdict(list)
    for prompt in prompts:
        alike[prompt[: length + MIN_SHARED_PREFIX]].append(prompt)
    for group in alike.values():
        beginning = _shared_prefix(group)
        if len(beginning) >= length + MIN_SHARED_PREFIX:
            yield depth, beginning
            yield from _beginnings(group, len(beginning), depth + 1)


def _shared_prefix(prompts: list[tuple[int, ...]]) -> tuple[int, ...]:
    """The prefix that all prompts share, an id of each at least left over; nothing if not worth it."""
    shared = os.path.commonprefix([prompt[:-1] for prompt in prompts])
    return shared if len(prompts) > 1 and len(shared) >= MIN_SHARED_PREFIX else ()


def _decode(tokenizer, ids: Sequence[int]) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
