"""An engine that spends no more than it was allowed to."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence

from zs_lib.engines import SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import BudgetError


class BudgetedEngine(SearchEngine):
    """Passes searches on to `engine` as long as they fit into a budget of queries and of dollars, whichever is spent first.

    The price is the engine's `usd_per_query`. A search that does not fit as a whole raises BudgetError, and nothing of it
    is asked. `queries` and `usd` are what was spent: they count before a query is sent, failed queries too (a provider
    may bill them), across threads. Every process has a budget of its own.
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
                    f"The budget for {self.name} is spent: {self.queries} queries (${self.usd:.2f}) were made, "
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
