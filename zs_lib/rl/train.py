"""RL training of a policy: one short loop of rollouts, advantages and updates, made to be read.

A step is a function of the weights, the seed, its own number, and what the run has logged before: its
questions, every sampled token and every noisy document follow from them. So a checkpoint needs no more than
weights, optimizer moments and a step number, and a run that was killed and resumed ends bit for bit like one
that was not (on one kind of device, with one number of threads and processes).

Several processes may train one arm (`runs.distributed`). Each holds the whole policy, rolls out its share of
a step's groups and computes the gradient of its share of the micro-batches; trajectories and gradients are
then gathered, so the result is that of one process, to float32 rounding.

`minimal` is the same loop with nothing but the method. Left out on purpose: sharded weights (FSDP,
DeepSpeed), which `trl` has, a replay buffer, an entropy bonus.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import isnan
from statistics import fmean, mean

import torch
from transformers import PreTrainedModel

from zs_lib.config.arms import PolicyArm
from zs_lib.engines.base import SearchEngine, SearchRequest, SearchResult, Wrapper
from zs_lib.errors import ConfigError, DataError, EngineError, RewardError
from zs_lib.models.generator import Generator
from zs_lib.models.load import LoadedModel, build_generator
from zs_lib.qa import Question
from zs_lib.rl.credit import Turns, branch_advantages, branch_returns, turn_advantages
from zs_lib.rl.curriculum import noise_probability
from zs_lib.rl.judge import Judge
from zs_lib.rl.learner import Learner
from zs_lib.rl.objectives import group_advantages, zero_variance_groups
from zs_lib.rl.questions import SELECTIONS, Past, epochs, remember
from zs_lib.rl.rewards import Reward, Score
from zs_lib.rl.rollout import Prefix, rollout
from zs_lib.rl.trajectory import Trajectory, to_record, trajectory_metrics
from zs_lib.rng import Key
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


@dataclass(eq=False)
class Group:
    """The rollouts of one question of a step."""

    place: int  # of the question among those of the step: the third part of the rollouts' keys
    question: Question
    noise: float
    trajectories: list[Trajectory]
    scores: list[Score]

    @property
    def rewards(self) -> torch.Tensor:
        """Totals of the scores, (G,) double; NaN where the engine failed, or a judge."""
        return torch.tensor([score.total for score in self.scores], dtype=torch.float64)

    @property
    def alive(self) -> bool:
        """Whether a group baseline learns from it."""
        return not zero_variance_groups(self.rewards[None]).item()

    def record(self, trained: bool) -> dict:
        """Make the JSON record of the group in the run's log."""
        return {
            "place": self.place,
            "question": self.question.id,
            "noise_probability": self.noise,
            "rewards": [None if reward.isnan() else reward.item() for reward in self.rewards],
            "trained": trained,
        }


