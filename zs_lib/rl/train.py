"""RL training of a policy: one short loop of rollouts, advantages and updates, made to be read.

A step is a function of the weights, the seed and its own number: its questions, every sampled token and every
noisy document follow from them. So a checkpoint needs no more than weights, optimizer moments and a step
number, and a run that was killed and resumed ends bit for bit like one that was not (on one kind of device,
with one number of threads and processes).

Several processes may train one arm (`runs.distributed`). Each holds the whole policy, rolls out its share of
a step's groups and computes the gradient of its share of the micro-batches; trajectories and gradients are
then gathered, so the result is that of one process, to float32 rounding.

`minimal` is the same loop with nothing but the method. Left out on purpose: sharded weights (FSDP,
DeepSpeed), a replay buffer, an entropy bonus, a format reward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase

from zs_lib.config.arms import PolicyArm
from zs_lib.engines import SearchEngine
from zs_lib.errors import ConfigError, DataError, EngineError
from zs_lib.models.load import LoadedModel, build_generator
from zs_lib.qa import Question
from zs_lib.rl.curriculum import noise_probability
from zs_lib.rl.learner import Learner
from zs_lib.rl.objectives import group_advantages, zero_variance_groups
from zs_lib.rl.rewards import reward
from zs_lib.rl.rollout import rollout
from zs_lib.rl.trajectory import Trajectory, trajectory_metrics
from zs_lib.rl.trajectory_log import to_record
from zs_lib.rng import permutation
from zs_lib.runs import Run, distributed
from zs_lib.runs.interrupts import between_steps

Progress = Callable[[int, int, dict], None]
"""Called after each step with its number, the number of steps, and the step's metrics."""
LOGGED_QUESTIONS = 2
"""Questions a step whose whole groups are logged: enough to see what the policy does, and small."""
WATCHED_TIMES = 8
"""Times a run at which the first questions are asked again: else questions seldom come twice to compare."""
FAILED_LIMIT = 0.5
"""Largest share of failed rollouts in a step: what is left over-represents rollouts that search little."""
SUMMARY_STEPS = 10
"""Steps over which the summary's first and last reward are means."""


def train(
    run: Run,
    arm: PolicyArm,
    questions: Sequence[Question],
    policy: LoadedModel,
    engine: SearchEngine | None,
    progress: Progress | None = None,
) -> dict:
    """Train `policy` in place, from the run's checkpoint if it has one, to `arm.steps`; returns the summary.

    Ctrl-C and SIGTERM stop it after the current step, with a checkpoint. The run gets metrics (one line a
    step: `trajectory_metrics`, `Learner.update` and `Training.step` define them), sampled trajectories,
    checkpoints, and at the end the model as a transformers folder in `run.model_dir`.

    Raises:
        ConfigError: temperature 0. DataError: no questions. EngineError: the engine failed too many rollouts.
    """
    if arm.rollout.temperature == 0:
        raise ConfigError(f"'{arm.name}' has temperature 0: rollouts of a group would be equal, raise it.")
    if not questions:
        raise DataError(
            f"No training questions in the subsets {', '.join(arm.subsets)}: choose others in the profile."
        )
    learner = Learner(policy.model, arm, Accelerator(cpu=not torch.cuda.is_available()))
    checkpoint = run.checkpoint()
    if checkpoint:
        learner.restore(checkpoint.tensors)
    training = Training(arm, run.seed, questions, learner, policy.tokenizer, engine)
    metrics = run.metrics().iloc[-1].to_dict() if checkpoint else None
    with between_steps() as asked_to_stop:
        for step in range(checkpoint.step + 1 if checkpoint else 1, arm.steps + 1):
            noise = noise_probability(step, arm.steps, arm.curriculum, metrics) if arm.curriculum else 0.0
            done = training.step(step, noise)
            training.log(run, step, done)
            metrics, stop = done.metrics, asked_to_stop()
            if step % arm.checkpoint_every == 0 or step == arm.steps or stop:
                run.save(step, learner.state(), {})
            if progress:
                progress(step, arm.steps, metrics)
            if stop:
                break
    if not distributed.is_main():
        return {}
    learner.merged_model().save_pretrained(run.model_dir)
    policy.tokenizer.save_pretrained(run.model_dir)
    return _summary(run, learner)


@dataclass(frozen=True)
class Step:
    """One step's results: metrics, seconds by phase, and (trajectory, advantage) pairs, group by group."""

    metrics: dict[str, float | None]
    seconds: dict[str, float]
    rollouts: list[tuple[Trajectory, float]]


