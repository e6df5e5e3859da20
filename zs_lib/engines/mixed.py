"""Two engines as one: mostly simulated search, with a share of real queries."""

from __future__ import annotations

from collections.abc import Sequence

from zs_lib.draws import uniform
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult


class MixedEngine(SearchEngine):
    """Hands each request to `real` with probability `real_share`, else to `simulated`; which, depends on its key alone.

    `real_searches` counts the requests that the real engine answered (they are what costs money), `tokens` are those
    that the simulator wrote.
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
