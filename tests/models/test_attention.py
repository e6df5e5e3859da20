"""Causal attention over whole texts by plain products: the same values and gradients as PyTorch's."""

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from zs_lib.models import attention
from zs_lib.models.linear import is_exact

MODULE = torch.nn.Module()


def attend(query, key, value, **options):
    """Result and gradients of attention as a layer asks for it, (rows, heads, length, width)."""
    states = [one.clone().requires_grad_() for one in (query, key, value)]
    result = attention._attend(MODULE, *states, None, **options)[0].transpose(1, 2)
    return [result, *torch.autograd.grad(result.sin().sum(), states)]


@pytest.mark.skipif(not is_exact(), reason="This processor would round: attention stays as it is.")
@pytest.mark.parametrize("key_heads", [4, 2])
@pytest.mark.parametrize("scaling", [None, 0.3])
def test_values_and_gradients_are_those_of_float64(key_heads, scaling, monkeypatch):
    monkeypatch.setattr(attention, "sdpa_attention_forward", None)  # the fused kernel is not asked
    torch.manual_seed(0)
    MODULE.num_key_value_groups = 4 // key_heads
    query, key, value = (torch.randn(3, heads, 37, 16) for heads in (4, key_heads, key_heads))
    exact = [one.double().requires_grad_() for one in (query, key, value)]
    right = scaled_dot_product_attention(*exact, is_causal=True, scale=scaling, enable_gqa=True)
    right = [right, *torch.autograd.grad(right.sin().sum(), exact)]
    for ours, one in zip(attend(query, key, value, scaling=scaling), right, strict=True):
        torch.testing.assert_close(ours.double(), one, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("long", {}),
        ("dropout", {"dropout": 0.5}),
        ("not causal", {"is_causal": False}),
        ("half", {}),
        ("autocast", {}),
    ],
)
def test_everything_else_is_left_to_the_fused_kernel(case, options, monkeypatch):
    monkeypatch.setattr(attention._CausalAttention, "apply", None)
    MODULE.num_key_value_groups = 1
    length, dtype = 40, torch.bfloat16 if case == "half" else torch.float32
    if case == "long":
        monkeypatch.setattr(attention, "SCORES", 2 * 40 * 40 - 1)
    query = torch.randn(1, 2, length, 8, dtype=dtype)
    with torch.autocast("cpu", enabled=case == "autocast"):
        assert attend(query, query, query, **options)[0].shape == query.shape
