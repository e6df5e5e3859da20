"""The environment's keys for search services, which tests must not take from the user."""

import pytest
from http_fixtures import KEY

from zs_lib.engines import http


@pytest.fixture(autouse=True)
def no_keys(monkeypatch):
    """No key of the user's own is found."""
    for name in (*http.SERPAPI_KEYS, *http.SERPER_KEYS, *http.SERVER_KEYS):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def keys(no_keys, monkeypatch):
    """A key for each service that asks for one."""
    for name in (http.SERPAPI_KEYS[0], http.SERPER_KEYS[0], http.SERVER_KEYS[0]):
        monkeypatch.setenv(name, KEY)
