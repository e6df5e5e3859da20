"""A function of your own as an engine."""

import sys

import pytest

from zs_lib.engines import SearchRequest, SearchResult, build_engine
from zs_lib.errors import EngineError


def test_a_function_of_one_s_own_is_an_engine(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "mine", raising=False)  # of another test
    (tmp_path / "mine.py").write_text(
        "def good(queries, num_documents):\n    return [[query] * 9 for query in queries]\n"
        "def bad(queries, num_documents):\n    return queries\n"
        "def raising(queries, num_documents):\n    return queries['no']\n"
    )
    monkeypatch.chdir(tmp_path)
    requests = [SearchRequest(query, "", ()) for query in ("a", "b")]
    assert build_engine("python:mine.good").search(requests, 2) == [
        SearchResult(("a", "a"), "ok"),
        SearchResult(("b", "b"), "ok"),
    ]
    with pytest.raises(EngineError, match="list of texts for each query"):
        build_engine("python:mine.bad").search(requests, 2)
    with pytest.raises(EngineError, match=r"'python:mine.raising' failed \(TypeError"):
        build_engine("python:mine.raising").search(requests, 2)
    for name in ("python:mine.gone", "python:gone.good", "python:mine"):
        with pytest.raises(EngineError, match=f"'{name}' cannot be imported"):
            build_engine(name)
