"""Types of search engines: requests, results, the interface, and what an engine is built from."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from zs_lib.config.arms import SimulatorArm
from zs_lib.errors import EngineError
from zs_lib.qa import Columns, Passage
from zs_lib.rng import Key


@dataclass(frozen=True)
class SearchRequest:
    """A query, and what a simulation LLM needs besides: the question it is asked for, and useful or noisy.

    Real engines read the query only. `key` makes the randomness of a simulated search its own.
    """

    query: str
    question: str
    golden_answers: tuple[str, ...]
    noisy: bool = False
    key: Key = ()


@dataclass(frozen=True)
class SearchResult:
    """The documents of one request, best first; `error` says why a search failed."""

    documents: tuple[str, ...]
    status: Literal["ok", "empty", "failed"]
    error: str = ""

    @classmethod
    def of(cls, documents: Sequence[str]) -> SearchResult:
        """Make the result of a search that worked, with or without documents.

        Lone surrogates ("\\ud800" in JSON), which no tokenizer takes, become "?".
        """
        sound = tuple(text.encode("utf-8", "replace").decode() for text in documents)
        return cls(sound, "ok" if documents else "empty")

    @classmethod
    def failed(cls, cause: object) -> SearchResult:
        """Make the result of a search that failed."""
        return cls((), "failed", str(cause))


class SearchEngine(Protocol):
    """Anything that answers queries. Results come in the order of the requests, one for each."""

    name: str
    lanes: int = 0
    """Searches that may run at once, each in a thread, while the policy writes; 0: the policy waits."""

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]: ...


class Wrapper(SearchEngine):
    """An engine that changes the searches of another, `engine`, and has its name and lanes."""

    def __init__(self, engine: SearchEngine):
        self.engine, self.name, self.lanes = engine, engine.name, getattr(engine, "lanes", 0)


Ranking = list[tuple[Passage, float]]
"""Passages with the engine's own scores, best first."""


class RankingEngine(SearchEngine):
    """An engine that ranks passages in this process; a search returns their texts.

    Raises:
        EngineError: there are no passages.
    """

    def __init__(self, name: str, passages: Sequence[Passage]):
        if not passages:
            raise EngineError(
                f"The engine '{name}' has no passages to search: choose a split of the benchmark with some."
            )
        self.name, self.passages = name, passages

    @abstractmethod
    def rank(self, queries: Sequence[str], num_documents: int) -> list[Ranking]:
        """Rank the best passages of each query; of equal ones the earlier first."""

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        ranked = self.rank([request.query for request in requests], num_documents)
        return [SearchResult.of([passage.text for passage, _ in ranking]) for ranking in ranked]


@dataclass(frozen=True)
class EngineSpec:
    """Everything that an engine may be built from: the argument of each engine file's `build`."""

    name: str
    """The name in the profile, with its address."""
    split: str | None = None
    """The split whose passages are searched (training must not search test facts); None: all."""
    model: str | Path | None = None
    """Where the simulator of the store is, for engines that have one."""
    simulator: SimulatorArm | None = None
    """The arm that says how a simulator is prompted and sampled."""
    passages: Sequence[Passage] | Path | None = None
    """A corpus of your own, or its file (`qa.read_corpus`, with its `columns`), for engines that rank; None:
    the embedded benchmark's."""
    columns: Columns | None = None
    real_share: float = 0.0
    """Share of queries that "mixed" hands to BM25."""

    @property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @property
    def address(self) -> str:
        """The part of the name after the colon; empty if there is none."""
        return self.name.partition(":")[2]
