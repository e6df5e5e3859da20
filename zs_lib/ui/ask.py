"""The commands `zs search`, `ask`, `simulate` and `eval`: use an engine, a policy or a simulator.

Heavy imports are made inside functions, as in `cli`.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from zs_lib import config, protocol
from zs_lib.config import paths
from zs_lib.config.contents import file_digest, model_digest
from zs_lib.config.engines import from_store, simulates
from zs_lib.config.values import digest, pick
from zs_lib.engines import SearchRequest, SearchResult
from zs_lib.errors import ConfigError, EngineError
from zs_lib.ui import answering

if TYPE_CHECKING:
    import pandas as pd


def search(arguments: argparse.Namespace) -> None:
    """Print the documents that an engine finds for a query."""
    study = config.load_profile(arguments.profile)
    engine = answering.engine_of(arguments.engine, study)
    known = answering.golden_answers(arguments.query) or answering.UNKNOWN
    request = SearchRequest(arguments.query, arguments.query, known)
    _print_documents(engine.search([request], study.evaluation.num_documents)[0])


def ask(arguments: argparse.Namespace) -> None:
    """Print a policy's greedy trajectory on a question, turn by turn, and its answer."""
    study = config.load_profile(arguments.profile)
    if said := answering.unnamed(arguments.question, arguments.engine, study):
        print(said, file=sys.stderr)
    trajectory = answering.answer(arguments.question, arguments.policy, arguments.engine, study)[0]
    for turn in trajectory.turns:
        print(turn.text)
        if turn.documents:
            print(protocol.format_observation(turn.documents).rstrip("\n"))
    if trajectory.answer is None:
        print(f"No answer ({trajectory.stop_reason}).")
    else:
        print(f"Answer: {trajectory.answer}")


def simulate(arguments: argparse.Namespace) -> None:
    """Print the documents that a simulator writes for a query."""
    question = arguments.question or arguments.query
    known = (arguments.answer,) if arguments.answer else answering.golden_answers(question)
    study = config.load_profile(arguments.profile)
    noisy = arguments.quality == "noisy"
    request = SearchRequest(arguments.query, question, known or answering.UNKNOWN, noisy)
    engine = answering.engine_of(arguments.engine, study)
    _print_documents(engine.search([request], study.evaluation.num_documents)[0])


def evaluate_file(arguments: argparse.Namespace) -> None:
    """Answer the questions of a file with a policy, write its predictions, and print the mean scores."""
    _check_file(arguments.out, "--out")
    if arguments.limit is not None and arguments.limit < 1:
        raise ConfigError(f"--limit {arguments.limit}: at least one question is needed.")
    study = config.load_profile(arguments.profile)
    from zs_lib import qa
    from zs_lib.evaluation.methods import METHODS
    from zs_lib.models.load import load_generator, weights_digest
    from zs_lib.ui.predictions import Setup, evaluate_to_file

    pick("method", arguments.method, METHODS)
    questions = qa.load_questions(arguments.data, columns=arguments.columns)[: arguments.limit]
    engine = answering.engine_of(arguments.engine, study)
    model, cfg = answering.policy_of(arguments.policy, study)
    who = f"{arguments.policy or study.policies[0].name}, {arguments.method}, {arguments.engine}"
    generator = load_generator(model, "stored", study.evaluation.generator)
    weights, asked = weights_digest(model), _engine_digest(arguments.engine, study)
    setup = Setup(who, arguments.method, cfg, weights, asked, study.evaluation.generator)
    table = evaluate_to_file(arguments.out, questions, generator, engine, setup)
    if table["subset"].any():
        means = table.groupby("subset")[["f1", "em", "cover_em", "searches"]].mean().round(3)
        print(means.to_string())
    mean = table[["f1", "em", "cover_em", "searches"]].mean()
    print(
        f"{len(table)} questions: F1 {mean['f1']:.3f}, EM {mean['em']:.3f}, cover-EM {mean['cover_em']:.3f}, "
        f"{mean['searches']:.2f} searches; predictions in {arguments.out}"
    )
    print(f"stopped by: {_shares(table['stop_reason'])}")


def _check_file(path: Path, what: str) -> None:
    """ConfigError unless a file can be written there, in a folder that exists; `what` names its source."""
    path = paths.check_folder(path.absolute().parent, what, write=True) / path.name
    try:
        if not path.parent.is_dir():
            raise FileNotFoundError(f"the folder {path.parent} does not exist")
        if len(os.fsencode(path.name)) > paths.LONGEST_NAME:
            raise OSError(f"{path.name[:60]}… is too long")
        if os.path.lexists(path) and not path.is_file():
            raise OSError(f"{path} is no ordinary file")
        if path.exists() and not os.access(path, os.R_OK | os.W_OK):
            raise PermissionError(f"{path} may not be written")
    except (OSError, ValueError) as error:
        raise ConfigError(f"{what} names no file that can be written ({error}): name another.") from error


def _shares(reasons: pd.Series) -> str:
    """Shares of the reasons why rollouts ended, most frequent first."""
    shares = reasons.value_counts(normalize=True)
    return ", ".join(f"{reason} {share:.0%}" for reason, share in shares.items())


def _engine_digest(name: str, study: config.Profile) -> str:
    """A digest of an engine's name, its simulator's settings and weights, and the benchmark's passages."""
    settings: dict = {"engine": name}
    if simulates(name):
        arm = answering.main_simulator(study)
        settings |= {"arm": digest(arm)}
        settings |= {"run": model_digest(answering.finished(arm).model_dir)} if from_store(name) else {}
    elif name != "none":
        settings |= {"passages": file_digest(paths.BENCHMARK / "passages.jsonl")}
    return digest(settings)


def _print_documents(result: SearchResult) -> None:
    if result.status == "failed":
        raise EngineError(result.error)
    print(protocol.format_documents(result.documents), end="")
