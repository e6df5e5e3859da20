"""Sampling attends to what the model's own forward attends to: windows, chunks, or everything."""

import random

import pytest
import torch
import transformers
from model_fixtures import tiny_tokenizer

from zs_lib.errors import ModelError
from zs_lib.models import batch
from zs_lib.models.attention import can_share
from zs_lib.models.batch import PREFILL_TOKENS
from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.kv_cache import KVCache

WINDOW = 16
SHAPE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 512,
    "eos_token_id": 0,
    "pad_token_id": 1,
    "bos_token_id": None,
}
WINDOWED = {"sliding_window": WINDOW}
MIXED = WINDOWED | {"layer_types": ["sliding_attention", "full_attention"] * 2}
FAMILIES = {
    "Gemma3Text": ("Gemma3ForCausalLM", MIXED | {"query_pre_attn_scalar": 8}),
    "Mistral": ("MistralForCausalLM", WINDOWED),
    "Qwen3": ("Qwen3ForCausalLM", WINDOWED | {"use_sliding_window": True, "max_window_layers": 2}),
    "Qwen2": ("Qwen2ForCausalLM", WINDOWED | {"use_sliding_window": True, "max_window_layers": 2}),
    "Phi3": ("Phi3ForCausalLM", WINDOWED),
    "SmolLM3": ("SmolLM3ForCausalLM", MIXED | {"use_sliding_window": True}),
    "Llama4Text": (
        "Llama4ForCausalLM",
        {
            "attention_chunk_size": WINDOW,
            "layer_types": ["chunked_attention", "full_attention"] * 2,
            "num_local_experts": 2,
            "intermediate_size_mlp": 64,
        },
    ),
}
UNWINDOWED = {
    "Llama": ("LlamaForCausalLM", {}),  # SmolLM and SmolLM2 are Llamas
    "Llama, with a window that it does not know": ("LlamaForCausalLM", WINDOWED),
    "Qwen3, with its window switched off": ("Qwen3ForCausalLM", WINDOWED | {"use_sliding_window": False}),
    "Gemma3n": (
        "Gemma3nForCausalLM",
        MIXED
        | {
            "num_kv_shared_layers": 2,
            "vocab_size_per_layer_input": 400,
            "hidden_size_per_layer_input": 8,
            "activation_sparsity_pattern": [0.0] * 4,
            "laurel_rank": 4,
        },
    ),
    "DeepseekV3": (
        "DeepseekV3ForCausalLM",
        {
            "num_key_value_heads": 4,
            "q_lora_rank": 8,
            "kv_lora_rank": 8,
            "qk_rope_head_dim": 8,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "n_routed_experts": 4,
            "n_group": 2,
            "topk_group": 1,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 16,
        },
    ),
}


def random_model(architecture: str, extra: dict):
    """A random model of four narrow layers, with logits spread out enough that errors show."""
    kind = getattr(transformers, architecture)
    torch.manual_seed(0)
    known = SHAPE | {"vocab_size": len(tiny_tokenizer())} | extra
    if architecture in ("FalconForCausalLM", "BloomForCausalLM"):
        del known["head_dim"]
    model = kind(kind.config_class(**known)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter.data, std=0.2)
    return model


def forward_logprobs(model, prompt, ids):
    """Log-probabilities of ids after a prompt, by the forward pass that training makes: no cache, no mask."""
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([prompt + ids]), use_cache=False).logits[
            0, len(prompt) - 1 : -1
        ]
    return (logits.double() / 0.8).log_softmax(-1).gather(-1, torch.tensor(ids)[:, None])[:, 0]


def three_turns(model, prefix, cache, max_batch=4):
    """(text, completion) of three turns, at the end of which texts are up to six windows long."""
    generator, draw = TransformersGenerator(model, tiny_tokenizer(), max_batch), random.Random(0)
    texts = [[*prefix, *(draw.randrange(2, 300) for _ in range(n))] for n in [3, 40, 17, 1, 28, 9]]
    told = []
    for turn in range(3):
        completions = generator.generate(texts, [(turn, i) for i in range(6)], 12, 0.8, (), cache)
        told += zip(texts, completions, strict=True)
        texts = [text + completion.ids + [5, 6, 7] for text, completion in told[-6:]]
    return told


