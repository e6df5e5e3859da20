"""Linear layers by oneDNN: the same values and gradients as PyTorch's own, where it is exact."""

import copy

import pytest
import torch

from zs_lib.models import linear
from zs_lib.models.linear import Linear, is_exact, use_onednn
from zs_lib.models.load import load_model

EXACT = pytest.mark.skipif(not is_exact(), reason="This processor would round: its layers stay as they are.")


@EXACT
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [(3,), (700,), (7, 100)])  # too few to be worth it, and many
def test_values_and_gradients_are_those_of_float64(rows, bias):
    torch.manual_seed(0)
    ours = torch.nn.Linear(96, 640, bias=bias)
    exact = copy.deepcopy(ours).double()
    use_onednn(torch.nn.Sequential(ours))
    assert type(ours) is Linear
    inputs, out = torch.randn(*rows, 96), torch.randn(*rows, 640)
    found = []
    for layer, dtype in ((ours, torch.float32), (exact, torch.float64)):
        given = inputs.clone().to(dtype).requires_grad_()
        result = layer(given)
        result.backward(out.to(dtype))
        found.append([result, given.grad, *(weight.grad for weight in layer.parameters())])
    for onednn, right in zip(*found, strict=True):  # bfloat16 would be off by 0.01
        assert onednn.dtype is torch.float32
        torch.testing.assert_close(onednn.double(), right, rtol=0, atol=1e-4)


@EXACT
def test_nothing_is_rounded_and_the_setting_is_left_as_it_was():
    weight = torch.eye(64).repeat(64, 1)  # 4,096 products of 64 terms: worth oneDNN's call
    layer = torch.nn.Linear(64, 4096, bias=False)
    layer.weight.data = weight
    use_onednn(torch.nn.Sequential(layer))
    value = 1 + linear.FINE  # in bfloat16: 1
    with torch.no_grad():
        assert (layer(torch.full((64, 64), value)) == value).all()
    assert torch.get_float32_matmul_precision() == "highest"


@EXACT
def test_what_asks_for_another_precision_gets_it():
    layer = torch.nn.Linear(64, 4096)
    use_onednn(torch.nn.Sequential(layer))
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(torch.ones(64, 64)).dtype is torch.bfloat16
    assert layer.bfloat16()(torch.ones(64, 64, dtype=torch.bfloat16)).dtype is torch.bfloat16


def test_where_it_would_round_layers_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(linear, "is_exact", lambda: False)
    layer = torch.nn.Linear(64, 4096)
    use_onednn(torch.nn.Sequential(layer))
    assert type(layer) is torch.nn.Linear


@EXACT
def test_loaded_models_use_it_in_every_linear_layer():
    layers = [one for one in load_model("tiny-S").model.modules() if isinstance(one, torch.nn.Linear)]
    assert layers and {type(layer) for layer in layers} == {Linear}
