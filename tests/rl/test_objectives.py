"""The dangerous arithmetic against numbers worked out by hand: advantages, KL, clipping, masks."""

from __future__ import annotations

import math
import re

import pytest
import torch
from arm_fixtures import objective
from hypothesis import given
from hypothesis import strategies as st
from torch import tensor

from zs_lib.config.arms import ObjectiveConfig
from zs_lib.errors import ConfigError
from zs_lib.rl.objectives import (
    ALGORITHMS,
    BASELINES,
    algorithm,
    balance_signs,
    gae,
    group_advantages,
    kl_k3,
    likelihood_drop,
    policy_loss,
    sampler_weights,
    value_loss,
    zero_variance_groups,
)

NAN = float("nan")
# The second group has no variance.
REWARDS = tensor([[1.0, 0.0, 0.0, 1.0], [0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)


def by(kind: str) -> ObjectiveConfig:
    """REINFORCE with the baseline of this name, or the algorithm of this name."""
    return objective(baseline=kind) if kind in BASELINES else objective(kind, baseline="none")


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("none", [[1, 0, 0, 1], [0.2, 0.2, 0.2, 0.2]]),
        ("batch_mean", [[0.65, -0.35, -0.35, 0.65], [-0.15, -0.15, -0.15, -0.15]]),  # mean of all: 2.8 / 8
        ("group_mean", [[0.5, -0.5, -0.5, 0.5], [0, 0, 0, 0]]),
        ("leave_one_out", [[2 / 3, -2 / 3, -2 / 3, 2 / 3], [0, 0, 0, 0]]),  # 1 - 1/3 and 0 - 2/3
        ("grpo", [[0.86587, -0.86587, -0.86587, 0.86587], [0, 0, 0, 0]]),  # 0.5 / (sqrt(1/3) + 1e-4)
        ("reinforce++", [[1, 0, 0, 1], [0.2, 0.2, 0.2, 0.2]]),  # standardised over tokens later, as PPO's
        ("ppo", [[1, 0, 0, 1], [0.2, 0.2, 0.2, 0.2]]),
    ],
)
def test_advantages_by_hand(kind, expected):
    torch.testing.assert_close(
        group_advantages(REWARDS, by(kind)), tensor(expected, dtype=torch.float64), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("none", [0.6, 0.0, 0.0]),
        ("batch_mean", [0.3, 0.0, -0.3]),
        ("group_mean", [0.3, 0.0, -0.3]),
        ("leave_one_out", [0.6, 0.0, -0.6]),
        ("grpo", [0.3 / (0.3 * math.sqrt(2) + 1e-4), 0.0, -0.3 / (0.3 * math.sqrt(2) + 1e-4)]),
    ],
)
def test_a_rollout_that_left_the_batch_counts_in_no_mean(kind, expected):
    torch.testing.assert_close(group_advantages(tensor([[0.6, NAN, 0.0]]), by(kind)), tensor([expected]))


@pytest.mark.parametrize("kind", ["group_mean", "leave_one_out", "grpo"])
@given(reward=st.floats(0, 1), size=st.integers(1, 9))
def test_a_zero_variance_group_gets_exact_zeros(kind, reward, size):
    assert (group_advantages(torch.full((1, size), reward), by(kind)) == 0).all()


def test_zero_variance_groups_are_those_with_one_reward():
    rewards = tensor([[0.0, 0.0], [0.0, 1.0], [NAN, 1.0], [NAN, NAN]])
    assert zero_variance_groups(rewards).tolist() == [True, False, True, True]


@pytest.mark.parametrize(
    "unknown, known", [({"algorithm": "dapo"}, ALGORITHMS), ({"baseline": "mean"}, BASELINES)]
)
def test_an_unknown_name_lists_the_known_ones(unknown, known):
    for use in (algorithm, lambda cfg: group_advantages(REWARDS, cfg)):
        with pytest.raises(ConfigError, match=re.escape(", ".join(known))):
            use(objective(**unknown))


def test_grpo_brings_its_own_baseline():
    grpo = [group_advantages(REWARDS, objective(algorithm="grpo", baseline=name)) for name in BASELINES]
    assert all(advantages.equal(grpo[0]) for advantages in grpo)
    others = [group_advantages(REWARDS, objective(baseline=name)) for name in BASELINES]
    assert len({str(advantages.tolist()) for advantages in others}) == len(BASELINES)


