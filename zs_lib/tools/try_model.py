"""Try a language model as a policy: does it follow the template, and how fast is it on this machine?

Where it does not follow, it is shown format SFT (`rl.format_sft`) until it does or the time is up. Nothing is
kept.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from statistics import fmean

import torch

from zs_lib import qa
from zs_lib.config import Profile
from zs_lib.config.arms import FormatSFT, FormatSFTArm, PolicyArm
from zs_lib.engines import SearchEngine, build_engine
from zs_lib.models.load import LoadedModel, build_generator, load_model
from zs_lib.models.sft import fine_tune
from zs_lib.qa import Question
from zs_lib.rl.format_sft import lesson_rows
from zs_lib.rl.rollout import rollout
from zs_lib.rl.trajectory import trajectory_metrics
from zs_lib.runs import Run, RunStore

QUESTIONS = 8
"""Rollouts of a look, one a question, sampled together."""
STEPS = (5, 10, 20, 40, 80)
"""Steps of format SFT after which the model is looked at again."""
TIMED = 3
"""Steps of format SFT at least, for its speed."""
ENOUGH = 0.75
"""Share of valid actions from which RL has something to reward: `tiny-S` learns from 0.8."""


@dataclass(frozen=True)
class Look:
    """What a model does with the policy's template, after some steps of format SFT."""

    steps: int
    actions: float
    """Share of its turns that are a valid action."""
    answers: float
    """Share of its rollouts that end with an answer."""
    f1: float
    tokens: int
    """Sampled in all rollouts together."""
    seconds: float


@dataclass
class Trial:
    """A model in the place of an arm's policy: its looks, and what its format SFT took."""

    arm: PolicyArm
    parameters: int
    looks: list[Look] = field(default_factory=list)
    rows: int = 0
    """Trajectories that were trained on, their mean tokens, and the seconds of all."""
    row_tokens: float = 0.0
    seconds: float = 0.0

    @property
    def follows(self) -> bool:
        return self.looks[-1].actions >= ENOUGH

    @property
    def step_seconds(self) -> float:
        """Estimate the seconds of an RL step of the arm; NaN if nothing was trained.

        Its searches are those of the last look, by a real engine. Larger batches are taken to be no faster.
        """
        rollouts = self.arm.prompts_per_step * self.arm.group_size
        trained = self.seconds / self.rows if self.rows else float("nan")
        return rollouts * (self.looks[-1].seconds / QUESTIONS + trained)

    def findings(self) -> list[str]:
        """Say in sentences what was found."""
        last, arm = self.looks[-1], self.arm
        found = [
            f"{self.parameters / 1e6:,.1f} million parameters, trained at "
            f"{self.rows * self.row_tokens / self.seconds:,.0f} tokens/s.",
            f"An RL step of '{arm.name}' ({arm.prompts_per_step * arm.group_size} rollouts) takes about "
            f"{self.step_seconds:,.0f} s, and its simulator's work.",
        ]
        if not self.follows:
            verdict = f"After {last.steps} steps it does not follow the template: give it more --seconds."
        elif last.steps:
            verdict = f"It follows the template after format SFT of {last.steps} steps."
        else:
            verdict = "It follows the template, and needs no format SFT."
        return [*found, verdict]


def try_model(model: str, profile: Profile, seconds: float, report: Callable[[Look], None]) -> Trial:
    """Look at a model in the place of the profile's first policy, and again between steps of format SFT.

    `report` gets each look at once. After `seconds` no step of format SFT begins.

    Raises:
        ModelError: the model cannot be loaded, or its context is too short for the arm.
        DataError: the benchmark has no questions of known hops, whose trajectories format SFT shows.
    """
    until, arm = time.monotonic() + seconds, profile.policies[0]
    how = arm.format_sft or FormatSFT(
        steps=STEPS[-1],
        batch_size=4,
        learning_rate=1e-4,
        template=arm.rollout.template,
        num_documents=arm.rollout.num_documents,
        engine=profile.evaluation.engine,
        dtype=arm.dtype,
    )
    how = replace(how, steps=STEPS[-1])
    questions = [q for q in qa.load_benchmark(arm.benchmark, "train", arm.subsets) if q.is_chain]
    engine, loaded = build_engine(how.engine, split="train"), load_model(model, arm.dtype)
    trial = Trial(arm, sum(p.numel() for p in loaded.model.parameters()))
    asked = Random("try").sample(questions, QUESTIONS)

    def look(steps: int) -> None:
        trial.looks.append(_look(loaded, arm, asked, engine, steps))
        report(trial.looks[-1])

    def after_step(step: int, of: int, metrics: dict) -> None:
        nonlocal began
        if step > 1:  # the first step's time is mostly the trainer's start
            trial.seconds += time.monotonic() - began
            trial.rows += how.batch_size
        late = time.monotonic() > until
        if not trial.follows and (step in STEPS or late):
            look(step)
        if step >= TIMED and (trial.follows or late):
            raise _Enough
        began = time.monotonic()

    def work(run: Run) -> dict:
        rows = lesson_rows(questions, engine, loaded.tokenizer, how, run.seed)
        trial.row_tokens = fmean(len(row["input_ids"]) for row in rows)
        with suppress(_Enough):
            fine_tune(run, loaded, rows, how, after_step)
        return {}

    began = 0.0
    look(0)
    with tempfile.TemporaryDirectory() as folder:
        RunStore(Path(folder)).complete(
            FormatSFTArm(backbone=model, benchmark=arm.benchmark, sft=how), 0, work
        )
    return trial


class _Enough(Exception):
    """Ends the format SFT of a trial."""


def _look(
    loaded: LoadedModel, arm: PolicyArm, asked: Sequence[Question], engine: SearchEngine, steps: int
) -> Look:
    # a copy in the precision in which policies sample: fine-tuning has made the weights float32
    model = copy.deepcopy(loaded.model).to(getattr(torch, arm.dtype)) if steps else loaded.model
    generator = build_generator("transformers", model, loaded.tokenizer)
    began = time.monotonic()
    done = rollout(asked, generator, engine, arm.rollout, [("try", steps, i) for i in range(len(asked))])
    seconds, means = time.monotonic() - began, trajectory_metrics(done)
    return Look(
        steps,
        1 - means["invalid_actions"] / means["turns"],
        means["stop_answer"],
        means["f1"],
        generator.tokens,
        seconds,
    )