@pytest.mark.parametrize("prefix", [(), tuple(range(20, 60))], ids=["no prefix", "shared prefix"])
@pytest.mark.parametrize("name", [*FAMILIES, *UNWINDOWED])
def test_what_is_sampled_has_the_logprobs_of_the_training_forward(name, prefix, monkeypatch):
    monkeypatch.setitem(PREFILL_TOKENS, "cpu", 100)  # several passes for a batch
    monkeypatch.setattr(batch, "ROOM", 5)  # slots grow twice in a turn
    model = random_model(*(FAMILIES | UNWINDOWED)[name])
    for cache in (KVCache(), None):
        for text, completion in three_turns(model, prefix, cache):
            expected = forward_logprobs(model, text, completion.ids)
            assert completion.logprobs == pytest.approx(expected.tolist(), abs=1e-4)


@pytest.mark.parametrize("name", FAMILIES)
def test_beyond_the_window_attention_to_everything_would_be_seen(name):
    """Or the test above could not fail."""
    architecture, extra = FAMILIES[name]
    windows = {key: 512 for key in ("sliding_window", "attention_chunk_size") if key in extra}
    model, wide = random_model(architecture, extra), random_model(architecture, extra | windows)
    wide.load_state_dict(model.state_dict())
    text = list(range(20, 20 + 4 * WINDOW))
    near, far = forward_logprobs(model, [2], text), forward_logprobs(wide, [2], text)
    assert torch.allclose(near[: WINDOW - 2], far[: WINDOW - 2], atol=1e-4)
    assert (near - far)[WINDOW:].abs().max() > 0.1


def test_bfloat16_samples_within_the_window_too():
    model = random_model(*FAMILIES["Mistral"]).bfloat16()
    pairs = [
        (c.logprobs, forward_logprobs(model, t, c.ids)) for t, c in three_turns(model, range(20, 60), None)
    ]
    gaps = torch.cat([(torch.tensor(mine) - theirs).abs() for mine, theirs in pairs])
    assert gaps.mean() < 0.1  # rounding only


def test_the_prefix_is_shared_where_attention_can_read_it():
    shared = {name: can_share(random_model(*row)) for name, row in (FAMILIES | UNWINDOWED).items()}
    assert [name for name, can in shared.items() if not can] == ["Gemma3n", "DeepseekV3"]


def test_outside_of_sampling_transformers_masks_are_its_own():
    model = random_model(*FAMILIES["Gemma3Text"])
    ids = torch.tensor([[5, 6, 7, 8] * 10] * 2)
    left_padded = torch.ones_like(ids)
    left_padded[0, :20] = 0
    before = model.generate(ids, attention_mask=left_padded, max_new_tokens=8, do_sample=False)
    three_turns(model, (), None)
    assert model.generate(ids, attention_mask=left_padded, max_new_tokens=8, do_sample=False).equal(before)
    alone = model.generate(ids[:1, 20:], max_new_tokens=8, do_sample=False)
    assert alone[0, -8:].equal(before[0, -8:])


@pytest.mark.parametrize(
    "architecture, extra, reason",
    [
        ("Gemma2ForCausalLM", MIXED, "soft-capped"),
        ("Gemma3ForCausalLM", MIXED | {"attn_logit_softcapping": 50.0}, "soft-capped"),
        ("Gemma2ForCausalLM", MIXED | {"attn_logit_softcapping": None}, "'eager', not 'sdpa'"),
        ("FalconForCausalLM", {"alibi": True}, "ALiBi"),
        ("BloomForCausalLM", {"n_layer": 2, "n_head": 4}, "ALiBi"),
        ("GptOssForCausalLM", MIXED | {"num_local_experts": 2, "num_experts_per_tok": 1}, "'eager'"),
        ("Lfm2ForCausalLM", {"layer_types": ["conv", "full_attention"] * 2}, "conv"),
        ("MambaForCausalLM", {}, "not attention"),
    ],
)
def test_attention_that_the_loop_cannot_reproduce_is_refused_by_name(architecture, extra, reason):
    with pytest.raises(ModelError, match=rf"{architecture}: .*{reason}"):
        TransformersGenerator(random_model(architecture, extra), tiny_tokenizer())


def test_a_model_that_masks_in_its_own_way_is_refused_when_it_samples(monkeypatch):
    model = random_model(*UNWINDOWED["Llama"])
    monkeypatch.setattr(
        transformers.models.llama.modeling_llama, "create_causal_mask", lambda **inputs: None
    )  # as a model with code of its own might
    with pytest.raises(ModelError, match="mask functions"):
        TransformersGenerator(model, tiny_tokenizer()).generate([[5, 6]], [(0,)], 3, 1.0)
