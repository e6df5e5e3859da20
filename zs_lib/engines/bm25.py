"""BM25 over passages: the real engine of the laptop reproduction."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

import bm25s
import numpy as np

from zs_lib import qa
from zs_lib.engines.base import EngineSpec, Ranking, SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import EngineError
from zs_lib.qa import Passage

_UNSPACED = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
)
_UNSPACED += "\U00020000-\U0003ffff"
"""Scripts without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_PLAIN = re.compile(r"[\x00-\u02ff]*")
"""Texts that bm25s itself cuts well."""


class BM25Engine(SearchEngine):
    """Lexical search (bm25s, its default parameters), English stop words left out. Deterministic.

    A document that shares no word with the query is never returned, so a result can be short or empty. Words
    are bm25s's; in scripts without spaces they are all pairs of neighbouring characters, as Lucene's CJK
    analyzer has them. One-letter words count only where the corpus has no longer ones.
    """

    name = "bm25"

    def __init__(self, passages: Sequence[Passage]):
        if not passages:
            raise EngineError(
                "BM25 has no passages to search: choose a split of the benchmark that has some."
            )
        self._passages, self._shortest = list(passages), 2
        texts = [passage.text for passage in passages]
        if not any(words := _words(texts, self._shortest)):
            self._shortest = 1
            if not any(words := _words(texts, self._shortest)):
                raise EngineError(f"None of the {len(texts)} passages has a word that BM25 could search for.")
        self._index = bm25s.BM25()
        self._index.index(words, show_progress=False)

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
        words = _words(distinct, self._shortest) if distinct else []
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
    more = qa.load_passages(split, "factbook") if prose else []
    return BM25Engine(qa.load_passages(split) + more)


def _words(texts: list[str], shortest: int) -> list[list[str]]:
    """The words of each text, without those of fewer than `shortest` letters."""
    stopwords = "en" if shortest > 1 else []
    pattern = rf"(?u)\b\w{{{shortest},}}\b" if all(map(_PLAIN.fullmatch, texts)) else _pattern(shortest)
    return bm25s.tokenize(
        texts, stopwords=stopwords, token_pattern=pattern, return_ids=False, show_progress=False
    )


@lru_cache
def _pattern(shortest: int) -> str:
    """Words with their marks (vowel signs, which \\w leaves out), and pairs where there are no spaces.

    The same words as \\b\\w\\w+\\b in texts without either.
    """
    marks = "".join(
        re.escape(chr(code))
        for code in range(0x300, 0x10000)
        if unicodedata.category(chr(code)) in ("Mn", "Mc")
    )
    one = f"[{_UNSPACED}]"
    word = f"(?:(?!{one})[\\w{marks}])"
    before = f"(?<![\\w{marks}])|(?<={one})"
    return f"(?=({one}{{2}}|(?<!{one}){one}(?!{one})|(?:{before}){word}{{{shortest},}}))"
