"""The update: from trajectories and advantages to optimizer steps, in micro-batches of log-probabilities."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from transformers import PreTrainedModel

from zs_lib.config.arms import PolicyArm
from zs_lib.errors import ModelError, RunError
from zs_lib.models.last_layer import last_mlp_at
from zs_lib.models.load import add_lora
from zs_lib.rl.batches import MicroBatch, make_rows, micro_batches, split_microbatch
from zs_lib.rl.objectives import (
    algorithm,
    balance_signs,
    gae,
    likelihood_drop,
    policy_loss,
    standardise,
    value_loss,
)
from zs_lib.rl.rollout import token_budget
from zs_lib.rl.trajectory import Trajectory
from zs_lib.runs import distributed

SAMPLER_GAP_LIMIT = 0.2  # nats a token: kernels and half precision differ by less, other weights by more
WEIGHT_DECAY = 0.0  # the paper does not say; runs of so few steps need no pull towards zero
T = TypeVar("T")


def learning_rate(arm: PolicyArm, step: int) -> float:
    """Compute the rate at a step (1 ... steps): linear over the warm-up's steps, then constant."""
    return arm.learning_rate * min(1.0, step / max(1, round(arm.warmup_ratio * arm.steps)))


def check_gradient(norm: float, arm: PolicyArm, step: int) -> None:
    """RunError if the norm of a gradient is not finite."""
    if not math.isfinite(norm):
        raise RunError(
            f"The gradient of '{arm.name}' is not finite at step {step}: lower the learning rate, or raise "
            "kl_coef."
        )


def check_sampler_gap(gap: float, arm: PolicyArm) -> float:
    """Return the mean distance of trainer and sampler, in nats a token; ModelError if it is large."""
    if gap > SAMPLER_GAP_LIMIT:
        raise ModelError(
            f"The tokens of '{arm.name}' were sampled {gap:.2f} nats away from what the trained "
            "model gives them (the generator has other weights, or changes logits after its head): set "
            'policy.generator to "transformers", or take another model.'
        )
    return gap


def trained_states(model: PreTrainedModel, batch: MicroBatch) -> Tensor:
    """Compute the last hidden states where the next token is trained, (N, width).

    The output head, the most expensive layer of a small model, and the critic need run on no others.
    """
    with last_mlp_at(model, batch.loss_mask):
        return model.base_model(input_ids=batch.inputs, use_cache=False).last_hidden_state[batch.loss_mask]


def token_logprobs(model: PreTrainedModel, states: Tensor, batch: MicroBatch, temperature: float) -> Tensor:
    """Compute the trained tokens' log-probabilities under softmax(logits / temperature), as sampled; (N,)."""
    logits = model.get_output_embeddings()(states).float()
    if temperature != 1:  # dividing by 1 would cost a pass over all logits, and another one backward
        logits = logits / temperature
    return -torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")


@dataclass(frozen=True)
class _Minibatch:
    """The trajectories of one optimizer step."""

    batches: list[MicroBatch]  # this process's share; halved in place where memory runs out
    normalizer: int  # divisor of the sum over its tokens
    trained_tokens: int
    tokens_read: int  # in a forward pass of all processes; 0: there is nothing to learn from


