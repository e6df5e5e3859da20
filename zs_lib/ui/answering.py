"""Ask policies questions of your own: who can be asked, what it writes, and what the corpus knows.

Heavy imports are made inside functions, as in `cli`.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from zs_lib import qa
from zs_lib.analysis.find import find_run, is_run, written_ns
from zs_lib.config import Profile
from zs_lib.config.arms import PolicyArm, RolloutConfig, SimulatorArm
from zs_lib.config.engines import find_engine
from zs_lib.config.values import from_identity
from zs_lib.engines import SearchEngine, build_engine
from zs_lib.errors import RunError
from zs_lib.qa import Question, scoring
from zs_lib.runs import Run, RunStore
from zs_lib.runs.checkpoints import load_checkpoint

if TYPE_CHECKING:
    from zs_lib.models.generator import Generator
    from zs_lib.rl.trajectory import Trajectory

UNKNOWN = ("unknown",)
"""Golden answers in a simulator's prompt for a question that the benchmark does not have."""
SERVER_MAX_TOKENS = 600
"""Token limit of simulators on servers: the original's."""


def answer(
    question: str, policy: str | None, engine: str, study: Profile, store: RunStore | None = None
) -> tuple[Trajectory, Generator]:
    """Roll out a policy (of `load_policy`) greedily on a question; the trajectory, and what sampled it.

    Raises:
        RunError: there is no such policy. ConfigError: there is no such engine.
    """
    from zs_lib.rl.rollout import rollout

    searched = engine_of(engine, study, store)
    generator, cfg = load_policy(policy, study, store)
    asked = Question("asked", question, golden_answers(question) or UNKNOWN)
    (trajectory,) = rollout([asked], generator, searched, replace(cfg, temperature=0.0), [(0,)])
    return trajectory, generator


def record(question: str, policy: str | None, engine: str, study: Profile, store: RunStore) -> dict:
    """Make the record of an `answer` (`rl.trajectory.to_record`), with its tokens; reward: F1, if known."""
    from zs_lib.rl.trajectory import to_record

    trajectory, generator = answer(question, policy, engine, study, store)
    golden = golden_answers(question)
    score = scoring.f1(trajectory.answer, golden) if golden else float("nan")
    return to_record(trajectory, score, generator.decode) | {"golden_answers": list(golden)}


def unnamed(question: str, engine: str, study: Profile) -> str:
    """Warn if a question names nothing that the embedded corpus knows; else, or for other corpora, ""."""
    row = find_engine(engine)
    if row is None or study.benchmark != "embedded" or not (row.from_store or row.ranks):
        return ""
    words, known = scoring.normalize_answer(question).split(), _names()
    places = range(len(words) + 1)
    if any(" ".join(words[start:end]) in known for start in places for end in places):
        return ""
    return (
        "This question holds no name that the corpus knows, so its searches may find nothing. Name a "
        "country, city, mountain or airport as it does: Norway, London Heathrow Airport."
    )


@cache
def _names() -> frozenset[str]:
    """The names that the benchmark's questions are about or ask for, normalised."""
    hops = [hop for question in qa.load_questions() for hop in question.hops]
    found = {answer for hop in hops for answer in hop.answers if len(answer) > 3 and answer[0].isupper()}
    return frozenset(map(scoring.normalize_answer, found | {hop.entity for hop in hops}))


def policies(study: Profile, store: RunStore) -> dict[str, str]:
    """List whom to ask, label → name: the study's backbones, and the store's policies, newest last.

    An unfinished run is asked as of its last checkpoint.
    """
    from zs_lib.launch import progress

    found = {f"{name}, before training": name for name in {arm.backbone: 0 for arm in study.policies}}
    for run in sorted(store.list(), key=written_ns):
        if run.kind != "policy":
            continue
        state, label = progress.state_and_label(run)
        at = run.checkpoint_folders()
        if state == "finished":
            found[f"{label}@{run.seed} ({run.path.name})"] = run.path.name
        elif state in ("running", "unfinished") and at:
            step = int(at[-1].name.split("-")[1])
            found[f"{label}@{run.seed}, step {step} ({run.path.name})"] = run.path.name
    return found


