"""Fixtures for the tests of `zs serve`: a small corpus and model, and a server of each, for all its files."""

import json

import pytest
from model_fixtures import tiny_model, tiny_tokenizer
from serve_fixtures import CORPUS, serving


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in CORPUS))
    return path


@pytest.fixture(scope="session")
def retriever(corpus):
    with serving("retriever", "--corpus", str(corpus), ZS_SERVE_TOKEN="") as served:
        yield served


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "tiny"
    tiny_model().save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def anyio_backend() -> str:
    """The servers are asyncio's, also where trio is installed (selenium brings it)."""
    return "asyncio"


@pytest.fixture(scope="session")
def simulator(folder):
    with serving("simulator", "--model", str(folder), ZS_SERVE_TOKEN="") as served:
        yield served
