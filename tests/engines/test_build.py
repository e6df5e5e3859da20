"""Engines by name, and what an unknown or incomplete one is told."""

import pytest

from zs_lib import config
from zs_lib.engines import build_engine
from zs_lib.engines.bm25 import BM25Engine
from zs_lib.engines.http import SerpApiEngine, WikiRetrieverEngine
from zs_lib.engines.wrappers import CachedEngine
from zs_lib.errors import EngineError


def test_unknown_engines_are_refused_with_the_known_ones():
    with pytest.raises(
        EngineError,
        match="'google'.*bm25, bm25.factbook, dense, dense:MODEL, serpapi, serper, wikipedia, "
        "search-r1:URL, zerosearch-wiki:URL, python:MODULE.FUNCTION, simulated, openai:URL",
    ):
        build_engine("google")
    with pytest.raises(EngineError, match="needs a simulator"):
        build_engine("simulated")
    with pytest.raises(EngineError, match="no passages"):
        BM25Engine([])


def test_training_searches_thepassages_of_its_split_only():
    everything, train = build_engine("bm25"), build_engine("bm25", split="train")
    assert 0 < len(train.passages) < len(everything.passages) and build_engine("bm25", split="train") is train


def test_engines_by_name(keys, monkeypatch, tmp_path):
    monkeypatch.setenv("ZS_SEARCH_CACHE", str(tmp_path))
    monkeypatch.setenv("ZS_SEARCH_BUDGET", "0.02")
    engine = build_engine("serpapi")
    assert isinstance(engine, CachedEngine) and (engine.folder, engine.engine.max_usd) == (tmp_path, 0.02)
    assert isinstance(engine.engine.engine, SerpApiEngine) and build_engine("wikipedia").name == "wikipedia"
    assert build_engine("search-r1:http://127.0.0.1:1").service.address == "http://127.0.0.1:1"
    assert isinstance(build_engine("zerosearch-wiki:http://127.0.0.1:1"), WikiRetrieverEngine)
    arm = config.load_profile("tiny").simulators[0]
    served = build_engine("openai:llama3.2:3b@http://127.0.0.1:1", simulator=arm)
    assert (served.model, served.service.address, served.arm) == ("llama3.2:3b", "http://127.0.0.1:1", arm)
    assert (
        len(build_engine("openai:M@http://127.0.0.1:1,http://127.0.0.1:2/v1", simulator=arm).service.replicas)
        == 2
    )
    with pytest.raises(EngineError, match="needs a simulator's arm"):
        build_engine("openai:http://127.0.0.1:1")
    for budget in ("lots", "nan", "-1"):
        monkeypatch.setenv("ZS_SEARCH_BUDGET", budget)
        with pytest.raises(EngineError, match="number of dollars"):
            build_engine("serper")
    for name in ("search-r1", "serpapi:http://x", "bing:http://x"):
        with pytest.raises(
            EngineError,
            match="Unknown search engine .*serpapi, serper, wikipedia, search-r1:URL, "
            "zerosearch-wiki:URL, python:MODULE.FUNCTION, simulated, openai:URL",
        ):
            build_engine(name)