def test_gae_by_hand():
    values = tensor([0.1, 0.2, 0.3])
    torch.testing.assert_close(gae(values, 1.0, 1.0, 1.0), tensor([0.9, 0.8, 0.7]))  # reward - V
    # deltas 0.9 * 0.2 - 0.1, 0.9 * 0.3 - 0.2, 1 - 0.3; each takes 0.45 of the next advantage with it
    torch.testing.assert_close(gae(values, 1.0, 0.9, 0.5), tensor([0.25325, 0.385, 0.7]))
    torch.testing.assert_close(gae(values, 1.0, 0.9, 0.0), tensor([0.08, 0.07, 0.7]))


def test_the_value_loss_by_hand():
    values, old, returns = tensor([0.5, 0.5]), tensor([0.1, 0.45]), tensor([1.0, 0.0])
    # the first may only go to 0.3: max(0.5^2, 0.7^2); the second is within 0.2 of before: 0.5^2
    assert value_loss(values, old, returns, 0.2, 2).item() == pytest.approx((0.49 + 0.25) / 4)


def test_a_value_beyond_the_clip_is_not_pushed_further():
    values = tensor([0.5], requires_grad=True)
    value_loss(values, tensor([0.1]), tensor([1.0]), 0.2, 1).backward()
    assert values.grad.item() == 0


def test_kl_estimator_by_hand():
    # logp = ln 1/2, ref = ln 1/4: 1/2 + ln 2 - 1;  ref = ln 1: 2 - ln 2 - 1;  the same: 0
    logp = torch.full((3,), math.log(0.5))
    expected = tensor([math.log(2) - 0.5, 1 - math.log(2), 0.0])
    torch.testing.assert_close(kl_k3(logp, tensor([math.log(0.25), 0.0, math.log(0.5)])), expected)


@given(st.lists(st.tuples(st.floats(-20, 0), st.floats(-20, 0)), min_size=1, max_size=5))
def test_the_kl_estimate_is_never_negative(pairs):
    logp, ref = tensor(pairs, dtype=torch.float64).T
    assert (kl_k3(logp, ref) >= -1e-12).all()


def test_the_kl_estimate_is_right_on_average():
    policy, reference = torch.softmax(torch.randn(2, 7, generator=torch.Generator().manual_seed(0)), -1)
    expected = (policy * (policy / reference).log()).sum()
    torch.testing.assert_close((policy * kl_k3(policy.log(), reference.log())).sum(), expected)


