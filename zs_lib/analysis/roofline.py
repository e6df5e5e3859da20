"""Seconds and bytes of models on GPUs that were not used here, by a roofline over data sheets.

Decoding one token reads all weights and the KV cache from GPU memory; with few sequences at once that sets
the pace, with many the arithmetic does. A server reaches a share of either. Facts stand in `data/`: shapes of
models (models.csv), data sheets (gpus.csv) and quoted prices (prices.csv).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from zs_lib.analysis.shipped import read_shipped
from zs_lib.config import paths
from zs_lib.config.values import pick

WIDTH = {"float32": 4, "bfloat16": 2}
"""Bytes per number."""
BATCH = 128
"""Sequences decoded at once (`models.generator.Generator`)."""
DECODING = {"vllm": 0.5, "transformers": 0.15}
"""Assumed share of the data sheet's peak that a generator of `arms.GENERATORS` reaches in decoding.

Our loop on transformers starts each kernel from Python; its share is a guess, until `make test-gpu` has
measured it.
"""
COMPUTING = 0.35
"""The same in everything else."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a Llama or Qwen model; biases, less than a thousandth of the weights, are left out."""

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
        """(in, out) features of each linear map of a layer."""
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
        """Number of weights, the tied output head counted once."""
        layer = sum(rows * columns for rows, columns in self.matrices) + 2 * self.hidden
        return (2 - self.tied) * self.vocab * self.hidden + self.layers * layer + self.hidden

    def adapters(self, rank: int) -> int:
        """Count the LoRA parameters at this rank."""
        return self.layers * rank * sum(rows + columns for rows, columns in self.matrices)

    def weight_bytes(self, dtype: str) -> int:
        """Compute the bytes of the weights."""
        return WIDTH[dtype] * self.parameters

    def kv_cache_bytes(self, dtype: str, tokens: float) -> float:
        """Compute the bytes of the KV cache of this many tokens, over all sequences."""
        return 2 * self.layers * self.kv_heads * self.head_dim * WIDTH[dtype] * tokens


@dataclass(frozen=True)
class Gpu:
    """A GPU's data sheet in bytes, bytes/s and FLOP/s, and its price in dollars an hour (None: no quote)."""

    memory: float
    bandwidth: float
    flops: float
    usd: float | None

    def step_seconds(self, shape: Shape, dtype: str, batch: float, context: float) -> float:
        """Estimate one decoding step of `batch` sequences with `context` tokens each, in seconds."""
        reading = (shape.weight_bytes(dtype) + shape.kv_cache_bytes(dtype, batch * context)) / self.bandwidth
        return max(reading, 2 * batch * shape.parameters / self.flops)

    def decoding_seconds(
        self,
        shape: Shape,
        dtype: str,
        sequences: float,
        tokens: float,
        context: float,
        generator: str = "vllm",
    ) -> float:
        """Estimate the seconds to decode `tokens` for each of `sequences`, after about `context` tokens."""
        if not sequences:
            return 0.0
        batch = min(sequences, BATCH)
        steps = sequences / batch * tokens
        return steps * self.step_seconds(shape, dtype, batch, context) / DECODING[generator]

    def compute_seconds(self, flops: float) -> float:
        """Estimate the seconds for this many FLOPs of prefill or training."""
        return flops / (COMPUTING * self.flops)


def shape(model: str) -> Shape:
    """Read a model's shape from config.json (a shipped backbone, or a folder), else from data/models.csv.

    Raises:
        ConfigError: the model is in none of them.
    """
    for folder in (paths.BACKBONES / model, Path(model)):
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
    rows = read_shipped("models").set_index("model").drop(columns="source").to_dict("index")
    return Shape(**pick("model", model, rows))


def gpu(name: str) -> Gpu:
    """Read a GPU of data/gpus.csv, with its lowest quoted price.

    Raises:
        ConfigError: no such GPU is listed.
    """
    row = pick("GPU", name, read_shipped("gpus").set_index("gpu").to_dict("index"))
    memory, bandwidth, flops = 1e9 * row["memory_gb"], 1e9 * row["bandwidth_gb_s"], 1e12 * row["bf16_tflops"]
    quotes = read_shipped("prices").query("kind == 'gpu' and item == @name")
    return Gpu(memory, bandwidth, flops, min(quotes["usd"], default=None))


def query_usd(engine: str, plan: Callable = min) -> float:
    """Find the dollars per query on the cheapest quoted plan (`max`: the dearest); 0 if none is sold."""
    table = read_shipped("prices").query("kind == 'search'")
    plans = table[table["vendor"].str.lower() == engine]
    return plan(plans["usd"] / plans["quantity"], default=0.0)


MODELS = {size: f"Qwen/Qwen2.5-{size}-Instruct" for size in ("3B", "7B", "14B")}
"""The paper's simulators."""
DTYPE = "bfloat16"
REACHED = 0.5
"""Share of the roofline that a server reaches; published speeds: 0.39 to 0.68 (`cost.published_speeds`)."""
SERVER_BATCH = 64
"""Queries that a server answers at once, of the 320 rollouts of a step of the paper."""
USABLE = 0.9
"""Usable share of a GPU's memory: vLLM's default."""


@dataclass(frozen=True)
class Query:
    """Tokens of one simulated search.

    Assumed: the prompt of the paper's Table 2 (some 75 words, and the chat template's tokens), and five
    documents of 30 words at four tokens for three words, each with its header.
    """

    prompt_tokens: int = 120
    output_tokens: int = 5 * 45


QUERY = Query()


def queries_per_second(
    model: str, gpu_name: str, batch: int = SERVER_BATCH, query: Query = QUERY, reached: float = REACHED
) -> float:
    """Compute the simulated searches per second and GPU, for a key of MODELS.

    Raises:
        ConfigError: unknown model or GPU.
    """
    size, card = _simulator_shape(model), gpu(gpu_name)
    # a multiplication and an addition for each parameter
    prefill = 2 * size.parameters / card.flops * query.prompt_tokens
    context = query.prompt_tokens + query.output_tokens / 2
    decoding = card.step_seconds(size, DTYPE, batch, context) * query.output_tokens / batch
    return reached / (prefill + decoding)


def fewest_gpus(model: str, gpu_name: str) -> int:
    """Compute the fewest GPUs that hold the model and the KV cache of SERVER_BATCH queries.

    Raises:
        ConfigError: unknown model or GPU.
    """
    size = _simulator_shape(model)
    tokens = SERVER_BATCH * (QUERY.prompt_tokens + QUERY.output_tokens)
    needed = size.weight_bytes(DTYPE) + size.kv_cache_bytes(DTYPE, tokens)
    return math.ceil(needed / (USABLE * gpu(gpu_name).memory))


def _simulator_shape(model: str) -> Shape:
    return shape(pick("model", model, MODELS))
