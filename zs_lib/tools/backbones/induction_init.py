"""Llama models in which copying is wired before any training, and how a small one grows into a larger one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zs_lib.errors import ModelError


@dataclass(frozen=True)
class Shape:
    """Of a Llama whose heads all have keys and values of their own."""

    width: int
    layers: int
    heads: int


CONTEXT = 1024
"""Positions; a tiny trajectory of three searches takes about 350."""
EMBEDDING_SCALE = 0.05
FINAL_GAIN = 3.0
"""So that logits of embeddings this short can tell one word of thousands from all others."""
MATCH_GAIN, COPY_GAIN = 3.0, 0.3
"""Chosen on repeated random tokens: 0.65 of the look-up attention falls on the right place before any training."""


def initialise(shape: Shape, vocabulary: int, pad: int, end: int, seed: int = 0) -> LlamaForCausalLM:
    """A Llama in which copying is already wired: layer 0 looks one to three tokens back, layer 1 looks up what
    followed an earlier copy of the present token (induction heads), or what stood near an earlier copy of the last.
    From a default initialisation reading hardly emerges in the time that a laptop has."""
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
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
    )  # slow enough to compare tokens hundreds apart
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                parameter.zero_()  # a block starts as the identity, so it adds no noise to the circuit below
            elif parameter.ndim == 2:
                parameter.normal_(0, shape.width**-0.5)
        embedding = model.model.embed_tokens.weight
        embedding *= EMBEDDING_SCALE * shape.width**0.5
        embedding[:, shape.width // 2 :] *= 0.1  # the other half is for what layer 0 writes
        model.model.norm.weight.fill_(FINAL_GAIN)
        _look_back(model)
        _look_up(model)
    return model


BACK = (1, 2, 3)
"""Layer 0: head h attends so many tokens back, and leaves what it saw in its own block of the free half."""
LOOK_UPS = ((0, 1), (1, 2), (1, 3))
"""Layer 1: head h matches the token `a` back from here with the token `b` back from there, and copies what stands
there. (0, 1) goes on copying a name; the others find the object a word or two after "France" when "France is" was
just written."""


def _look_back(model: LlamaForCausalLM, strength: float = 4.0) -> None:
    """Constant key, query rotated by the offset: the score peaks `offset` tokens back. All heads read one code of
    the tokens, so that what two of them saw can be compared."""
    attention, width = model.model.layers[0].self_attn, model.config.hidden_size
    size = width // model.config.num_attention_heads
    frequency = model.model.rotary_emb.inv_freq[: size // 4]  # the fastest: they tell neighbours apart
    code = torch.nn.init.orthogonal_(torch.empty(size, width // 2))
    for head, offset in enumerate(BACK):
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
        free = width // 2 // len(BACK)
        block = torch.nn.init.orthogonal_(torch.empty(free, size), gain=EMBEDDING_SCALE)
        start = width // 2 + head * free
        attention.o_proj.weight[start : start + free, rows] = block


def _look_up(model: LlamaForCausalLM) -> None:
    """Queries and keys that are the codes of two tokens, in the dimensions that rotate slowly."""
    width = model.config.hidden_size
    size = width // model.config.num_attention_heads
    first, second = model.model.layers[0].self_attn, model.model.layers[1].self_attn
    slow = torch.cat([torch.arange(size // 4, size // 2), torch.arange(size // 4, size // 2) + size // 2])
    copies = torch.zeros(len(LOOK_UPS) * size, width)
    torch.nn.init.orthogonal_(copies[:, : width // 2])

    def seen(offset: int) -> torch.Tensor:
        """(size, width): reads the code of the token `offset` back out of the stream."""
        if offset == 0:
            return first.v_proj.weight[:size]
        rows = slice((offset - 1) * size, offset * size)
        return first.o_proj.weight[:, rows].T / EMBEDDING_SCALE

    for head, (here, there) in enumerate(LOOK_UPS):
        rows = slice(head * size, (head + 1) * size)
        second.q_proj.weight[rows] = 0
        second.k_proj.weight[rows] = 0
        second.q_proj.weight[rows.start + slow] = MATCH_GAIN * seen(here)[slow]
        second.k_proj.weight[rows.start + slow] = MATCH_GAIN * seen(there)[slow]
        second.v_proj.weight[rows] = copies[rows]
        second.o_proj.weight[:, rows] = COPY_GAIN * copies[rows].T


def grow(small: LlamaForCausalLM, shape: Shape) -> LlamaForCausalLM:
    """A model of `shape` that computes what `small` does, to rounding, with room to learn more: the new
    heads, units, layers and dimensions of the stream read, but nothing is written through them yet."""
    old, ids = small.config, (small.config.vocab_size, small.config.pad_token_id, small.config.eos_token_id)
    if shape.width // shape.heads != old.hidden_size // old.num_attention_heads:
        raise ModelError("A backbone can only grow into one whose heads are of the same size.")
    large = initialise(shape, *ids)
    scale = (old.hidden_size / shape.width) ** 0.5  # the norms divide by the mean square over more dimensions
    with torch.no_grad():
        source, target = small.state_dict(), large.state_dict()
        for name, new in target.items():
            if new.ndim == 1 and name.endswith("bias"):
                new.zero_()
            elif name.endswith(
                ("embed_tokens.weight", "lm_head.weight", "o_proj.weight", "down_proj.weight")
            ):
                new.zero_()  # what writes into the stream
            if name not in source:
                continue  # a new layer: it reads at random and writes nothing
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
