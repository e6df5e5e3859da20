"""Attention of a batch in which each row stands at positions of its own.

Which keys a layer may see, the model itself decides: all earlier ones, those of a sliding window, those of a
chunk. Its own mask functions are given each row's positions, so padding and a prefix that is stored apart
change nothing. A prefix that all rows share is read once for all rows: decoding waits for memory, and much
of what it would read for a simulator's rows is their common prompt. The result equals attention over each
whole row up to float rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import causal_mask_function, sdpa_mask

from zs_lib.errors import ModelError
from zs_lib.models.kv_cache import KeyValues
from zs_lib.models.linear import is_exact, onednn

PADDING = torch.iinfo(torch.long).max
"""Position of padding: later than every query, so that no causal mask shows it."""
ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layer types whose memory is keys and values, seen through a mask."""
SCORES = 2**22
"""Most scores of a layer that are kept for the backward pass, by plain products (16 MiB)."""
_current: ContextVar[tuple[Tensor, Tensor, set] | None] = ContextVar("positions", default=None)


def forward_at(model: PreTrainedModel, new: Tensor, keys: Tensor, **inputs) -> tuple[Tensor, bool]:
    """Compute logits so that each token sees the keys that its position in the text may see.

    new (rows, new tokens) and keys (rows, keys): positions in each row's text; PADDING is never seen. Also
    returns whether the model is plainly causal: no layer has a window or a chunk.

    Raises:
        ModelError: the model did not build its masks by transformers' mask functions.
    """
    asked: set[Callable] = set()
    token = _current.set((new, keys, asked))
    try:
        logits = model(position_ids=new, **inputs).logits
    finally:
        _current.reset(token)
    if not asked:
        raise _unsupported(model, "it does not build its attention masks by transformers' mask functions")
    return logits, asked == {causal_mask_function}


def _mask(*args, mask_function: Callable = causal_mask_function, **options) -> Tensor | None:
    """(rows, 1, new, keys) mask of one kind of layers, to be added to scores (transformers' interface)."""
    if not (positions := _current.get()):
        return sdpa_mask(*args, mask_function=mask_function, **options)
    new, keys, asked = positions
    asked.add(mask_function)
    rows = torch.arange(len(new), device=new.device)[:, None, None, None]
    seen = mask_function(rows, 0, new[:, None, :, None], keys[:, None, None])
    return torch.zeros_like(seen, dtype=options["dtype"]).masked_fill_(~seen, -torch.inf)


def check_attention(model: PreTrainedModel) -> None:
    """Refuse a model that our loop would sample from differently than its own forward computes.

    Raises:
        ModelError: its attention is biased, capped, recurrent, or not computed by SDPA.
    """
    config = model.config.get_text_config(decoder=True)
    other = set(getattr(config, "layer_types", None) or ()) - ATTENTION_LAYERS
    if getattr(config, "alibi", False) or config.model_type in ("bloom", "mpt"):
        raise _unsupported(model, "its attention is biased by distance (ALiBi)")
    if getattr(config, "attn_logit_softcapping", None) is not None:
        raise _unsupported(model, "its attention scores are soft-capped (attn_logit_softcapping)")
    if other or getattr(model, "_is_stateful", False):
        named = ", ".join(sorted(other)) or "recurrent"
        raise _unsupported(model, f"it has layers that are not attention over keys and values ({named})")
    if model.config._attn_implementation != "sdpa":
        raise _unsupported(model, f"its attention is '{model.config._attn_implementation}', not 'sdpa'")


def _unsupported(model: PreTrainedModel, reason: str) -> ModelError:
    return ModelError(
        f"Cannot sample from a {type(model).__name__}: {reason}. Take another model, or the vLLM backend."
    )


def can_share(model: PreTrainedModel) -> bool:
    """Tell whether `model(..., prefix=prefix)` attends to a prefix whose keys and values are stored once.

    It must use transformers' attention interface, in float32 (in half precision our scores would be rounded,
    which the fused kernel keeps in float32). Its cache must hold the very keys and values that a layer
    attends to: not another layer's, and not compressed ones (multi-head latent attention).
    """
    config = model.config.get_text_config(decoder=True)
    other = any(getattr(config, name, None) for name in ("num_kv_shared_layers", "kv_lora_rank"))
    interface = getattr(model, "_supports_attention_backend", False)
    return model.dtype == torch.float32 and interface and not other


def _attend(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    prefix: KeyValues | None = None,
    **options,
) -> tuple[Tensor, None]:
    """Attention of one new token a row to a prefix and to the row's own keys (transformers' interface).

    query (rows, heads, 1, width), key and value (rows, key-value heads, own length, width), attention_mask
    (rows, 1, 1, prefix length + own length); returns (rows, 1, heads, width). Without a prefix it is SDPA, or
    for whole texts, as in training, the same by plain products.
    """
    if prefix is None and attention_mask is None and _is_plain(module, query, key, **options):
        heads = (repeat_kv(states, query.shape[1] // key.shape[1]) for states in (key, value))
        return _CausalAttention.apply(query, *heads, scaling or query.shape[-1] ** -0.5).transpose(1, 2), None
    if prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **options)
    rows, heads, _, width = query.shape
    prefix_key, prefix_value = prefix[module.layer_idx]
    kv_heads, length, _ = prefix_key.shape
    query = (query * scaling).view(rows, kv_heads, heads // kv_heads, width)
    to_prefix = torch.einsum("rkgd,kpd->rkgp", query, prefix_key)  # one matrix product a head for all rows
    scores = torch.cat([to_prefix, query @ key.mT], -1).add_(attention_mask)
    weights = scores.softmax(-1)
    read = torch.einsum("rkgp,kpd->rkgd", weights[..., :length], prefix_value) + weights[..., length:] @ value
    return read.reshape(rows, 1, heads, width), None


def _is_plain(module, query: Tensor, key: Tensor, is_causal: bool | None = None, dropout=0.0, **_) -> bool:
    """Whether attention is causal over whole short texts, which `_CausalAttention` computes faster."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    full = query.dtype is torch.float32 and not torch.is_autocast_enabled("cpu")  # which would round products
    on_cpu = full and query.device.type == "cpu"
    whole = 1 < query.shape[2] == key.shape[2] and query.shape[:3].numel() * key.shape[2] <= SCORES
    return causal and not dropout and on_cpu and whole and is_exact()


class _CausalAttention(torch.autograd.Function):
    """Causal attention by products of whole matrices, forward and backward, which oneDNN computes.

    Takes two thirds of the fused kernel's time, which asks MKL (see `linear`), and holds all scores. query,
    key, value, and what is returned: (rows, heads, length, width of each).
    """

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        ctx.scaling, ctx.batch, length = scaling, query.shape[:2], query.shape[2]
        query, key, value = (states.flatten(0, 1) for states in (query, key, value))
        later = query.new_full((length, length), -torch.inf).triu_(1)
        with onednn():
            weights = torch.baddbmm(later, query, key.mT, alpha=scaling).softmax(-1)
            read = weights @ value
        ctx.save_for_backward(query, key, value, weights)
        return read.unflatten(0, ctx.batch)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, weights = ctx.saved_tensors
        gradient = gradient.flatten(0, 1)
        with onednn():
            scores = torch._softmax_backward_data(gradient @ value.mT, weights, -1, weights.dtype)
            scores.mul_(ctx.scaling)
            each = scores @ key, scores.mT @ query, weights.mT @ gradient
        return (*(one.unflatten(0, ctx.batch) for one in each), None)


AttentionInterface.register("sdpa", _attend)
AttentionMaskInterface.register("sdpa", _mask)  # others get transformers' own from both
