"""An engine that fails to find: some searches bring documents that have nothing to do with the query."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from random import Random

from zs_lib import metrics
from zs_lib.draws import uniform
from zs_lib.engines import SearchEngine, SearchRequest, SearchResult
from zs_lib.qa import Passage


class NoisyEngine(SearchEngine):
    """Answers each request with probability `noise` by passages that are drawn blindly and do not state the answer, else
    by `engine`; both depend on the request's key alone. For robustness at test time, where no simulator is."""

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
        dice = Random(",".join(map(str, request.key)))
        drawn = (self._texts[dice.randrange(len(self._texts))] for _ in range(100 * count))
        return SearchResult.of(
            list(
                islice((text for text in drawn if not metrics.contains(text, request.golden_answers)), count)
            )
        )
