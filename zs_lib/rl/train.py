"""RL training of a policy: one short loop of rollouts, advantages and updates, made to be read.

A step is a function of the weights, the seed and its own number: its questions, every sampled token and every
noisy document follow from them. So a checkpoint needs no more than weights, optimizer moments and a step
number, and a run that was killed and resumed ends bit for bit like one that was not (on one kind of device,
with one number of threads and processes).

Several processes may train one arm (`runs.distributed`). Each holds the whole policy, rolls out its share of
a step's groups and computes the gradient of its share of the micro-batches; trajectories and gradients are
then gathered, so the result is that of one process, to float32 rounding.

`minimal` is the same loop with nothing but the method. Left out on purpose: sharded weights (FSDP,
DeepSpeed), which `trl` has, a replay buffer, an entropy bonus.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from statistics import fmean
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from zs_lib.config.arms import PolicyArm
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import ConfigError, DataError, EngineError, RewardError
from zs_lib.models.generator import Generator
from zs_lib.models.load import LoadedModel, build_generator
from zs_lib.qa import Question
from zs_lib.rl.credit import Turns, branch_advantages, branch_returns, turn_advantages
from zs_lib.rl.curriculum import noise_probability
from zs_lib.rl.judge import Judge
from zs_lib.rl.learner import Learner
from zs_lib.rl.objectives import group_advantages, zero_variance_groups
from zs_lib.rl.rewards import Reward, Score
from zs_lib.rl.rollout import Prefix, rollout
from zs_lib.rl.trajectory import Trajectory, to_record, trajectory_metrics
from zs_lib.rng import Key, permutation
from zs_lib.runs import Run, StepCallback, distributed
from zs_lib.runs.checkpoints import Checkpoint
from zs_lib.runs.interrupts import between_steps

LOGGED_QUESTIONS = 2
"""Questions a step whose whole groups are logged: enough to see what the policy does, and small."""
WATCHED_TIMES = 8
"""Times a run at which the first questions are asked again: else questions seldom come twice to compare."""
FAILED_LIMIT = 0.5
"""Largest share of failed rollouts in a step: what is left over-represents rollouts that search little."""
SUMMARY_STEPS = 10
"""Steps over which the summary's first and last reward are means."""
T = TypeVar("T")


def train(training: Training) -> dict:
    """Train the policy in place, from the run's checkpoint if it has one; returns the summary.

    Ctrl-C and SIGTERM stop it after the current step, with a checkpoint. The run gets metrics (one line a
    step: `trajectory_metrics`, `Learner.update` and `Training.log` define them), sampled trajectories,
    checkpoints, and at the end the model.

    Raises:
        EngineError: the engine failed too many rollouts. RewardError: a reward is wrong, or its judge failed.
    """
    run, arm = training.run, training.arm
    learner = Learner(training.policy.model, arm)
    training.generator = build_generator(arm.generator, learner.model, training.policy.tokenizer)
    first = 1
    if checkpoint := training.resume():
        learner.restore(checkpoint.tensors)
        first = checkpoint.step + 1
    with between_steps() as asked_to_stop:
        for step in range(first, arm.steps + 1):
            batch = training.collect(step)
            advantages = group_advantages(batch.rewards, arm.objective).flatten().tolist()
            given, rewards = batch.turn_advantages or advantages, batch.rewards.flatten().tolist()
            rollouts = zip(batch.trajectories, given, rewards, strict=True)
            alive, their_advantages = zip(*[(t, a) for t, a, r in rollouts if not isnan(r)], strict=True)
            update = learner.update(step, alive, their_advantages)
            training.generator.sync()
            training.log(batch, advantages, update)
            stop = asked_to_stop()
            if step % arm.checkpoint_every == 0 or step == arm.steps or stop:
                run.save(step, learner.state())
            if stop:
                break
    return training.finish(learner.merged_model(), sum(p.numel() for p in learner.parameters.values()))


@dataclass
class Batch:
    """The rollouts of a step: P questions x G trajectories, group by group, and what sampling them took."""

    step: int
    trajectories: list[Trajectory]
    rewards: torch.Tensor  # (P, G) double; NaN where the engine failed, or a judge
    scores: list[Score]  # the rewards by turn and by part
    turn_advantages: list[list[float]] | None  # with credit by turn
    branch_tokens: int  # sampled for it besides the trajectories'
    noise: float
    failed: float  # share of rollouts that left the batch because their engine failed, or a judge
    used: dict[str, float]
    seconds: dict[str, float]
    sampled_at: float


