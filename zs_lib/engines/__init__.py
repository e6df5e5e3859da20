"""Search engines behind one interface, and how to get one by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from zs_lib.errors import EngineError

if TYPE_CHECKING:
    from zs_lib.config import SimulatorArm

ENGINES = ("bm25", "dense", "simulated")


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


def build_engine(
    name: str, split: str | None = None, model: str | Path | None = None, arm: SimulatorArm | None = None
) -> SearchEngine:
    """An engine by name; EngineError, which lists the known ones, for any other.

    - "bm25": the embedded benchmark's passages, those of one `split` (training must not search test facts) or
    all.
    - "dense": the same passages by latent semantic vectors.
    - "simulated": the simulator in the folder `model` (or so named), prompted and sampled as its `arm` says.
    """
    if name == "bm25":
        from zs_lib.engines.bm25 import embedded_engine

        return embedded_engine(split)
    if name == "dense":
        from zs_lib.engines import dense

        return dense.embedded_engine(split)
    if name == "simulated":
        if model is None or arm is None:
            raise EngineError("The engine 'simulated' needs a simulator: give its model and its arm.")
        from zs_lib import models
        from zs_lib.engines.simulated import SimulatedEngine
        from zs_lib.generate import Generator

        loaded = models.load(model)
        return SimulatedEngine(
            Generator(loaded.model, loaded.tokenizer), arm.template, arm.temperature, arm.max_tokens
        )
    raise EngineError(f"Unknown search engine '{name}'. Known: {', '.join(ENGINES)}.")
