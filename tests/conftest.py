"""Fixtures for every test: a run store and indexes of its own, never the checkout's."""

import os
import signal

import pytest

from zs_lib.runs import RunStore

# One thread a process, as in `make test`: tests run side by side, and start processes of their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A process in the background of a script is started deaf to Ctrl-C, and so are its children: the tests that
# send it need both to hear.
signal.signal(signal.SIGINT, signal.default_int_handler)


SLOWEST = (
    "test_notebooks",
    "test_suggestions",
    "test_bench",
    "test_train",
    "test_trl_train",
    "test_trl_rollouts",
    "test_serve",
    "test_figures",
)
"""Files that take longest, first: one of them at the end would leave a process of `make test` idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: place for place, name in enumerate(SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


def pytest_make_parametrize_id(val: object) -> str | None:
    """Name bytes by their number: a gzip's contain the second in which it was made, and the two processes of
    `make test` must collect the same names."""
    return f"{len(val)} bytes" if isinstance(val, bytes) else None


@pytest.fixture(scope="session", autouse=True)
def indexes(tmp_path_factory) -> None:
    """A folder for the indexes of corpora."""
    os.environ["ZS_INDEXES"] = str(tmp_path_factory.mktemp("indexes"))


@pytest.fixture
def store(tmp_path, monkeypatch) -> RunStore:
    """An empty run store, which child processes and the console script find too."""
    monkeypatch.setenv("ZS_RUNS", str(tmp_path / "runs"))
    return RunStore()
