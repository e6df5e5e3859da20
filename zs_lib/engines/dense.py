"""Dense search over passages by cosines of vectors: of a sentence-embedding model, or LSA's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from zs_lib import qa
from zs_lib.engines.base import EngineSpec, Ranking, RankingEngine
from zs_lib.errors import EngineError
from zs_lib.qa import Passage

DIMENSIONS = 256
"""Dimensions of the LSA vectors: enough to separate a few thousand short passages."""
Encode = Callable[[Sequence[str]], np.ndarray]
"""n queries -> (n, d) float32, rows of length 1."""


class DenseEngine(RankingEngine):
    """Cosine between query and passage vectors, with an exact index: one matrix product. Deterministic.

    It always has an answer. `model` is a sentence-embedding model ("sentence-transformers/all-MiniLM-L6-v2").
    Without one the vectors are LSA's (a truncated SVD of TF-IDF over parts of words), which match
    co-occurrence, not meaning.
    """

    def __init__(self, passages: Sequence[Passage], model: str = ""):
        super().__init__(f"dense:{model}" if model else "dense", passages)
        texts = [passage.text for passage in passages]
        self._vectors, self._encode = _embedding(texts, model) if model else _latent_semantic(texts)

    def rank(self, queries: Sequence[str], num_documents: int) -> list[Ranking]:
        """Rank the nearest passages of each query, with cosines; of equally near ones the earlier first."""
        if not queries:
            return []
        scores = self._encode(queries) @ self._vectors.T
        best = np.argsort(-scores.round(5), axis=1, kind="stable")[:, :num_documents]
        return [
            [(self.passages[place], float(row[place])) for place in places]
            for row, places in zip(scores, best, strict=True)
        ]


def _latent_semantic(texts: list[str]) -> tuple[np.ndarray, Encode]:
    from sklearn.decomposition import TruncatedSVD
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import FunctionTransformer, Normalizer

    words = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True, dtype=np.float32)
    try:
        matrix = words.fit_transform(texts)
    except ValueError:  # an empty vocabulary
        raise EngineError(
            f"None of the {len(texts)} passages has a word to search for: check the corpus."
        ) from None
    dimensions = min(DIMENSIONS, len(texts))
    to_array = FunctionTransformer(lambda sparse: sparse.toarray())
    svd = TruncatedSVD(dimensions, random_state=0) if dimensions < matrix.shape[1] else to_array
    latent = make_pipeline(svd, Normalizer(copy=False))
    with np.errstate(invalid="ignore"):  # of equal passages sklearn tells the variance, which nobody asks for
        return latent.fit_transform(matrix), make_pipeline(words, latent).transform


def _embedding(texts: list[str], name: str) -> tuple[np.ndarray, Encode]:
    from zs_lib.models.load import load_encoder

    model, how = load_encoder(name), {"normalize_embeddings": True, "show_progress_bar": False}
    return model.encode_document(texts, **how), lambda queries: model.encode_query(list(queries), **how)


def build(spec: EngineSpec) -> DenseEngine:
    """Build the dense engine over the spec's or the embedded benchmark's passages."""
    if isinstance(spec.passages, Path):
        return DenseEngine(list(qa.read_corpus(spec.passages, spec.columns)), spec.address)
    if spec.passages is not None:
        return DenseEngine(spec.passages, spec.address)
    return _embedded(spec.split, spec.address)


@lru_cache(maxsize=4)  # the vectors are computed once a process
def _embedded(split: str | None, model: str) -> DenseEngine:
    return DenseEngine(qa.load_passages(split), model)
