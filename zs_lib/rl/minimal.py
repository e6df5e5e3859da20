"""The whole method on one page, made to be read: roll out, reward, advantages, loss, step.

Shapes: P prompts (questions) in a step, G rollouts of each, B = P * G; T tokens (prompt, turns and documents,
padded on the right). The weights at the end are those of `rl.train`, to float32 rounding.

Left out here, and where it is:

- runs on disk: logged metrics and trajectories, checkpoints, resuming        `rl.train`, `runs.run`
- several processes                                                           `runs.distributed`
- large models: micro-batches, LoRA, half precision, gradient checkpointing   `rl.learner`, `rl.batches`
- questions, and noise, by past success; fresh questions for dead groups      `rl.questions`, `rl.train`
- PPO's critic; minibatches; the correction for another program's sampler     `rl.learner`, `rl.objectives`
- another sampler than our own loop: vLLM                                     `models.vllm`
- checks of settings, engine, sampler and gradient; warnings of a collapse    `rl.train`, `analysis.collapse`
- loading the policy and building the engine (which answers the searches)     `pipeline`
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from zs_lib.config.arms import PolicyArm
from zs_lib.engines import SearchEngine
from zs_lib.errors import ConfigError
from zs_lib.models.decode import TransformersGenerator
from zs_lib.models.load import LoadedModel
from zs_lib.qa import Question
from zs_lib.rl.curriculum import noise_probability
from zs_lib.rl.learner import WEIGHT_DECAY, learning_rate
from zs_lib.rl.objectives import algorithm, group_advantages, policy_loss, standardise
from zs_lib.rl.questions import epochs
from zs_lib.rl.rewards import Reward
from zs_lib.rl.rollout import rollout, token_budget
from zs_lib.rl.trajectory import Trajectory


def train_minimal(
    arm: PolicyArm, questions: Sequence[Question], policy: LoadedModel, engine: SearchEngine | None, seed: int
) -> list[dict[str, float]]:
    """Train `policy` in place for `arm.steps` steps; returns each step's metrics.

    Raises:
        ConfigError: PPO, credit by turn, a living engine, minibatches, a sampler's correction, LoRA or half
            precision, questions or noise by past success.
    """
    objective, full = arm.objective, arm.dtype == "float32" and not arm.lora_rank
    by_past = arm.selection != "epochs" or arm.extra_rounds
    by_past = by_past or (arm.curriculum is not None and arm.curriculum.schedule == "by_question")
    beyond = by_past or arm.living or objective.minibatch_rollouts or objective.sampler_ratio_max
    if algorithm(objective).critic or objective.credit != "trajectory" or beyond or not full:
        raise ConfigError(f"'{arm.name}' has a part that is left out here: train it with `rl.train`.")
    P, G = arm.prompts_per_step, arm.group_size
    model = policy.model.eval()  # no dropout: sampled and trained distribution must be the same
    reference = copy.deepcopy(model).requires_grad_(False) if arm.objective.kl_coef > 0 else None
    generator, reward = TransformersGenerator(model, policy.tokenizer), Reward(arm.reward)
    optimizer = torch.optim.AdamW(model.parameters(), lr=arm.learning_rate, weight_decay=WEIGHT_DECAY)
    history: list[dict[str, float]] = []

    for step in range(1, arm.steps + 1):
        # The curriculum: how often the simulated engine answers with noisy documents.
        noise = noise_probability(step, arm.steps, arm.curriculum, history[-1] if history else None)

        # Roll out: each rollout's key makes its randomness a function of seed, step, prompt and rollout.
        asked = epochs(questions, P, seed, step)
        keys = [(seed, step, p, g) for p in range(P) for g in range(G)]
        repeated = [asked[p] for p in range(P) for _ in range(G)]
        trajectories = rollout(repeated, generator, engine, arm.rollout, keys, noise)  # B of them

        # Rewards and advantages.
        scores = [score.total for score in reward(trajectories)]
        rewards = torch.tensor(scores, dtype=torch.float64).view(P, G)
        advantages = group_advantages(rewards, arm.objective)  # (P, G)

        # Loss and optimizer steps.
        batch = collate(trajectories, advantages, arm, searches=engine is not None)
        optimizer.param_groups[0]["lr"] = learning_rate(arm, step)
        statistics = update(model, reference, optimizer, batch, arm)
        metrics = {"step": step, "reward": rewards.nanmean().item(), "noise_probability": noise}
        history.append(metrics | statistics)
    return history


@dataclass(frozen=True)
class Batch:
    """The B = P * G trajectories of a step as tensors."""

    ids: Tensor  # (B, T) long: prompt, turns and documents, padded on the right
    loss_mask: Tensor  # (B, T - 1) bool: True where the next token is trained
    advantages: Tensor  # (B, 1) float: one for all tokens of a trajectory
    normalizer: int  # what the sum over all trained tokens is divided by


def collate(trajectories: Sequence[Trajectory], advantages: Tensor, arm: PolicyArm, searches: bool) -> Batch:
    """Pad a step's trajectories; `advantages` is (P, G)."""
    ids = [torch.tensor(t.prompt_ids + t.ids) for t in trajectories]
    # Trained are the policy's own tokens: not the prompt, not the documents, nothing if the engine failed.
    mask_documents = arm.objective.mask_documents  # the ablation of Table 7 trains them too
    masks = [torch.tensor([False] * len(t.prompt_ids) + t.trained(mask_documents)) for t in trajectories]
    loss_mask = pad_sequence(masks, batch_first=True)[:, 1:]
    rollouts = sum(not t.failed for t in trajectories)
    tokens, budget = int(loss_mask.sum()), token_budget(arm.rollout, searches)
    how, advantages = algorithm(arm.objective), advantages.float().view(-1, 1)
    if how.over_tokens:
        advantages = standardise(advantages, advantages.expand_as(loss_mask)[loss_mask])
    normalizer = how.normalizer(tokens, rollouts, budget)
    return Batch(pad_sequence(ids, batch_first=True), loss_mask, advantages, normalizer)


def token_logprobs(model: PreTrainedModel, ids: Tensor, temperature: float) -> Tensor:
    """Compute each token's log-probability given those before it, as it was sampled: (B, T) to (B, T - 1)."""
    logits = model(input_ids=ids[:, :-1], use_cache=False).logits.float()  # (B, T - 1, vocabulary)
    return (logits / temperature).log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)


def update(
    model: PreTrainedModel,
    reference: PreTrainedModel | None,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    arm: PolicyArm,
) -> dict[str, float]:
    """Take `updates_per_batch` optimizer steps on one batch; returns the last one's statistics."""
    temperature = arm.rollout.temperature
    ids, mask, advantages = (x.to(model.device) for x in (batch.ids, batch.loss_mask, batch.advantages))
    useful = mask & (advantages != 0) if reference is None else mask
    if not useful.any():
        return {}  # nothing to learn from, but AdamW's momentum would still move the weights
    with torch.no_grad():
        old_logp = token_logprobs(model, ids, temperature)  # (B, T - 1): before the first update
        ref_logp = token_logprobs(reference, ids, temperature) if reference is not None else None
    for _ in range(arm.objective.updates_per_batch):
        logp = token_logprobs(model, ids, temperature)
        loss, sums = policy_loss(logp, old_logp, ref_logp, advantages, mask, arm.objective, batch.normalizer)
        loss.backward()
        norm = clip_grad_norm_(model.parameters(), arm.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
    per_token = batch.normalizer / mask.sum()
    means = {name: (x * per_token).item() for name, x in sums.items()}  # "clip_fraction", "kl"
    return {"loss": loss.item(), "grad_norm": norm.item()} | means
