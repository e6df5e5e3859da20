"""BM25 over passages: the real engine of the laptop reproduction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import bm25s
import numpy as np

from zs_lib import qa
from zs_lib.engines.base import EngineSpec, Ranking, SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import EngineError
from zs_lib.qa import Passage, factbook


class BM25Engine(SearchEngine):
    """Lexical search (bm25s, its default parameters), English stop words left out. Deterministic.

    A document that shares no word with the query is never returned, so a result can be short or empty.
    """

    name = "bm25"

    def __init__(self, passages: Sequence[Passage]):
        if not passages:
            raise EngineError(
                "BM25 has no passages to search: choose a split of the benchmark that has some."
            )
        self._passages = list(passages)
        self._index = bm25s.BM25()
        self._index.index(_words([passage.text for passage in passages]), show_progress=False)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """The index in memory, besides the texts: for each word its passages, and its score in each."""
        return {name: part for name, part in self._index.scores.items() if isinstance(part, np.ndarray)}

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        ranked = self.rank([request.query for request in requests], num_documents)
        return [SearchResult.of([passage.text for passage, _ in ranking]) for ranking in ranked]

    def rank(self, queries: Sequence[str], num_documents: int) -> list[Ranking]:
        """The best passages of each query; repeated queries are looked up once."""
        distinct = list(dict.fromkeys(queries))
        words = _words(distinct) if distinct else []
        found = {query: self._best(ws, num_documents) for query, ws in zip(distinct, words, strict=True)}
        return [found[query] for query in queries]

    def _best(self, words: list[str], count: int) -> Ranking:
        known = [word for word in words if word in self._index.vocab_dict]
        if not known:
            return []
        scores = self._index.get_scores(known)
        # bm25s's own top-k leaves the order of equal scores open; here the earlier passage wins.
        threshold = np.partition(scores, -count)[-count] if count < len(scores) else 0.0
        candidates = np.flatnonzero((scores >= threshold) & (scores > 0))
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:count]
        return [(self._passages[i], float(scores[i])) for i in best]


def build(spec: EngineSpec) -> BM25Engine:
    """BM25 over the spec's or the embedded benchmark's passages, and the Factbook's for "bm25+factbook"."""
    if spec.passages is not None:
        return BM25Engine(spec.passages)
    return _embedded(spec.split, spec.kind.endswith("+factbook"))


@lru_cache(maxsize=4)  # the index is built once a process
def _embedded(split: str | None, prose: bool) -> BM25Engine:
    more = [passage for passage in factbook.passages() if split in (None, passage.split)] if prose else []
    return BM25Engine(qa.load_passages(split) + more)


def _words(texts: list[str]) -> list[list[str]]:
    return bm25s.tokenize(texts, stopwords="en", return_ids=False, show_progress=False)
