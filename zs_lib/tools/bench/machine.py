"""Measure this machine's peak speeds, and count a model's operations."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import cache

import torch
from transformers import PreTrainedModel

from zs_lib.models.linear import Linear, is_exact, onednn

MATRIX, VECTOR, TRIES = 2048, 1 << 26, 5
"""Side of the multiplied matrices, numbers that are copied, and attempts, of which the best counts."""


def seconds(work: Callable[[], object], tries: int = 1) -> float:
    """Measure the wall time of `work`: the best of `tries`."""
    took = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        took.append(time.perf_counter() - started)
    return min(took)


def row(case: str, measure: str, value: float, unit: str, who: str = "ours") -> dict:
    """Make a row of a benchmark."""
    return {"case": case, "who": who, "measure": measure, "value": value, "unit": unit}


@cache
def peak_flops(dtype: torch.dtype = torch.float32) -> float:
    """Measure the FLOP/s of a large matrix product, with torch's present number of threads."""
    left, right = torch.randn(2, MATRIX, MATRIX).to(dtype)
    with onednn() if is_exact() else nullcontext():
        return 2 * MATRIX**3 / seconds(lambda: left @ right, TRIES)


def as_peers_have_it(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model, with PyTorch's own linear layers (`models.linear`)."""
    model = copy.deepcopy(model)
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = torch.nn.Linear
    return model


@cache
def peak_bytes() -> float:
    """Measure the bytes per second, read and written, of a copy that is larger than the caches."""
    source, target = torch.ones(VECTOR), torch.ones(VECTOR)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), TRIES)


def measure(small: bool = False) -> Iterator[dict]:
    """Measure the peaks of arithmetic and memory."""
    yield row("matrix product", "peak", peak_flops() / 1e9, "GFLOP/s", "machine")
    yield row("copy in memory", "peak", peak_bytes() / 1e9, "GB/s", "machine")


def forward_flops(model: PreTrainedModel, tokens: int, predicted: int) -> float:
    """Count the least FLOPs of a forward pass, with `predicted` of its `tokens` through the output head.

    A multiplication and an addition per weight; attention itself, below a tenth at these lengths, is not
    counted.
    """
    head = model.get_output_embeddings().weight.numel()
    embeddings = model.get_input_embeddings().weight.numel()
    layers = sum(p.numel() for p in model.base_model.parameters()) - embeddings
    return 2.0 * (layers * tokens + head * predicted)
