"""CISPO and Dr. GRPO, each one row of ALGORITHMS, against numbers worked out by hand and against TRL.

And what all rows share: on the batch that was just sampled, every gradient is that of A * log p.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import test_trl_gradient as reference
import torch
from arm_fixtures import arm, objective
from policy_fixtures import load, written
from torch import tensor

from zs_lib.rl.learner import Learner
from zs_lib.rl.objectives import ALGORITHMS, group_advantages, policy_loss
from zs_lib.rl.rollout import token_budget

folder, trajectories = reference.folder, reference.trajectories  # fixtures
NAN = float("nan")
HALF = math.log(0.5)


# --- advantages


@pytest.mark.parametrize(
    "name, expected",
    [
        # Rewards 1, 0, 0.5: mean 0.5, deviation with n - 1: sqrt(0.5 / 2) = 0.5; then one group of equal
        # rewards.
        ("cispo", [[0.5 / 0.5001, -0.5 / 0.5001, 0.0], [0.0, 0.0, 0.0]]),
        ("dr_grpo", [[0.5, -0.5, 0.0], [0.0, 0.0, 0.0]]),
    ],
)
def test_advantages_by_hand(name, expected):
    rewards = tensor([[1.0, 0.0, 0.5], [0.25, 0.25, 0.25]], dtype=torch.float64)
    advantages = group_advantages(rewards, objective(name))
    torch.testing.assert_close(advantages, tensor(expected, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("name, expected", [("cispo", 0.3 / (0.3 * math.sqrt(2) + 1e-4)), ("dr_grpo", 0.3)])
def test_a_rollout_that_left_the_batch_counts_in_no_mean(name, expected):
    advantages = group_advantages(tensor([[0.6, NAN, 0.0]], dtype=torch.float64), objective(name))
    expected = tensor([[expected, 0.0, -expected]], dtype=torch.float64)
    torch.testing.assert_close(advantages, expected, atol=1e-12, rtol=0)


# --- surrogates, on one token of probability 1/2 whose ratio to the sampler's probability is given


@pytest.mark.parametrize(
    "name, ratio, advantage, loss, slope, clipped",
    [
        # CISPO: loss -w * A * ln(1/2), slope -w * A, with w = min(ratio, 1.2): never 0
        ("cispo", 1.0, 2.0, -2.0 * HALF, -2.0, False),
        ("cispo", 1.1, 2.0, -2.2 * HALF, -2.2, False),
        ("cispo", 1.5, 2.0, -2.4 * HALF, -2.4, True),
        ("cispo", 1.5, -2.0, 2.4 * HALF, 2.4, True),  # PPO has 3 here: it bounds only what A pushes further
        ("cispo", 0.5, 2.0, -1.0 * HALF, -1.0, False),
        ("cispo", 0.5, -2.0, 1.0 * HALF, 1.0, False),  # no lower bound: PPO has no gradient here
        # Dr. GRPO: PPO's minimum, as in GRPO
        ("dr_grpo", 1.0, 2.0, -2.0, -2.0, False),
        ("dr_grpo", 1.5, 2.0, -2.4, 0.0, True),
        ("dr_grpo", 1.5, -2.0, 3.0, 3.0, False),
        ("dr_grpo", 0.5, 2.0, -1.0, -1.0, False),
        ("dr_grpo", 0.5, -2.0, 1.6, 0.0, True),
    ],
)
def test_the_surrogate_by_hand(name, ratio, advantage, loss, slope, clipped):
    logp = torch.full((1, 1), HALF, dtype=torch.float64, requires_grad=True)
    old, mask = logp.detach() - math.log(ratio), tensor([[True]])
    value, stats = policy_loss(logp, old, None, tensor([[advantage]]), mask, objective(name), normalizer=1)
    value.backward()
    assert value.item() == pytest.approx(loss) and logp.grad.item() == pytest.approx(slope)
    assert stats["clip_fraction"].item() == clipped


@pytest.mark.parametrize("name", ALGORITHMS)
def test_on_the_sampled_batch_every_gradient_is_the_policy_gradient(name):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 5, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    tokens = torch.randint(7, (4, 5, 1), generator=generator)
    advantages = torch.randn(4, 1, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 5, generator=generator) > 0.3
    logp = logits.log_softmax(-1).gather(-1, tokens).squeeze(-1)
    loss, stats = policy_loss(logp, logp.detach(), None, advantages, mask, objective(name), normalizer=3)
    (gradient,) = torch.autograd.grad(loss, logits, retain_graph=True)
    (expected,) = torch.autograd.grad((advantages * logp)[mask].sum(), logits)
    torch.testing.assert_close(gradient, -expected / 3)
    assert stats["clip_fraction"] == 0 and expected.abs().max() > 0.1


@pytest.mark.parametrize("name", ALGORITHMS)
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5])
def test_what_stands_on_masked_tokens_moves_nothing(name, ratio):
    """The loss of tokens 0 and 2 alone, though NaN or a huge ratio stands on 1 and 3."""
    mask, cfg = tensor([[True, False, True, False]]), objective(name, kl_coef=0.1)

    def gradient(masked, width=4):
        columns = slice(0, None, 2) if width == 2 else slice(None)
        logp = tensor([[-1.0, masked, -2.0, masked]])[:, columns].requires_grad_()
        old = tensor([[-1.0, masked, -2.0, -masked]])[:, columns] - math.log(ratio)
        ref = tensor([[-1.5, masked, -1.0, 0.0]])[:, columns]
        advantages = tensor([[0.7, masked, -0.4, masked]])[:, columns]
        loss, stats = policy_loss(logp, old, ref, advantages, mask[:, columns], cfg, normalizer=8)
        loss.backward()
        return loss, logp.grad, stats

    expected_loss, expected, expected_stats = gradient(0.0, width=2)
    for masked in (0.0, 50.0, -math.inf, NAN):
        loss, grad, stats = gradient(masked)
        assert torch.equal(loss, expected_loss) and stats == expected_stats
        assert torch.equal(grad[mask], expected[0]) and (grad[~mask] == 0).all()


# --- normalisers


def test_the_normaliser_by_hand():
    """Two rollouts of three tokens and one, ratio 1, advantages 1 and -2; each may write 10 tokens."""
    mask, advantages = tensor([[True, True, True], [True, False, False]]), tensor([[1.0], [-2.0]])
    for name, divisor in (("grpo", 4), ("cispo", 4), ("dr_grpo", 2 * 10)):
        normalizer = ALGORITHMS[name].normalizer(4, 2, 10)
        assert normalizer == divisor
        logp = torch.full((2, 3), HALF, requires_grad=True)
        loss, _ = policy_loss(logp, logp.detach(), None, advantages, mask, objective(name), normalizer)
        loss.backward()
        expected = -(3 * 1.0 - 2.0) / divisor
        assert loss.item() == pytest.approx(expected * (HALF if name == "cispo" else 1))
        torch.testing.assert_close(logp.grad, tensor([[-1.0, -1.0, -1.0], [2.0, 0.0, 0.0]]) / divisor)


def test_the_token_budget_counts_the_turns_that_there_are():
    cfg = arm().rollout
    assert (cfg.max_searches, cfg.max_turn_tokens) == (2, 6)
    assert token_budget(cfg, searches=True) == 18 and token_budget(cfg, searches=False) == 6


def gradient_of_first(backbone, monkeypatch, name: str, length: int, engine: str = "bm25"):
    """The gradient of a rollout of 4 tokens beside one of `length` tokens with advantage 0, as one vector."""
    first = written([2, 3], [4, 5, 6, 7], [True] * 4)
    second = written([2, 3], [8] * length, [True] * length)
    learner = Learner(load(backbone).model, arm(objective=objective(name), engine=engine, max_grad_norm=1e9))
    monkeypatch.setattr(learner.optimizer, "zero_grad", lambda: None)
    learner.update(1, [first, second], [1.0, 0.0])
    return torch.cat([parameter.grad.flatten() for parameter in learner.parameters.values()])


SAME = {"rtol": 1e-4, "atol": 1e-4}
"""Of gradients of tenths and more: rows of other lengths round otherwise, the more so the processor wills."""


def test_in_dr_grpo_a_longer_rollout_does_not_change_anothers_weight(backbone, monkeypatch):
    gradient = partial(gradient_of_first, backbone, monkeypatch)
    assert gradient("dr_grpo", 3).norm() > 0.01
    assert torch.equal(gradient("dr_grpo", 3), gradient("dr_grpo", 12))
    for name in ("grpo", "cispo"):  # here it does: 7 and 16 tokens
        torch.testing.assert_close(gradient(name, 3) * 7, gradient(name, 12) * 16, **SAME)
    # The same sum over tokens, divided by 7 tokens, by 2 rollouts of 18 tokens, and without search of 6.
    whole = gradient("grpo", 3) * 7
    torch.testing.assert_close(gradient("dr_grpo", 3) * 2 * 18, whole, **SAME)
    torch.testing.assert_close(gradient("dr_grpo", 3, engine="none") * 2 * 6, whole, **SAME)


def test_logged_kl_and_clip_fraction_are_per_token_whatever_the_normaliser(backbone):
    rollouts = [written([2, 3], [4, 5, 6, 7], [True] * 4), written([2, 3], [8, 9], [True] * 2)]

    def statistics(name):
        # The first update is large enough that some ratios of the second are clipped.
        cfg = objective(name, kl_coef=0.1, updates_per_batch=2)
        learner = Learner(load(backbone).model, arm(objective=cfg, engine="bm25", learning_rate=0.01))
        return learner.update(9, rollouts, [1.0, -1.0])

    dr_grpo, grpo = statistics("dr_grpo"), statistics("grpo")
    assert grpo["kl"] > 0.01 and grpo["clip_fraction"] > 0.1
    # Adam's first step does not depend on the gradient's size.
    assert dr_grpo["kl"] == pytest.approx(grpo["kl"], rel=1e-3)
    assert dr_grpo["clip_fraction"] == pytest.approx(grpo["clip_fraction"])


# --- TRL's own loss


@pytest.mark.parametrize("name", ["cispo", "dr_grpo"])
@pytest.mark.parametrize("kl_coef", [0.0, reference.KL])
def test_loss_and_gradient_equal_trls(name, kl_coef, folder, tmp_path, trajectories, monkeypatch):
    """TRL bounds CISPO's weight by `epsilon_high` itself; Dr. GRPO's constant is `max_completion_length`."""
    budget = 31
    settings = {"epsilon_high": 1 + reference.CLIP} if name == "cispo" else {"max_completion_length": budget}
    monkeypatch.setattr(reference, "GRPOConfig", partial(reference.GRPOConfig, **settings))
    cfg = objective(name, clip=reference.CLIP, kl_coef=kl_coef)
    advantages = group_advantages(reference.REWARDS, cfg).flatten()
    generator = torch.Generator().manual_seed(2)
    # Ratios far from 1 on either side.
    old, ref = -4.0 + torch.randn(
        2, *reference.pad_right([t.ids for t in trajectories]).shape, generator=generator
    )
    theirs, their_grads = reference.trl_gradient(
        folder, tmp_path, name, kl_coef, trajectories, advantages, old, ref
    )
    ours, our_grads = reference.our_gradient(folder, cfg, trajectories, advantages, old, ref, budget)
    assert ours == pytest.approx(theirs, abs=1e-6)
    for weight, gradient in our_grads.items():
        assert gradient.abs().max() > 1e-4, f"{weight} has no gradient: the comparison would be empty"
        torch.testing.assert_close(gradient, their_grads[weight], atol=1e-6, rtol=1e-4, msg=weight)


def test_trl_centres_and_scales_rewards_as_these_rows_do():
    """`scale_rewards` "group" and "none" in TRL's terms, with its own standard deviation."""
    from trl.trainer.utils import nanstd

    rewards = tensor([[1.0, 0.0, 0.5], [0.0, 0.3, 1.0]])
    centred = rewards - rewards.nanmean(1, keepdim=True)
    torch.testing.assert_close(group_advantages(rewards, objective("dr_grpo")), centred)
    scaled = centred / (nanstd(rewards, dim=1)[:, None] + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, objective("cispo")), scaled)


def test_a_row_is_all_that_an_algorithm_needs(backbone, monkeypatch):
    """A new row, by its name alone, trains a policy: here CISPO's surrogate over Dr. GRPO's constant."""
    new = replace(ALGORITHMS["cispo"], normalizer=ALGORITHMS["dr_grpo"].normalizer)
    monkeypatch.setitem(ALGORITHMS, "new", new)
    whole = gradient_of_first(backbone, monkeypatch, "cispo", 3) * 7
    torch.testing.assert_close(gradient_of_first(backbone, monkeypatch, "new", 3) * 2 * 18, whole, **SAME)
