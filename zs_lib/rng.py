"""Randomness that is a function of what is drawn for, and of nothing else."""

from __future__ import annotations

import hashlib
from functools import lru_cache

import numpy as np

Key = tuple[int | str, ...]
"""What a draw is for: a rollout, a question, a request."""


def uniform(key: Key, counter: int, purpose: str) -> float:
    """A number in [0, 1) that depends on its arguments only: counter-based, with no state to carry.

    `purpose` keeps draws of different kinds with the same key apart (a token, a noisy document).
    """
    message = f"{purpose}:{','.join(map(str, key))}:{counter}".encode()
    bits = int.from_bytes(hashlib.blake2b(message, digest_size=8).digest(), "big")
    return (bits >> 11) * 2.0**-53


@lru_cache(maxsize=4)
def permutation(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)