class Training:
    """A policy in training: `step` does one step, `log` writes it to the run."""

    def __init__(
        self,
        arm: PolicyArm,
        seed: int,
        questions: Sequence[Question],
        learner: Learner,
        tokenizer: PreTrainedTokenizerBase,
        engine: SearchEngine | None,
    ):
        self.arm, self.seed, self.questions, self.learner = arm, seed, questions, learner
        self.generator = build_generator(arm.generator, learner.model, tokenizer)
        self.engine = _MeteredEngine(engine) if engine else None

    def step(self, step: int, noise: float) -> Step:
        """Roll out a batch of P questions x G rollouts, turn rewards into advantages, and update the policy.

        Besides what the trajectories and the update report, the metrics are: reward (mean of `arm.reward`),
        zero_variance_groups (share of groups whose rewards are all equal), failed (share of rollouts that
        left the batch because their engine failed), noise_probability (`noise`), rollout_tokens and
        search_tokens (sampled by policy and simulator), real_searches (queries that a mixed engine sent to
        the real one).
        """
        arm, started, before = self.arm, time.perf_counter(), self._meter()
        trajectories = self._roll_out(step, noise)
        rolled_out, searching = time.perf_counter(), self._meter()["seconds"] - before["seconds"]

        failed = check_failed(trajectories, arm.engine, step)
        rewards = torch.tensor([reward(t, arm.reward) for t in trajectories], dtype=torch.float64)
        rewards = rewards.view(-1, arm.group_size)  # (P, G)
        advantages = group_advantages(rewards, arm.objective).flatten().tolist()
        rollouts = list(zip(trajectories, advantages, strict=True))
        alive, their_advantages = zip(*[(t, a) for t, a in rollouts if not t.failed], strict=True)
        update = self.learner.update(step, alive, their_advantages)
        self.generator.sync()

        used = {name: value - before[name] for name, value in self._meter().items() if name != "seconds"}
        metrics = {
            "reward": rewards.nanmean().item(),
            "zero_variance_groups": zero_variance_groups(rewards).double().mean().item(),
            "failed": failed,
            "noise_probability": noise,
            **trajectory_metrics(alive),
            **update,
            "rollout_tokens": sum(sum(t.mask) for t in trajectories),
            **distributed.all_sum(used),
        }
        seconds = {
            "rollout": rolled_out - started - searching,
            "search": searching,
            "update": time.perf_counter() - rolled_out,
        }
        return Step(metrics, seconds, rollouts)

    def log(self, run: Run, step: int, done: Step) -> None:
        """Write a step's metrics, seconds and some of its trajectories."""
        run.log(step, **done.metrics)
        run.log_timing(step, **done.seconds)
        size = self.arm.group_size
        run.log_trajectories(
            step,
            [
                self._record(t) | {"group": n // size, "advantage": round(advantage, 4)}
                for n, (t, advantage) in enumerate(done.rollouts[: LOGGED_QUESTIONS * size])
            ],
        )
        last = self.arm.steps
        if distributed.is_main() and (step in (1, last) or step % max(1, last // WATCHED_TIMES) == 0):
            run.log_trajectories(step, [self._record(t) | {"watched": True} for t in self._watch()])

    def _roll_out(self, step: int, noise: float) -> list[Trajectory]:
        """Sample the step's trajectories, group by group; each process samples its share of the groups."""
        batch = pick_questions(self.questions, self.arm.prompts_per_step, self.seed, step)
        size = self.arm.group_size
        mine = [(i, j) for i in distributed.shard(range(len(batch))) for j in range(size)]
        keys = [(self.seed, step, i, j) for i, j in mine]
        sampled = rollout(
            [batch[i] for i, _ in mine], self.generator, self.engine, self.arm.rollout, keys, noise
        )
        groups = distributed.unshard([sampled[at : at + size] for at in range(0, len(sampled), size)])
        return [trajectory for group in groups for trajectory in group]

    def _watch(self) -> list[Trajectory]:
        """Answer the training's first questions again: greedily, with useful documents and fixed keys.

        Only the policy differs between steps. Nothing of this reaches the training or its metrics.
        """
        asked = pick_questions(self.questions, LOGGED_QUESTIONS, self.seed, 1)
        keys = [(self.seed, 0, i, 0) for i in range(len(asked))]  # training begins with step 1
        greedy = replace(self.arm.rollout, temperature=0.0)
        return rollout(asked, self.generator, self.engine, greedy, keys)

    def _record(self, trajectory: Trajectory) -> dict:
        return to_record(trajectory, reward(trajectory, self.arm.reward), self.generator.decode)

    def _meter(self) -> dict[str, float]:
        return (
            self.engine.meter() if self.engine else {"seconds": 0.0, "search_tokens": 0, "real_searches": 0}
        )


def check_failed(trajectories: Sequence[Trajectory], engine: str, step: int) -> float:
    """Compute the share of a step's rollouts that failed with their engine.

    Raises:
        EngineError: it is above FAILED_LIMIT.
    """
    failed = 1 - sum(not t.failed for t in trajectories) / len(trajectories)
    if failed > FAILED_LIMIT:
        cause = next(turn.error for t in trajectories for turn in t.turns if turn.status == "failed")
        raise EngineError(
            f"{failed:.0%} of the rollouts of step {step} failed with their engine ({cause}): check the "
            f"engine '{engine}', then start again; the run goes on from its last checkpoint."
        )
    return failed


def pick_questions(questions: Sequence[Question], count: int, seed: int, step: int) -> list[Question]:
    """Pick the questions of a step (1, 2, ...), in shuffled epochs: each once before any comes again."""
    places = range((step - 1) * count, step * count)
    split = [divmod(place, len(questions)) for place in places]
    return [questions[permutation(len(questions), seed, epoch)[place]] for epoch, place in split]


class _MeteredEngine:
    """Wraps an engine to add up the seconds spent in it, its simulator's tokens and its real queries."""

    def __init__(self, engine: SearchEngine):
        self.engine, self.name, self.seconds = engine, engine.name, 0.0

    def meter(self) -> dict[str, float]:
        return {
            "seconds": self.seconds,
            "search_tokens": getattr(self.engine, "tokens", 0),
            "real_searches": getattr(self.engine, "real_searches", 0),
        }

    def search(self, requests, num_documents: int):
        started = time.perf_counter()
        try:
            return self.engine.search(requests, num_documents)
        finally:
            self.seconds += time.perf_counter() - started


def _summary(run: Run, learner: Learner) -> dict:
    """Summarise a finished run: rewards at both ends."""
    logged = run.metrics()
    return {
        "steps": len(logged),
        "parameters": sum(parameter.numel() for parameter in learner.parameters.values()),
        "first_reward": float(logged["reward"].head(SUMMARY_STEPS).mean()),
        "last_reward": float(logged["reward"].tail(SUMMARY_STEPS).mean()),
    }