def load_policy(
    name: str | None, study: Profile, store: RunStore | None = None
) -> tuple[Generator, RolloutConfig]:
    """Load a policy of `policies`, or as `zs ask` names it, and its rollout settings.

    Raises:
        RunError: there is no such policy, its checkpoint is damaged, or it holds adapters alone.
    """
    store = store or RunStore()
    run = find_run(store, name, "policy") if name and is_run(store, name) else None
    if run is None or run.kind != "policy" or run.finished or not run.checkpoint_folders():
        place, cfg = policy_of(name, study, store)
        return _generator(place), cfg
    arm = from_identity(PolicyArm, run.config)
    if arm.lora_rank:
        raise RunError(f"{name} is trained by adapters: ask it when it is finished.")
    return _generator(run.checkpoint_folders()[-1], arm.backbone), arm.rollout


@lru_cache(maxsize=2)  # those that are asked side by side
def _generator(place: str | Path, backbone: str = "") -> Generator:
    """Load a model, or a checkpoint's weights into its `backbone`."""
    from zs_lib.models.load import load_generator

    if not backbone:
        return load_generator(place, "stored")
    generator = load_generator(backbone, "stored")
    own = dict(generator.model.named_parameters())
    for key, tensor in load_checkpoint(Path(place)).tensors.items():
        kind, _, name = key.partition(".")
        if kind == "model":
            own[name].data.copy_(tensor)
    return generator


def policy_of(
    name: str | None, study: Profile, store: RunStore | None = None
) -> tuple[str | Path, RolloutConfig]:
    """Find a policy's model, and its rollout settings: of its training, or of the profile's first policy.

    Raises:
        RunError: there is no such policy, or it is not finished.
    """
    from zs_lib.models.load import shipped

    store = store or RunStore()
    if name is None:
        return finished(study.policies[0], store).model_dir, study.policies[0].rollout
    of_hub = "/" in name and not is_run(store, name)  # an arm's name may have a slash, too
    if (Path(name) / "config.json").is_file() or name in shipped() or of_hub:
        return name, study.policies[0].rollout
    run = find_run(store, name, "policy")
    if run.label == name:  # which of its seeds
        print(f"policy: {run.path.name}", file=sys.stderr)
    if run.kind != "policy" or not run.finished:
        raise RunError(f"{run.path.name} is no finished policy: choose another (`zs runs list`).")
    return run.model_dir, from_identity(PolicyArm, run.config).rollout


def engine_of(name: str, study: Profile, store: RunStore | None = None) -> SearchEngine | None:
    """Build an engine by name, None for "none"; a simulated one has the study's `main_simulator`.

    Raises:
        ConfigError: there is no such engine. RunError: its simulator is not in the store.
    """
    if name == "none":
        return None
    from zs_lib import pipeline

    arm = main_simulator(study)
    if name == "simulated":
        finished(arm, store)
        return pipeline.simulator_engine(arm, pipeline.SIMULATOR_SEED, store or RunStore())
    return build_engine(name, simulator=replace(arm, max_tokens=SERVER_MAX_TOKENS))


def main_simulator(study: Profile) -> SimulatorArm:
    """Return the simulator of the study's first policy that has one."""
    return next(arm.simulator for arm in study.policies if arm.simulator)


def finished(arm: PolicyArm | SimulatorArm, store: RunStore | None = None) -> Run:
    """Return an arm's finished run of seed 0; RunError if the store does not have it."""
    run = (store or RunStore()).get(arm, 0)
    if run is None or not run.finished:
        raise RunError(f"The run '{arm.name}' is not in the store: `zs reproduce` makes it.")
    return run


def golden_answers(question: str) -> tuple[str, ...]:
    """Look up a question's golden answers in the embedded benchmark; empty if it is not there."""
    return next((known.golden_answers for known in qa.load_questions() if known.question == question), ())