@dataclass
class Training:
    """What a training is made of, and the parts that every trainer shares.

    Raises:
        ConfigError: temperature 0, or no such reward. DataError: no questions.
    """

    run: Run
    arm: PolicyArm
    questions: Sequence[Question]
    policy: LoadedModel
    engine: SearchEngine | None
    progress: StepCallback | None = None
    generator: Generator = field(init=False)
    """Samples from the trained weights; each trainer sets its own."""
    last: dict[str, float | None] | None = field(default=None, init=False)
    """Metrics of the step before."""

    def __post_init__(self):
        name, subsets = self.arm.name, ", ".join(self.arm.subsets)
        if self.arm.rollout.temperature == 0:
            raise ConfigError(f"'{name}' has temperature 0: rollouts of a group would be equal, raise it.")
        if not self.questions:
            raise DataError(f"No training questions in the subsets {subsets}: choose others in the profile.")
        self.reward = Reward(self.arm.reward)

    def resume(self) -> Checkpoint | None:
        """Load the run's checkpoint, if it has one, and the metrics of its step."""
        if checkpoint := self.run.checkpoint():
            self.last = self.run.metrics().iloc[-1].to_dict()
        return checkpoint

    def finish(self, model: PreTrainedModel, parameters: int) -> dict:
        """Save the model, of so many trained parameters, in `run.model_dir`; returns the run's summary."""
        if not distributed.is_main():
            return {}
        model.save_pretrained(self.run.model_dir)
        self.policy.tokenizer.save_pretrained(self.run.model_dir)
        rewards = self.run.metrics()["reward"]
        return {
            "steps": len(rewards),
            "parameters": parameters,
            "first_reward": float(rewards.head(SUMMARY_STEPS).mean()),
            "last_reward": float(rewards.tail(SUMMARY_STEPS).mean()),
        }

    def collect(self, step: int) -> Batch:
        """Roll out the step's questions.

        Raises:
            EngineError: more than FAILED_LIMIT of the rollouts failed with their engine.
            RewardError: a reward is wrong, or more than FAILED_LIMIT have no verdict of their judge.
        """
        arm, before, started = self.arm, self._used(), time.perf_counter()
        noise = noise_probability(step, arm.steps, arm.curriculum, self.last)
        engine = Stopwatch(self.engine) if self.engine else None
        changed = engine.prepare(step, self.last, self.generator) if engine else {}
        trajectories = self._roll_out(step, engine, noise)
        failed = check_failed(trajectories, arm.engine, step)
        scores = self._score(trajectories)
        rewards = torch.tensor([score.total for score in scores], dtype=torch.float64)
        if self.reward.judge:
            failed = check_judged(rewards, self.reward.judge, step)
        by_turn, branch_tokens = self._credit(trajectories, scores, step, engine, noise)
        sampled_at, searching = time.perf_counter(), engine.seconds if engine else 0.0
        return Batch(
            step=step,
            trajectories=trajectories,
            rewards=rewards.view(-1, arm.group_size),
            scores=scores,
            turn_advantages=by_turn,
            branch_tokens=branch_tokens,
            noise=noise,
            failed=failed,
            used=changed
            | distributed.all_sum({name: now - before[name] for name, now in self._used().items()}),
            seconds={"rollout": sampled_at - started - searching, "search": searching},
            sampled_at=sampled_at,
        )

    def log(self, batch: Batch, advantages: Sequence[float], update: dict) -> None:
        """Log a step after its update.

        Metrics besides those of the trajectories and the update: reward (mean of `arm.reward`) and, of a sum,
        reward_<part> (mean of a part without its weight), zero_variance_groups (share of groups whose rewards
        are equal), failed, noise_probability, rollout_tokens and search_tokens (sampled by policy and
        simulator), real_searches (queries that a mixed engine sent to the real one), and of a living engine
        real_share.
        """
        self.last = {
            "reward": batch.rewards.nanmean().item(),
            **part_means(batch.scores),
            "zero_variance_groups": zero_variance_groups(batch.rewards).double().mean().item(),
            "failed": batch.failed,
            "noise_probability": batch.noise,
            **trajectory_metrics([t for t in batch.trajectories if not t.failed]),
            **update,
            "rollout_tokens": sum(sum(t.mask) for t in batch.trajectories) + batch.branch_tokens,
            **batch.used,
        }
        self.run.log(batch.step, **self.last)
        self.run.log_timing(batch.step, **batch.seconds, update=time.perf_counter() - batch.sampled_at)
        self._log_trajectories(batch, advantages)
        if self.progress:
            self.progress(batch.step, self.arm.steps, self.last)

    def _roll_out(self, step: int, engine: SearchEngine | None, noise: float) -> list[Trajectory]:
        """Sample the step's trajectories, group by group; each process samples its share of the groups."""
        arm, seed, size = self.arm, self.run.seed, self.arm.group_size
        batch = questions_of_step(self.questions, arm.prompts_per_step, seed, step)
        mine = [(p, g) for p in distributed.shard(range(len(batch))) for g in range(size)]
        keys = [(seed, step, p, g) for p, g in mine]
        sampled = rollout([batch[p] for p, _ in mine], self.generator, engine, arm.rollout, keys, noise)
        groups = distributed.unshard([sampled[at : at + size] for at in range(0, len(sampled), size)])
        return [trajectory for group in groups for trajectory in group]

    def _score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """Score trajectories; each process scores its share, so that a judge is asked once."""
        return distributed.unshard(self.reward(distributed.shard(trajectories)))

    def _credit(
        self,
        trajectories: Sequence[Trajectory],
        scores: Sequence[Score],
        step: int,
        engine: SearchEngine | None,
        noise: float,
    ) -> tuple[list[list[float]] | None, int]:
        """Compute turns' advantages, by `objective.credit`, and the number of tokens sampled for them."""
        objective, size, rewards = self.arm.objective, self.arm.group_size, [score.turns for score in scores]
        if objective.credit == "trajectory":
            return None, 0
        if objective.credit == "turn":
            return turn_advantages(rewards, size, objective), 0

        def sample(prefixes: list[Prefix], keys: list[Key]) -> list[tuple[Trajectory, Turns]]:
            mine, keys = distributed.shard(prefixes), distributed.shard(keys)
            asked = [trajectory.question for trajectory, _ in mine]
            found = rollout(asked, self.generator, engine, self.arm.rollout, keys, noise, prefixes=mine)
            turns = [score.turns for score in self.reward(found)]
            return distributed.unshard(list(zip(found, turns, strict=True)))

        keys = [(self.run.seed, step, *divmod(n, size)) for n in range(len(trajectories))]
        returns, tokens = branch_returns(trajectories, keys, objective, sample)
        return branch_advantages(rewards, returns, size, objective.discount), tokens

    def _used(self) -> dict[str, int]:
        """Count the simulator's tokens, and the queries that a mixed engine sent to the real one, so far."""
        names = {"search_tokens": "tokens", "real_searches": "real_searches"}
        return {name: getattr(self.engine, counter, 0) for name, counter in names.items()}

    def _log_trajectories(self, batch: Batch, advantages: Sequence[float]) -> None:
        """Log the first groups of a step, with their advantages, and now and then the watched questions."""
        step, size, last = batch.step, self.arm.group_size, self.arm.steps
        logged = []
        for n, trajectory in enumerate(batch.trajectories[: LOGGED_QUESTIONS * size]):
            record = self._record(trajectory, batch.scores[n]) | {
                "group": n // size,
                "advantage": round(advantages[n], 4),
            }
            if batch.turn_advantages:
                record["turn_advantages"] = [round(advantage, 4) for advantage in batch.turn_advantages[n]]
            logged.append(record)
        self.run.log_trajectories(step, logged)
        if distributed.is_main() and (step in (1, last) or step % max(1, last // WATCHED_TIMES) == 0):
            watched = self._watch()
            records = map(self._record, watched, self.reward(watched))
            self.run.log_trajectories(step, [record | {"watched": True} for record in records])

    def _watch(self) -> list[Trajectory]:
        """Answer the training's first questions again: greedily, with useful documents and fixed keys.

        Only the policy differs between steps. Nothing of this reaches the training or its metrics.
        """
        asked = questions_of_step(self.questions, LOGGED_QUESTIONS, self.run.seed, 1)
        keys = [(self.run.seed, 0, p, 0) for p in range(len(asked))]  # training begins with step 1
        greedy = replace(self.arm.rollout, temperature=0.0)
        return rollout(asked, self.generator, self.engine, greedy, keys)

    def _record(self, trajectory: Trajectory, score: Score) -> dict:
        return to_record(trajectory, score.total, self.generator.decode)


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


def check_judged(rewards: torch.Tensor, judge: Judge, step: int) -> float:
    """Compute the share of a step's rollouts without a reward, for lack of an engine's answer or a verdict.

    Raises:
        RewardError: it is above FAILED_LIMIT.
    """
    missing = rewards.isnan().double().mean().item()
    if missing > FAILED_LIMIT:
        cause = next(filter(None, distributed.all_gather(judge.cause)), "unknown")
        raise RewardError(
            f"{missing:.0%} of the rollouts of step {step} have no reward, most for lack of a verdict "
            f"({cause}): check the judge '{judge.model}', then start again; the run goes on from its "
            "last checkpoint."
        )
    return missing


def part_means(scores: Sequence[Score]) -> dict[str, float]:
    """Compute the mean of each part of a reward that is a sum, over the trajectories that have one."""
    present = [score.parts for score in scores if len(score.parts) > 1]
    return {name: fmean(parts[name] for parts in present) for name in (present[0] if present else ())}


def questions_of_step(questions: Sequence[Question], count: int, seed: int, step: int) -> list[Question]:
    """Pick `count` questions for a step (1, 2, ...), in shuffled epochs: each once before any comes again."""
    places = range((step - 1) * count, step * count)
    split = [divmod(place, len(questions)) for place in places]
    return [questions[permutation(len(questions), seed, epoch)[place]] for epoch, place in split]


class Stopwatch(SearchEngine):
    """An engine, and the seconds spent in it."""

    def __init__(self, engine: SearchEngine):
        self.engine, self.name, self.seconds = engine, engine.name, 0.0

    def prepare(self, step: int, last: dict | None, generator: Generator) -> dict[str, float]:
        """Let an engine that changes during a training do so (`simulator.living`); returns its metrics."""
        prepare = getattr(self.engine, "prepare", None)
        return self._timed(prepare, step, last, generator) if prepare else {}

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        return self._timed(self.engine.search, requests, num_documents)

    def _timed(self, work: Callable[..., T], *args) -> T:
        started = time.perf_counter()
        try:
            return work(*args)
        finally:
            self.seconds += time.perf_counter() - started
