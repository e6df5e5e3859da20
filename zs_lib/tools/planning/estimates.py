"""Estimate the memory, FLOPs, seconds and API dollars of training and sampling, from shapes and lengths.

All of it is modelled: `plan.ASSUMED` lists the assumptions, besides those of `analysis.roofline`.
"""

from __future__ import annotations

from dataclasses import replace

from zs_lib.analysis import roofline
from zs_lib.analysis.roofline import BATCH, WIDTH, Gpu, Shape, shape
from zs_lib.config.arms import PolicyArm, RolloutConfig, SimulatorArm, WeightsConfig
from zs_lib.models.kv_cache import CAPACITY_BYTES

PROMPT, SIMULATOR_PROMPT, TURN, DOCUMENT = 180, 120, 120, 45
"""Tokens of a policy's prompt (Table 1), a simulator's (Table 2), a turn, and a document with its header."""
SEARCHES = 1.0
"""Searches per rollout: the 64,000 queries of Table 8 over the paper's 64,000 rollouts."""
TRL_MICRO_BATCH_TOKENS = 8192
"""The same of TRL's trainer (`trl.train`)."""
VLLM_CACHE_BYTES = 16 << 30
"""Bytes of vLLM's KV cache on a GPU (`models.vllm`)."""
USABLE = 0.95
"""Usable share of a GPU's memory."""
API_ANSWERS_PER_S = 10
"""Answers of a search API per second."""


def training_memory(of: Shape, arm: WeightsConfig, tokens: float, reference: bool) -> dict[str, float]:
    """Estimate the bytes of a model in training, by kind, with `tokens` in one micro-batch."""
    width = WIDTH[arm.dtype]
    trained = of.adapters(arm.lora_rank) or of.parameters
    # LoRA's adapters, or float32 copies of the weights.
    copies = 4 * trained if arm.lora_rank or arm.dtype != "float32" else 0
    # Activations inside one layer; fused attention keeps no scores.
    layer = width * tokens * (8 * of.hidden + 4 * of.intermediate)
    if arm.gradient_checkpointing:
        layers = of.layers * width * tokens * of.hidden + layer
    else:
        layers = of.layers * layer
    return {
        "weights": of.weight_bytes(arm.dtype),
        "gradients": 4 * trained,
        "optimiser": 8 * trained + copies,
        # A step of torch's AdamW on all tensors at once holds the roots of the second moments besides.
        "AdamW's temporaries": 4 * trained,
        "reference": of.weight_bytes(arm.dtype) if reference and not arm.lora_rank else 0,
        # With the logits in float32, and their gradient.
        "activations": layers + 8 * tokens * of.vocab,
    }


def sharded_memory(
    of: Shape, arm: PolicyArm, tokens: float, reference: bool, shards: int
) -> dict[str, float]:
    """Estimate the bytes on each GPU of a policy that TRL trains under FSDP2, by kind.

    Weights, reference, gradients and moments are float32 and sharded; a whole copy samples
    (`trl.train`).
    """
    whole = replace(arm, dtype="float32", lora_rank=0)
    memory = training_memory(of, whole, max(tokens, TRL_MICRO_BATCH_TOKENS), reference)
    half = WIDTH[arm.dtype] / WIDTH["float32"]  # activations under mixed precision; logits stay float32
    logits = 8 * max(tokens, TRL_MICRO_BATCH_TOKENS) * of.vocab
    activations = half * (memory["activations"] - logits) + logits
    copied = {"whole copy": of.weight_bytes(arm.dtype)} if shards > 1 else {}
    return per_shard(memory, shards) | copied | {"activations": activations}


def per_shard(memory: dict[str, float], shards: int) -> dict[str, float]:
    """Divide all but the activations by the number of shards."""
    return {kind: size / (1 if kind == "activations" else shards) for kind, size in memory.items()}


def at_once(memory: dict[str, float], kv_cache: float = 0.0) -> dict[str, float]:
    """Keep the largest of what is never in memory together: activations, KV cache, AdamW's temporaries."""
    apart = (memory.pop("activations"), memory.pop("AdamW's temporaries"), kv_cache)
    kind = (
        "activations, AdamW's temporaries or KV cache" if kv_cache else "activations or AdamW's temporaries"
    )
    return memory | {kind: max(apart)}


def fits(memory: dict[str, float], gpu: Gpu) -> bool:
    return sum(memory.values()) <= USABLE * gpu.memory


def training_flops(of: Shape, arm: WeightsConfig, tokens: float, reference: bool) -> float:
    """Count the FLOPs of one update on `tokens`.

    Per weight and token: 2 forward; 4 backward (2 if the weights are frozen); 2 more with gradient
    checkpointing; 2 for the reference policy.
    """
    backward = 2 if arm.lora_rank else 4
    again = 2 if arm.gradient_checkpointing else 0
    return of.parameters * tokens * (2 + backward + again + 2 * reference)


def trajectory(cfg: RolloutConfig, searching: bool = True) -> tuple[float, float, float]:
    """Return the assumed searches of a rollout, tokens that the policy writes, and tokens in total."""
    searches = min(SEARCHES, cfg.max_searches) if searching else 0.0
    written = (searches + 1) * min(TURN, cfg.max_turn_tokens)
    return searches, written, PROMPT + written + searches * cfg.num_documents * DOCUMENT


def rollouts_sampled(arm: PolicyArm) -> float:
    """Count the rollouts of a step; branches, which go on from a later turn, count as whole ones."""
    searches, _, _ = trajectory(arm.rollout, arm.engine != "none")
    branches = arm.objective.branches * searches if arm.objective.credit == "branch" else 0.0
    return arm.prompts_per_step * arm.group_size * (1 + branches)


def rollout_seconds(
    of: Shape,
    arm: PolicyArm | SimulatorArm,
    gpu: Gpu,
    rollouts: float,
    cfg: RolloutConfig,
    generator: str,
    searching: bool = True,
) -> float:
    """Estimate the seconds of rollouts without search; each turn prefills what precedes it."""
    searches, written, whole = trajectory(cfg, searching)
    read = rollouts * (searches + 1) * (PROMPT + whole) / 2
    prefill = gpu.compute_seconds(2 * of.parameters * read)
    return gpu.decoding_seconds(of, arm.dtype, rollouts, written, whole, generator) + prefill


def api_costs(engine: str, queries: float) -> tuple[float, float]:
    """Return the seconds and dollars of a search API; 0 for engines that are run locally."""
    usd = queries * roofline.query_usd(engine)
    return (queries / API_ANSWERS_PER_S if usd else 0.0), usd


def simulation_seconds(arm: SimulatorArm, gpu: Gpu, queries: float) -> float:
    of, output = shape(arm.backbone), arm.num_documents * DOCUMENT
    context = SIMULATOR_PROMPT + output
    seconds = gpu.decoding_seconds(of, arm.dtype, queries, output, context, arm.generator)
    return seconds + gpu.compute_seconds(2 * of.parameters * queries * SIMULATOR_PROMPT)


def simulation_memory(arm: SimulatorArm) -> dict[str, float]:
    of, tokens = shape(arm.backbone), BATCH * (SIMULATOR_PROMPT + arm.num_documents * DOCUMENT)
    return {"simulator": of.weight_bytes(arm.dtype), "its KV cache": of.kv_cache_bytes(arm.dtype, tokens)}


def sampling_memory(of: Shape, dtype: str, tokens: float) -> dict[str, float]:
    kv_cache = of.kv_cache_bytes(dtype, tokens) + CAPACITY_BYTES
    return {"weights": of.weight_bytes(dtype), "KV cache": kv_cache}
