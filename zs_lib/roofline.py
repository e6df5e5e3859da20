"""How fast a simulator that was not run here would answer: a roofline of reading prompts and decoding documents.

Decoding a token reads all weights, and the keys and values of what stands before it, from the card's memory: with few queries
at once that sets the pace, with many the arithmetic does. A server reaches a share of either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zs_lib.values import pick


@dataclass(frozen=True)
class Model:
    """A simulator: its parameters, layers, and heads of keys and values (of HEAD numbers), BYTES a number."""

    parameters: float
    layers: int
    kv_heads: int

    def held(self, queries: int, context: float) -> float:
        """Bytes of the weights, and of the keys and values of so many queries with `context` tokens each."""
        return BYTES * (self.parameters + queries * context * 2 * HEAD * self.kv_heads * self.layers)


@dataclass(frozen=True)
class Gpu:
    """A card's data sheet: bytes of memory, bytes a second, and dense bf16 operations a second."""

    memory: float
    bandwidth: float
    flops: float


@dataclass(frozen=True)
class Query:
    """Tokens of one simulated search. Assumed: the prompt of the paper's Table 2 (some 75 words, and the chat's own tokens),
    and five documents of 30 words at four tokens for three words, each with its header."""

    prompt_tokens: int = 120
    output_tokens: int = 5 * 45


BYTES, HEAD = 2, 128
MODELS = {"3B": Model(3.09e9, 36, 2), "7B": Model(7.61e9, 28, 4), "14B": Model(14.77e9, 48, 8)}
"""The paper's simulators, Qwen2.5, from their model cards and configurations."""
GPUS = {"A100-80GB": Gpu(80e9, 2.039e12, 312e12), "H100-80GB": Gpu(80e9, 3.35e12, 989e12), "L4": Gpu(24e9, 0.3e12, 121e12),
        "A40": Gpu(48e9, 0.696e12, 149.7e12)}
"""NVIDIA's data sheets (SXM where there is a choice)."""
REACHED = 0.5
"""Share of the roofline that a server reaches; speeds that others published reach 0.39 to 0.68 (`cost.published`)."""
BATCH = 64
"""Queries that a server answers at once, of the 320 rollouts of a step of the paper."""
USABLE = 0.9
"""Of a card's memory: vLLM's default."""


def queries_per_second(model: str, gpu: str, batch: int = BATCH, query: Query = Query(), reached: float = REACHED) -> float:
    """Queries that one card answers in a second, or each of several that a model is spread over. ConfigError for an unknown
    name."""
    size, card = pick("model", model, MODELS), pick("GPU", gpu, GPUS)
    arithmetic = 2 * size.parameters / card.flops  # seconds a token: a multiplication and an addition for each parameter
    reading = size.held(batch, query.prompt_tokens + query.output_tokens / 2) / card.bandwidth
    step = max(reading, batch * arithmetic)  # one token of every query
    return reached / (query.prompt_tokens * arithmetic + query.output_tokens * step / batch)


def cards(model: str, gpu: str, query: Query = Query()) -> int:
    """The fewest cards that hold the model and BATCH queries. ConfigError for an unknown name."""
    held = pick("model", model, MODELS).held(BATCH, query.prompt_tokens + query.output_tokens)
    return math.ceil(held / (USABLE * pick("GPU", gpu, GPUS).memory))
