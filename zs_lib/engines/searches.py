"""The searches that rollouts wait for: equal requests once, each answered as soon as its documents come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager

from zs_lib.engines.base import SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import BudgetError, EngineError


class Searches(AbstractContextManager):
    """Asks an engine for many rollouts; as a context manager it gives up what is not answered at its end.

    An engine with `lanes` is asked in as many threads, while the policy writes; one without answers all new
    requests in one search, before `answers` returns. With lanes one search a query runs at a time, so a cache
    pays for it once; and which rollouts write together depends on when answers come, which changes the
    rounding of their log-probabilities.
    """

    def __init__(self, engine: SearchEngine | None, num_documents: int):
        self.engine, self.num_documents = engine, num_documents
        lanes = getattr(engine, "lanes", 0)  # an engine of the user's own may not say
        self._pool = ThreadPoolExecutor(lanes, "search") if lanes else None
        self._answered: dict[SearchRequest, SearchResult] = {}
        self._under_way: dict[Future, list[SearchRequest]] = {}

    def __exit__(self, *_) -> None:
        if self._pool:
            self._pool.shutdown(wait=False, cancel_futures=True)

    def answers(self, requests: Collection[SearchRequest], block: bool) -> dict[SearchRequest, SearchResult]:
        """Return the answers that are there, and begin to search for the others.

        `block`: wait until one of the requests is answered. An answer that failed is returned once, for its
        request may be made again; an engine that raises has failed all that it was asked for.

        Raises:
            BudgetError: the budget is spent; to go on would be to learn only from those who searched first.
        """
        self._begin(requests)
        found = self._collect(timeout=0)
        if block and requests and found.keys().isdisjoint(requests):
            found = self._collect(timeout=None)
        return found

    def _begin(self, requests: Collection[SearchRequest]) -> None:
        queries = {request.query for group in self._under_way.values() for request in group}
        new = [r for r in dict.fromkeys(requests) if r not in self._answered and r.query not in queries]
        by_query = defaultdict(list)  # without lanes: one group of all
        for request in new:
            by_query[request.query if self._pool else ""].append(request)
        submit = self._pool.submit if self._pool else _done
        for group in by_query.values():
            self._under_way[submit(self.engine.search, group, self.num_documents)] = group

    def _collect(self, timeout: float | None) -> dict[SearchRequest, SearchResult]:
        done, _ = wait(self._under_way, timeout, FIRST_COMPLETED)
        failed = {}
        for future in done:
            group = self._under_way.pop(future)
            try:
                results = future.result()
            except BudgetError:
                raise
            except EngineError as error:
                results = [SearchResult.failed(error)] * len(group)
            for request, result in zip(group, results, strict=True):
                (failed if result.status == "failed" else self._answered)[request] = result
        return self._answered | failed


def _done(call, *arguments) -> Future:
    """Make a call here and now."""
    future: Future = Future()
    try:
        future.set_result(call(*arguments))
    except Exception as error:
        future.set_exception(error)
    return future
