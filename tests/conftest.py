"""Fixtures for every test: a run store of its own, never the checkout's."""

import pytest

from zs_lib.runs import RunStore


@pytest.fixture
def store(tmp_path, monkeypatch) -> RunStore:
    """An empty run store, which child processes and the console script find too."""
    monkeypatch.setenv("ZS_RUNS", str(tmp_path / "runs"))
    return RunStore()
