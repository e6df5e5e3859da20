"""The playground: compare the documents that several search engines find for one query."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from zs_lib import pipeline
from zs_lib.config import Profile
from zs_lib.config.arms import SimulatorArm
from zs_lib.config.engines import engine_names
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult, build_engine
from zs_lib.errors import ConfigError, EngineError
from zs_lib.runs import RunStore
from zs_lib.ui import render
from zs_lib.ui.answering import UNKNOWN, golden_answers

REAL = [name for name in engine_names(ranks=True) if ":" not in name]
"""The real engines that a playground offers: those that need no address, key or money."""


@dataclass(frozen=True)
class Inputs:
    """Inputs of a comparison, as they are typed."""

    query: str
    question: str = ""
    """The question that the query is for, which simulators read; empty: the query itself."""
    answer: str = ""
    """Its right answer; empty: the benchmark's, if it has the question."""
    engines: tuple[str, ...] = ()
    """Names of `choices`."""
    judge: bool = False
    """Whether the LLM judge reads what each engine found."""


def choices(study: Profile, store: RunStore) -> list[str]:
    """List the engines to choose from: the real ones, and each simulator of the study that the store has.

    A simulator is two choices: "LABEL, useful" and "LABEL, noisy".
    """
    simulators = _simulators(study, store)
    return [*REAL, *(f"{label}, {kind}" for label in simulators for kind in ("useful", "noisy"))]


def compare(study: Profile, store: RunStore, inputs: Inputs) -> str:
    """Search with each chosen engine; HTML of the documents, marked with whether they state the answer.

    An engine that fails is shown with its error.

    Raises:
        ConfigError: there is no query, or the judge lacks the right answer.
    """
    query, question, answer = inputs.query.strip(), inputs.question.strip(), inputs.answer.strip()
    if not query:
        raise ConfigError("There is no query: write one.")
    if not inputs.engines:
        raise ConfigError("No engine is chosen: tick one.")
    answers = (answer,) if answer else golden_answers(question)
    question = question or query
    found = {}
    for name in inputs.engines:
        noisy = name.endswith(", noisy")
        request = SearchRequest(query, question, answers or UNKNOWN, noisy, ("playground", query))
        found[name] = _search(study, store, name, request)
    verdicts = _judge(study, query, question, answers, found) if inputs.judge else None
    return render.documents(found, answers, verdicts)


def _search(study: Profile, store: RunStore, name: str, request: SearchRequest) -> SearchResult:
    try:
        if name in REAL:
            engine = build_engine(name)
        else:
            engine = _simulated(_simulators(study, store)[name.partition(", ")[0]], store.root)
        return engine.search([request], study.evaluation.num_documents)[0]
    except EngineError as error:
        return SearchResult.failed(error)


def _simulators(study: Profile, store: RunStore) -> dict[str, SimulatorArm]:
    """The study's finished simulators, by label."""
    runs = {arm: store.get(arm, pipeline.SIMULATOR_SEED) for arm in study.simulators}
    return {arm.name: arm for arm, run in runs.items() if run and run.finished}


@lru_cache(maxsize=4)
def _simulated(arm: SimulatorArm, store: Path) -> SearchEngine:
    return pipeline.simulator_engine(arm, pipeline.SIMULATOR_SEED, RunStore(store))


def _judge(
    study: Profile, query: str, question: str, answers: Sequence[str], found: dict[str, SearchResult]
) -> dict[str, bool]:
    """Whether the study's LLM judge (`simulator.pairs.judge_pairs`) finds each result useful."""
    from zs_lib.models.load import load_generator  # torch, which a comparison without a judge does not need
    from zs_lib.simulator.pairs import Pair, judge_pairs

    if not study.simulators or not answers:
        raise ConfigError(
            "The LLM judge needs a study with simulators, which name it, and the right answer: give both."
        )
    arm = study.simulators[0]
    pairs = {
        name: Pair(query, question, answers[0], tuple(answers), result.documents, (), False)
        for name, result in found.items()
        if result.documents
    }
    judged = judge_pairs(list(pairs.values()), load_generator(arm.judge, arm.dtype), arm.pairs.rollout)
    return {name: bool(pair.useful) for name, pair in zip(pairs, judged, strict=True)}
