"""Rows on their way through a model: what they begin with is read, then one id after the other, and keys and values are kept.

What is alike is read once: what all prompts begin with (and kept once, `prefix`), what several begin with, and what an earlier
call has read (`past`).
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter

import torch
from transformers import Cache, DynamicCache
from transformers.cache_utils import DynamicLayer

from zs_lib.draws import Key
from zs_lib.past import Ids, Past
from zs_lib.prefix import KeyValues, can_share

MIN_SHARED_PREFIX = 16
"""Shorter common prefixes are not worth a forward pass of their own."""
PREFILL_TOKENS = {"cpu": 1536, "cuda": 32768}
"""Tokens of one prefill pass: on a CPU its activations should stay in the cache (30% faster at width 256)."""


@dataclass
class Row:
    """One prompt on its way to a completion."""

    prompt: Ids
    key: Key
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    stop_reason: str | None = None


class Batch:
    """The unfinished rows, their keys and values, and which of them each row may look at.

    Columns: left padding | own part of the prompt | new tokens. So new tokens of all rows stand at the same place, and appending
    is one slice assignment per layer. What all prompts begin with is not among them: `past.prefix` (`prefix.sharing`).
    """

    def __init__(self, model, rows: list[Row], max_tokens: int, past: Past, remember: bool):
        self.model, self.past, self.remember, self.device = model, past, remember, model.device
        found = [past.find(row.prompt) for row in rows]
        unread = [row.prompt[len(past.shared) + count :] for row, (count, _) in zip(rows, found, strict=True)]
        order = sorted(
            range(len(rows)), key=lambda i: len(unread[i])
        )  # for prefill, where padding costs most
        self.rows, self.unread = [rows[i] for i in order], [unread[i] for i in order]
        self.end = max(map(self._own, rows))  # the column after what has been read
        lengths = torch.tensor([len(row.prompt) for row in self.rows], device=self.device)
        self.positions = torch.arange(self.end + max_tokens, device=self.device) + lengths[:, None] - self.end
        """(rows, columns): where in its text stands what is there."""
        self.visible = self.positions >= len(past.shared)
        known = [(self.end - len(unread[i]) - found[i][0], *found[i]) for i in order]
        layers = range(model.config.get_text_config(decoder=True).num_hidden_layers)
        self.cache = Cache(layers=[_Room(layer, self.end + max_tokens, known) for layer in layers])

    def _own(self, row: Row) -> int:
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
        seen, new = (
            slice(self.end - max(map(self._own, self.rows[rows])), self.end),
            slice(self.end - longest, self.end),
        )
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
        return self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **options,
        ).logits[:, -1]

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
        self.past.keep(
            text,
            [(keys[i, :, own], values[i, :, own]) for keys, values in (room.room for room in self.rooms)],
        )

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
            like.new_empty(len(self.known), like.shape[1], self.columns, like.shape[3])
            for like in (key_states, value_states)
        ]
        for room in (
            self.room
        ):  # because padding is multiplied by an attention weight of 0, and 0 times rubbish can be NaN
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
            seen = [
                torch.cat([first.expand(len(own), -1, -1, -1), own], 2)
                for first, own in zip(prefix, seen, strict=True)
            ]
        return seen

    def copy(self, source: int, target: int, end: int) -> None:
        for room in self.room:
            room[target, :, :end] = room[source, :, :end]


def read_alike(model, prompts: list[Ids], past: Past) -> None:
    """Have `past` begin with what all prompts begin with, know what several begin with, and forget what is of no use to them."""
    if past.fits(prompts):
        past.forget_others(prompts)
    else:
        shared = _shared_prefix(prompts) if can_share(model) else ()
        cache = DynamicCache()
        if shared:
            model(
                input_ids=torch.tensor([shared], device=model.device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        past.restart(shared, [(layer.keys[0], layer.values[0]) for layer in cache.layers])
    for _, level in groupby(sorted(_beginnings(prompts, len(past.shared))), key=itemgetter(0)):
        texts = [
            text
            for _, text in level
            if len(text) - len(past.shared) - past.find(text)[0] >= MIN_SHARED_PREFIX
        ]
        if texts:
            batch = Batch(model, [Row(text, ()) for text in texts], 0, past, True)
            batch.prefill()
            for i in range(len(texts)):
                batch.keep(i)


def _beginnings(prompts: list[Ids], length: int, depth: int = 0) -> Iterator[tuple[int, Ids]]:
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


def _shared_prefix(prompts: list[Ids]) -> Ids:
    """The prefix that all prompts share, an id of each at least left over; nothing if not worth it."""
    shared = os.path.commonprefix([prompt[:-1] for prompt in prompts])
    return shared if len(prompts) > 1 and len(shared) >= MIN_SHARED_PREFIX else ()
