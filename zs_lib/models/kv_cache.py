"""KV cache reused across turns: only the new suffix of a text is prefilled."""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import commonprefix

from torch import Tensor

CAPACITY_BYTES = 2 * 2**30
"""Most bytes of a cache; each rollout of tiny-S needs 0.4 MB. What does not fit is prefilled again."""

Ids = tuple[int, ...]
KeyValues = Sequence[tuple[Tensor, Tensor]]
"""Keys and values of each layer, both (key-value heads, length, head width)."""


@dataclass
class KVCache:
    """Keys and values of texts that one model has read, valid while its weights stay the same.

    All texts begin with `shared`, whose keys and values (`prefix`) are stored once; None before the first
    call. Of each text the part after it is stored, up to `capacity` bytes in all (`size` are in use).
    """

    capacity: int = CAPACITY_BYTES
    shared: Ids | None = None
    prefix: KeyValues = ()
    size: int = 0
    awaited: Sequence[Ids] = ()
    """Texts that are not in the next call, and go on in a later one."""
    _texts: list[Ids] = field(default_factory=list)  # sorted: the longest common prefix is a neighbour's
    _own: dict[Ids, KeyValues] = field(default_factory=dict)

    def fits(self, texts: Sequence[Ids]) -> bool:
        """Tell whether all texts begin with `shared` and go on after it."""
        shared = self.shared
        return shared is not None and all(
            len(text) > len(shared) and text[: len(shared)] == shared for text in texts
        )

    def reset(self, shared: Ids, prefix: KeyValues) -> None:
        """Empty the cache and begin with this shared prefix."""
        self.shared, self.prefix, self.size = shared, prefix, 0
        self._texts, self._own = [], {}

    def evict_others(self, texts: Sequence[Ids]) -> None:
        """Evict entries that none of these texts or of `awaited` continues: rollouts that have ended."""
        for other in set(self._texts) - {self._nearest(text)[1] for text in (*texts, *self.awaited)}:
            self._evict(other)

    def find(self, text: Ids) -> tuple[int, KeyValues]:
        """Count the cached ids after `shared` (never the text's last id); also their keys and values.

        The tensors may be longer than that number.
        """
        common, other = self._nearest(text)
        return (common - len(self.shared), self._own[other]) if common > len(self.shared) else (0, ())

    def put(self, text: Ids, own: KeyValues) -> None:
        """Store a copy of a text's keys and values, replacing the entry it continues; dropped if full."""
        place = bisect(self._texts, text)
        if place and text[: len(self._texts[place - 1])] == self._texts[place - 1]:
            self._evict(self._texts[place - 1])
        if self.size + _bytes(own) <= self.capacity:
            insort(self._texts, text)
            self._own[text] = [(keys.clone(), values.clone()) for keys, values in own]
            self.size += _bytes(own)

    def _nearest(self, text: Ids) -> tuple[int, Ids]:
        """(common, entry): the entry with the longest prefix in common with the text without its last id."""
        place = bisect(self._texts, text)
        beside = self._texts[max(place - 1, 0) : place + 1]
        return max(((len(commonprefix([text[:-1], other])), other) for other in beside), default=(0, ()))

    def _evict(self, text: Ids) -> None:
        del self._texts[bisect(self._texts, text) - 1]
        self.size -= _bytes(self._own.pop(text))


def _bytes(key_values: KeyValues) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in key_values)
