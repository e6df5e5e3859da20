"""How fast a simulator that was not run here would answer: a roofline of reading prompts and decoding documents.

Decoding a token reads all weights, and the keys and values of what stands before it, from the card's memory: with few queries
at once that sets the pace, with many the arithmetic does. A server reaches a share of either.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from zs_lib import hardware
from zs_lib.hardware import Shape
from zs_lib.values import pick

MODELS = {size: f"Qwen/Qwen2.5-{size}-Instruct" for size in ("3B", "7B", "14B")}
"""The paper's simulators."""
DTYPE = "bfloat16"
REACHED = 0.5
"""Share of the roofline that a server reaches; speeds that others published reach 0.39 to 0.68 (`cost.published`)."""
BATCH = 64
"""Queries that a server answers at once, of the 320 rollouts of a step of the paper."""
USABLE = 0.9
"""Of a card's memory: vLLM's default."""


@dataclass(frozen=True)
class Query:
    """Tokens of one simulated search. Assumed: the prompt of the paper's Table 2 (some 75 words, and the chat's own tokens),
    and five documents of 30 words at four tokens for three words, each with its header."""

    prompt_tokens: int = 120
    output_tokens: int = 5 * 45


def queries_per_second(
    model: str, gpu: str, batch: int = BATCH, query: Query = Query(), reached: float = REACHED
) -> float:
    """Queries that one card answers in a second, or each of several that a model is spread over. ConfigError for an unknown
    name."""
    size, card = _shape(model), hardware.gpu(gpu)
    reading = (
        2 * size.parameters / card.flops * query.prompt_tokens
    )  # a multiplication and an addition for each parameter
    writing = (
        card.step(size, DTYPE, batch, query.prompt_tokens + query.output_tokens / 2)
        * query.output_tokens
        / batch
    )
    return reached / (reading + writing)


def cards(model: str, gpu: str, query: Query = Query()) -> int:
    """The fewest cards that hold the model and BATCH queries. ConfigError for an unknown name."""
    size = _shape(model)
    held = size.held(DTYPE) + size.kept(DTYPE, BATCH * (query.prompt_tokens + query.output_tokens))
    return math.ceil(held / (USABLE * hardware.gpu(gpu).memory))


def _shape(model: str) -> Shape:
    return hardware.shape(pick("model", model, MODELS))
