"""Attention of new tokens whose rows share a prefix: its keys and values are kept once, and read once for all rows.

Decoding waits for memory, and much of what it would read for a simulator's rows is their prompts' common beginning. The sum is
what attention over the whole row gives, up to float rounding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

NAME = "shared-prefix"
KeyValues = Sequence[tuple[Tensor, Tensor]]
"""Of each layer, both (key-value heads, length, head width)."""


def can_share(model: PreTrainedModel) -> bool:
    """Whether the model's attention can be replaced, and hands on what it is given (transformers' attention interface); not in
    half precision, where scores would be rounded that the fused kernel keeps in float32, nor where layers share keys."""
    alone = not getattr(model.config.get_text_config(decoder=True), "num_kv_shared_layers", 0)
    return model.dtype == torch.float32 and getattr(model, "_supports_attention_backend", False) and alone


@contextmanager
def sharing(model: PreTrainedModel) -> Iterator[None]:
    """Within it, `model(..., prefix=prefix)` attends to a prefix besides each row's own keys, for one new token a row."""
    before = model.config._attn_implementation
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def _attend(
    module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor,
    scaling: float,
    prefix: KeyValues,
    **_,
) -> tuple[Tensor, None]:
    """transformers' interface: query (rows, heads, 1, width), key and value (rows, key-value heads, own length, width),
    attention_mask (rows, 1, 1, own length) bool; returns (rows, 1, heads, width)."""
    rows, heads, _, width = query.shape
    first_key, first_value = prefix[module.layer_idx]
    kv_heads, length, _ = first_key.shape
    query = (query * scaling).view(rows, kv_heads, heads // kv_heads, width)
    first = torch.einsum(
        "rkgd,kpd->rkgp", query, first_key
    )  # one matrix product a head, for all rows together
    own = (query @ key.mT).masked_fill_(~attention_mask, -torch.inf)
    weights = torch.cat([first, own], -1).softmax(-1)
    read = torch.einsum("rkgp,kpd->rkgd", weights[..., :length], first_value) + weights[..., length:] @ value
    return read.reshape(rows, 1, heads, width), None


AttentionInterface.register(NAME, _attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
