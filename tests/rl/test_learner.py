"""The update: gradients that do not depend on how a batch is split, log-probabilities, the critic, precision,
LoRA."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
from arm_fixtures import arm, objective
from policy_fixtures import KL, PPO, load, written
from transformers import LlamaForCausalLM

from zs_lib.config.arms import PolicyArm
from zs_lib.errors import ModelError, RunError
from zs_lib.rl import batches
from zs_lib.rl.batches import make_rows, micro_batches
from zs_lib.rl.learner import Learner, learning_rate, token_logprobs, trained_states


@pytest.fixture
def batch():
    """Six trajectories of different lengths with a document in the middle; the second and third have
    advantage 0.
    """
    rng = random.Random(5)
    trajectories = []
    for size in (3, 8, 5, 6, 4, 7):
        mask = [True] * size + [False] * 4 + [True] * 2 + [False] * 3
        trajectories.append(written([2, 3], [rng.randrange(2, 20) for _ in mask], mask))
    return trajectories, [1.0, 0.0, 0.0, -0.5, 0.25, -1.0]


def updated(backbone, batch, step=1):
    """The weights after one update."""
    learn = Learner(load(backbone).model, arm())
    stats = learn.update(step, *batch)
    return learn.state(), stats


def gradient(backbone, batch, monkeypatch, dropping: bool, micro_batch_tokens: int = 4096):
    """The gradient of one batch, with its zero-advantage rows dropped or (as if they mattered) kept."""
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", micro_batch_tokens)
    trajectories, advantages = batch
    if not dropping:
        advantages = [a or 1e-30 for a in advantages]
    learn = Learner(load(backbone).model, arm(max_grad_norm=1e9))
    monkeypatch.setattr(learn.optimizer, "zero_grad", lambda: None)
    stats = learn.update(1, trajectories, advantages)
    return {name: parameter.grad for name, parameter in learn.parameters.items()}, stats


def test_dropping_rows_without_advantage_leaves_the_gradient_unchanged(backbone, batch, monkeypatch):
    dropped, cheap = gradient(backbone, batch, monkeypatch, dropping=True)
    kept, dear = gradient(backbone, batch, monkeypatch, dropping=False)
    assert cheap["update_tokens"] < dear["update_tokens"]
    for name in kept:
        assert kept[name].abs().max() > 0
        torch.testing.assert_close(dropped[name], kept[name], atol=1e-7, rtol=1e-5)


def test_micro_batches_do_not_change_the_gradient(backbone, batch, monkeypatch):
    together, _ = gradient(backbone, batch, monkeypatch, dropping=True)
    apart, _ = gradient(backbone, batch, monkeypatch, dropping=True, micro_batch_tokens=1)
    for name in together:
        torch.testing.assert_close(together[name], apart[name], atol=5e-6, rtol=1e-4)


@pytest.mark.parametrize("objective", ["kl", "ppo"])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_an_update_that_runs_out_of_memory_goes_on_in_halves(backbone, batch, monkeypatch, objective, where):
    """Memory ends at more than two rows: at once, or when half of the gradient is there already."""
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", 60)  # two micro-batches of three rows
    objective = (
        PPO if objective == "ppo" else dataclasses.replace(arm().objective, kl_coef=0.1, updates_per_batch=2)
    )

    def gradients(limit):
        learn, found, refused = (Learner(load(backbone).model, arm(objective=objective)), [], [])

        def full(*_):
            refused.append(1)
            raise torch.OutOfMemoryError("CUDA out of memory.")

        def look(module, arguments, given, output=None):
            too_many = len(given["input_ids"]) > limit and torch.is_grad_enabled()
            if too_many and where == "forward":
                full()
            if too_many:
                output.last_hidden_state.register_hook(full)

        if where == "forward":
            learn.model.base_model.register_forward_pre_hook(look, with_kwargs=True)
        else:
            learn.model.base_model.register_forward_hook(look, with_kwargs=True)
        step = learn.optimizer.step
        monkeypatch.setattr(
            learn.optimizer,
            "step",
            lambda: (
                found.append({name: parameter.grad.clone() for name, parameter in learn.parameters.items()}),
                step(),
            ),
        )
        stats = learn.update(9, *batch)
        return found, stats, len(refused)

    (plain, stats, none), (halved, stats_then, refused) = gradients(99), gradients(2)
    assert none == 0 and refused == 1  # the halves stay for the second update
    assert len(plain) == len(halved) == 2
    for one, other in zip(plain, halved, strict=True):
        for name in one:
            torch.testing.assert_close(one[name], other[name], atol=5e-6, rtol=1e-4)
    for name, value in stats.items():
        assert value is None or stats_then[name] == pytest.approx(value, rel=1e-4, abs=1e-6, nan_ok=True)


def test_one_trajectory_that_does_not_fit_is_an_error_with_the_setting(backbone, batch):
    learn = Learner(load(backbone).model, arm())

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    learn.model.base_model.register_forward_pre_hook(full)
    with pytest.raises(ModelError, match=r"lower policy.rollout.max_context_tokens \(96\)"):
        learn.update(1, *batch)


def test_log_probabilities_are_those_of_a_plain_forward_pass(backbone, batch):
    model = load(backbone).model.eval()
    rows = make_rows(batch[0], batch[1], mask_documents=True)
    (micro,) = micro_batches(rows, torch.device("cpu"))
    expected = []
    for trajectory in sorted(batch[0], key=lambda t: -len(t.ids)):
        logits = model(torch.tensor([trajectory.prompt_ids + trajectory.ids])).logits[0] / 0.7
        for place, (token, mine) in enumerate(
            zip(trajectory.ids, trajectory.mask, strict=True), len(trajectory.prompt_ids) - 1
        ):
            if mine:
                expected.append(logits[place].log_softmax(-1)[token])
    torch.testing.assert_close(
        token_logprobs(model, trained_states(model, micro), micro, 0.7), torch.stack(expected)
    )


def test_document_tokens_are_trained_only_when_asked(batch):
    def trained(mask_documents):
        return [sum(row.loss_mask) for row in make_rows(*batch, mask_documents)]

    assert trained(True) == [sum(t.mask) for t in batch[0]]
    assert trained(False) == [len(t.ids) for t in batch[0]]
    assert make_rows([written([2], [3], [False])], [1.0], True) == []


def test_a_step_makes_good_tokens_likelier_and_bad_ones_less_likely(backbone):
    good, bad = written([2, 3], [4, 5], [True, True]), written([2, 3], [6, 7], [True, True])
    learn = Learner(load(backbone).model, arm())

    def likelihoods():
        rows = make_rows([good, bad], [1.0, -1.0], True)
        (micro,) = micro_batches(rows, torch.device("cpu"))
        return (
            token_logprobs(learn.model, trained_states(learn.model, micro), micro, 1.0)
            .detach()
            .view(2, 2)
            .sum(1)
        )

    before = likelihoods()
    learn.update(1, [good, bad], [1.0, -1.0])
    change = likelihoods() - before
    assert change[0] > 0 > change[1]


def test_the_kl_term_holds_the_policy_at_its_reference(backbone, batch):
    """With a large coefficient and no reward, a policy that was moved away comes back."""
    held = arm(objective=dataclasses.replace(arm().objective, kl_coef=1.0), learning_rate=1e-2)
    learn = Learner(load(backbone).model, held)
    with torch.no_grad():
        for parameter in learn.parameters.values():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    kls = [learn.update(9, batch[0], [0.0] * 6)["kl"] for _ in range(5)]
    assert kls[-1] < 0.5 * kls[0]


def test_a_batch_without_advantages_changes_nothing(backbone, batch):
    state, stats = updated(backbone, (batch[0], [0.0] * 6))
    assert all(torch.equal(state[f"model.{name}"], p) for name, p in load(backbone).model.named_parameters())
    assert stats["grad_norm"] == stats["update_tokens"] == 0 and stats["kl"] is None


def test_the_critic_sees_policy_tokens_only_and_learns_the_reward(backbone, batch):
    learn = Learner(load(backbone).model, arm(objective=PPO))
    rewards = [1.0, 0.0, 0.0, 1.0, 0.5, 0.0]
    whole = learn._minibatch(batch[0], rewards)
    micro = whole.batches
    with torch.no_grad():
        learn._estimate_advantages([whole])
    assert sum(len(part.values) for part in micro) == sum(sum(t.mask) for t in batch[0])
    returns = torch.cat([part.returns for part in micro])
    assert sorted(set(returns.tolist())) == [
        0.0,
        0.5,
        1.0,
    ]  # gamma = lambda = 1: each trajectory's reward, at every token
    assert torch.cat([part.advantages for part in micro]).mean().abs() < 1e-6
    losses = [learn.update(9, batch[0], rewards)["value_loss"] for _ in range(20)]
    assert losses[-1] < 0.5 * losses[0]


def test_a_document_moves_no_weight_of_ppo_but_through_attention(backbone):
    """The first turn's tokens come before the document: with no token trained after it, nothing it says
    matters."""

    def moved(document):
        trajectory = written([2, 3], [4, 5, 6, *document], [True] * 3 + [False] * len(document))
        other = written([2, 3], [7, 8], [True] * 2)
        learn = Learner(load(backbone).model, arm(objective=PPO))
        learn.update(1, [trajectory, other], [1.0, 0.0])
        return learn.state()

    first, second = moved([9, 10, 11]), moved([12, 13, 14, 15])
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_learning_rate_warms_up_and_stays():
    warm_up_of_four = arm(steps=40, learning_rate=1.0)
    rates = [learning_rate(warm_up_of_four, step) for step in (1, 2, 4, 5, 40)]
    assert rates == [0.25, 0.5, 1.0, 1.0, 1.0]


def test_a_sampler_with_other_weights_is_noticed(backbone, batch):
    strangers = [dataclasses.replace(t, logprobs=[-9.0] * len(t.ids)) for t in batch[0]]
    with pytest.raises(ModelError, match="nats away"):
        updated(backbone, (strangers, batch[1]))


def test_a_gradient_that_is_not_finite_is_an_error(backbone, batch):
    with pytest.raises(RunError, match="not finite at step 7"):
        updated(backbone, (batch[0], [math.inf] * 6), step=7)


def test_a_checkpoint_of_another_model_is_refused(backbone):
    learn = Learner(load(backbone).model, arm())
    with pytest.raises(RunError, match="delete the run"):
        learn.restore({"model.lm_head.weight": learn.parameters["lm_head.weight"]})


def lora(**changes) -> PolicyArm:
    return arm(lora_rank=4, objective=dataclasses.replace(KL, kl_coef=0.1), learning_rate=1e-2, **changes)


def reference_logprobs(learn, batch):
    (micro,) = micro_batches(make_rows(*batch, True), torch.device("cpu"))
    with torch.no_grad(), learn._reference() as model:
        return token_logprobs(model, trained_states(model, micro), micro, 1.0)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_lora_leaves_the_weights_alone_and_the_base_is_its_reference(dtype, backbone, batch):
    plain = Learner(load(backbone).model, arm(objective=KL, dtype=dtype))
    base = dict(load(backbone).model.to(getattr(torch, dtype)).named_parameters())
    learn = Learner(load(backbone).model, lora(dtype=dtype))
    assert learn.frozen is None and plain.frozen is not None
    for _ in range(3):
        stats = learn.update(9, *batch)
    assert stats["kl"] > 0 and stats["grad_norm"] > 0
    held = {
        name.replace(".base_layer", ""): p
        for name, p in learn.model.named_parameters()
        if "lora_" not in name
    }
    assert held.keys() == base.keys() and all(torch.equal(held[name], base[name]) for name in base)
    assert torch.equal(reference_logprobs(learn, batch), reference_logprobs(plain, batch))
    assert all(
        "lora_" in name and parameter.dtype == torch.float32 for name, parameter in learn.parameters.items()
    )
    assert all("lora_" in name for name in learn.state())  # all that a checkpoint holds


def test_the_merged_model_of_lora_is_an_ordinary_model_that_says_the_same(backbone, batch, tmp_path):
    learn = Learner(load(backbone).model, lora())
    learn.update(9, *batch)
    ids = torch.tensor([batch[0][1].ids])
    with torch.no_grad():
        before = learn.model(ids).logits
        learn.merged_model().save_pretrained(tmp_path)
        after = LlamaForCausalLM.from_pretrained(tmp_path)(ids).logits
        untrained = load(backbone).model(ids).logits
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert (after - untrained).abs().max() > 0.1


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_gradient_checkpointing_keeps_the_gradient_and_runs_layers_again(
    lora_rank, backbone, batch, monkeypatch
):
    def gradients(on):
        values = {"gradient_checkpointing": on, "lora_rank": lora_rank, "max_grad_norm": 1e9}
        learn = Learner(load(backbone).model, arm(**values))
        ran = []
        learn.model.base_model.layers[0].mlp.register_forward_pre_hook(lambda *_: ran.append(1))
        monkeypatch.setattr(learn.optimizer, "zero_grad", lambda: None)
        learn.update(1, *batch)
        assert not any(module.training for module in learn.model.modules())  # sampling keeps its cache
        return {name: parameter.grad for name, parameter in learn.parameters.items()}, len(ran)

    (kept, once), (again, twice) = gradients(False), gradients(True)
    assert twice == 2 * once
    assert all(torch.equal(kept[name], again[name]) for name in kept)


def test_half_precision_keeps_steps_that_it_could_not_hold(backbone, batch):
    """1e-6 is below the resolution of nearly every weight: only the float32 copies can add up such steps."""
    learn = Learner(load(backbone).model, arm(dtype="bfloat16", learning_rate=1e-6))
    before = {name: parameter.clone() for name, parameter in learn.parameters.items()}
    for _ in range(2):
        learn.update(9, *batch)
    moved = torch.cat([(parameter - before[name]).flatten() for name, parameter in learn.parameters.items()])
    assert 1e-6 < moved.abs().max() < 4e-6 and (moved != 0).double().mean() > 0.5
    for name, parameter in learn.model.named_parameters():
        assert parameter.dtype == torch.bfloat16 and torch.equal(parameter, learn.parameters[name].bfloat16())


def test_half_precision_adds_gradients_up_in_full(backbone, batch, monkeypatch):
    """One row a micro-batch: the sum of many is that of float32, to the rounding of a single pass.

    That rounding turns the gradient by 0.03 to 0.06, depending on the weights.
    """
    monkeypatch.setattr(batches, "MICRO_BATCH_TOKENS", 1)

    def gradients(dtype):
        learn = Learner(load(backbone).model, arm(dtype=dtype, max_grad_norm=1e9))
        monkeypatch.setattr(learn.optimizer, "zero_grad", lambda: None)
        learn.update(1, *batch)
        return torch.cat([parameter.grad.flatten() for parameter in learn.parameters.values()])

    full, half = gradients("float32"), gradients("bfloat16")
    assert half.dtype == torch.float32 and torch.nn.functional.cosine_similarity(full, half, dim=0) > 0.998


def test_reinforce_plus_plus_standardises_over_tokens_by_hand(backbone):
    """Rewards 1 and 0 of 4 and 2 tokens: mean 2/3, variance (4 / 9 + 2 * 4 / 9) / 5, deviation 0.51640."""
    learn = Learner(load(backbone).model, arm(objective=objective("reinforce++")))
    long, short = written([2, 3], [4, 5, 6, 7], [True] * 4), written([2, 3], [8, 9], [True] * 2)
    whole = learn._minibatch([long, short], [1.0, 0.0])
    learn._estimate_advantages([whole])
    (batch,) = whole.batches
    expected = torch.tensor([1 / 3] * 4 + [-2 / 3] * 2) / (math.sqrt(4 / 15) + 1e-4)
    torch.testing.assert_close(batch.advantages, expected)
    assert batch.values is None and learn.critic is None
    # As over two minibatches: the mean is the batch's.
    parts = [learn._minibatch([long], [1.0]), learn._minibatch([short], [0.0])]
    learn._estimate_advantages(parts)
    torch.testing.assert_close(torch.cat([part.batches[0].advantages for part in parts]), expected)


def reference_steps(model, cfg, trajectories, advantages, order, learning_rate):
    """Off-policy steps written out: `order` lists the trajectories of each optimizer step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    rows = [make_rows([t], [a], True) for t, a in zip(trajectories, advantages, strict=True)]
    batches_ = [micro_batches(row, torch.device("cpu"))[0] for row in rows]

    def logprobs(one):
        return token_logprobs(model, trained_states(model, one), one, 1.0)

    with torch.no_grad():
        old = [logprobs(one) for one in batches_]
    for places in order:
        tokens = sum(int(batches_[i].loss_mask.sum()) for i in places)
        loss = 0.0
        for i in places:
            ratio = torch.exp(logprobs(batches_[i]) - old[i])
            a = batches_[i].advantages
            loss = loss - torch.min(ratio * a, ratio.clamp(1 - cfg.clip, 1 + cfg.clip) * a).sum() / tokens
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return dict(model.named_parameters())


