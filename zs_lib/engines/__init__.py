"""Search engines behind one interface, and how to get one by name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from zs_lib import config
from zs_lib.arms import EMBEDDING, OWN, REAL_ENGINES, SERVED, engine_kind
from zs_lib.errors import EngineError

if TYPE_CHECKING:
    from zs_lib.arms import SimulatorArm
    from zs_lib.qa import Passage

ENGINES = (*REAL_ENGINES, "simulated", SERVED)
"""Engines by name; URL stands for the address of a server, like http://127.0.0.1:8000, or of several that
answer alike, as URL,URL; for openai also MODEL@URL."""


@dataclass(frozen=True)
class SearchRequest:
    """A query, and what a simulation LLM needs besides: the question it is asked for, and useful or noisy.

    Real engines read the query only. `key` makes the randomness of a simulated search its own.
    """

    query: str
    question: str
    golden_answers: tuple[str, ...]
    noisy: bool = False
    key: tuple[int | str, ...] = ()


@dataclass(frozen=True)
class SearchResult:
    """The documents of one request, best first; `error` says why a search failed."""

    documents: tuple[str, ...]
    status: Literal["ok", "empty", "failed"]
    error: str = ""

    @classmethod
    def of(cls, documents: Sequence[str]) -> SearchResult:
        """The result of a search that worked, with or without documents."""
        return cls(tuple(documents), "ok" if documents else "empty")


class SearchEngine(Protocol):
    """Anything that answers queries. Results come in the order of the requests, one for each."""

    name: str

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]: ...


Ranking = list[tuple["Passage", float]]
"""Passages with the engine's own scores, best first."""


def build_engine(
    name: str, split: str | None = None, model: str | Path | None = None, arm: SimulatorArm | None = None
) -> SearchEngine:
    """An engine by name; EngineError, which lists the known ones, for any other.

    - "bm25": the embedded benchmark's passages, those of one `split` (training must not search test facts) or
    all.
    - "bm25+factbook": these, and the World Factbook's prose about the same countries.
    - "dense": the benchmark's passages by latent semantic vectors; "dense:MODEL": by those of a sentence-embedding model,
    like sentence-transformers/all-MiniLM-L6-v2.
    - "simulated": the simulator in the folder `model` (or so named), prompted and sampled as its `arm` says.
    - "openai:[MODEL@]URL[,URL…]": a simulator on OpenAI-compatible servers, prompted and sampled as `arm` says.
    - "python:MODULE.FUNCTION": a function of yours, from queries and a number to a list of documents for each query.
    - "search-r1:URL", "zerosearch-wiki:URL": retrievers, the first kind also by `zs serve retriever`.
    - "serpapi", "serper" (Google, with a key, for money), "wikipedia": answers are kept in ZS_SEARCH_CACHE
    (data/search_cache), and each process may spend ZS_SEARCH_BUDGET dollars (10).
    """
    if name in ("bm25", "bm25+factbook"):
        from zs_lib.engines.bm25 import embedded_engine

        return embedded_engine(split, prose=name != "bm25")
    if engine_kind(name) in ("dense", EMBEDDING):
        from zs_lib.engines import dense

        return dense.embedded_engine(split, name.partition(":")[2])
    if name == "simulated":
        if model is None or arm is None:
            raise EngineError("The engine 'simulated' needs a simulator: give its model and its arm.")
        from zs_lib import models
        from zs_lib.engines.simulated import SimulatedEngine
        from zs_lib.generate import build_generator

        loaded = models.load(model, arm.dtype)
        generator = build_generator(arm.generator, loaded.model, loaded.tokenizer)
        return SimulatedEngine(generator, arm.template, arm.temperature, arm.max_tokens)
    if engine_kind(name) == OWN:
        from zs_lib.engines.own import OwnEngine

        return OwnEngine(name.partition(":")[2])
    if engine_kind(name) in ENGINES:
        return _over_http(*name.partition(":")[::2], arm)
    raise EngineError(f"Unknown search engine '{name}'. Known: {', '.join(ENGINES)}.")


def _over_http(kind: str, address: str, arm: SimulatorArm | None) -> SearchEngine:
    from zs_lib.engines import http
    from zs_lib.engines.budgeted import BudgetedEngine
    from zs_lib.engines.cached import CachedEngine

    if kind == "openai":
        if arm is None:
            raise EngineError(
                "The engine 'openai' needs a simulator's arm: its template, temperature and max_tokens."
            )
        model, _, address = address.rpartition("@")
        return http.OpenAIEngine(address, arm.template, arm.temperature, arm.max_tokens, model)
    if address:
        return {"search-r1": http.SearchR1Engine, "zerosearch-wiki": http.WikiRetrieverEngine}[kind](address)
    engine = {"serpapi": http.SerpApiEngine, "serper": http.SerperEngine, "wikipedia": http.WikipediaEngine}[
        kind
    ]()
    cache = Path(os.environ.get("ZS_SEARCH_CACHE") or config.ROOT / "data" / "search_cache")
    return CachedEngine(BudgetedEngine(engine, max_usd=_budget()), cache)


def _budget() -> float:
    given = os.environ.get("ZS_SEARCH_BUDGET", "10")
    try:
        if (usd := float(given)) >= 0:
            return usd
    except ValueError:
        pass
    raise EngineError(f"The environment's ZS_SEARCH_BUDGET is {given!r}: give a number of dollars.")
