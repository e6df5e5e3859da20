"""How fast a simulator that was not run here would answer: a roofline of reading prompts and decoding documents.

Decoding a token reads all weights, and the keys and values of what stands before it, from the card's memory: with few queries
at once that sets the pace, with many the arithmetic does. A server reaches a share of either.
"""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zs_lib.config import paths
from zs_lib.config.values import pick

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
    size, card = _shape(model), gpu(gpu)
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
    return math.ceil(held / (USABLE * gpu(gpu).memory))


def _shape(model: str) -> Shape:
    return shape(pick("model", model, MODELS))


DATA = paths.ROOT / "data"
WIDTH = {"float32": 4, "bfloat16": 2}
"""Bytes of a number."""
BATCH = 128
"""Sequences that are written at once (`generate.Generator`)."""
DECODING, COMPUTING = 0.5, 0.35
"""Assumed shares of the data sheet that are reached in writing, and in everything else."""


@dataclass(frozen=True)
class Shape:
    """Of a Llama or Qwen; biases, less than a thousandth of the weights, are left out."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: int

    @property
    def matrices(self) -> list[tuple[int, int]]:
        """(in, out) of a layer's linear maps."""
        wide, narrow = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = [(self.hidden, wide), (self.hidden, narrow), (self.hidden, narrow), (wide, self.hidden)]
        return [
            *attention,
            (self.hidden, self.intermediate),
            (self.hidden, self.intermediate),
            (self.intermediate, self.hidden),
        ]

    @property
    def parameters(self) -> int:
        layer = sum(rows * columns for rows, columns in self.matrices) + 2 * self.hidden
        return (2 - self.tied) * self.vocab * self.hidden + self.layers * layer + self.hidden

    def adapters(self, rank: int) -> int:
        """Parameters of LoRA."""
        return self.layers * rank * sum(rows + columns for rows, columns in self.matrices)

    def held(self, dtype: str) -> int:
        """Bytes of the weights."""
        return WIDTH[dtype] * self.parameters

    def kept(self, dtype: str, tokens: float) -> float:
        """Bytes of the keys and values of so many tokens in all."""
        return 2 * self.layers * self.kv_heads * self.head_dim * WIDTH[dtype] * tokens


@dataclass(frozen=True)
class Gpu:
    """A data sheet in bytes, bytes a second and operations a second, and dollars an hour (None: no quote)."""

    memory: float
    bandwidth: float
    flops: float
    usd: float | None

    def step(self, shape: Shape, dtype: str, batch: float, context: float) -> float:
        """Seconds in which each of `batch` sequences, with `context` tokens each, gets one token more: a roofline."""
        reading = (shape.held(dtype) + shape.kept(dtype, batch * context)) / self.bandwidth
        return max(reading, 2 * batch * shape.parameters / self.flops)

    def writing(self, shape: Shape, dtype: str, sequences: float, tokens: float, context: float) -> float:
        """Seconds in which `sequences` are continued by `tokens` each, after about `context` tokens."""
        if not sequences:
            return 0.0
        batch = min(sequences, BATCH)
        return sequences / batch * tokens * self.step(shape, dtype, batch, context) / DECODING

    def computing(self, flops: float) -> float:
        """Seconds."""
        return flops / (COMPUTING * self.flops)


def shape(model: str) -> Shape:
    """Of a shipped backbone or a folder, by its config.json, else of data/models.csv; ConfigError for others."""
    for folder in (DATA / "backbones" / model, Path(model)):
        if (folder / "config.json").is_file():
            it = json.loads((folder / "config.json").read_text(encoding="utf-8"))
            head = it.get("head_dim") or it["hidden_size"] // it["num_attention_heads"]
            return Shape(
                it["num_hidden_layers"],
                it["hidden_size"],
                it["intermediate_size"],
                it["num_attention_heads"],
                it["num_key_value_heads"],
                head,
                it["vocab_size"],
                int(it["tie_word_embeddings"]),
            )
    row = pick("model", model, {row["model"]: row for row in _table("models")})
    return Shape(**{name: int(value) for name, value in row.items() if name not in ("model", "source")})


def gpu(name: str) -> Gpu:
    """A card of data/gpus.csv, at its lowest quote; ConfigError, which lists them, for others."""
    row = pick("GPU", name, {row["gpu"]: row for row in _table("gpus")})
    quotes = [
        float(quote["usd"]) for quote in _table("prices") if quote["kind"] == "gpu" and quote["item"] == name
    ]
    memory, bandwidth, tflops = (
        float(row[column]) for column in ("memory_gb", "bandwidth_gb_s", "bf16_tflops")
    )
    return Gpu(1e9 * memory, 1e9 * bandwidth, 1e12 * tflops, min(quotes, default=None))


def query_usd(engine: str, plan: Callable = min) -> float:
    """Dollars of one query, on the cheapest plan that is quoted (`max`: the dearest); 0 for engines that nobody sells."""
    plans = [row for row in _table("prices") if row["kind"] == "search" and row["vendor"].lower() == engine]
    return plan((float(row["usd"]) / float(row["quantity"]) for row in plans), default=0.0)


def _table(name: str) -> list[dict]:
    with (DATA / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