@pytest.mark.parametrize("epochs", [1, 2])
def test_minibatches_are_steps_one_after_the_other_the_later_ones_off_policy(backbone, batch, epochs):
    """As in the original, where 256 of 320 trajectories make the first step, and the other 64 the second."""
    advantages, rate = [1.0, 0.5, -0.5, -0.5, 0.25, -1.0], 0.01
    cfg = objective(minibatch_rollouts=4, updates_per_batch=epochs)
    made = arm(objective=cfg, learning_rate=rate, warmup_ratio=0.0, max_grad_norm=1e9)
    learn = Learner(load(backbone).model, made)
    stats = learn.update(1, batch[0], advantages)
    order = [[0, 1, 2, 3], [4, 5]] * epochs
    expected = reference_steps(load(backbone).model, cfg, batch[0], advantages, order, rate)
    assert {int(state["step"]) for state in learn.optimizer.state.values()} == {len(order)}
    for name, weight in learn.parameters.items():
        torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=1e-3, msg=name)
    assert stats["clip_fraction"] > 0  # a step of this size moves ratios beyond 1 +- 0.2
    assert stats["update_tokens"] == epochs * updated(backbone, (batch[0], advantages))[1]["update_tokens"]


def test_a_minibatch_without_anything_to_learn_from_takes_no_step(backbone, batch):
    learn = Learner(load(backbone).model, arm(objective=objective(minibatch_rollouts=3)))
    learn.update(1, batch[0], [0.0, 0.0, 0.0, 1.0, -1.0, 0.0])
    assert {int(state["step"]) for state in learn.optimizer.state.values()} == {1}


