"""Keys and values of texts that a model has read, so that one which goes on from there is not read again from its beginning."""

from __future__ import annotations

from bisect import bisect, insort
from collections.abc import Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from zs_lib.prefix import KeyValues

MOST_BYTES = 2 * 2**30
"""Of keys and values; a further rollout of tiny-S needs 0.4 MB in all (BENCHMARKS.md). What finds no room is read again."""

Ids = tuple[int, ...]


@dataclass
class Past:
    """What calls of `Generator.generate` know of each other's texts; of one model, as long as its weights stay.

    All texts begin with `shared`, whose keys and values, `prefix`, are kept once (None: no call has said yet). Of each
    text its own part is kept, up to `capacity` bytes in all.
    """

    capacity: int = MOST_BYTES
    shared: Ids | None = None
    prefix: KeyValues = ()
    size: int = 0
    _texts: list[Ids] = field(
        default_factory=list
    )  # sorted: who has most in common with a text stands beside its place
    _own: dict[Ids, KeyValues] = field(default_factory=dict)

    def fits(self, texts: Sequence[Ids]) -> bool:
        """Whether all texts begin with `shared`, and go on."""
        shared = self.shared
        return shared is not None and all(
            len(text) > len(shared) and text[: len(shared)] == shared for text in texts
        )

    def restart(self, shared: Ids, prefix: KeyValues) -> None:
        """Forget everything, and begin with this."""
        self.shared, self.prefix, self.size = shared, prefix, 0
        self._texts, self._own = [], {}

    def forget_others(self, texts: Sequence[Ids]) -> None:
        """Forget what none of these texts begins with: a rollout that has answered does not go on."""
        for other in set(self._texts) - {self._nearest(text)[1] for text in texts}:
            self._drop(other)

    def find(self, text: Ids) -> tuple[int, KeyValues]:
        """How many ids of a text's own part are known, the last id never; their keys and values (and perhaps more)."""
        common, other = self._nearest(text)
        return (common - len(self.shared), self._own[other]) if common > len(self.shared) else (0, ())

    def keep(self, text: Ids, own: KeyValues) -> None:
        """Copy the keys and values of a text's own part, instead of those of a text that it continues; nothing if it is full."""
        place = bisect(self._texts, text)
        if place and text[: len(self._texts[place - 1])] == self._texts[place - 1]:
            self._drop(self._texts[place - 1])
        if self.size + _bytes(own) <= self.capacity:
            insort(self._texts, text)
            self._own[text] = [(keys.clone(), values.clone()) for keys, values in own]
            self.size += _bytes(own)

    def _nearest(self, text: Ids) -> tuple[int, Ids]:
        """The kept text that has most ids in common with this one, from the first to the last but one; and how many."""
        place = bisect(self._texts, text)
        beside = self._texts[max(place - 1, 0) : place + 1]
        return max(((len(commonprefix([text[:-1], other])), other) for other in beside), default=(0, ()))

    def _drop(self, text: Ids) -> None:
        del self._texts[bisect(self._texts, text) - 1]
        self.size -= _bytes(self._own.pop(text))


def _bytes(key_values: KeyValues) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in key_values)
