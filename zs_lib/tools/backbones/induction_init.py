"""Induction-head initialisation of small Llama models, and growing one into a larger one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zs_lib.errors import ModelError


@dataclass(frozen=True)
class Shape:
    """Size of a Llama model without grouped-query attention."""

    width: int
    """Hidden size."""
    layers: int
    heads: int


CONTEXT = 1024
"""Context length in tokens; a tiny trajectory of three searches takes about 350."""
EMBEDDING_SCALE = 0.05
"""Standard deviation of the embeddings."""
FINAL_GAIN = 3.0
"""Gain of the final norm, so that logits of such small embeddings can separate thousands of words."""
MATCH_GAIN, COPY_GAIN = 3.0, 0.3
"""Chosen on repeated random tokens: 0.65 of the induction heads' attention is on the right token at first."""


def initialise(shape: Shape, vocabulary: int, pad: int, end: int, seed: int = 0) -> LlamaForCausalLM:
    """Make a Llama whose first two layers are initialised as induction heads.

    Layer 0 has previous-token heads, which attend one to three tokens back. Layer 1 has induction heads,
    which attend to what followed an earlier copy of the current token, or to what was near an earlier copy of
    the last ones. From a default initialisation, reading is hardly learnt in the training time of a laptop.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.width * 8 // 3 // 16 * 16,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        attention_bias=True,
        pad_token_id=pad,
        eos_token_id=end,
        bos_token_id=None,
        # Slow enough to compare tokens that are hundreds apart.
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()  # each block starts as the identity, so it adds no noise
            elif parameter.ndim == 2:
                parameter.normal_(0, shape.width**-0.5)
        embedding = model.model.embed_tokens.weight
        embedding *= EMBEDDING_SCALE * shape.width**0.5
        embedding[:, shape.width // 2 :] *= 0.1  # the other half is for the output of layer 0
        model.model.norm.weight.fill_(FINAL_GAIN)
        _init_previous_token_heads(model)
        _init_induction_heads(model)
    return model


OFFSETS = (1, 2, 3)
"""Layer 0: head h attends this many tokens back, and writes to its own block of the stream's free half."""
INDUCTION = ((0, 1), (1, 2), (1, 3))
"""Layer 1: head h compares the token `a` before the query with that `b` before the key, and copies the key's.

(0, 1) continues a name; the others find the object one or two words after "France" when "France is" was just
written.
"""


def _init_previous_token_heads(model: LlamaForCausalLM, strength: float = 4.0) -> None:
    """Constant keys and queries rotated by the offset, so that the score peaks `offset` tokens back.

    All heads read the same projection of the tokens, so that the outputs of two heads can be compared.
    """
    attention, width = model.model.layers[0].self_attn, model.config.hidden_size
    size = width // model.config.num_attention_heads
    frequency = model.model.rotary_emb.inv_freq[: size // 4]  # the fastest, which separate neighbours
    code = torch.nn.init.orthogonal_(torch.empty(size, width // 2))
    for head, offset in enumerate(OFFSETS):
        rows = slice(head * size, (head + 1) * size)
        attention.q_proj.weight[rows] *= 0.1
        attention.k_proj.weight[rows] *= 0.1
        key, query = torch.zeros(size), torch.zeros(size)
        fast, paired = torch.arange(size // 4), torch.arange(size // 4) + size // 2
        key[fast] = strength
        query[fast] = strength * torch.cos(-offset * frequency)
        query[paired] = strength * torch.sin(-offset * frequency)
        attention.k_proj.bias[rows], attention.q_proj.bias[rows] = key, query
        attention.v_proj.weight[rows] = 0
        attention.v_proj.weight[rows, : width // 2] = code
        free = width // 2 // len(OFFSETS)
        block = torch.nn.init.orthogonal_(torch.empty(free, size), gain=EMBEDDING_SCALE)
        start = width // 2 + head * free
        attention.o_proj.weight[start : start + free, rows] = block


def _init_induction_heads(model: LlamaForCausalLM) -> None:
    """Queries and keys that are projections of two tokens, in the dimensions that rotate slowly."""
    width = model.config.hidden_size
    size = width // model.config.num_attention_heads
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    slow = torch.cat([torch.arange(size // 4, size // 2), torch.arange(size // 4, size // 2) + size // 2])
    copies = torch.zeros(len(INDUCTION) * size, width)
    torch.nn.init.orthogonal_(copies[:, : width // 2])

    def read(offset: int) -> torch.Tensor:
        """(size, width): reads the projection of the token `offset` back from the stream."""
        if offset == 0:
            return first.v_proj.weight[:size]
        rows = slice((offset - 1) * size, offset * size)
        return first.o_proj.weight[:, rows].T / EMBEDDING_SCALE

    for head, (here, there) in enumerate(INDUCTION):
        rows = slice(head * size, (head + 1) * size)
        second.q_proj.weight[rows] = 0
        second.k_proj.weight[rows] = 0
        second.q_proj.weight[rows.start + slow] = MATCH_GAIN * read(here)[slow]
        second.k_proj.weight[rows.start + slow] = MATCH_GAIN * read(there)[slow]
        second.v_proj.weight[rows] = copies[rows]
        second.o_proj.weight[:, rows] = COPY_GAIN * copies[rows].T


def grow(small: LlamaForCausalLM, shape: Shape) -> LlamaForCausalLM:
    """Make a larger model that computes the same function as `small`, up to rounding.

    New heads, units, layers and dimensions of the stream have random inputs and zero outputs.

    Raises:
        ModelError: the size of a head would change.
    """
    old, ids = small.config, (small.config.vocab_size, small.config.pad_token_id, small.config.eos_token_id)
    if shape.width // shape.heads != old.hidden_size // old.num_attention_heads:
        raise ModelError("A backbone can only grow into one with the same size of heads.")
    large = initialise(shape, *ids)
    scale = (old.hidden_size / shape.width) ** 0.5  # norms take the mean square over more dimensions
    written = ("embed_tokens.weight", "lm_head.weight", "o_proj.weight", "down_proj.weight")
    with torch.no_grad():
        source, target = small.state_dict(), large.state_dict()
        for name, new in target.items():
            if new.ndim == 1 and name.endswith("bias"):
                new.zero_()
            elif name.endswith(written):
                new.zero_()  # it writes to the stream
            if name not in source:
                continue  # of a new layer
            kept = source[name]
            if new.ndim == 1:
                new[: len(kept)] = kept
            else:
                new[: kept.shape[0], kept.shape[1] :] = 0
                new[: kept.shape[0], : kept.shape[1]] = kept
            if "norm" in name:
                new[len(kept) :] = kept.mean()
                new *= scale
    return large
