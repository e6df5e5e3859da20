"""Search engines behind one interface."""

from zs_lib.engines.base import SearchEngine, SearchRequest, SearchResult
from zs_lib.engines.build import build_engine
