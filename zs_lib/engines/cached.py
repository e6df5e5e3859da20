"""An engine that never asks twice: answers are kept on disk."""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from zs_lib.engines import SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import EngineError


class CachedEngine(SearchEngine):
    """Keeps what a real engine answered, one JSON file a query, and asks `engine` for the rest only.

    Known by the engine's name, the query and the number of documents. Failed answers are never kept. Several
    processes may share a `folder`; a damaged file counts as none, and is written anew. `hits` counts requests answered
    without asking (a query that comes twice in one search is asked once), `misses` those that were asked.
    """

    def __init__(self, engine: SearchEngine, folder: Path):
        self.engine, self.name, self.usd_per_query = engine, engine.name, engine.usd_per_query
        self.folder, self.hits, self.misses = folder, 0, 0
        self._lock = threading.Lock()

    @property
    def hit_rate(self) -> float:
        """In [0, 1]; 0 before the first search."""
        return self.hits / (self.hits + self.misses) if self.hits else 0.0

    @property
    def saved_usd(self) -> float:
        return self.hits * self.usd_per_query

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
            f"The cache of search answers, {self.folder}, cannot be used ({error.strerror}): make it writable, "
            "or name another folder."
        )
