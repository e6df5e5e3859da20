"""One query, several search engines: what each finds, and what the judges say of it."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from zs_lib import qa
from zs_lib.config import Profile
from zs_lib.config.arms import SimulatorArm
from zs_lib.config.engines import engine_names
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult, build_engine
from zs_lib.errors import ConfigError, EngineError
from zs_lib.runs import RunStore
from zs_lib.ui import render

REAL = engine_names(compared=True)


def compare(
    study: Profile,
    store: RunStore,
    query: str,
    question: str,
    answer: str,
    engines: Sequence[str],
    judge: bool,
) -> str:
    """The documents of these `choices` side by side, as HTML, with whether they state the answer (the question's own, if
    it is one of the benchmark) and with `judge` what the LLM judge says. ConfigError: no query, or nothing to judge by."""
    query, question, answer = query.strip(), question.strip(), answer.strip()
    if not query:
        raise ConfigError("There is no query: write one.")
    answers = (answer,) if answer else _answers(question)
    found = search(study, query, question or query, answers, engines, store)
    return render.documents(
        found, answers, _judged(study, query, question or query, answers, found) if judge else None
    )


def choices(study: Profile, store: RunStore) -> list[str]:
    """The engines that a playground can ask: the real ones, and "LABEL, useful" and "LABEL, noisy" of every simulator of the
    study that the store has."""
    return [*REAL, *(f"{label}, {kind}" for label in _trained(study, store) for kind in ("useful", "noisy"))]


def search(
    study: Profile,
    query: str,
    question: str,
    answers: Sequence[str],
    names: Sequence[str],
    store: RunStore | None = None,
) -> dict[str, SearchResult]:
    """What each engine of these `choices` finds; one that fails is among the results, with its error."""
    found, trained = {}, _trained(study, store or RunStore())
    for name in names:
        label, _, kind = name.partition(", ")
        request = SearchRequest(
            query, question, tuple(answers) or ("unknown",), kind == "noisy", ("playground", query)
        )
        try:
            engine = build_engine(name) if name in REAL else _simulator(*trained[label])
            (found[name],) = engine.search([request], study.evaluation.num_documents)
        except EngineError as error:
            found[name] = SearchResult((), "failed", str(error))
    return found


def _trained(study: Profile, store: RunStore) -> dict[str, tuple[Path, SimulatorArm]]:
    runs = {arm: store.get(arm, 0) for arm in study.simulators}
    return {arm.label: (run.model_dir, arm) for arm, run in runs.items() if run and run.finished}


@lru_cache(maxsize=4)
def _simulator(model: Path, arm: SimulatorArm) -> SearchEngine:
    return build_engine("simulated", model=model, simulator=arm)


def _judged(
    study: Profile, query: str, question: str, answers: Sequence[str], found: dict[str, SearchResult]
) -> dict[str, bool]:
    """The verdict of the study's LLM judge (`simulator.judge`) on what each engine found."""
    from zs_lib.models.load import load_generator  # torch: who only compares documents need not wait for it
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
    judged = judge_pairs(list(pairs.values()), load_generator(arm.judge), arm.pairs.rollout)
    return {name: bool(pair.useful) for name, pair in zip(pairs, judged, strict=True)}


def _answers(question: str) -> tuple[str, ...]:
    return next((known.golden_answers for known in qa.load_questions() if known.question == question), ())
