"""Batched prefill and decoding of rows with a preallocated KV cache.

Common beginnings are prefilled once: what all prompts share (its keys and values are stored once, see
`kv_cache`), what several prompts share, and what an earlier call has left in the `KVCache`.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import torch
from torch import Tensor
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from zs_lib.models.attention import PADDING, can_share, forward_at
from zs_lib.models.kv_cache import Ids, KeyValues, KVCache
from zs_lib.rng import Key

MIN_SHARED_PREFIX = 16
"""Shorter common prefixes are not worth a forward pass of their own."""
PREFILL_TOKENS = {"cpu": 1536, "cuda": 32768}
"""Tokens of one prefill pass: on a CPU its activations should stay in cache (30% faster at width 256)."""
ROOM = 16
"""Columns by which slots grow: a CPU reads whole slots up to 2.5 times as fast as a part of each."""


@dataclass
class Row:
    """One prompt and the completion that grows after it."""

    prompt: Ids
    key: Key
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: str | None = None


class Batch:
    """The unfinished rows, their keys and values, and the positions at which these stand in their texts.

    Columns: left padding | the prompt after the shared prefix | new tokens. New tokens of all rows stand in
    the same column, so appending is one slice assignment a layer. The prefix that all prompts share is not
    among the columns: it is in `kv_cache.prefix`.
    """

    def __init__(self, model, rows: list[Row], max_tokens: int, kv_cache: KVCache, keep_finished: bool):
        """`keep_finished`: rows that leave the batch store their keys and values in `kv_cache`."""
        self.model, self.device = model, model.device
        self.max_tokens, self.kv_cache, self.keep_finished = max_tokens, kv_cache, keep_finished
        self.shared, found = len(kv_cache.shared), [kv_cache.find(row.prompt) for row in rows]
        unread = [row.prompt[self.shared + count :] for row, (count, _) in zip(rows, found, strict=True)]
        order = sorted(range(len(rows)), key=lambda i: len(unread[i]))  # padding costs most in prefill
        self.rows, self.unread = [rows[i] for i in order], [unread[i] for i in order]
        lengths = torch.tensor([len(row.prompt) for row in self.rows], device=self.device)
        self.end = max(len(row.prompt) for row in rows) - self.shared  # the column after the last one read
        self.columns = self.end + min(ROOM, max_tokens)  # of the slots; those from `end` on are empty
        self.positions = torch.arange(self.end + max_tokens, device=self.device) + lengths[:, None] - self.end
        """(rows, columns): the position in its text of what stands in a column."""
        self.keys = self.positions.masked_fill(self.positions < self.shared, PADDING)
        """(rows, columns): the same, and PADDING where there is no key to attend to."""
        hidden = torch.nn.functional.pad(self.keys == PADDING, (self.shared, 0))
        hidden[:, self.shared + self.end :] = True
        self.mask = torch.zeros_like(hidden, dtype=model.dtype).masked_fill_(hidden, -torch.inf)
        """(rows, shared prefix and columns): added to a step's scores if the model is plainly causal."""
        self.causal = False
        cached = [(self.end - len(unread[i]) - found[i][0], *found[i]) for i in order]
        layers = range(model.config.get_text_config(decoder=True).num_hidden_layers)
        self.cache = Cache(layers=[_LayerCache(layer, self.columns, cached) for layer in layers])

    def decode(self, extend: Callable[[list[Row], Tensor, int], Tensor]) -> None:
        """Decode until every row has a stop reason. Finished rows leave the batch: each costs time.

        `extend(rows, logits, position)` appends an id to each row; (rows, vocabulary) logits to (rows,) ids.
        """
        logits = self.prefill()
        for position in range(self.max_tokens):
            ids = self.drop_finished(extend(self.rows, logits, position))
            if not self.rows:
                return
            logits = self.step(ids)

    def prefill(self) -> Tensor:
        """Read what is not cached of each prompt; (rows, vocabulary) logits of the first new token."""
        logits, start = [], 0
        budget = PREFILL_TOKENS.get(self.device.type, PREFILL_TOKENS["cuda"])
        while start < len(self.unread):
            count = max(1, min(len(self.unread) - start, budget // len(self.unread[start])))
            count = max(1, min(count, budget // len(self.unread[start + count - 1])))
            logits.append(self._prefill_rows(slice(start, start + count)))
            start += count
        return torch.cat(logits)

    def _prefill_rows(self, rows: slice) -> Tensor:
        """Read the uncached ends of these rows' prompts, padded on the left; logits of the last ids."""
        unread, texts = self.unread[rows], [row.prompt for row in self.rows[rows]]
        longest = max(map(len, unread))
        seen = slice(self.end + self.shared - max(map(len, texts)), self.end)
        new = slice(self.end - longest, self.end)
        ids = torch.tensor([[0] * (longest - len(ids)) + list(ids) for ids in unread], device=self.device)
        lengths = torch.tensor([len(ids) for ids in unread], device=self.device)
        real = torch.arange(longest, device=self.device) >= longest - lengths[:, None]
        return self._forward(ids, _Window(rows, seen, new, real[:, None, :, None], self.kv_cache.prefix))

    def step(self, ids: Tensor) -> Tensor:
        """Append one id (rows,) to each row; (rows, vocabulary) logits of the next."""
        if self.end == self.columns:
            self.columns = min(self.columns + ROOM, self.positions.shape[1])
            for layer in self._used_layers:
                layer.grow(len(self.rows), self.columns)
        window = _Window(slice(0, len(self.rows)), slice(0, self.columns), slice(self.end, self.end + 1))
        self.mask[:, self.shared + self.end] = 0
        self.end += 1
        prefix = {"prefix": self.kv_cache.prefix} if self.shared else {}
        return self._forward(ids[:, None], window, **prefix)

    def _forward(self, ids: Tensor, window: _Window, **options) -> Tensor:
        """(n, vocabulary) logits of the last of ids (n, new), written to and attending within a window."""
        for layer in self.cache.layers:
            layer.window = window
        inputs = {"input_ids": ids, "past_key_values": self.cache, "use_cache": True, "logits_to_keep": 1}
        new = self.positions[window.rows, window.new].clamp(min=0)
        if self.causal and window.real is None:  # asking for masks at every step costs small models 2%
            mask = self.mask[:, None, None, : self.shared + self.columns]
            return self.model(position_ids=new, attention_mask=mask, **inputs, **options).logits[:, -1]
        own = self.keys[window.rows, window.seen]
        keys = torch.cat([torch.arange(self.shared, device=self.device).expand(len(own), -1), own], 1)
        logits, self.causal = forward_at(self.model, new, keys, **inputs, **options)
        return logits[:, -1]

    def drop_finished(self, ids: Tensor) -> Tensor:
        """Remove finished rows; the ids (rows,) of those that stay, in their new order.

        Rows from the end move into the gaps, so only as many rows are copied as have finished.
        """
        stay = [i for i, row in enumerate(self.rows) if not row.stop_reason]
        if len(stay) == len(self.rows):
            return ids
        for i, row in enumerate(self.rows):
            if row.stop_reason and self.keep_finished:
                self.store(i)
        movers = iter([i for i in stay if i >= len(stay)])
        order = [next(movers) if row.stop_reason else i for i, row in enumerate(self.rows[: len(stay)])]
        for slots in (slots for layer in self._used_layers for slots in layer.slots):
            for gap, mover in enumerate(order):
                if gap != mover:
                    slots[gap, :, : self.end] = slots[mover, :, : self.end]
        self.rows = [self.rows[i] for i in order]
        index = torch.tensor(order, dtype=torch.long, device=self.device)
        self.keys, self.positions, self.mask = self.keys[index], self.positions[index], self.mask[index]
        return ids[index]

    def store(self, i: int) -> None:
        """Store the keys and values of row i in the `KVCache`."""
        text = (*self.rows[i].prompt, *self.rows[i].ids[:-1])  # the newest id has not been read
        own = slice(self.end - len(text) + self.shared, self.end)
        slots = [layer.slots for layer in self._used_layers]
        self.kv_cache.put(text, [(keys[i, :, own], values[i, :, own]) for keys, values in slots])

    @property
    def _used_layers(self) -> list[_LayerCache]:
        """Layers that store anything: the last layers of some models read another layer's cache."""
        return [layer for layer in self.cache.layers if layer.is_initialized]


@dataclass(frozen=True)
class _Window:
    """The part of the slots that one forward pass reads and writes."""

    rows: slice
    seen: slice
    """The columns it attends to."""
    new: slice
    """Those of them that it writes; what comes later is empty."""
    real: Tensor | None = None
    """(rows, 1, new, 1) bool: False on padding, which is not written (it attends to nothing: maybe NaN)."""
    prefix: KeyValues = ()
    """Stands before the columns; none in a decoding step, whose attention takes the prefix itself."""


class _LayerCache(DynamicLayer):
    """One layer's keys and values in slots with room: appending copies one position, not all of them."""

    def __init__(self, layer: int, columns: int, cached: list[tuple[int, int, KeyValues]]):
        """`cached`: for each row the first column, the length, and the keys and values to begin with."""
        super().__init__()
        self.layer, self.columns, self.cached, self.window = layer, columns, cached, None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate the slots and fill in what is cached of each row (transformers' cache interface)."""
        super().lazy_initialization(key_states, value_states)
        self.slots = []
        for which, like in enumerate((key_states, value_states)):
            # Zeros: what is empty has attention weight 0, and 0 times uninitialised memory can be NaN.
            slots = like.new_zeros(len(self.cached), like.shape[1], self.columns, like.shape[3])
            for i, (start, count, kept) in enumerate(self.cached):
                if count:
                    slots[i, :, start : start + count] = kept[self.layer][which][:, :count]
            self.slots.append(slots)
        self.cached = []  # frees its memory

    def grow(self, rows: int, columns: int) -> None:
        """Copy the slots of the first rows to slots of so many columns."""
        for i, slots in enumerate(self.slots):
            self.slots[i] = torch.nn.functional.pad(slots[:rows], (0, 0, 0, columns - slots.shape[2]))

    def update(self, key_states: Tensor, value_states: Tensor, *args, **kwargs) -> list[Tensor]:
        """Write new keys and values; those of the whole window (transformers' cache interface)."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        at = self.window
        for slots, new in zip(self.slots, (key_states, value_states), strict=True):
            written = slots[at.rows, :, at.new]
            written.copy_(new if at.real is None else torch.where(at.real, new, written))
        seen = [slots[at.rows, :, at.seen] for slots in self.slots]
        if at.prefix:
            prefix = [part.expand(len(seen[0]), -1, -1, -1) for part in at.prefix[self.layer]]
            seen = [torch.cat(parts, 2) for parts in zip(prefix, seen, strict=True)]
        return seen


def prefill_common_prefixes(model, prompts: list[Ids], kv_cache: KVCache) -> None:
    """Prefill what all prompts begin with and what several begin with; evict what no prompt continues."""
    if kv_cache.fits(prompts):
        kv_cache.evict_others(prompts)
    else:
        shared = _shared_prefix(prompts) if can_share(model) else ()
        cache = DynamicCache()
        if shared:
            ids = torch.tensor([shared], device=model.device)
            model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        kv_cache.reset(shared, [(layer.keys[0], layer.values[0]) for layer in cache.layers])
    for _, level in groupby(sorted(_common_prefixes(prompts, len(kv_cache.shared))), key=itemgetter(0)):
        rows = [Row(text, ()) for _, text in level if _unread(text, kv_cache) >= MIN_SHARED_PREFIX]
        if rows:
            batch = Batch(model, rows, 0, kv_cache, True)
            batch.prefill()
            for i in range(len(rows)):
                batch.store(i)


def _unread(text: Ids, kv_cache: KVCache) -> int:
    return len(text) - len(kv_cache.shared) - kv_cache.find(text)[0]


def _common_prefixes(prompts: list[Ids], length: int, depth: int = 0) -> Iterator[tuple[int, Ids]]:
    """(depth, prefix) of every prefix that several prompts share beyond their first `length` ids.

    Nested: prompts that share a prefix may share a longer one in part, which comes at the next depth.
    """
    alike = defaultdict(list)
    for prompt in prompts:
        alike[prompt[: length + MIN_SHARED_PREFIX]].append(prompt)
    for group in alike.values():
        prefix = _shared_prefix(group)
        if len(prefix) >= length + MIN_SHARED_PREFIX:
            yield depth, prefix
            yield from _common_prefixes(group, len(prefix), depth + 1)


def _shared_prefix(prompts: list[Ids]) -> Ids:
    """The prefix that all prompts share, at least one id of each left over; empty where not worth a pass."""
    shared = os.path.commonprefix([prompt[:-1] for prompt in prompts])
    return shared if len(prompts) > 1 and len(shared) >= MIN_SHARED_PREFIX else ()
