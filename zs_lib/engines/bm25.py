"""BM25 over passages, in memory or on disk: the real engine of the laptop reproduction."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path
from sys import intern

import bm25s
import numpy as np
import pyarrow as pa
import regex
from bm25s import scoring
from bm25s.stopwords import STOPWORDS_EN
from filelock import FileLock

from zs_lib import qa
from zs_lib.config import paths
from zs_lib.config.contents import file_digest
from zs_lib.config.values import digest
from zs_lib.engines.base import EngineSpec, Ranking, RankingEngine
from zs_lib.errors import EngineError
from zs_lib.qa import Columns, Passage
from zs_lib.runs.files import sync

FORMAT, BATCH, LOCK_WAIT_S = 1, 50_000, 24 * 3600
"""Version of the indexes on disk, to be raised when words or files change; passages that are indexed at once;
and seconds to wait for another process that builds the same index."""
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
    A corpus file (`qa.read_corpus`, with its `columns`) is indexed on disk: see `_open`.
    """

    def __init__(self, passages: Sequence[Passage] | Path, columns: Columns | None = None):
        if isinstance(passages, Path):
            self.index, passages, self._shortest = _open(passages, columns)
            super().__init__("bm25", passages)
            return
        super().__init__("bm25", passages)
        texts = [passage.text for passage in passages]
        for self._shortest in (2, 1):
            if any(words := split_words(texts, self._shortest)):
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
        words = zip(distinct, split_words(distinct, self._shortest), strict=True)
        found = {query: self._best(query_words, num_documents) for query, query_words in words}
        return [found[query] for query in queries]

    def _best(self, words: list[str], count: int) -> Ranking:
        known = [word for word in words if word in self.index.vocab_dict]
        if not known:
            return []
        scores = self.index.get_scores(known)
        # bm25s's own top-k leaves the order of equal scores open; here the earlier passage wins.
        candidates = np.flatnonzero(scores > 0)
        if count < len(candidates):
            threshold = np.partition(scores[candidates], -count)[-count]
            candidates = candidates[scores[candidates] >= threshold]
        best = candidates[np.argsort(-scores[candidates], kind="stable")][:count]
        return [(self.passages[i], float(scores[i])) for i in best]


def build(spec: EngineSpec) -> BM25Engine:
    """Build BM25 over the spec's passages, else the benchmark's, with the Factbook's for "bm25+factbook"."""
    if spec.passages is not None:
        return BM25Engine(spec.passages, spec.columns)
    return _embedded(spec.split, spec.kind.endswith("+factbook"))


@lru_cache(maxsize=4)  # the index is built once a process
def _embedded(split: str | None, prose: bool) -> BM25Engine:
    more = qa.load_passages(split, "factbook") if prose else []
    return BM25Engine(qa.load_passages(split) + more)


def split_words(texts: list[str], shortest: int) -> list[list[str]]:
    """The words of each text in lower case, without stop words and those of fewer than `shortest` letters."""
    # Letters are those of bm25s's \w and their marks (vowel signs), which it leaves out.
    letters = rf"[\p{{L}}\p{{N}}_\p{{Mn}}\p{{Mc}}{_UNSPACED}]{{{shortest},}}"
    pattern = regex.compile(f"{letters}|[{_UNSPACED}]")
    stopwords = frozenset(STOPWORDS_EN if shortest > 1 else ())
    plain = re.compile(rf"[a-z0-9_]{{{shortest},}}")  # the same in ASCII, and three times as fast
    lowered = (text.lower() for text in texts)
    found = (plain.findall(t) if t.isascii() else pattern.findall(_RUN.sub(_pairs, t)) for t in lowered)
    return [[intern(word) for word in words if word not in stopwords] for words in found]


def _pairs(run: regex.Match[str]) -> str:
    """All pairs of neighbouring characters of a run, with spaces between and around."""
    pairs = (run[0][i : i + 2] for i in range(max(1, len(run[0]) - 1)))
    return f" {' '.join(pairs)} "


class _Stored(Sequence[Passage]):
    """Passages of a memory-mapped table."""

    def __init__(self, path: Path):
        self.table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()

    def __len__(self) -> int:
        return self.table.num_rows

    def __getitem__(self, place: int) -> Passage:
        return Passage(*(column[int(place)].as_py() for column in self.table.columns), "")