@dataclass
class Batch:
    """The rollouts of a step: P questions x G trajectories, group by group, and what sampling them took."""

    step: int
    groups: list[Group]
    extra: list[Group]  # sampled, but not trained: dead groups whose places others took (`extra_rounds`)
    turn_advantages: list[list[float]] | None  # with credit by turn
    branch_tokens: int  # sampled for it besides the trajectories'
    failed: float  # share of rollouts that left the batch because their engine failed, or a judge
    used: dict[str, float]
    seconds: dict[str, float]
    sampled_at: float

    @property
    def trajectories(self) -> list[Trajectory]:
        """The trained P * G trajectories, group by group."""
        return [trajectory for group in self.groups for trajectory in group.trajectories]

    @property
    def rewards(self) -> torch.Tensor:
        """Their rewards, (P, G) double."""
        return torch.stack([group.rewards for group in self.groups])


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
    past: Past = field(default_factory=dict, init=False)
    """When each question was last asked; a resumed run reads it from its log."""

    def __post_init__(self):
        name, subsets = self.arm.name, ", ".join(self.arm.subsets)
        if self.arm.rollout.temperature == 0:
            raise ConfigError(f"'{name}' has temperature 0: rollouts of a group would be equal, raise it.")
        if not self.questions:
            raise DataError(f"No training questions in the subsets {subsets}: choose others in the profile.")
        self.reward = Reward(self.arm.reward)

    def resume(self) -> Checkpoint | None:
        """Load the run's checkpoint, if it has one, and what was logged up to its step."""
        if checkpoint := self.run.checkpoint():
            remember(self.past, self.run.groups())
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
        """Roll out the step's questions, and fresh ones for dead groups.

        Raises:
            EngineError: more than FAILED_LIMIT of the rollouts failed with their engine.
            RewardError: a reward is wrong, or more than FAILED_LIMIT have no verdict of their judge.
        """
        arm, before, started = self.arm, self._used(), time.perf_counter()
        count, engine = arm.prompts_per_step, Stopwatch(self.engine) if self.engine else None
        changed = self.engine.prepare(step, self) if arm.living else {}
        asked = self._choose(step, count * (1 + arm.extra_rounds))
        groups, asked, extra = self._roll_out(step, asked[:count], engine), asked[count:], []
        failed = self._check_failed(step, groups)
        for _ in range(arm.extra_rounds):
            dead = [i for i, group in enumerate(groups) if not group.alive]
            if not dead:
                break
            fresh, asked = self._roll_out(step, asked[: len(dead)], engine), asked[len(dead) :]
            for i, group in zip(dead, fresh, strict=True):
                extra.append(groups[i] if group.alive else group)
                groups[i] = group if group.alive else groups[i]
            failed = self._check_failed(step, groups + extra)
        by_turn, branch_tokens = self._credit(groups, step, engine)
        sampled_at, searching = time.perf_counter(), engine.seconds if engine else 0.0
        return Batch(
            step=step,
            groups=groups,
            extra=extra,
            turn_advantages=by_turn,
            branch_tokens=branch_tokens,
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
        are equal), extra_groups (number of those that are not trained, for fresh questions took their place),
        failed, noise_probability, rollout_tokens and search_tokens (sampled by policy and simulator),
        real_searches (queries that a mixed engine sent to the real one), and of a living engine real_share.
        All are of every group that was sampled, trained or not.
        """
        groups = batch.groups + batch.extra
        trajectories = [trajectory for group in groups for trajectory in group.trajectories]
        rewards = torch.stack([group.rewards for group in groups])
        self.last = {
            "reward": rewards.nanmean().item(),
            **part_means([score for group in groups for score in group.scores]),
            "zero_variance_groups": zero_variance_groups(rewards).double().mean().item(),
            "extra_groups": len(batch.extra),
            "failed": batch.failed,
            "noise_probability": mean(group.noise for group in groups),  # exact where all are equal
            **trajectory_metrics([t for t in trajectories if not t.failed]),
            **update,
            "rollout_tokens": sum(sum(t.mask) for t in trajectories) + batch.branch_tokens,
            **batch.used,
        }
        self.run.log(batch.step, **self.last)
        records = [group.record(trained=number < len(batch.groups)) for number, group in enumerate(groups)]
        records.sort(key=lambda record: record["place"])
        self.run.log_groups(batch.step, records)
        remember(self.past, [{"step": batch.step, **record} for record in records])
        self.run.log_timing(batch.step, **batch.seconds, update=time.perf_counter() - batch.sampled_at)
        self._log_trajectories(batch, advantages)
        if self.progress:
            self.progress(batch.step, self.arm.steps, self.last)

    def _choose(self, step: int, count: int) -> list[tuple[int, Question, float]]:
        """Choose questions for a step, each with its place and noise: its own, and those of extra rounds."""
        arm, past = self.arm, self.past
        chosen = SELECTIONS[arm.selection](self.questions, count, self.run.seed, step, past)
        return [
            (place, q, noise_probability(step, arm.steps, arm.curriculum, self.last, past.get(q.id)))
            for place, q in enumerate(chosen)
        ]

    def _roll_out(
        self, step: int, asked: Sequence[tuple[int, Question, float]], engine: SearchEngine | None
    ) -> list[Group]:
        """Sample a group for each (place, question, noise); each process samples its share of the groups."""
        arm, size, mine = self.arm, self.arm.group_size, distributed.shard(asked)
        keys = [(self.run.seed, step, place, g) for place, *_ in mine for g in range(size)]
        questions, noise = ([one[part] for one in mine for _ in range(size)] for part in (1, 2))
        sampled = rollout(questions, self.generator, engine, arm.rollout, keys, noise)
        groups = distributed.unshard([sampled[at : at + size] for at in range(0, len(sampled), size)])
        scores = self._score([trajectory for group in groups for trajectory in group])
        return [
            Group(*one, group, scores[n * size : (n + 1) * size])
            for n, (one, group) in enumerate(zip(asked, groups, strict=True))
        ]

    def _score(self, trajectories: Sequence[Trajectory]) -> list[Score]:
        """Score trajectories; each process scores its share, so that a judge is asked once."""
        return distributed.unshard(self.reward(distributed.shard(trajectories)))

    def _check_failed(self, step: int, groups: Sequence[Group]) -> float:
        """Compute the share of rollouts that leave the batch; an error, as of `collect`, if it is large."""
        failed = check_failed([t for group in groups for t in group.trajectories], self.arm.engine, step)
        if judge := self.reward.judge:
            failed = check_judged(torch.stack([group.rewards for group in groups]), judge, step)
        return failed

    def _credit(
        self, groups: Sequence[Group], step: int, engine: SearchEngine | None
    ) -> tuple[list[list[float]] | None, int]:
        """Compute turns' advantages, by `objective.credit`, and the number of tokens sampled for them."""
        objective, size = self.arm.objective, self.arm.group_size
        rewards = [score.turns for group in groups for score in group.scores]
        if objective.credit == "trajectory":
            return None, 0
        if objective.credit == "turn":
            return turn_advantages(rewards, size, objective), 0

        def sample(prefixes: list[Prefix], keys: list[Key]) -> list[tuple[Trajectory, Turns]]:
            mine, keys = distributed.shard(prefixes), distributed.shard(keys)
            asked = [trajectory.question for trajectory, _ in mine]
            noise = [noises[place] for _, _, place, _ in keys]
            found = rollout(asked, self.generator, engine, self.arm.rollout, keys, noise, prefixes=mine)
            turns = [score.turns for score in self.reward(found)]
            return distributed.unshard(list(zip(found, turns, strict=True)))

        noises = {group.place: group.noise for group in groups}
        keys = [(self.run.seed, step, group.place, g) for group in groups for g in range(size)]
        trajectories = [trajectory for group in groups for trajectory in group.trajectories]
        returns, tokens = branch_returns(trajectories, keys, objective, sample)
        return branch_advantages(rewards, returns, size, objective.discount), tokens

    def _used(self) -> dict[str, int]:
        """Count the simulator's tokens, and the queries that a mixed engine sent to the real one, so far."""
        names = {"search_tokens": "tokens", "real_searches": "real_searches"}
        return {name: getattr(self.engine, counter, 0) for name, counter in names.items()}

    def _log_trajectories(self, batch: Batch, advantages: Sequence[float]) -> None:
        """Log the first groups of a step, with their advantages, and now and then the watched questions."""
        step, size, last = batch.step, self.arm.group_size, self.arm.steps
        scores = [score for group in batch.groups for score in group.scores]
        logged = []
        for n, trajectory in enumerate(batch.trajectories[: LOGGED_QUESTIONS * size]):
            record = self._record(trajectory, scores[n]) | {
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
        asked = epochs(self.questions, LOGGED_QUESTIONS, self.run.seed, 1)
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


class Stopwatch(Wrapper):
    """An engine, and the seconds in which it was searching, for one thread or several."""

    def __init__(self, engine: SearchEngine):
        super().__init__(engine)
        self.seconds, self._since, self._searching, self._lock = 0.0, 0.0, 0, threading.Lock()

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        with self._lock:
            self._since = self._since if self._searching else time.perf_counter()
            self._searching += 1
        try:
            return self.engine.search(requests, num_documents)
        finally:
            with self._lock:
                self._searching -= 1
                if not self._searching:
                    self.seconds += time.perf_counter() - self._since
