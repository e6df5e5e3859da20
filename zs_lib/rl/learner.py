"""From trajectories and advantages to one optimizer step: rows, micro-batches, log-probabilities, update."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedModel

from zs_lib.config.arms import PolicyArm
from zs_lib.errors import ModelError, RunError
from zs_lib.models.load import add_lora
from zs_lib.rl.batches import MicroBatch, make_rows, micro_batches, split_microbatch
from zs_lib.rl.objectives import algorithm, gae, policy_loss, standardise, value_loss
from zs_lib.rl.trajectory import Trajectory
from zs_lib.runs import distributed

SAMPLER_GAP_LIMIT = 0.2  # nats a token: other kernels and half precision stay below, other weights do not


def trained_states(model, batch: MicroBatch) -> Tensor:
    """(N, width) last hidden states where the next token is trained: what the output head, the dearest layer of a
    small model, and a critic need run on."""
    return model.base_model(input_ids=batch.inputs, use_cache=False).last_hidden_state[batch.loss_mask]


def token_logprobs(model, states: Tensor, batch: MicroBatch, temperature: float) -> Tensor:
    """(N,) log-probabilities of the trained tokens under softmax(logits / temperature), as they were sampled."""
    logits = model.get_output_embeddings()(states).float()
    if temperature != 1:  # else a pass over all logits, and another one in the backward pass, for nothing
        logits = logits / temperature
    return -torch.nn.functional.cross_entropy(logits, batch.targets, reduction="none")


class Learner:
    """A policy with its optimizer, its frozen reference (if there is a KL term), its critic (PPO: one linear layer on
    the policy's last states, so that both come from one forward pass) and one `update` a step.

    `parameters` are what is trained, by name: the model's own or, where that is of half precision, float32 copies of
    them, from which it is rounded after each step. With LoRA they are the adapters; the reference is then the model
    without them, and no second copy is kept.
    """

    def __init__(self, model, arm: PolicyArm, accelerator: Accelerator):
        self.arm, self.accelerator = arm, accelerator
        # Dropout stays off for good: what is sampled and what is trained must be the same distribution.
        self.model = model.to(accelerator.device, getattr(torch, arm.dtype)).eval()
        self.has_kl = arm.objective.kl_coef > 0
        self.frozen = (
            copy.deepcopy(self.model).requires_grad_(False) if self.has_kl and not arm.lora_rank else None
        )
        self.adapters = add_lora(self.model, arm.lora_rank) if arm.lora_rank else None
        if arm.gradient_checkpointing:
            self.model.activation_checkpointing_enable()
        own = {
            name: parameter for name, parameter in self.model.named_parameters() if parameter.requires_grad
        }  # tied once
        self.parameters = {name: _master(parameter) for name, parameter in own.items()}
        self.rounded = [
            (parameter, self.parameters[name])
            for name, parameter in own.items()
            if parameter.dtype != torch.float32
        ]
        groups = [{"params": list(self.parameters.values()), "factor": 1.0}]
        self.algorithm = algorithm(arm.objective)
        self.critic = self._new_critic() if self.algorithm.critic else None
        if self.critic:
            mine = {f"critic.{name}": parameter for name, parameter in self.critic.named_parameters()}
            self.parameters |= mine
            groups.append({"params": list(mine.values()), "factor": arm.objective.critic_lr_multiplier})
        self.optimizer = torch.optim.AdamW(groups, lr=arm.learning_rate, weight_decay=arm.weight_decay)

    def _new_critic(self) -> torch.nn.Linear:
        critic = torch.nn.Linear(self.model.config.hidden_size, 1, device=self.accelerator.device)
        for parameter in critic.parameters():
            torch.nn.init.zeros_(parameter)  # it begins by expecting nothing, whatever the seed
        return critic

    def learning_rate(self, step: int) -> float:
        """The rate at step 1 … steps: up in a straight line over the warm-up's steps, then constant."""
        return self.arm.learning_rate * min(1.0, step / max(1, round(self.arm.warmup_ratio * self.arm.steps)))

    def update(self, step: int, trajectories: Sequence[Trajectory], advantages: Sequence[float]) -> dict:
        """Train on one batch: `objective.updates_per_batch` optimizer steps, each on all of it. Every process gets all of
        it, and takes its share of the micro-batches: so these are the same, however many processes there are.

        `advantages` are rewards if there is a critic. Returns kl (None without a reference), value_loss (None
        without a critic), clip_fraction, grad_norm (before clipping) and sampler_gap (mean distance of the
        sampler's log-probabilities from ours, in nats a token), means over the updates, and update_tokens (tokens
        in forward passes). With nothing to learn from (all groups dead, no KL) the weights stay as they are, and
        the statistics are 0.
        """
        objective = self.arm.objective
        rows = make_rows(trajectories, advantages, objective.mask_documents)
        # Counted before rows are dropped, so that dropping them does not change the gradient.
        tokens, rollout = sum(sum(row.loss_mask) for row in rows), self.arm.rollout
        budget = (rollout.max_searches + 1) * rollout.max_turn_tokens
        normalizer = self.algorithm.normalizer(tokens, len(trajectories), budget)
        if not self.has_kl and self.critic is None:
            rows = [row for row in rows if row.advantage != 0]
        batches = distributed.shard(micro_batches(rows, self.accelerator.device))
        totals: Counter = Counter()
        with self._checkpointing():
            if self.critic and rows:
                self._estimate_advantages(batches)
            for _ in range(objective.updates_per_batch if rows else 0):
                totals.update(self._one_update(step, batches, normalizer))
        means = {name: total / objective.updates_per_batch for name, total in totals.items()}
        return {
            "kl": means.get("kl", 0.0) if self.has_kl else None,
            "value_loss": None if self.critic is None else means.get("value_loss", 0.0),
            "clip_fraction": means.get("clip_fraction", 0.0),
            "grad_norm": means.get("grad_norm", 0.0),
            "sampler_gap": self._sampler_gap(batches),
            "learning_rate": self.learning_rate(step),
            "update_tokens": sum(len(row.ids) for row in rows) * objective.updates_per_batch,
        }

    @contextmanager
    def _checkpointing(self) -> Iterator[None]:
        """Within it, layers that can run again in the backward pass do; only they are put into training mode, for the
        dropout inside them must stay off."""
        layers = [
            module for module in self.model.modules() if getattr(module, "gradient_checkpointing", False)
        ]
        for layer in layers:
            layer.training = True
        try:
            yield
        finally:
            for layer in layers:
                layer.training = False

    @contextmanager
    def _reference(self) -> Iterator[PreTrainedModel]:
        """The policy before training."""
        if self.frozen is not None:
            yield self.frozen
            return
        self.adapters.disable_adapter_layers()
        try:
            yield self.model
        finally:
            self.adapters.enable_adapter_layers()

    @torch.no_grad()
    def _estimate_advantages(self, batches: list[MicroBatch]) -> None:
        """From rewards to PPO's advantages: estimated trajectory by trajectory, then standardised over the batch."""
        objective = self.arm.objective
        for batch in batches:
            batch.values = self.critic(trained_states(self.model, batch).float()).squeeze(-1)
            lengths = batch.loss_mask.sum(1).tolist()
            rows = zip(batch.values.split(lengths), batch.advantages.split(lengths), strict=True)
            estimates = [
                gae(values, rewards[0].item(), objective.gamma, objective.gae_lambda)
                for values, rewards in rows
            ]
            batch.advantages = torch.cat(estimates)
            batch.returns = batch.advantages + batch.values
        estimated = self._of_all([batch.advantages for batch in batches])
        standardised = standardise(torch.cat(estimated)).split([len(part) for part in estimated])
        for batch, part in zip(batches, distributed.shard(standardised), strict=True):
            batch.advantages = part

    def _accumulate(self, batches: list[MicroBatch], normalizer: int) -> Counter:
        """The gradient of all batches; where memory does not suffice, all of it again in halves, which stay."""
        while True:
            totals: Counter = Counter()
            try:
                for batch in batches:
                    loss, stats = self._loss(batch, normalizer)
                    self.accelerator.backward(loss)
                    totals.update({name: value.item() for name, value in stats.items()})
                return totals
            except torch.OutOfMemoryError:
                self.optimizer.zero_grad()  # a part of it may be there already
            if all(len(batch.inputs) == 1 for batch in batches):
                raise ModelError(
                    f"Not even one trajectory of '{self.arm.name}' fits into memory in an update: lower "
                    f"policy.rollout.max_context_tokens ({self.arm.rollout.max_context_tokens})."
                )
            batches[:] = [half for batch in batches for half in split_microbatch(batch)]

    def _one_update(self, step: int, batches: list[MicroBatch], normalizer: int) -> dict[str, float]:
        totals = distributed.all_sum(self._accumulate(batches, normalizer))
        distributed.all_reduce_gradients(self.parameters.values())
        norm = self.accelerator.clip_grad_norm_(self.parameters.values(), self.arm.max_grad_norm).item()
        if not math.isfinite(norm):
            raise RunError(
                f"The gradient of '{self.arm.name}' is not finite at step {step}: lower the learning rate, "
                "or raise kl_coef."
            )
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate(step) * group["factor"]
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._round()
        return {**totals, "grad_norm": norm}

    @torch.no_grad()
    def _round(self) -> None:
        for parameter, master in self.rounded:
            parameter.copy_(master)

    def _loss(self, batch: MicroBatch, normalizer: int) -> tuple[Tensor, dict[str, Tensor]]:
        objective, temperature = self.arm.objective, self.arm.rollout.temperature
        if batch.ref_logprobs is None and self.has_kl:  # the first update
            with torch.no_grad(), self._reference() as model:
                batch.ref_logprobs = token_logprobs(model, trained_states(model, batch), batch, temperature)
        states = trained_states(self.model, batch)
        logp = token_logprobs(self.model, states, batch, temperature)
        if batch.old_logprobs is None:  # still the policy that sampled
            batch.old_logprobs = logp.detach()
        everywhere = torch.ones_like(logp, dtype=torch.bool)  # the batch holds trained tokens only
        loss, stats = policy_loss(
            logp, batch.old_logprobs, batch.ref_logprobs, batch.advantages, everywhere, objective, normalizer
        )
        if self.critic:
            values = self.critic(states.float()).squeeze(-1)
            stats["value_loss"] = value_loss(
                values, batch.values, batch.returns, objective.value_clip, normalizer
            )
            loss = loss + objective.value_coef * stats["value_loss"]
        return loss, stats

    def _sampler_gap(self, batches: list[MicroBatch]) -> float:
        """Mean distance between trainer and sampler, in nats a token: a large one means two policies."""
        gaps = self._of_all([(batch.old_logprobs - batch.sampler_logprobs).abs() for batch in batches])
        gap = torch.cat(gaps).nanmean().item() if gaps else 0.0
        if gap > SAMPLER_GAP_LIMIT:
            raise ModelError(
                f"The tokens of '{self.arm.name}' were sampled {gap:.2f} nats away from what the trained "
                "model gives them: the generator has other weights, or it changes logits after its head."
            )
        return gap

    def _of_all(self, parts: list[Tensor]) -> list[Tensor]:
        """A tensor a micro-batch, of all processes' micro-batches, in their order."""
        return [
            part.to(self.accelerator.device) for part in distributed.unshard([part.cpu() for part in parts])
        ]

    def state(self) -> dict[str, Tensor]:
        """Weights and optimizer moments, by name, for a checkpoint."""
        tensors = {f"model.{name}": parameter.detach() for name, parameter in self.parameters.items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                tensors[f"optimizer.{key}.{name}"] = value
        return tensors

    def restore(self, tensors: dict[str, Tensor]) -> None:
        """Back to the `state` of a checkpoint; RunError if it is another model's."""
        for name in self.parameters:
            if f"model.{name}" not in tensors:
                raise RunError(
                    f"The checkpoint of '{self.arm.name}' lacks the weights of {name}: delete the run."
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
        """The policy as an ordinary model, adapters merged into its weights: so whatever loads a model loads it, without
        peft and without its base. Nothing can be trained after it."""
        return self.adapters.merge_and_unload() if self.adapters else self.model


def _master(parameter: Tensor) -> Tensor:
    """What the optimizer steps on: a float32 parameter itself; of another, a float32 copy to which its gradients are
    added as they come, so that those of many micro-batches are not rounded."""
    if parameter.dtype == torch.float32:
        return parameter
    master = parameter.detach().float()

    def hand_over(parameter: Tensor) -> None:
        gradient, parameter.grad = parameter.grad.float(), None
        master.grad = gradient if master.grad is None else master.grad.add_(gradient)

    parameter.register_post_accumulate_grad_hook(hand_over)
    return master
