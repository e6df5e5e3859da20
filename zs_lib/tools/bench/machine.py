"""What this machine can do at most, measured; and what a model's work amounts to, counted."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import cache

import torch

MATRIX, VECTOR, TRIES = 2048, 1 << 26, 5
"""Side of the matrices that are multiplied, numbers that are copied, and attempts, of which the best counts."""


def seconds(work: Callable[[], object], tries: int = 1) -> float:
    """Wall time of `work`, the best of `tries`."""
    took = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return min(took)


@cache
def peak_flops(dtype: torch.dtype = torch.float32) -> float:
    """Operations a second of a large matrix product of this dtype, with torch's present number of threads."""
    left, right = torch.randn(2, MATRIX, MATRIX).to(dtype)
    return 2 * MATRIX**3 / seconds(lambda: left @ right, TRIES)


@cache
def peak_bytes() -> float:
    """Bytes a second, read and written, of a copy that fits in no cache."""
    source, target = torch.ones(VECTOR), torch.ones(VECTOR)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), TRIES)


def measure(small: bool = False) -> Iterator[dict]:
    """The two peaks."""
    for case, value, unit in (
        ("matrix product", peak_flops(), "GFLOP/s"),
        ("copy in memory", peak_bytes(), "GB/s"),
    ):
        yield {"case": case, "who": "machine", "measure": "peak", "value": value / 1e9, "unit": unit}


def forward_flops(model, tokens: int, predicted: int) -> float:
    """Operations that `tokens` tokens need at least, `predicted` of them through the output head: a multiplication and an
    addition for each weight. Attention itself is not counted (below a tenth at these lengths)."""
    head = model.get_output_embeddings().weight.numel()
    layers = (
        sum(p.numel() for p in model.base_model.parameters()) - model.get_input_embeddings().weight.numel()
    )
    return 2.0 * (layers * tokens + head * predicted)
