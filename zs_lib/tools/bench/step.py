"""Benchmark the update of a policy: ours and TRL's GRPOTrainer's, on the same trajectories and weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch

from zs_lib import config
from zs_lib.config.arms import PolicyArm
from zs_lib.engines import build_engine
from zs_lib.models.load import LoadedModel, build_generator, load_model
from zs_lib.rl.batches import make_rows
from zs_lib.rl.learner import WEIGHT_DECAY, Learner
from zs_lib.rl.objectives import group_advantages
from zs_lib.rl.rewards import Reward
from zs_lib.rl.rollout import rollout
from zs_lib.rl.trajectory import Trajectory
from zs_lib.tools.bench import rollouts
from zs_lib.tools.bench.machine import as_peers_have_it, forward_flops, peak_flops, row, seconds

ROWS = 8
"""Trajectories per micro-batch of TRL: its default."""


def measure(small: bool = False) -> Iterator[dict]:
    """Time the update from trajectories and advantages to new weights, with and without a KL term.

    Also with rewards that leave no advantage at 0: such trajectories are idle, dropped by us and trained by
    TRL.
    """
    tiny = config.load_profile("tiny").policies[0]
    few = replace(tiny, prompts_per_step=2)
    yield from _compare(
        "tiny-S-instruct", few if small else tiny, (tiny.objective.kl_coef, 0.0), 1 if small else 5
    )
    if not small:
        smol = replace(
            config.load_profile("smol").policies[0], prompts_per_step=3, group_size=4, dtype="float32"
        )
        yield from _compare(rollouts.format_tuned(rollouts.MODEL, smol.format_sft), smol, (), 1)


def _compare(name: str | Path, arm: PolicyArm, kl_coefs: Sequence[float], tries: int) -> Iterator[dict]:
    loaded = load_model(name)
    trajectories, rewards = first_batch(loaded, arm)
    cases = [(f"KL {kl:g}" if kl else "without KL", kl, rewards) for kl in kl_coefs]
    cases.append(
        ("without KL, none idle", 0.0, rewards + torch.linspace(0, 0.1, rewards.numel()).view_as(rewards))
    )
    for label, kl, given in cases:
        # At rate 0 the weights do not change, so every try does the same work.
        changed = replace(arm, learning_rate=0.0, objective=replace(arm.objective, kl_coef=kl))
        advantages = group_advantages(given, changed.objective).flatten().tolist()
        if not kl and not any(advantages):  # our update has nothing to do
            continue
        size = f"{loaded.model.num_parameters() / 1e6:.1f}M"
        case = f"{len(advantages)} trajectories, {size}, {label}"
        for who, make in (("ours", _ours), ("TRL", _trl)):
            took = seconds(make(loaded, changed, trajectories, advantages), tries)
            yield row(case, "time", took, "s", who)
            if who == "ours":
                share = _least_work(loaded.model, changed, trajectories, advantages) / took / peak_flops()
                yield row(case, "of the peak", share, "share")
        idle = sum(advantage == 0 for advantage in advantages) / len(advantages)
        yield row(case, "idle trajectories", idle, "share", "both")


def first_batch(loaded: LoadedModel, arm: PolicyArm) -> tuple[list[Trajectory], torch.Tensor]:
    """Roll out the arm's first step with BM25: trajectories, and their rewards (P, G)."""
    repeated = rollouts.grouped_questions(arm, arm.prompts_per_step, arm.group_size)
    generator = build_generator("transformers", loaded.model, loaded.tokenizer)
    engine = build_engine("bm25", split="train")
    done = rollout(repeated, generator, engine, arm.rollout, [(0, i) for i in range(len(repeated))])
    rewards = [score.total for score in Reward("f1")(done)]
    return done, torch.tensor(rewards, dtype=torch.float64).view(-1, arm.group_size)


def _least_work(
    model, arm: PolicyArm, trajectories: Sequence[Trajectory], advantages: Sequence[float]
) -> float:
    """The least FLOPs: forward, backward (twice as many), reference forward, of rows with a gradient."""
    kl = arm.objective.kl_coef > 0
    rows = make_rows(trajectories, advantages, arm.objective.mask_documents)
    rows = [row for row in rows if kl or any(row.advantages)]
    forward = forward_flops(model, sum(len(row.ids) for row in rows), sum(sum(row.loss_mask) for row in rows))
    return (4 if kl else 3) * forward


def _ours(
    loaded: LoadedModel, arm: PolicyArm, trajectories: Sequence[Trajectory], advantages: Sequence[float]
) -> Callable[[], object]:
    learner = Learner(copy.deepcopy(loaded.model), arm)
    return lambda: learner.update(1, trajectories, advantages)


def _trl(
    loaded: LoadedModel, arm: PolicyArm, trajectories: Sequence[Trajectory], advantages: Sequence[float]
) -> Callable[[], object]:
    from trl.trainer.utils import add_fused_lm_head

    model, reference = as_peers_have_it(loaded.model), as_peers_have_it(loaded.model)
    # As the trainer does with its model and its reference.
    add_fused_lm_head(reference, arm.rollout.temperature)
    trainer = rollouts.trainer(model, loaded.tokenizer, arm.rollout, ROWS)
    trainer.beta, trainer.current_gradient_accumulation_steps = arm.objective.kl_coef, 1
    optimizer = torch.optim.AdamW(model.parameters(), lr=arm.learning_rate, weight_decay=WEIGHT_DECAY)
    mask = _padded([t.mask for t in trajectories]).long()
    batch = {
        "prompt_ids": _padded([t.prompt_ids[::-1] for t in trajectories]).flip(1),
        "prompt_mask": _padded([[1] * len(t.prompt_ids) for t in trajectories]).flip(1),
        "completion_ids": _padded([t.ids for t in trajectories]),
        "completion_mask": _padded([[1] * len(t.ids) for t in trajectories]),
        "tool_mask": mask,
        "advantages": torch.tensor(advantages, dtype=torch.float32),
    }

    def update() -> None:
        model.train()
        for start in range(0, len(trajectories), ROWS):
            part = {name: values[start : start + ROWS] for name, values in batch.items()}
            part["num_items_in_batch"] = mask.sum()
            if arm.objective.kl_coef:
                ids = torch.cat([part["prompt_ids"], part["completion_ids"]], 1)
                attention = torch.cat([part["prompt_mask"], part["completion_mask"]], 1)
                with torch.no_grad():
                    logprobs = trainer._get_per_token_logps_and_entropies
                    part["ref_per_token_logps"] = logprobs(reference, ids, attention, mask.shape[1])[0]
            trainer.compute_loss(model, part).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), arm.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return update


def _padded(rows: list[list]) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
