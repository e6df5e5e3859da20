"""Random numbers as functions of their keys: a draw depends on (seed, step, prompt, rollout, turn) alone."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Key = tuple[int | str, ...]
"""Identifies a draw: the rollout, question or request it is for."""


def uniform(key: Key, counter: int, purpose: str) -> float:
    """Draw a number in [0, 1) that depends on the arguments only: counter-based, with no state to carry.

    `purpose` keeps draws of different kinds with the same key apart (a token, a noisy document).
    """
    message = f"{purpose}:{','.join(map(str, key))}:{counter}".encode()
    bits = int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "big")
    return (bits >> 11) * 2.0**-53


def draw_keys(draws: str, key: Key, turn: int, query: str) -> tuple[tuple[Key, int], Key]:
    """Make the key and counter of a search's noise, and the key of its documents (`RolloutConfig.draws`).

    `key` is the rollout's, whose last entry tells it from the others of its group.
    """
    if draws == "rollout":
        return (key, turn), (*key, turn, "search")
    group = key[:-1]
    noise = (group, turn) if draws == "group" else ((*group, query), 0)
    return noise, (*group, "search", query)


def seeded(key: Key) -> Random:
    """Make a generator whose draws depend on the key only."""
    return Random(",".join(map(str, key)))


@lru_cache(maxsize=4)
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    """Shuffle range(size) for one epoch of one seed; (size,) int."""
    import numpy as np  # here: help and errors of the command line come without it

    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)
