"""Attention of a batch in which each row stands at positions of its own.

Which keys a layer may see, the model itself decides: all earlier ones, those of a sliding window, those of a
chunk. Its own mask functions are given each row's positions, so padding changes nothing: the result equals
attention over each row by itself up to float rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import torch
from torch import Tensor
from transformers import AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import causal_mask_function, sdpa_mask

from zs_lib.errors import ModelError

ATTENTION_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
"""Layer types whose memory is keys and values, seen through a mask."""
_current: ContextVar[tuple[Tensor, Tensor, list] | None] = ContextVar("positions", default=None)


def forward_at(model: PreTrainedModel, new: Tensor, keys: Tensor, **inputs) -> Tensor:
    """Compute logits so that each token sees the keys that its position in the text may see.

    new (rows, new tokens) and keys (rows, keys): positions in each row's text; below 0 on padding, which is
    never seen.

    Raises:
        ModelError: the model did not build its masks by transformers' mask functions.
    """
    new, asked = new.clamp(min=0), []
    token = _current.set((new, keys, asked))
    try:
        logits = model(position_ids=new, **inputs).logits
    finally:
        _current.reset(token)
    if not asked:
        raise _unsupported(model, "it does not build its attention masks by transformers' mask functions")
    return logits


def _mask(*args, mask_function: Callable = causal_mask_function, **options) -> Tensor | None:
    """(rows, 1, new, keys) mask of one kind of layers, to be added to scores (transformers' interface)."""
    if not (positions := _current.get()):
        return sdpa_mask(*args, mask_function=mask_function, **options)
    new, keys, asked = positions
    asked.append(mask_function)
    rows = torch.arange(len(new), device=new.device)[:, None, None, None]
    keys = keys[:, None, None]
    seen = mask_function(rows, 0, new[:, None, :, None], keys) & (keys >= 0)
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


AttentionMaskInterface.register("sdpa", _mask)  # others get transformers' own from it
