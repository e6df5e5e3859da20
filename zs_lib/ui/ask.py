"""What `zs search`, `ask`, `simulate` and `eval` do: an engine, a policy or a simulator on what was typed, or on a file.

Imports of weight happen inside, as in `cli`.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from zs_lib import config, protocol
from zs_lib.config.arms import PolicyArm, RolloutConfig, SimulatorArm
from zs_lib.config.values import from_identity, pick
from zs_lib.engines import SearchRequest, SearchResult, build_engine
from zs_lib.errors import EngineError, RunError


def search(arguments: argparse.Namespace) -> None:
    study = config.load_profile(arguments.profile)
    engine = _engine(arguments.engine, study)
    request = SearchRequest(arguments.query, *_known(arguments.query))
    _print_documents(engine.search([request], study.evaluation.num_documents)[0])


def _print_documents(result: SearchResult) -> None:
    if result.status == "failed":
        raise EngineError(result.error)
    print(protocol.visible(protocol.format_documents(result.documents)), end="")


def ask(arguments: argparse.Namespace) -> None:
    study = config.load_profile(arguments.profile)
    engine = None if arguments.engine == "none" else _engine(arguments.engine, study)
    from zs_lib.models.load import load_generator
    from zs_lib.qa import Question
    from zs_lib.rl.rollout import rollout

    model, cfg = _policy(arguments.policy, study)
    question = Question("asked", *_known(arguments.question))
    trajectory = rollout([question], load_generator(model), engine, replace(cfg, temperature=0.0), [(0,)])[0]
    for turn in trajectory.turns:
        print(protocol.visible(turn.text))
        if turn.documents:
            print(protocol.visible(protocol.format_observation(turn.documents).rstrip("\n")))
    print(
        f"Answer: {protocol.visible(trajectory.answer)}"
        if trajectory.answer is not None
        else f"No answer ({trajectory.stop_reason})."
    )


def simulate(arguments: argparse.Namespace) -> None:
    question, answers = _known(arguments.question or arguments.query)
    if arguments.answer:
        answers = (arguments.answer,)
    study = config.load_profile(arguments.profile)
    request = SearchRequest(arguments.query, question, answers, arguments.quality == "noisy")
    _print_documents(_engine(arguments.engine, study).search([request], study.evaluation.num_documents)[0])


def evaluate_file(arguments: argparse.Namespace) -> None:
    study = config.load_profile(arguments.profile)
    from zs_lib import qa
    from zs_lib.evaluation.evaluate import evaluate_to_file
    from zs_lib.evaluation.methods import METHODS
    from zs_lib.models.load import load_generator

    pick("method", arguments.method, METHODS)
    questions = qa.load_questions(arguments.data)
    engine = None if arguments.engine == "none" else _engine(arguments.engine, study)
    model, cfg = _policy(arguments.policy, study)
    who = f"{arguments.policy or study.policies[0].name}, {arguments.method}, {arguments.engine}"
    generator = load_generator(model, backend=study.evaluation.generator)
    table = evaluate_to_file(arguments.out, questions, generator, engine, cfg, arguments.method, who)
    if table["subset"].any():
        print(table.groupby("subset")[["f1", "em", "cover_em", "searches"]].mean().round(3).to_string())
    print(
        f"{len(table)} questions: F1 {table['f1'].mean():.3f}, EM {table['em'].mean():.3f}, cover-EM {table['cover_em'].mean():.3f}, "
        f"{table['searches'].mean():.2f} searches; predictions in {arguments.out}"
    )


def _engine(name: str, study: config.Profile):
    """An engine by name; the simulated one is the first simulated policy's simulator, from the store. One on a server
    is prompted likewise, and has the original's room to write."""
    arm = next(arm.simulator for arm in study.policies if arm.simulator)
    if name == "simulated":
        return build_engine(name, model=_finished(arm).model_dir, simulator=arm)
    return build_engine(name, simulator=replace(arm, max_tokens=600))


def _policy(name: str | None, study: config.Profile) -> tuple[str | Path, RolloutConfig]:
    """The model to ask, and how it was trained to roll out (the profile's way for models that are no
    run)."""
    from zs_lib.models.load import shipped
    from zs_lib.runs import RunStore

    if name is None:
        return _finished(study.policies[0]).model_dir, study.policies[0].rollout
    if (Path(name) / "config.json").is_file() or name in shipped() or "/" in name:
        return name, study.policies[0].rollout
    run = RunStore().find(name)
    if run.kind != "policy" or not run.finished:
        raise RunError(f"{run.path.name} is no finished policy: choose another (`zs runs list`).")
    return run.model_dir, from_identity(PolicyArm, run.config).rollout


def _finished(arm: PolicyArm | SimulatorArm):
    from zs_lib.runs import RunStore

    run = RunStore().get(arm, 0)
    if run is None or not run.finished:
        raise RunError(f"The run '{arm.name}' is not in the store: `zs reproduce` makes it.")
    return run


def _known(text: str) -> tuple[str, tuple[str, ...]]:
    """A question with its golden answers, which simulators are told, if the benchmark has it."""
    from zs_lib import qa

    return text, next((q.golden_answers for q in qa.load_questions() if q.question == text), ("unknown",))
