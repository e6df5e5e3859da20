"""BM25's index on disk: that of memory to the bit, found again by content, whole however its builder dies."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from zs_lib import qa
from zs_lib.engines import bm25, build_engine
from zs_lib.engines.bm25 import BM25Engine
from zs_lib.errors import ConfigError, DataError, EngineError

QUERIES = [
    "capital of Norway",
    "year independence country river",
    "language",
    "zebra xylophone",
    "北京 一",
    "",
]
OPEN = "import sys, pathlib, zs_lib.engines.bm25 as bm25; bm25.BM25Engine(pathlib.Path(sys.argv[1]))"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv("ZS_INDEXES", str(tmp_path / "indexes"))
    return tmp_path / "indexes"


def written(path, texts):
    path.write_text(
        "".join(json.dumps({"id": str(i), "contents": one}) + "\n" for i, one in enumerate(texts))
    )
    return path


def opener(path):
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, str(path)], env={**os.environ, "OMP_NUM_THREADS": "1"}
    )


@pytest.mark.parametrize("texts", [None, ["x", "人", "y x x"], ["a", "b"], ["的", "北京市", "\ud800 north"]])
def test_the_index_on_disk_is_that_of_memory(folder, tmp_path, monkeypatch, texts):
    monkeypatch.setattr(bm25, "BATCH", 300)  # many batches
    corpus = written(tmp_path / "corpus.jsonl", texts or [passage.text for passage in qa.load_passages()])
    disk, memory = BM25Engine(corpus), BM25Engine(list(qa.read_corpus(corpus)))
    assert isinstance(disk.index.scores["data"], np.memmap) and len(disk.passages) == len(memory.passages)
    for word, number in disk.index.vocab_dict.items():
        for name in ("data", "indices"):  # words are numbered otherwise
            one, other = (
                engine.index.scores[name][slice(*engine.index.scores["indptr"][place : place + 2])]
                for engine, place in ((disk, number), (memory, memory.index.vocab_dict[word]))
            )
            np.testing.assert_array_equal(one, other)
    for count in (1, 3, 10_000):
        queries = QUERIES + (texts or [])
        ranked = [engine.rank(queries, count) for engine in (disk, memory)]
        if texts is None:
            assert ranked[0] == ranked[1]
        assert [[(p.id, s) for p, s in one] for one in ranked[0]] == [
            [(p.id, s) for p, s in one] for one in ranked[1]
        ]


def test_an_index_is_built_once_and_found_by_content(folder, tmp_path):
    corpus = written(tmp_path / "corpus.jsonl", ["Oslo is north", "Rome is south"])
    BM25Engine(corpus)
    (made,) = (path for path in folder.iterdir() if path.is_dir())
    before = made.stat().st_mtime_ns
    BM25Engine(corpus.rename(tmp_path / "other.jsonl"))
    assert [path for path in folder.iterdir() if path.is_dir()] == [
        made
    ] and made.stat().st_mtime_ns == before
    changed = build_engine("bm25", passages=written(tmp_path / "other.jsonl", ["Oslo is south"]))
    assert (
        changed.rank(["Oslo"], 5)[0][0][0].text == "Oslo is south" and len(list(folder.glob("bm25-*"))) == 4
    )
    renamed = tmp_path / "columns.jsonl"
    renamed.write_text('{"n": "1", "body": "Oslo", "title": "Rome"}\n')
    for column, word in (("body", "Oslo"), ("title", "Rome")):
        engine = build_engine("bm25", passages=renamed, columns={"contents": column})
        assert engine.rank([word], 1)[0][0][0].text == word


def test_a_killed_builder_leaves_nothing_half_and_two_build_one(folder, tmp_path):
    corpus = written(tmp_path / "corpus.jsonl", [f"passage number{i} of Oslo" for i in range(30_000)])
    killed = opener(corpus)
    while not list(folder.glob("*.tmp/passages.arrow")) and killed.poll() is None:
        time.sleep(0.005)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL and len(list(folder.glob("*.tmp"))) == 1
    both = [opener(corpus), opener(corpus)]
    assert [one.wait(100) for one in both] == [0, 0]
    assert sorted(path.suffix for path in folder.iterdir()) == ["", ".lock"]
    assert BM25Engine(corpus).rank(["number29999"], 3)[0][0][0].id == "29999"


def test_corpora_that_cannot_be_indexed_are_one_clear_error(folder, tmp_path, monkeypatch):
    with pytest.raises(DataError, match="nowhere.jsonl is missing"):
        BM25Engine(tmp_path / "nowhere.jsonl")
    with pytest.raises(EngineError, match="No passage of .*poor.jsonl has a word"):
        BM25Engine(written(tmp_path / "poor.jsonl", ["?", "!"]))
    assert not [path for path in folder.iterdir() if not path.suffix]
    monkeypatch.setenv("ZS_INDEXES", str(tmp_path / "poor.jsonl"))
    with pytest.raises(ConfigError, match="ZS_INDEXES"):
        BM25Engine(written(tmp_path / "fine.jsonl", ["Oslo"]))
