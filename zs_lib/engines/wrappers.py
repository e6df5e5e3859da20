"""Engines around engines: cached answers, a budget, a share of real queries, noise at test time."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from uuid import uuid4

from zs_lib.engines.base import EngineSpec, SearchEngine, SearchRequest, SearchResult, Wrapper
from zs_lib.engines.bm25 import build as build_bm25
from zs_lib.engines.simulated import build as build_simulated
from zs_lib.errors import BudgetError, EngineError
from zs_lib.qa import Passage, scoring
from zs_lib.rng import seeded, uniform


class CachedEngine(Wrapper):
    """Keeps the answers of a real engine on disk, one JSON file a query, and asks `engine` for the rest only.

    The key is the engine's name, the query and the number of documents. Failed answers are not kept. Several
    processes may share a `folder`; a damaged file counts as none, and is rewritten.
    """

    def __init__(self, engine: SearchEngine, folder: Path):
        super().__init__(engine)
        self.folder = folder

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        distinct = {request.query: request for request in requests}
        with self._file_errors():
            found = {query: self._load(query, num_documents) for query in distinct}
        asked = [request for query, request in distinct.items() if found[query] is None]
        answers = self.engine.search(asked, num_documents) if asked else []
        with self._file_errors():
            for request, result in zip(asked, answers, strict=True):
                found[request.query] = result
                if result.status != "failed":
                    self._keep(request.query, num_documents, result)
        return [found[request.query] for request in requests]

    @contextmanager
    def _file_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise EngineError(
                f"The cache of search answers, {self.folder}, cannot be used ({error.strerror}): make it "
                "writable, or name another folder."
            ) from error

    def _load(self, query: str, num_documents: int) -> SearchResult | None:
        path, _ = self._entry(query, num_documents)
        try:
            documents = json.loads(path.read_bytes())["documents"]
            return SearchResult.of(documents) if all(isinstance(text, str) for text in documents) else None
        except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
            return None  # not kept yet, or damaged

    def _keep(self, query: str, num_documents: int, result: SearchResult) -> None:
        path, asked = self._entry(query, num_documents)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{uuid4().hex}.tmp")  # others may be writing the same entry
        temporary.write_text(json.dumps(asked | {"documents": result.documents}, indent=1), encoding="utf-8")
        temporary.replace(path)

    def _entry(self, query: str, num_documents: int) -> tuple[Path, dict]:
        """The file of a search, and what it says of it."""
        asked = {"engine": self.name, "query": query, "num_documents": num_documents}
        digest = hashlib.sha256(json.dumps(asked).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}.json", asked


class BudgetedEngine(Wrapper):
    """Passes searches on to `engine` while they fit into a budget of dollars.

    The price is the engine's `usd_per_query`. A search that does not fit as a whole raises BudgetError, and
    nothing of it is asked. `queries` and `usd` are spent: they count before a query is sent, failed queries
    too (a provider may bill them), across threads. Every process has a budget of its own.
    """

    def __init__(self, engine: SearchEngine, max_usd: float):
        super().__init__(engine)
        self.max_usd, self.queries, self._lock = max_usd, 0, threading.Lock()

    @property
    def usd(self) -> float:
        return self.queries * self.engine.usd_per_query

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        with self._lock:
            after = self.queries + len(requests)
            if after * self.engine.usd_per_query > self.max_usd * (1 + 1e-9):
                raise BudgetError(
                    f"The budget for {self.name} is spent: {self.queries} queries (${self.usd:.2f}) were "
                    f"made, {len(requests)} more would go beyond ${self.max_usd:g}; allow more, or stop here."
                )
            self.queries = after
        return self.engine.search(requests, num_documents)


class MixedEngine(SearchEngine):
    """Hands each request to `real` with probability `real_share`, else to `simulated`, by its key alone.

    `real_searches` counts the requests that went to the real engine (they cost money), `tokens` the tokens
    that the simulator sampled.
    """

    name = "mixed"

    def __init__(self, simulated: SearchEngine, real: SearchEngine, real_share: float):
        self.simulated, self.real, self.real_share = simulated, real, real_share
        self.real_searches = 0

    @property
    def tokens(self) -> int:
        return self.simulated.tokens

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        to_real = [uniform(request.key, 0, "mixed") < self.real_share for request in requests]
        self.real_searches += sum(to_real)
        answers = {}
        for engine, chosen in ((self.real, True), (self.simulated, False)):
            mine = [request for request, real in zip(requests, to_real, strict=True) if real is chosen]
            answers[chosen] = iter(engine.search(mine, num_documents) if mine else ())
        return [next(answers[real]) for real in to_real]


def build(spec: EngineSpec) -> MixedEngine:
    """Build the engine "mixed": the simulator of `spec`, and BM25 for `spec.real_share` of the queries."""
    simulated, real = replace(spec, name="simulated"), EngineSpec("bm25", spec.split)
    return MixedEngine(build_simulated(simulated), build_bm25(real), spec.real_share)


class NoisyEngine(Wrapper):
    """Answers each request with probability `noise` by random passages that do not state the answer.

    Other requests go to `engine`; both depend on the request's key alone. For robustness at test time, where
    no simulator is.
    """

    def __init__(self, engine: SearchEngine, passages: Sequence[Passage], noise: float):
        super().__init__(engine)
        self.noise = noise
        self._texts = [passage.text for passage in passages]

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        results = self.engine.search(requests, num_documents)
        return [
            self._unrelated(request, num_documents)
            if uniform(request.key, 0, "noise at test time") < self.noise
            else result
            for request, result in zip(requests, results, strict=True)
        ]

    def _unrelated(self, request: SearchRequest, count: int) -> SearchResult:
        rng = seeded(request.key)
        drawn = (rng.choice(self._texts) for _ in range(100 * count))
        unrelated = (text for text in drawn if not scoring.contains(text, request.golden_answers))
        return SearchResult.of(list(islice(unrelated, count)))