def test_a_gradient_step_reduces_the_kl():
    """The original subtracts its KL term, and the KL grows: here a step on it brings the policy closer."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(7, generator=generator, requires_grad=True)
    reference = torch.randn(7, generator=generator).log_softmax(-1)
    policy = logits.softmax(-1).detach()
    tokens = torch.multinomial(policy, 20_000, replacement=True, generator=generator)[None]

    def true_kl():
        logp = logits.log_softmax(-1)
        return (logp.exp() * (logp - reference)).sum().item()

    before = true_kl()
    logp = logits.log_softmax(-1)[tokens]
    nothing, everywhere = torch.zeros(1, 1), torch.ones_like(tokens, dtype=torch.bool)
    cfg = objective(kl_coef=0.5)
    loss, stats = policy_loss(
        logp, logp.detach(), reference[tokens], nothing, everywhere, cfg, tokens.numel()
    )
    loss.backward()
    assert stats["kl"].item() == pytest.approx(before, rel=0.05)
    assert loss.item() == pytest.approx(0.5 * stats["kl"].item())
    with torch.no_grad():
        logits -= 0.5 * logits.grad
    assert true_kl() < before


@pytest.mark.parametrize(
    "ratio, advantage, loss, slope, clipped",
    [
        (1.0, 2.0, -2.0, -2.0, False),  # slope: d loss / d logp = -A * ratio where it is not clipped
        (1.1, 2.0, -2.2, -2.2, False),
        (1.5, 2.0, -2.4, 0.0, True),  # clipped at 1.2: no reason to push a good token further
        (0.5, 2.0, -1.0, -1.0, False),  # the pessimistic side of the minimum
        (0.5, -2.0, 1.6, 0.0, True),  # clipped at 0.8
        (1.5, -2.0, 3.0, 3.0, False),
    ],
)
def test_clipping_by_hand(ratio, advantage, loss, slope, clipped):
    logp = tensor([[math.log(ratio)]], dtype=torch.float64, requires_grad=True)
    old, mask = torch.zeros_like(logp), tensor([[True]])
    value, stats = policy_loss(logp, old, None, tensor([[advantage]]), mask, objective(), 1)
    value.backward()
    assert value.item() == pytest.approx(loss) and logp.grad.item() == pytest.approx(slope)
    assert stats["clip_fraction"].item() == clipped


def test_the_loss_is_a_mean_over_tokens_not_over_rows():
    logp = torch.zeros(2, 3, requires_grad=True)
    mask = tensor([[True, True, True], [True, False, False]])
    normalizer = algorithm(objective()).normalizer(4, 2, 3)
    loss, _ = policy_loss(logp, logp.detach(), None, tensor([[1.0], [-2.0]]), mask, objective(), normalizer)
    loss.backward()
    assert loss.item() == pytest.approx(-(3 * 1.0 - 2.0) / 4)
    torch.testing.assert_close(logp.grad, tensor([[-0.25, -0.25, -0.25], [0.5, 0.0, 0.0]]))


def test_micro_batches_with_one_normalizer_add_up():
    generator = torch.Generator().manual_seed(1)
    logp, old, ref = -torch.rand(3, 4, 5, generator=generator, dtype=torch.float64)
    mask = torch.rand(4, 5, generator=generator) > 0.3
    advantages = torch.randn(4, 1, generator=generator).double()
    cfg = objective(kl_coef=0.1)
    whole, stats = policy_loss(logp, old, ref, advantages, mask, cfg, mask.sum())
    parts = [
        policy_loss(logp[i], old[i], ref[i], advantages[i], mask[i], cfg, normalizer=mask.sum())
        for i in range(4)
    ]
    torch.testing.assert_close(sum(loss for loss, _ in parts), whole)
    for name in stats:
        torch.testing.assert_close(sum(part[name] for _, part in parts), stats[name])


def test_what_stands_on_document_tokens_moves_nothing():
    mask = tensor([[True, False, True, False]])

    def gradient(document_logp, document_old, document_ref):
        logp = tensor([[-1.0, document_logp, -2.0, document_logp]], requires_grad=True)
        old = tensor([[-1.1, document_old, -2.0, document_old]])
        ref = tensor([[-1.5, document_ref, -1.0, document_ref]])
        loss, stats = policy_loss(logp, old, ref, tensor([[0.7]]), mask, objective(kl_coef=0.1), 2)
        loss.backward()
        return loss.item(), logp.grad, {name: value.item() for name, value in stats.items()}

    loss, grad, stats = gradient(-1.0, -1.0, -1.0)
    assert (grad[~mask] == 0).all() and (grad[mask] != 0).all()
    for documents in [(-9.0, 0.0, -3.0), (-float("inf"), 0.0, 0.0), (NAN, NAN, NAN)]:
        other_loss, other_grad, other_stats = gradient(*documents)
        assert (other_loss, other_stats) == (loss, stats) and torch.equal(other_grad, grad)


def test_a_bounded_kl_by_hand():
    """exp(d) - d - 1 is 0.71828 at d = 1 and 17.08554 at d = 3; the original clamps each token's at 10."""
    logp = tensor([-1.0, -3.0], requires_grad=True)
    bounded = kl_k3(logp, tensor([0.0, 0.0]), most=10.0)
    torch.testing.assert_close(bounded, tensor([0.71828, 10.0]), atol=1e-5, rtol=0)
    bounded.sum().backward()
    torch.testing.assert_close(logp.grad, tensor([1 - math.e, 0.0]))
    assert kl_k3(logp, tensor([0.0, 0.0]))[1].item() == pytest.approx(math.exp(3) - 4, abs=1e-4)


def test_the_loss_takes_the_bound_of_its_objective():
    logp, ref = tensor([[-3.0]]), tensor([[0.0]])
    for most, kl in ((0.0, math.exp(3) - 4), (10.0, 10.0)):
        cfg = objective(kl_coef=0.1, kl_max=most)
        loss, stats = policy_loss(logp, logp, ref, tensor([[0.0]]), tensor([[True]]), cfg, 1)
        assert stats["kl"].item() == pytest.approx(kl, abs=1e-4)
        assert loss.item() == pytest.approx(0.1 * kl, abs=1e-4)