class Learner:
    """A policy with its optimizer, frozen reference (with a KL term) and critic (PPO); `update` is one step.

    `parameters` are the trained tensors by name: the model's own or, where they are of half precision,
    float32 master copies from which the model is rounded after each step. With LoRA they are the adapters;
    the reference is then the model without them, and no second copy is kept. The critic is one linear layer
    on the policy's last hidden states, so one forward pass gives log-probabilities and values.
    """

    def __init__(self, model: PreTrainedModel, arm: PolicyArm):
        self.arm, self.algorithm = arm, algorithm(arm.objective)
        # Dropout stays off for good: what is sampled and what is trained must be the same distribution.
        self.model = model.to(getattr(torch, arm.dtype)).eval()
        self.has_kl = arm.objective.kl_coef > 0
        self.frozen = None
        if self.has_kl and not arm.lora_rank:
            self.frozen = copy.deepcopy(self.model).requires_grad_(False)
        self.adapters = add_lora(self.model, arm.lora_rank) if arm.lora_rank else None
        if arm.gradient_checkpointing:
            self.model.activation_checkpointing_enable()
        # A tied weight is named once.
        own = {name: weight for name, weight in self.model.named_parameters() if weight.requires_grad}
        self.parameters = {name: _master(weight) for name, weight in own.items()}
        self.rounded = [(w, self.parameters[name]) for name, w in own.items() if w.dtype != torch.float32]
        groups = [{"params": list(self.parameters.values()), "factor": 1.0}]
        self.critic = None
        if self.algorithm.critic:
            self.critic = torch.nn.Linear(self.model.config.hidden_size, 1, device=self.model.device)
            weights = {f"critic.{name}": weight for name, weight in self.critic.named_parameters()}
            for weight in weights.values():
                torch.nn.init.zeros_(weight)  # it begins with the value 0 everywhere, whatever the seed
            self.parameters |= weights
            groups.append({"params": list(weights.values()), "factor": arm.objective.critic_lr_multiplier})
        self.optimizer = torch.optim.AdamW(groups, lr=arm.learning_rate, weight_decay=WEIGHT_DECAY)

    def update(
        self, step: int, trajectories: Sequence[Trajectory], advantages: Sequence[float | Sequence[float]]
    ) -> dict:
        """Train on one batch: `objective.updates_per_batch` times a step on each of its minibatches.

        `advantages`: of each trajectory, or of each of its turns; rewards where the algorithm standardises
        over tokens. Every process gets the whole batch and takes its share of the micro-batches, which are
        the same however many processes there are.

        Returns means over the optimizer steps: kl (None without a reference) and clip_fraction, both per
        trained token; value_loss (None without a critic); likelihood_drop (only with its weight), in nats a
        trained token; grad_norm (before clipping). And sampler_gap (mean
        distance of the sampler's log-probabilities from ours, in nats a token), learning_rate, and
        update_tokens (tokens read to train). With nothing to learn from (zero-variance groups only, and no
        KL) the weights stay as they are, and the statistics are 0.

        Raises:
            ModelError: the sampler has other weights, or memory holds not one trajectory, or no optimizer.
            RunError: the gradient is not finite.
        """
        objective = self.arm.objective
        size = objective.minibatch_rollouts or len(trajectories)
        parts = [slice(at, at + size) for at in range(0, len(trajectories), size)]
        minibatches = [self._minibatch(trajectories[part], advantages[part]) for part in parts]
        minibatches = [minibatch for minibatch in minibatches if minibatch.tokens_read]
        steps: list[dict[str, float]] = []
        with self._checkpointing():
            if (self.algorithm.over_tokens or objective.balance_signs) and minibatches:
                self._estimate_advantages(minibatches)
            for minibatch in minibatches[1:]:  # the first's are those of its own first forward pass
                self._freeze_logprobs(minibatch.batches)
            for _ in range(objective.updates_per_batch):
                steps += [self._one_update(step, minibatch) for minibatch in minibatches]
        means = {name: sum(one[name] for one in steps) / len(steps) for name in (steps[0] if steps else ())}
        return {
            "kl": means.get("kl", 0.0) if self.has_kl else None,
            "value_loss": None if self.critic is None else means.get("value_loss", 0.0),
            "clip_fraction": means.get("clip_fraction", 0.0),
            "grad_norm": means.get("grad_norm", 0.0),
            "sampler_gap": self._sampler_gap(minibatches) if minibatches else 0.0,
            "learning_rate": learning_rate(self.arm, step),
            "update_tokens": sum(one.tokens_read for one in minibatches) * objective.updates_per_batch,
        } | ({"likelihood_drop": means.get("likelihood_drop", 0.0)} if objective.likelihood_coef else {})

    def _minibatch(self, trajectories: Sequence[Trajectory], advantages: Sequence) -> _Minibatch:
        """Pack this process's share of a minibatch, without the rows that no gradient comes from."""
        rows = make_rows(trajectories, advantages, self.arm.objective.mask_documents)
        # Counted before rows are dropped, so that dropping them does not change the gradient.
        trained = sum(sum(row.loss_mask) for row in rows)
        budget = token_budget(self.arm.rollout, searches=self.arm.engine != "none")
        normalizer = self.algorithm.normalizer(trained, len(trajectories), budget)
        if not self.has_kl and not self.algorithm.over_tokens:
            rows = [row for row in rows if any(row.advantages)]
        batches = distributed.shard(micro_batches(rows, self.model.device))
        return _Minibatch(list(batches), normalizer, trained, sum(len(row.ids) for row in rows))

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Recompute checkpointed layers in the backward pass, within this context.

        Only the layers are put into training mode: the dropout inside them stays off.
        """
        layers = [layer for layer in self.model.modules() if getattr(layer, "gradient_checkpointing", False)]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    @contextmanager
    def _reference(self) -> Iterator[PreTrainedModel]:
        """Give the policy before training."""
        if self.frozen is not None:
            yield self.frozen
            return
        self.adapters.disable_adapter_layers()
        try:
            yield self.model
        finally:
            self.adapters.enable_adapter_layers()

    @torch.no_grad()
    def _estimate_advantages(self, minibatches: list[_Minibatch]) -> None:
        """Standardise or balance advantages over the batch's tokens; with a critic they are GAE's (PPO)."""
        for minibatch in minibatches if self.critic else ():
            self._estimate_returns(minibatch.batches)
        batches = [batch for minibatch in minibatches for batch in minibatch.batches]
        whole = self._gather([batch.advantages for batch in batches])
        if self.algorithm.over_tokens:
            for batch in batches:
                batch.advantages = standardise(batch.advantages, whole)
            whole = standardise(whole, whole)
        if self.arm.objective.balance_signs:
            for batch in batches:
                batch.advantages = balance_signs(batch.advantages, whole)

    def _estimate_returns(self, batches: list[MicroBatch]) -> None:
        """Turn rewards into the critic's values, GAE for each trajectory, and the critic's targets."""
        gamma, lam = self.arm.objective.gamma, self.arm.objective.gae_lambda
        estimated = self._for_each(batches, lambda batch: self._values(trained_states(self.model, batch)))
        for batch, values in zip(batches, estimated, strict=True):
            lengths = batch.loss_mask.sum(1).tolist()
            rows = zip(values.split(lengths), batch.advantages.split(lengths), strict=True)
            batch.values = values
            batch.advantages = torch.cat([gae(row, rewards[0].item(), gamma, lam) for row, rewards in rows])
            batch.returns = batch.advantages + values

    @torch.no_grad()
    def _freeze_logprobs(self, batches: list[MicroBatch]) -> None:
        """Keep the log-probabilities of the policy that sampled, before a step changes it."""
        computed = self._for_each(batches, lambda batch: self._logprobs(self.model, batch))
        for batch, logprobs in zip(batches, computed, strict=True):
            batch.old_logprobs = logprobs

    def _logprobs(self, model: PreTrainedModel, batch: MicroBatch) -> Tensor:
        """Compute the log-probabilities of the trained tokens, (N,)."""
        return token_logprobs(model, trained_states(model, batch), batch, self.arm.rollout.temperature)

    def _values(self, states: Tensor) -> Tensor:
        """Compute the critic's values of the trained tokens, (N,)."""
        return self.critic(states.float()).squeeze(-1)

    def _one_update(self, step: int, minibatch: _Minibatch) -> dict[str, float]:
        """Take one optimizer step; returns statistics per trained token, and the norm before clipping."""
        normalizer, totals = minibatch.normalizer, Counter()
        for stats in self._for_each(minibatch.batches, lambda batch: self._backward(batch, normalizer)):
            totals.update(stats)
        per_token = normalizer / minibatch.trained_tokens  # 1 unless the algorithm divides by something else
        statistics = {name: total * per_token for name, total in distributed.all_sum(totals).items()}
        distributed.all_reduce_gradients(self.parameters.values())
        norm = clip_grad_norm_(self.parameters.values(), self.arm.max_grad_norm).item()
        check_gradient(norm, self.arm, step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.arm, step) * group["factor"]
        self._optimizer_step()
        self._drop_gradients()
        self._round()
        return statistics | {"grad_norm": norm}

    def _for_each(self, batches: list[MicroBatch], work: Callable[[MicroBatch], T]) -> list[T]:
        """Do `work` on each micro-batch; where memory runs out, halve them for good and start again.

        Each attempt starts from no gradient, whatever an earlier one has left.
        """
        while True:
            self._drop_gradients()
            try:
                return [work(batch) for batch in batches]
            except torch.OutOfMemoryError:
                if all(len(batch.inputs) == 1 for batch in batches):
                    self._drop_gradients()
                    raise ModelError(
                        f"Not even one trajectory of '{self.arm.name}' fits into memory in an update: lower "
                        f"policy.rollout.max_context_tokens ({self.arm.rollout.max_context_tokens})."
                    ) from None
            # Outside the clause, whose error holds the failed attempt's activations.
            batches[:] = [half for batch in batches for half in split_microbatch(batch)]

    def _backward(self, batch: MicroBatch, normalizer: int) -> dict[str, float]:
        """Add a micro-batch's gradient; returns its statistics."""
        objective = self.arm.objective
        if batch.ref_logprobs is None and self.has_kl:
            with torch.no_grad(), self._reference() as model:
                batch.ref_logprobs = self._logprobs(model, batch)
        states = trained_states(self.model, batch)
        logp = token_logprobs(self.model, states, batch, self.arm.rollout.temperature)
        if batch.old_logprobs is None:  # first update: the policy is the one that sampled
            batch.old_logprobs = logp.detach()
        everywhere = torch.ones_like(logp, dtype=torch.bool)  # `logp` holds trained tokens only
        before = batch.old_logprobs, batch.ref_logprobs, batch.advantages
        loss, stats = policy_loss(logp, *before, everywhere, objective, normalizer, batch.sampler_logprobs)
        if objective.likelihood_coef:
            lengths = batch.loss_mask.sum(1).tolist()
            drop = likelihood_drop(logp, batch.old_logprobs, batch.advantages, lengths) / normalizer
            loss, stats["likelihood_drop"] = loss + objective.likelihood_coef * drop, drop
        if self.critic:
            values, old_values = self._values(states), batch.values
            stats["value_loss"] = value_loss(values, old_values, batch.returns, objective.clip, normalizer)
            loss = loss + objective.value_coef * stats["value_loss"]
        loss.backward()
        return {name: value.item() for name, value in stats.items()}

    def _drop_gradients(self) -> None:
        """Drop every gradient, also those that a half-precision model has not handed to its masters yet."""
        self.optimizer.zero_grad()
        for weight, _ in self.rounded:
            weight.grad = None

    def _optimizer_step(self) -> None:
        """Step the optimizer; ModelError if memory does not hold its moments beside the gradient."""
        first = not self.optimizer.state
        try:
            self.optimizer.step()
        except torch.OutOfMemoryError:
            self._drop_gradients()
            if first:  # half of the moments are worse than none
                self.optimizer.state.clear()
            raise ModelError(
                f"The optimizer of '{self.arm.name}' does not fit into memory beside the model and its "
                "gradient: train adapters (policy.lora_rank), or a smaller model. The run goes on from its "
                "last checkpoint."
            ) from None

    @torch.no_grad()
    def _round(self) -> None:
        """Round the float32 masters into the half-precision model."""
        for parameter, master in self.rounded:
            parameter.copy_(master)

    def _sampler_gap(self, minibatches: list[_Minibatch]) -> float:
        """Compute the mean distance of trainer and sampler, in nats a token; ModelError if it is large."""
        batches = [batch for minibatch in minibatches for batch in minibatch.batches]
        gaps = self._gather([(batch.old_logprobs - batch.sampler_logprobs).abs() for batch in batches])
        return check_sampler_gap(gaps.nanmean().item(), self.arm)

    def _gather(self, parts: list[Tensor]) -> Tensor:
        """Join one tensor per micro-batch, of all processes."""
        everywhere = [part for share in distributed.all_gather([p.cpu() for p in parts]) for part in share]
        return torch.cat(everywhere).to(self.model.device)

    def state(self) -> dict[str, Tensor]:
        """Collect weights and optimizer moments, by name, for a checkpoint."""
        tensors = {f"model.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Restore the `state` of a checkpoint.

        Raises:
            RunError: the checkpoint is another model's.
        """
        if missing := next((name for name in self.parameters if f"model.{name}" not in tensors), None):
            raise RunError(
                f"The checkpoint of '{self.arm.name}' lacks the weights of {missing}: delete the run."
            )
        for path, tensor in tensors.items():
            kind, rest = path.split(".", 1)
            if kind == "model":
                self.parameters[rest].data.copy_(tensor)
            else:
                key, name = rest.split(".", 1)
                parameter = self.parameters[name]
                # AdamW keeps its step count, a scalar, on the CPU.
                self.optimizer.state[parameter][key] = tensor.to(parameter.device) if tensor.ndim else tensor
        self._round()

    def merged_model(self) -> PreTrainedModel:
        """Merge the adapters, if any, and return the policy as an ordinary model, which loads without peft.

        It cannot be trained further.
        """
        return self.adapters.merge_and_unload() if self.adapters else self.model


def _master(parameter: Tensor) -> Tensor:
    """Return the float32 tensor that the optimizer steps on: the parameter itself, or a master copy of it.

    The gradients of a half-precision parameter are added to its copy as they come, so that the sum over many
    micro-batches is not rounded.
    """
    if parameter.dtype == torch.float32:
        return parameter
    master = parameter.detach().float()

    def accumulate(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad.float(), None
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    parameter.register_post_accumulate_grad_hook(accumulate)
    return master
