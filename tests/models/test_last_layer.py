"""The last layer's MLP where its output is read: the same states and gradients, from fewer positions."""

import pytest
import torch
from model_fixtures import tiny_model

from zs_lib.models.last_layer import last_mlp_at

IDS = torch.arange(14).reshape(2, 7) + 5
WANTED = torch.tensor([[False, True, False, True, True, False, False], [False] * 6 + [True]])


@pytest.mark.parametrize(("checkpointing", "read"), [(False, 4), (True, 14)])
def test_states_and_gradients_are_those_of_the_whole_layer(checkpointing, read):
    """With gradient checkpointing, which runs the layer again, every position is computed."""
    model, found, seen = tiny_model().train(), [], []
    if checkpointing:
        model.activation_checkpointing_enable()
    mlp = model.model.layers[-1].mlp
    mlp.down_proj.register_forward_hook(lambda _, inputs, out: seen.append(inputs[0].shape[:-1].numel()))
    for wanted in (torch.ones_like(WANTED), WANTED):
        model.zero_grad()
        with last_mlp_at(model, wanted):
            states = model.base_model(input_ids=IDS, use_cache=False).last_hidden_state[WANTED]
        states.square().sum().backward()
        found.append([states, *(weight.grad for weight in model.parameters() if weight.grad is not None)])
    for ours, whole in zip(*found, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-5, atol=1e-6)
    assert seen[0] == 14 and seen[-1] == read
    assert not mlp._forward_hooks and not mlp._forward_pre_hooks