def test_balanced_signs_are_advantages_scaled_by_hand(backbone, batch):
    """Trained tokens 5, 10, 7, 8, 6, 9: positive 5 x 1 + 6 x 0.25 = 6.5, negative 8 x 0.5 + 9 x 1 = 13."""
    trajectories, advantages = batch

    def weights(given, **changes):
        learn = Learner(load(backbone).model, arm(objective=objective(kl_coef=0.0, **changes)))
        learn.update(1, trajectories, given)
        return learn.parameters

    balanced, by_hand = weights(advantages, balance_signs=True), weights([1.0, 0.0, 0.0, -0.25, 0.25, -0.5])
    for name, weight in balanced.items():
        torch.testing.assert_close(weight, by_hand[name], atol=1e-7, rtol=1e-6)
    assert any(not torch.equal(balanced[name], weight) for name, weight in weights(advantages).items())


def test_the_likelihood_guard_holds_a_good_trajectory_that_bad_ones_pull_down(backbone):
    """The bad trajectory shares the good one's tokens: it falls in the first update, is held in others."""
    good, bad = (written([2, 3], [5, 9, 7, end], [True] * 4) for end in (8, 11))

    def lost(coefficient):
        cfg = objective(kl_coef=0.0, clip=0.9, updates_per_batch=4, likelihood_coef=coefficient)
        learn = Learner(load(backbone).model, arm(objective=cfg))
        return learn.update(1, [good, bad, bad], [0.05, -1.0, -1.0]).get("likelihood_drop")

    assert lost(0.0) is None
    assert 0 < lost(50.0) < lost(1e-9)
