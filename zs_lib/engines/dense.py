"""Dense search over passages: latent semantic vectors and cosines, with nothing to download."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from zs_lib import qa
from zs_lib.engines import Ranking, SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import EngineError
from zs_lib.qa import Passage

DIMENSIONS = 256
"""Of the vectors: enough to tell a few thousand short passages apart."""


class DenseEngine(SearchEngine):
    """Cosine between vectors of query and passage (LSA: a truncated SVD of TF-IDF over parts of words). Deterministic.

    Unlike BM25 it matches word parts and what occurs together, and always has an answer.
    """

    name = "dense"

    def __init__(self, passages: Sequence[Passage]):
        from sklearn.decomposition import TruncatedSVD
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import Normalizer

        if not passages:
            raise EngineError("The dense engine has no passages to search: choose a split of the benchmark that has some.")
        self._passages, texts = list(passages), [passage.text for passage in passages]
        words = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, dtype=np.float32)
        features = len(words.fit(texts).vocabulary_)
        dimensions = min(DIMENSIONS, len(passages), features - 1)
        self._embed = make_pipeline(words, TruncatedSVD(dimensions, random_state=0), Normalizer(copy=False))
        self._vectors = self._embed.fit_transform(texts)

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        ranked = self.rank([request.query for request in requests], num_documents)
        return [SearchResult.of([passage.text for passage, _ in ranking]) for ranking in ranked]

    def rank(self, queries: Sequence[str], num_documents: int) -> list[Ranking]:
        """The nearest passages of each query, with cosines; of equally near ones the earlier first."""
        if not queries:
            return []
        scores = self._embed.transform(queries) @ self._vectors.T
        best = np.argsort(-scores.round(5), axis=1, kind="stable")[:, :num_documents]
        return [[(self._passages[place], float(row[place])) for place in places]
                for row, places in zip(scores, best, strict=True)]


@lru_cache(maxsize=4)
def embedded_engine(split: str | None = None) -> DenseEngine:
    """The dense engine over the embedded benchmark's passages; built once per process and split."""
    return DenseEngine(qa.load_passages(split))
