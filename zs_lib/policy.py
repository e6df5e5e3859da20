"""RL training of a policy: one short loop of rollouts, advantages and updates, made to be read.

A step is a function of the weights, the seed and its own number: which questions it takes, and every token
and noisy document that is drawn. So a checkpoint needs no more than weights, optimizer moments and a step
number, and a run that was killed and resumed ends like one that was not, bit for bit (on one kind of device,
thread and process count).

Several processes may train one arm (`processes`). Each holds the whole policy, rolls out some of a step's groups and
computes the gradient of some of its micro-batches; trajectories and gradients are then everyone's, so all that is made
of them is as in one process, to float32 rounding.

Left out on purpose: sharded weights (FSDP, DeepSpeed), a replay buffer, an entropy bonus, a format reward.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import lru_cache

import numpy as np
import torch
from accelerate import Accelerator

from zs_lib import metrics, models, processes, qa, simulator, warm_up
from zs_lib.collapse import collapse_warnings
from zs_lib.arms import SIMULATING, PolicyArm
from zs_lib.curriculum import noise_probability
from zs_lib.engines import SearchEngine, build_engine
from zs_lib.engines.mixed import MixedEngine
from zs_lib.errors import ConfigError, DataError, EngineError
from zs_lib.generate import build_generator
from zs_lib.learner import Learner
from zs_lib.objectives import advantage_kind, dead_groups, group_advantages
from zs_lib.qa import Question
from zs_lib.rollout import Trajectory, rollout
from zs_lib.runs import Run, RunStore
from zs_lib.signals import trajectory_metrics
from zs_lib.stopping import between_steps
from zs_lib.trajectories import to_record

# Called after each step with its number, the number of steps, and the step's metrics.
Progress = Callable[[int, int, dict], None]

LOGGED_QUESTIONS = 2  # a step, with their whole groups: enough to see what the policy does, and small
WATCHED_TIMES = (
    8  # a run: questions seldom come twice in training, so two are asked again to see the policy change
)
FAILED_LIMIT = 0.5  # share of a step's rollouts; those that search least survive, and above it they are what is learnt from
SUMMARY_STEPS = 10  # the summary's first and last rewards are means over so many steps


def ensure(arm: PolicyArm, seed: int, store: RunStore, progress: Progress | None = None) -> Run:
    """The finished run of this arm and seed: found in the store, resumed, or trained now.

    A simulated engine needs a simulator, which is made first if the store has none (always from seed 0: the
    policy's seeds share it, as in the paper).
    """

    def work(run: Run) -> dict:
        if processes.sharded():
            raise ConfigError(
                "RL needs the whole policy in every process, to sample from it: start it with the configuration "
                "zs_lib/launch/ddp.yaml; where memory is short, set policy.lora_rank, dtype or gradient_checkpointing."
            )
        questions = qa.load_benchmark(arm.benchmark, "train", arm.subsets)
        loaded = models.load(warm_up.start(arm.backbone, arm.warm_up, arm.benchmark, store), arm.dtype)
        return train(run, arm, seed, questions, loaded.model, loaded.tokenizer, _engine(arm, store), progress)

    return store.ensure(arm, seed, work, together=True)


def _engine(arm: PolicyArm, store: RunStore) -> SearchEngine | None:
    if arm.engine == "none":
        return None
    if arm.engine not in SIMULATING:
        return build_engine(arm.engine, split="train", arm=arm.simulator)
    made = simulator.ensure(arm.simulator, 0, store)
    simulated = build_engine("simulated", model=made.model_dir, arm=arm.simulator)
    return (
        simulated
        if arm.engine == "simulated"
        else MixedEngine(simulated, build_engine("bm25", split="train"), arm.real_share)
    )


def train(
    run: Run,
    arm: PolicyArm,
    seed: int,
    questions: Sequence[Question],
    model,
    tokenizer,
    engine: SearchEngine | None,
    progress: Progress | None = None,
) -> dict:
    """Train `model` in place to step `arm.steps`, from the run's checkpoint if it has one; the summary. Ctrl-C and
    SIGTERM stop it after the step that it is in, with a checkpoint.

    Leaves metrics (one line a step: `trajectory_metrics`, `Learner.update` and `_step` say what they mean),
    sampled trajectories, checkpoints, and at the end the model as a transformers folder in `run.model_dir`.
    """
    accelerator = Accelerator(cpu=not torch.cuda.is_available())
    if arm.rollout.temperature == 0:
        raise ConfigError(f"'{arm.name}' has temperature 0: rollouts of a group would be alike, raise it.")
    if not questions:
        raise DataError(
            f"No training questions in the subsets {', '.join(arm.subsets)}: choose others in the profile."
        )
    learner = Learner(model, arm, accelerator)
    checkpoint = run.checkpoint()
    if checkpoint:
        learner.restore(checkpoint.tensors)
    generator, engine = (
        build_generator(arm.generator, learner.model, tokenizer),
        engine and _TimedEngine(engine),
    )
    logged = run.metrics().iloc[-1].to_dict() if checkpoint else None
    with between_steps() as asked_to_stop:
        for step in range(checkpoint.step + 1 if checkpoint else 1, arm.steps + 1):
            noise = noise_probability(step, arm.steps, arm.curriculum, logged) if arm.curriculum else 0.0
            logged, seconds, groups = _step(step, noise, arm, seed, questions, learner, generator, engine)
            run.log(step, **logged)
            run.log_timing(step, **seconds)
            sample = groups[: LOGGED_QUESTIONS * arm.group_size]
            run.log_trajectories(
                step,
                [
                    to_record(t, reward(t), generator.decode)
                    | {"group": n // arm.group_size, "advantage": round(advantage, 4)}
                    for n, (t, advantage) in enumerate(sample)
                ],
            )
            if processes.is_main() and (
                step in (1, arm.steps) or step % max(1, arm.steps // WATCHED_TIMES) == 0
            ):
                run.log_trajectories(step, _watch(arm, seed, questions, generator, engine))
            stop = asked_to_stop()
            if step % arm.checkpoint_every == 0 or step == arm.steps or stop:
                run.save(step, learner.state(), {})
            if progress:
                progress(step, arm.steps, logged)
            if stop:
                break
    if not processes.is_main():
        return {}
    learner.finished().save_pretrained(run.model_dir)
    tokenizer.save_pretrained(run.model_dir)
    return _summary(run, learner)


def _step(
    step, noise, arm, seed, questions, learner, generator, engine
) -> tuple[dict, dict, list[tuple[Trajectory, float]]]:
    """One step: its metrics, its seconds by phase, and its trajectories with their advantages (group by group).

    Besides what the trajectories and the update report, the metrics are: reward (mean F1), dead_groups (share
    of groups with one reward), failed (share of rollouts that left the batch with their engine),
    noise_probability (asked for: `noise`), rollout_tokens and search_tokens (generated by policy and
    simulator), real_searches (queries that a mixed engine passed on to the real one).
    """
    batch = pick_questions(questions, arm.prompts_per_step, seed, step)
    mine = [(i, j) for i in processes.deal(range(len(batch))) for j in range(arm.group_size)]
    started, searched = (
        time.perf_counter(),
        (engine.seconds, engine.tokens, engine.real_searches) if engine else (0.0, 0, 0),
    )
    rolled = rollout(
        [batch[i] for i, _ in mine],
        generator,
        engine,
        arm.rollout,
        [(seed, step, i, j) for i, j in mine],
        noise,
    )
    groups = processes.collect(
        [rolled[at : at + arm.group_size] for at in range(0, len(rolled), arm.group_size)]
    )
    trajectories = [t for group in groups for t in group]
    rolled_out = time.perf_counter()
    searching = engine.seconds - searched[0] if engine else 0.0

    alive = [t for t in trajectories if t.stop_reason != "engine_failed"]
    failed = check_failed(trajectories, arm.engine, step)
    rewards = torch.tensor([reward(t) for t in trajectories], dtype=torch.float64).view(len(batch), -1)
    advantages = group_advantages(rewards, advantage_kind(arm.objective)).flatten().tolist()
    pairs = list(zip(trajectories, advantages, strict=True))
    kept = [(t, a) for t, a in pairs if t.stop_reason != "engine_failed"]
    update = learner.update(step, *zip(*kept, strict=True))
    generator.sync()
    logged = {
        "reward": rewards.nanmean().item(),
        "dead_groups": dead_groups(rewards).double().mean().item(),
        "failed": failed,
        "noise_probability": noise,
        **trajectory_metrics(alive),
        **update,
        "rollout_tokens": sum(sum(t.mask) for t in trajectories),
        **processes.total(
            {
                "search_tokens": engine.tokens - searched[1] if engine else 0,
                "real_searches": engine.real_searches - searched[2] if engine else 0,
            }
        ),
    }
    seconds = {
        "rollout": rolled_out - started - searching,
        "search": searching,
        "update": time.perf_counter() - rolled_out,
    }
    return logged, seconds, pairs


def _watch(arm, seed, questions, generator, engine) -> list[dict]:
    """How the policy answers the first questions of the training now: greedily, with useful documents, and with dice that do not
    depend on the step, so that what changes is the policy. Nothing of this reaches the training or its metrics."""
    asked, cfg = pick_questions(questions, LOGGED_QUESTIONS, seed, 1), replace(arm.rollout, temperature=0.0)
    keys = [(seed, 0, i, 0) for i in range(len(asked))]  # training begins with step 1
    return [
        to_record(t, reward(t), generator.decode) | {"watched": True}
        for t in rollout(asked, generator, engine, cfg, keys)
    ]


def check_failed(trajectories: Sequence[Trajectory], engine: str, step: int) -> float:
    """The share of a step's rollouts that failed with their engine; EngineError if it is above FAILED_LIMIT."""
    failed = 1 - sum(t.stop_reason != "engine_failed" for t in trajectories) / len(trajectories)
    if failed > FAILED_LIMIT:
        cause = next(turn.error for t in trajectories for turn in t.turns if turn.status == "failed")
        raise EngineError(
            f"{failed:.0%} of the rollouts of step {step} failed with their engine ({cause}): check the engine "
            f"'{engine}', then start again; the run goes on from its last checkpoint."
        )
    return failed


def reward(trajectory: Trajectory) -> float:
    """Token F1 of the final answer (paper, section 3.5), 0 without one; NaN if the engine failed it."""
    if trajectory.stop_reason == "engine_failed":
        return float("nan")
    return metrics.f1(trajectory.answer, trajectory.question.golden_answers)


def pick_questions(questions: Sequence[Question], count: int, seed: int, step: int) -> list[Question]:
    """The questions of a step (1, 2, …): shuffled epochs, every question once before any comes again."""
    places = range((step - 1) * count, step * count)
    split = [divmod(place, len(questions)) for place in places]
    return [questions[_shuffled(len(questions), seed, epoch)[place]] for epoch, place in split]


@lru_cache(maxsize=4)
def _shuffled(size: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.Generator(np.random.Philox(key=[seed, epoch])).permutation(size)


class _TimedEngine:
    """An engine that adds up the seconds spent in it, and knows the tokens that its simulator wrote and the queries
    that went to a real engine."""

    def __init__(self, engine: SearchEngine):
        self.engine, self.name, self.seconds = engine, engine.name, 0.0

    @property
    def tokens(self) -> int:
        return getattr(self.engine, "tokens", 0)

    @property
    def real_searches(self) -> int:
        return getattr(self.engine, "real_searches", 0)

    def search(self, requests, num_documents: int):
        started = time.perf_counter()
        try:
            return self.engine.search(requests, num_documents)
        finally:
            self.seconds += time.perf_counter() - started


def _summary(run: Run, learner: Learner) -> dict:
    """What a finished run says about itself: rewards at both ends, and warnings with their first steps."""
    logged = run.metrics()
    return {
        "steps": len(logged),
        "parameters": sum(parameter.numel() for parameter in learner.parameters.values()),
        "first_reward": float(logged["reward"].head(SUMMARY_STEPS).mean()),
        "last_reward": float(logged["reward"].tail(SUMMARY_STEPS).mean()),
        "warnings": [asdict(warning) for warning in collapse_warnings(logged)],
    }
