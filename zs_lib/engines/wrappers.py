"""Engines around engines: cached answers, a budget, a share of real queries, noise at test time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from random import Random

from zs_lib.engines.base import EngineSpec, SearchEngine, SearchRequest, SearchResult
from zs_lib.engines.bm25 import build as build_bm25
from zs_lib.engines.simulated import build as build_simulated
from zs_lib.errors import BudgetError, EngineError
from zs_lib.qa import Passage, scoring
from zs_lib.rng import uniform


class CachedEngine(SearchEngine):
    """Keeps the answers of a real engine on disk, one JSON file a query, and asks `engine` for the rest only.

    The key is the engine's name, the query and the number of documents. Failed answers are not kept. Several
    processes may share a `folder`; a damaged file counts as none, and is rewritten. `hits` counts requests
    answered without asking (a query that comes twice in one search is asked once), `misses` those that were
    asked.
    """

    def __init__(self, engine: SearchEngine, folder: Path):
        self.engine, self.name, self.usd_per_query = engine, engine.name, engine.usd_per_query
        self.folder, self.hits, self.misses = folder, 0, 0
        self._lock = threading.Lock()

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        first = {request.query: request for request in reversed(requests)}
        found = {query: self._load(query, num_documents) for query in first}
        asked = [request for query, request in first.items() if found[query] is None]
        for request, result in zip(
            asked, self.engine.search(asked, num_documents) if asked else (), strict=True
        ):
            found[request.query] = result
            if result.status != "failed":
                self._keep(request.query, num_documents, result)
        answered, paid = (
            sum(found[one.query].status != "failed" for one in some) for some in (requests, asked)
        )
        with self._lock:
            self.hits += answered - paid
            self.misses += len(asked)
        return [found[request.query] for request in requests]

    def _load(self, query: str, num_documents: int) -> SearchResult | None:
        try:
            kept = json.loads(self._path(query, num_documents).read_bytes())
            documents = kept["documents"]
            if self._asked(query, num_documents).items() <= kept.items() and all(
                isinstance(text, str) for text in documents
            ):
                return SearchResult.of(documents)
        except (FileNotFoundError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            pass  # not kept yet, or damaged
        except OSError as error:
            raise self._unusable(error) from error
        return None

    def _keep(self, query: str, num_documents: int, result: SearchResult) -> None:
        text = json.dumps(self._asked(query, num_documents) | {"documents": result.documents}, indent=1)
        path = self._path(query, num_documents)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
            with open(descriptor, "w", encoding="utf-8") as file:
                file.write(text)
            os.replace(temporary, path)
        except OSError as error:
            raise self._unusable(error) from error

    def _asked(self, query: str, num_documents: int) -> dict[str, str | int]:
        return {"engine": self.name, "query": query, "num_documents": num_documents}

    def _path(self, query: str, num_documents: int) -> Path:
        digest = hashlib.sha256(json.dumps(self._asked(query, num_documents)).encode()).hexdigest()
        return self.folder / digest[:2] / f"{digest[2:34]}.json"

    def _unusable(self, error: OSError) -> EngineError:
        return EngineError(
            f"The cache of search answers, {self.folder}, cannot be used ({error.strerror}): make it "
            "writable, "
            "or name another folder."
        )


class BudgetedEngine(SearchEngine):
    """Passes searches on to `engine` while they fit into a budget of queries and of dollars.

    The price is the engine's `usd_per_query`. A search that does not fit as a whole raises BudgetError, and
    nothing of it is asked. `queries` and `usd` are spent: they count before a query is sent, failed queries
    too (a provider may bill them), across threads. Every process has a budget of its own.
    """

    def __init__(self, engine: SearchEngine, max_queries: float = math.inf, max_usd: float = math.inf):
        self.engine, self.name, self.usd_per_query = engine, engine.name, engine.usd_per_query
        self.max_queries, self.max_usd, self.queries = max_queries, max_usd, 0
        self._lock = threading.Lock()

    @property
    def usd(self) -> float:
        return self.queries * self.usd_per_query

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        with self._lock:
            after = self.queries + len(requests)
            if after > self.max_queries or after * self.usd_per_query > self.max_usd * (1 + 1e-9):
                raise BudgetError(
                    f"The budget for {self.name} is spent: {self.queries} queries (${self.usd:.2f}) were "
                    "made, "
                    f"{len(requests)} more would go beyond {self._allowed()}; allow more, or stop here."
                )
            self.queries = after
        return self.engine.search(requests, num_documents)

    def _allowed(self) -> str:
        limits = (
            f"{self.max_queries} queries" * (self.max_queries < math.inf),
            f"${self.max_usd:g}" * (self.max_usd < math.inf),
        )
        return " or ".join(filter(None, limits))


class MixedEngine(SearchEngine):
    """Hands each request to `real` with probability `real_share`, else to `simulated`, by its key alone.

    `real_searches` counts the requests that went to the real engine (they cost money), `tokens` those that
    the simulator sampled.
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
    """The engine "mixed": the simulator of `spec`, and BM25 for `spec.real_share` of the queries."""
    simulated, real = replace(spec, name="simulated"), EngineSpec("bm25", spec.split)
    return MixedEngine(build_simulated(simulated), build_bm25(real), spec.real_share)


class NoisyEngine(SearchEngine):
    """Answers each request with probability `noise` by random passages that do not state the answer.

    Other requests go to `engine`; both depend on the request's key alone. For robustness at test time, where
    no simulator is.
    """

    name = "noisy"

    def __init__(self, engine: SearchEngine, passages: Sequence[Passage], noise: float):
        self.engine, self.noise = engine, noise
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
        rng = Random(",".join(map(str, request.key)))
        drawn = (self._texts[rng.randrange(len(self._texts))] for _ in range(100 * count))
        return SearchResult.of(
            list(
                islice((text for text in drawn if not scoring.contains(text, request.golden_answers)), count)
            )
        )