def test_weights_between_trainer_and_sampler_by_hand():
    """e^0.5 = 1.64872 stays, e^2 = 7.38906 is cut to 3, e^-1 = 0.36788 too; a document's token counts 1."""
    sampler = tensor([-1.5, -3.0, 0.0, NAN])
    weights = sampler_weights(tensor([-1.0, -1.0, -1.0, -1.0]), sampler, 3.0)
    torch.testing.assert_close(weights, tensor([1.64872, 3.0, 0.36788, 1.0]), atol=1e-5, rtol=0)


def test_the_sampler_s_weights_scale_the_surrogate_and_not_the_kl():
    logp = tensor([[-1.0, -1.0]], requires_grad=True)
    ref, sampler, mask = tensor([[-1.5, -1.5]]), tensor([[-1.5, -3.0]]), tensor([[True, True]])
    cfg = objective(kl_coef=0.1, sampler_ratio_max=3.0)
    loss, _ = policy_loss(logp, logp.detach(), ref, tensor([[2.0]]), mask, cfg, 1.0, sampler)
    k3 = math.exp(-0.5) - 0.5
    assert loss.item() == pytest.approx(-2.0 * (math.exp(0.5) + 3.0) + 0.1 * 2 * k3, abs=1e-5)
    loss.backward()
    torch.testing.assert_close(
        logp.grad, tensor([[math.exp(0.5), 3.0]]) * -2.0 + 0.1 * (1 - math.exp(-0.5)), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize(
    ("ratio", "loss", "slope"),
    [(1.25, -1.25, -1.25), (1.4, -1.28, 0.0), (0.5, -0.5, -0.5)],  # between the ranges; beyond both; below
)
def test_clip_higher_moves_the_upper_bound_alone(ratio, loss, slope):
    """Between 1 - 0.2 and 1 + 0.28 a good token of ratio 1.25 has its gradient, which 1 + 0.2 would cut."""
    logp = tensor([[math.log(ratio)]], requires_grad=True)
    cfg = objective(kl_coef=0.0, clip_high=0.28)
    value, _ = policy_loss(logp, tensor([[0.0]]), None, tensor([[1.0]]), tensor([[True]]), cfg, 1)
    value.backward()
    assert value.item() == pytest.approx(loss) and logp.grad.item() == pytest.approx(slope)


def test_clip_higher_leaves_bad_tokens_as_they_were():
    logp, old = tensor([[math.log(0.7)]], requires_grad=True), tensor([[0.0]])
    cfg = objective(kl_coef=0.0, clip_high=0.28)
    value, stats = policy_loss(logp, old, None, tensor([[-1.0]]), tensor([[True]]), cfg, 1)
    assert value.item() == pytest.approx(0.8) and stats["clip_fraction"] == 1


def test_likelihood_drop_by_hand():
    """Good and lost 0.3 - 0.1 (its lost token counts); good and gained; bad and lost; good and lost 0.2."""
    old = tensor([-1.0, -1.0, -1.0, -2.0, -1.0])
    logp = tensor([-1.3, -0.9, -0.5, -3.0, -1.2], requires_grad=True)
    drop = likelihood_drop(logp, old, tensor([1.0, 1.0, 0.5, -1.0, 0.1]), [2, 1, 1, 1])
    assert drop.item() == pytest.approx(0.3 + 0.2)
    drop.backward()
    assert logp.grad.tolist() == [-1.0, 0.0, 0.0, 0.0, -1.0]


def test_nothing_lost_is_no_likelihood_drop():
    logp = tensor([-1.0, -0.5], requires_grad=True)
    drop = likelihood_drop(logp, logp.detach(), tensor([1.0, 1.0]), [2])
    assert drop.item() == 0.0 and drop.shape == ()


def test_balanced_signs_by_hand():
    """Positive 2, negative 8 in all: the negative ones are divided by 4; a part is scaled by the whole."""
    batch = tensor([1.0, 1.0, -2.0, -6.0, 0.0])
    torch.testing.assert_close(balance_signs(batch, batch), tensor([1.0, 1.0, -0.5, -1.5, 0.0]))
    torch.testing.assert_close(balance_signs(batch[2:], batch), tensor([-0.5, -1.5, 0.0]))
    light = tensor([4.0, -1.0])
    assert balance_signs(light, light).tolist() == [4.0, -1.0]  # never scaled up
    alike = tensor([0.0, 0.0])
    assert balance_signs(alike, alike).tolist() == [0.0, 0.0]