def _open(corpus: Path, columns: Columns | None) -> tuple[bm25s.BM25, Sequence[Passage], int]:
    """Open a corpus file's index, memory-mapped, its passages, and the letters of its shortest words.

    A folder in ZS_INDEXES (else data/indexes), named by the file's content: bm25s's files, and the passages.
    The first process builds it, in bounded memory, while others wait; it appears whole, by a rename.
    """
    next(qa.read_corpus(corpus, columns))  # tells at once of a file that is none
    root = paths.check_folder(os.environ.get("ZS_INDEXES") or paths.ROOT / "data" / "indexes", "ZS_INDEXES")
    key = [FORMAT, bm25s.__version__, file_digest(corpus), corpus.suffixes, dict(columns or {})]
    folder = root / f"bm25-{digest(key, {})}"
    building = folder.with_suffix(".tmp")
    if not folder.exists():  # one that is there may be read-only
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock", timeout=LOCK_WAIT_S, fallback_to_soft=False):
            try:
                for shortest in () if folder.exists() else (2, 1):
                    shutil.rmtree(building, ignore_errors=True)  # of a process that was killed
                    building.mkdir()
                    if _build(qa.read_corpus(corpus, columns), shortest, building):
                        building.rename(folder)
                        break
            finally:
                shutil.rmtree(building, ignore_errors=True)
    if not folder.exists():
        raise EngineError(f"No passage of {corpus} has a word to search for: check the corpus.")
    stored = _Stored(folder / "passages.arrow")
    return bm25s.BM25.load(folder, mmap=True), stored, int(stored.table.schema.metadata[b"shortest"])


def _build(passages: Iterator[Passage], shortest: int, folder: Path) -> bool:
    """Store the index that `bm25s.BM25.index` would make, the same to the bit; False if there are no words.

    By batches, each sorted on disk: words << 32 | passages, and how often a passage has the word.
    """
    vocabulary, lengths, blocks = {}, [], []
    schema = pa.schema({"id": pa.string(), "text": pa.large_string()}, {"shortest": str(shortest)})
    with pa.OSFile(f"{folder}/passages.arrow", "wb") as file, pa.ipc.new_file(file, schema) as table:
        while batch := list(islice(passages, BATCH)):
            texts = [passage.text.encode("utf-8", "replace").decode() for passage in batch]
            table.write(pa.record_batch([[passage.id for passage in batch], texts], schema))
            words = split_words(texts, shortest)
            numbers = [vocabulary.setdefault(word, len(vocabulary)) for one in words for word in one]
            places = np.arange(len(batch)).repeat([len(one) for one in words]) + len(lengths)
            lengths += map(len, words)
            blocks.append(folder / f"block-{len(blocks)}.npy")
            np.save(blocks[-1], np.unique(np.array(numbers, int) << 32 | places, return_counts=True))
    if vocabulary:
        _score(vocabulary, np.array(lengths), blocks, folder)
    for path in folder.iterdir():
        sync(path)
    return bool(vocabulary)


def _score(vocabulary: dict[str, int], lengths: np.ndarray, blocks: list[Path], folder: Path) -> None:
    """Store bm25s's files: for each word its passages, with the scores."""
    index, size = bm25s.BM25(), len(vocabulary)
    frequencies = sum(np.bincount(np.load(block)[0] >> 32, minlength=size) for block in blocks)
    idf_of, tfc_of = scoring._select_idf_scorer(index.idf_method), scoring._select_tfc_scorer(index.method)
    idf = scoring._build_idf_array(dict(enumerate(frequencies.tolist())), len(lengths), idf_of)
    ends, none = np.cumsum(frequencies), np.zeros(0)
    index.vocab_dict, index.nonoccurrence_array = vocabulary, None
    index.scores = {"data": none, "indices": none, "indptr": np.append(0, ends), "num_docs": len(lengths)}
    index.save(folder)  # the two large arrays follow
    arrays = []
    for name, kind in (("data", index.dtype), ("indices", index.int_dtype)):
        path, shape = f"{folder}/{name}.csc.index.npy", (int(ends[-1]),)
        arrays.append(np.lib.format.open_memmap(path, "w+", kind, shape))
        with open(path, "r+b") as file:  # on a full disk an error now, not a signal later
            os.posix_fallocate(file.fileno(), 0, os.path.getsize(path))
    heads = ends - frequencies
    for block in blocks:
        keys, counts = np.load(block)
        words, places = keys >> 32, keys & 0xFFFFFFFF
        here = np.bincount(words, minlength=size)
        at = np.arange(len(words)) + (heads - np.cumsum(here) + here)[words]
        counts, average = counts.astype(index.dtype), lengths.mean()
        tfc = tfc_of(counts, lengths[places], average, index.k1, index.b, index.delta)
        arrays[0][at], arrays[1][at] = idf[words] * tfc, places
        heads += here
        block.unlink()
