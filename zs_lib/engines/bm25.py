"""BM25 over passages: the real engine of the laptop reproduction."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from sys import intern

import bm25s
import numpy as np
import regex
from bm25s.stopwords import STOPWORDS_EN

from zs_lib import qa
from zs_lib.engines.base import EngineSpec, Ranking, RankingEngine
from zs_lib.errors import EngineError
from zs_lib.qa import Passage

_UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f"
    r"\U00020000-\U0003ffff"
)
"""Characters of scripts without spaces: Thai, Lao, Burmese, Khmer, Japanese, Chinese."""
_RUN = regex.compile(f"[{_UNSPACED}]+")


class BM25Engine(RankingEngine):
    """Lexical search (bm25s, its default parameters), English stop words left out. Deterministic.

    A document that shares no word with the query is never returned, so a result can be short or empty. Words
    are bm25s's; in scripts without spaces they are all pairs of neighbouring characters, as Lucene's CJK
    analyzer has them. One-letter words count only where the corpus has no longer ones.
    """

    def __init__(self, passages: Sequence[Passage]):
        super().__init__("bm25", passages)
        texts = [passage.text for passage in passages]
        for self._shortest in (2, 1):
            if any(words := _words(texts, self._shortest)):
                break
        else:
            raise EngineError(
                f"None of the {len(texts)} passages has a word to search for: check the corpus."
            )
        self.index = bm25s.BM25()
        self.index.index(words, show_progress=False)

    def rank(self, queries: Sequence[str], num_documents: int) -> list[Ranking]:
        """Rank the best passages of each query; repeated queries are looked up once."""
        distinct = list(dict.fromkeys(queries))
        words = zip(distinct, _words(distinct, self._shortest), strict=True)
        found = {query: self._best(query_words, num_documents) for query, query_words in words}
        return [found[query] for query in queries]

    def _best(self, words: list[str], count: int) -> Ranking:
        known = [word for word in words if word in self.index.vocab_dict]
        if not known:
            return []
        scores = self.index.get_scores(known)
        # bm25s's own top-k leaves the order of equal scores open; here the earlier passage wins.
        threshold = np.partition(scores, -count)[-count] if count < len(scores) else 0.0
        candidates = np.flatnonzero((scores >= threshold) & (scores > 0))
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:count]
        return [(self.passages[i], float(scores[i])) for i in best]


def build(spec: EngineSpec) -> BM25Engine:
    """Build BM25 over the spec's passages, else the benchmark's, with the Factbook's for "bm25+factbook"."""
    if spec.passages is not None:
        return BM25Engine(spec.passages)
    return _embedded(spec.split, spec.kind.endswith("+factbook"))


@lru_cache(maxsize=4)  # the index is built once a process
def _embedded(split: str | None, prose: bool) -> BM25Engine:
    more = qa.load_passages(split, "factbook") if prose else []
    return BM25Engine(qa.load_passages(split) + more)


def _words(texts: list[str], shortest: int) -> list[list[str]]:
    """The words of each text in lower case, without stop words and those of fewer than `shortest` letters."""
    # Letters are those of bm25s's \w and their marks (vowel signs), which it leaves out.
    letters = rf"[\p{{L}}\p{{N}}_\p{{Mn}}\p{{Mc}}{_UNSPACED}]{{{shortest},}}"
    pattern = regex.compile(f"{letters}|[{_UNSPACED}]")
    stopwords = frozenset(STOPWORDS_EN if shortest > 1 else ())
    spaced = (_RUN.sub(_pairs, text.lower()) for text in texts)
    return [[intern(word) for word in pattern.findall(text) if word not in stopwords] for text in spaced]


def _pairs(run: regex.Match[str]) -> str:
    """All pairs of neighbouring characters of a run, with spaces between and around."""
    pairs = (run[0][i : i + 2] for i in range(max(1, len(run[0]) - 1)))
    return f" {' '.join(pairs)} "
