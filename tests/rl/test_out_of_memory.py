"""Memory that runs out once in an update leaves nothing behind: the next attempt is as good as the first."""

from __future__ import annotations

import dataclasses
import random

import pytest
import torch
from arm_fixtures import arm
from policy_fixtures import KL, PPO, load, written

from zs_lib.errors import ModelError
from zs_lib.rl import batches
from zs_lib.rl.learner import Learner

PLAIN = dataclasses.replace(KL, kl_coef=0.0, updates_per_batch=1)
OBJECTIVES = pytest.mark.parametrize("objective", [PLAIN, KL, PPO], ids=["plain", "kl", "ppo"])
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


@pytest.fixture
def batch(monkeypatch):
    """Six trajectories with a document in the middle, which make two micro-batches of three rows."""
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", 60)
    rng, trajectories = random.Random(5), []
    for size in (3, 8, 5, 6, 4, 7):
        mask = [True] * size + [False] * 4 + [True] * 2
        trajectories.append(written([2, 3], [rng.randrange(2, 20) for _ in mask], mask))
    return trajectories, [1.0, 0.25, -0.25, -0.5, 0.25, -1.0]


class Once:
    """Wraps a function so that it runs out of memory at the n-th of its calls that count, and never again."""

    def __init__(self, function, n: int, counts=lambda *_: True):
        self.function, self.left, self.counts = function, n, counts

    def __call__(self, *args, **kwargs):
        if self.counts(*args):
            self.left -= 1
            if self.left == 0:
                raise torch.OutOfMemoryError("CUDA out of memory.")
        return self.function(*args, **kwargs)


class Recording(Learner):
    """A learner that keeps the gradient of each optimizer step."""

    def __init__(self, model, arm):
        super().__init__(model, arm)
        self.gradients, step = [], self.optimizer.step

        def record():
            self.gradients.append({name: p.grad.clone() for name, p in self.parameters.items()})
            step()

        self.optimizer.step = record


def learner(backbone, objective, dtype) -> Recording:
    return Recording(load(backbone).model, arm(objective=objective, dtype=dtype))


def same_gradients(one: Learner, other: Learner, tolerance: float = 0.01) -> bool:
    """Whether no weight's gradient differs by more than rounding; in bfloat16, that of the first step.

    The first step rounds the weights, so that the second one's gradient is of other weights.
    """
    pairs = list(zip(one.gradients, other.gradients, strict=True))[: 1 if one.rounded else None]
    return all((a[n] - b[n]).norm() <= tolerance * a[n].norm() for a, b in pairs for n in a)


@OBJECTIVES
@DTYPES
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_forward_that_ran_out_of_memory_leaves_no_gradient(backbone, batch, objective, dtype, micro_batch):
    plain, failing = learner(backbone, objective, dtype), learner(backbone, objective, dtype)
    plain.update(9, *batch)
    inner = failing.model.base_model
    inner.forward = Once(inner.forward, micro_batch, lambda *_: torch.is_grad_enabled())
    failing.update(9, *batch)
    assert inner.forward.left < 0
    assert same_gradients(plain, failing)


@OBJECTIVES
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"])
@pytest.mark.parametrize("micro_batch", [1, 2])
def test_a_gradient_hook_that_ran_out_of_memory_leaves_no_gradient(
    backbone, batch, objective, name, micro_batch, monkeypatch
):
    """The hook of a bfloat16 weight fails before it has handed the gradient to the float32 master."""
    plain, failing = learner(backbone, objective, "bfloat16"), learner(backbone, objective, "bfloat16")
    plain.update(9, *batch)
    weight = dict(failing.model.named_parameters())[name]
    once = Once(torch.Tensor.float, micro_batch, lambda tensor: tensor is weight.grad)
    monkeypatch.setattr(torch.Tensor, "float", lambda tensor: once(tensor))
    failing.update(9, *batch)
    assert once.left < 0
    assert same_gradients(plain, failing)
    assert all(p.grad is None for p in [*failing.model.parameters(), *failing.parameters.values()])


@DTYPES
@pytest.mark.parametrize(
    "cfg", [PPO, dataclasses.replace(PLAIN, minibatch_rollouts=3)], ids=["critic", "minibatches"]
)
def test_values_before_the_first_step_are_computed_in_halves_where_memory_runs_out(
    backbone, batch, dtype, cfg
):
    plain, failing = learner(backbone, cfg, dtype), learner(backbone, cfg, dtype)
    plain.update(9, *batch)
    inner = failing.model.base_model
    inner.forward = Once(inner.forward, 1, lambda *_: not torch.is_grad_enabled())
    failing.update(9, *batch)
    assert inner.forward.left < 0
    assert same_gradients(plain, failing)


@OBJECTIVES
@DTYPES
@pytest.mark.parametrize("tensor", [1, 4], ids=["first moment", "second moment of another weight"])
def test_an_optimizer_that_does_not_fit_is_an_error_and_the_next_attempt_the_same(
    backbone, batch, objective, dtype, tensor, monkeypatch
):
    plain, failing = learner(backbone, objective, dtype), learner(backbone, objective, dtype)
    stats = plain.update(9, *batch)
    weights = {id(weight) for weight in failing.parameters.values()}
    # AdamW's first step makes two moments of each weight by it.
    once = Once(torch.zeros_like, tensor, lambda like, *_: id(like) in weights)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "zeros_like", once)
        with pytest.raises(ModelError, match="optimizer of 'test' does not fit into memory"):
            failing.update(9, *batch)
    assert once.left == 0
    assert all(p.grad is None for p in [*failing.model.parameters(), *failing.parameters.values()])
    again = failing.update(9, *batch)
    assert again == pytest.approx(stats, nan_ok=True)
    state, expected = failing.state(), plain.state()
    assert list(state) == list(expected)
    assert all(state[name].equal(expected[name]) for name in expected)


def test_an_update_that_failed_for_another_reason_leaves_no_gradient_to_the_next(backbone, batch):
    plain, failing = learner(backbone, PLAIN, "bfloat16"), learner(backbone, PLAIN, "bfloat16")
    plain.update(9, *batch)
    weight = failing.model.base_model.layers[0].mlp.up_proj.weight
    handle = weight.register_hook(lambda _: (_ for _ in ()).throw(RuntimeError("a device error")))
    with pytest.raises(RuntimeError, match="a device error"):
        failing.update(9, *batch)
    handle.remove()
    failing.update(9, *batch)
    assert same_gradients(plain, failing, tolerance=0)
