"""How every run is made: `ensure(arm, seed, store)` finds it, resumes it, or makes it now.

Each kind of arm is one row of MAKERS: what it needs first (`needs`), then load, build, and hand in to who
does the work. Nothing else in the library makes runs, or decides which engine answers an arm.

Modules that import torch are imported inside: who only reads results need not wait for it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from random import Random
from typing import Any

from tqdm import tqdm

from zs_lib import qa
from zs_lib.config.arms import EvaluationArm, FidelityArm, FormatSFTArm, PairsArm, PolicyArm, SimulatorArm
from zs_lib.config.engines import from_store
from zs_lib.config.values import pick, reject_unknown
from zs_lib.engines import SearchEngine, build_engine
from zs_lib.errors import ConfigError, DataError, ModelError
from zs_lib.evaluation.methods import METHODS
from zs_lib.rl.curriculum import SCHEDULES
from zs_lib.rl.questions import SELECTIONS
from zs_lib.runs import Run, RunStore, StepCallback, distributed, kind_of
from zs_lib.runs.gpus import hold_gpu
from zs_lib.simulator import QUERIES_FILE
from zs_lib.trl import losses

SIMULATOR_SEED = 0
"""Seed of the one run of a simulator that all policies share, as in the paper."""


def ensure(arm: Any, seed: int, store: RunStore, progress: StepCallback | None = None) -> Run:
    """Find the finished run of this arm and seed in the store, resume it from its checkpoint, or make it now.

    What the arm needs is ensured first. For the evaluation of a policy, `seed` names the policy's run; for
    that of a backbone it makes no difference. Without `progress`, a run that is made in a terminal shows a
    progress bar on stderr.

    Raises:
        ConfigError: a name in the arm stands in no table, or another process trains on this one's GPU.
        ZeroSearchError: others, as the work and `RunStore.complete` raise them.
    """
    maker, found = MAKERS[type(arm)], store.get(arm, seed)
    if not (found and found.finished):
        check(arm)  # before anything is begun; a finished run needs none, and no import of torch

    def work(run: Run) -> dict:
        for needed in needs(arm, seed):
            ensure(*needed, store)
        title = f"{kind_of(arm)} {arm.name} s{seed}"
        quiet = progress is not None or not distributed.is_main()
        bar = tqdm(desc=title, unit=" steps", leave=False, disable=quiet or None)  # None: no terminal
        with bar, hold_gpu(title) if maker.together else nullcontext():  # what is made together trains
            try:
                return maker.make(run, arm, store, progress or partial(_show_step, bar))
            except (MemoryError, RuntimeError) as error:
                if not _memory_ran_out(error):
                    raise
                raise ModelError(
                    f"{title} needs more memory than is free ({str(error).partition(' If reserved')[0]}). "
                    "Give it a GPU of its own, or a larger one (`zs plan` tells what it takes); or train "
                    "adapters (lora_rank), in bfloat16 (dtype), with gradient_checkpointing."
                ) from None

    return store.complete(arm, seed, work, maker.together)


def _memory_ran_out(error: Exception) -> bool:
    """Whether a GPU (torch.OutOfMemoryError) or the machine has no more; without an import of torch."""
    return type(error).__name__ in ("MemoryError", "OutOfMemoryError") or "can't allocate memory" in str(
        error
    )


def _show_step(bar: tqdm, step: int, steps: int, metrics: dict) -> None:
    if "reward" in metrics:
        bar.set_postfix_str(f"reward {metrics['reward']:.3f}", refresh=False)
    bar.total = steps
    bar.update(step - bar.n)
    bar.refresh()


def check(arm: Any) -> None:
    """Raise ConfigError if a name in an arm, or in one that it needs, stands in no table; before any work."""
    if isinstance(arm, PolicyArm):
        from zs_lib.rl import credit, objectives, rewards

        if arm.trainer == "trl":
            losses.check_arm(arm)
        else:
            objectives.algorithm(arm.objective)
            credit.check_arm(arm)
        rewards.Reward(arm.reward)
        pick("selection of questions", arm.selection, SELECTIONS)
        of_steps = [name for name in SCHEDULES if name != "by_question"]  # a share is one for all questions
        for schedule, known in ((arm.curriculum, SCHEDULES), (arm.real_share_schedule, of_steps)):
            if schedule:
                reject_unknown("schedule", [schedule.schedule], known)
    elif isinstance(arm, EvaluationArm):
        pick("method", arm.method, METHODS)
    for needed, _ in needs(arm, seed=0):
        check(needed)


def needs(arm: Any, seed: int) -> list[tuple[Any, int]]:
    """List (arm, seed) of the runs that must be finished before this one."""
    if isinstance(arm, FidelityArm):
        return [(arm.simulator, seed)]
    if isinstance(arm, SimulatorArm):
        return [(arm.pairs, SIMULATOR_SEED)] if arm.fine_tuned else []
    if isinstance(arm, PairsArm):
        return list(dict.fromkeys(_format_sft(arm.collector, arm) + _format_sft(arm.judge, arm)))
    if isinstance(arm, (PolicyArm, EvaluationArm)):
        trained = [(arm.policy, seed)] if getattr(arm, "policy", None) else _format_sft(arm.backbone, arm)
        if getattr(arm, "simulator_refresh", 0):  # a refresh asks the judge again
            trained += _format_sft(arm.simulator.judge, arm.simulator.pairs)
        return trained + ([(arm.simulator, SIMULATOR_SEED)] if from_store(arm.engine) else [])
    return []


def _format_sft(backbone: str, arm: Any) -> list[tuple[FormatSFTArm, int]]:
    """The format SFT that a model goes through before it is prompted as a policy, if the arm has one."""
    if arm.format_sft is None:
        return []
    return [(FormatSFTArm(backbone=backbone, benchmark=arm.benchmark, sft=arm.format_sft), 0)]


def start_model(backbone: str, arm: Any, store: RunStore) -> str:
    """Name or folder of a model as the arm begins with it: after its format SFT, if there is one."""
    for needed in _format_sft(backbone, arm):
        return str(store.get(*needed).model_dir)
    return backbone


def engine_for(
    arm: PolicyArm | EvaluationArm, store: RunStore, split: str | None = None
) -> SearchEngine | None:
    """Build the engine that answers an arm's queries; None if its policy may not search.

    `split`: whose passages a real engine searches (training must not find test facts); None: all. A simulator
    of the store must be finished.
    """
    if arm.engine in ("none", "self"):  # "self": `LivingEngine` makes it of the policy's sampler
        return None
    model = store.get(arm.simulator, SIMULATOR_SEED).model_dir if from_store(arm.engine) else None
    share = getattr(arm, "real_share", 0.0)
    engine = build_engine(arm.engine, split=split, model=model, simulator=arm.simulator, real_share=share)
    if noise := getattr(arm, "noise", 0.0):
        from zs_lib.engines.wrappers import NoisyEngine

        return NoisyEngine(engine, qa.load_passages(), noise)
    return engine


def simulator_engine(arm: SimulatorArm, seed: int, store: RunStore) -> SearchEngine:
    """Build the simulated engine of a finished simulator run."""
    return build_engine("simulated", model=store.get(arm, seed).model_dir, simulator=arm)


# one function a kind of arm
# -------------------------------------------------------------------------------------------


def _make_format_sft(run: Run, arm: FormatSFTArm, store: RunStore, progress: StepCallback) -> dict:
    from zs_lib.models.load import load_model
    from zs_lib.models.sft import fine_tune, save_model
    from zs_lib.rl.format_sft import lesson_rows

    loaded = load_model(arm.backbone, arm.sft.dtype)
    questions = [q for q in qa.load_benchmark(arm.benchmark, "train") if q.is_chain]
    engine = build_engine(arm.sft.engine, split="train")
    rows = lesson_rows(questions, engine, loaded.tokenizer, arm.sft, run.seed)
    summary = fine_tune(run, loaded, rows, arm.sft, progress)
    save_model(run, loaded, arm.sft.dtype)
    return {"backbone": arm.backbone, "examples": len(rows)} | summary


def _make_pairs(run: Run, arm: PairsArm, store: RunStore, progress: StepCallback) -> dict:
    from zs_lib.models.load import load_generator
    from zs_lib.simulator.pairs import (
        collect_pairs,
        judge_agreement,
        judge_pairs,
        split_questions,
        write_pairs,
    )

    questions, _ = split_questions(qa.load_benchmark(arm.benchmark, "train"))
    questions = Random("pairs").sample(questions, min(arm.num_questions, len(questions)))
    run.progress("collecting", 0, 2)
    collector = load_generator(start_model(arm.collector, arm, store), arm.dtype)
    pairs = collect_pairs(arm, questions, collector, build_engine(arm.engine, split="train"))
    run.progress("judging", 1, 2)
    judge = load_generator(start_model(arm.judge, arm, store), arm.dtype)
    pairs = judge_pairs(pairs, judge, arm.rollout)
    write_pairs(run, pairs)
    return judge_agreement(pairs)


def _make_simulator(run: Run, arm: SimulatorArm, store: RunStore, progress: StepCallback) -> dict:
    """One that is not fine-tuned is copied into the run as it is, so that every arm is used alike."""
    from zs_lib.engines.simulated import SimulatedEngine
    from zs_lib.models.load import build_generator, load_model
    from zs_lib.models.sft import fine_tune, save_model
    from zs_lib.simulator.fidelity import agreement
    from zs_lib.simulator.pairs import encode_examples, hold_out, read_pairs, training_examples

    loaded = load_model(arm.backbone, arm.dtype)
    summary: dict = {"backbone": arm.backbone, "recipe": arm.recipe}
    if arm.fine_tuned:
        pairs, fidelity = read_pairs(store.get(arm.pairs, SIMULATOR_SEED)), None
        if arm.fidelity_every:
            pairs, held_out = hold_out(pairs)
            engine = SimulatedEngine(build_generator("transformers", loaded.model, loaded.tokenizer), arm)
            fidelity = partial(agreement, engine, held_out, arm.num_documents)
        chosen = training_examples(pairs, arm.recipe, run.seed)
        rows = encode_examples(chosen, loaded.tokenizer, arm.template, arm.thinking)
        summary |= {"examples": len(chosen)} | fine_tune(run, loaded, rows, arm, progress, fidelity)
    save_model(run, loaded, arm.dtype, arm.fine_tuned)
    return summary


def _make_fidelity(run: Run, arm: FidelityArm, store: RunStore, progress: StepCallback) -> dict:
    from zs_lib.simulator.fidelity import fidelity_questions, measure_fidelity

    simulator = arm.simulator
    if simulator.benchmark != "embedded":
        raise DataError(
            f"The fidelity of '{arm.name}' cannot be measured: that takes questions whose hops are known, "
            f"which the benchmark '{simulator.benchmark}' has not."
        )
    means, queries = measure_fidelity(
        simulator_engine(simulator, run.seed, store),
        fidelity_questions(arm.questions_from, arm.num_questions),
        build_engine(simulator.engine),
        simulator.num_documents,
        progress=lambda done, of: run.progress("measuring", done, of),
    )
    queries.to_csv(run.path / QUERIES_FILE, index=False)
    return means


def _make_policy(run: Run, arm: PolicyArm, store: RunStore, progress: StepCallback) -> dict:
    from zs_lib.models.load import load_model
    from zs_lib.rl.train import Training, train

    if arm.trainer == "trl":
        from zs_lib.trl.train import train

    if arm.trainer == "own" and distributed.model_is_sharded():
        raise ConfigError(
            "RL needs the whole policy in every process, to sample from it: start it with the configuration "
            'zs_lib/launch/ddp.yaml, or set policy.trainer = "trl"; where memory is short, set '
            "policy.lora_rank, dtype or gradient_checkpointing."
        )
    # TRL trains float32 weights under mixed precision; those that adapters leave frozen keep their dtype.
    dtype = "float32" if arm.trainer == "trl" and not arm.lora_rank else arm.dtype
    questions = qa.load_benchmark(arm.benchmark, "train", arm.subsets)
    policy = load_model(start_model(arm.backbone, arm, store), dtype)
    engine = engine_for(arm, store, "train")
    if arm.living:
        from zs_lib.simulator.living import LivingEngine

        judge = start_model(arm.simulator.judge, arm.simulator.pairs, store) if arm.simulator_refresh else ""
        engine = LivingEngine(engine, arm, questions, judge)
    return train(Training(run, arm, questions, policy, engine, progress))


def _make_evaluation(run: Run, arm: EvaluationArm, store: RunStore, progress: StepCallback) -> dict:
    from zs_lib.evaluation.evaluate import evaluate_subsets, pick_questions, summarise, write_scores
    from zs_lib.models.load import load_generator

    questions = pick_questions(qa.load_benchmark(arm.benchmark, arm.split), arm.questions_per_subset)
    training = qa.load_benchmark(arm.benchmark, "train") if arm.examples or arm.method == "majority" else []
    generator = None
    if arm.method != "majority":  # which asks no model, and counts the answers of all training questions
        trained = store.get(arm.policy, run.seed).model_dir if arm.policy else None
        model = trained or start_model(arm.backbone, arm, store)
        generator = load_generator(model, arm.dtype, arm.generator)
        training = Random("examples").sample(training, min(arm.examples, len(training)))
    scores = evaluate_subsets(generator, questions, engine_for(arm, store), arm, run, training)
    write_scores(run, scores)
    return summarise(scores)


@dataclass(frozen=True)
class Maker:
    """The function that makes the runs of one kind of arm: (run, arm, store, progress) -> summary."""

    make: Callable[[Run, Any, RunStore, StepCallback], dict]
    together: bool = False
    """Made by all processes at once (`runs.distributed`); else by the main one, while the others wait."""


MAKERS: dict[type, Maker] = {
    FormatSFTArm: Maker(_make_format_sft, together=True),
    PairsArm: Maker(_make_pairs),
    SimulatorArm: Maker(_make_simulator, together=True),
    FidelityArm: Maker(_make_fidelity),
    PolicyArm: Maker(_make_policy, together=True),
    EvaluationArm: Maker(_make_evaluation),
}
