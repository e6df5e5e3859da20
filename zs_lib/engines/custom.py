"""Your own engine: a Python function, found by its name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Sequence

from zs_lib.engines.base import EngineSpec, SearchEngine, SearchRequest, SearchResult
from zs_lib.errors import EngineError, ZeroSearchError


def find_function(name: str, kind: str, error: type[ZeroSearchError]) -> Callable:
    """Import the function "module.function"; the module may lie in the working directory.

    Raises `error`, which calls it by its `kind`, if there is none.
    """
    module, _, function = name.rpartition(".")
    if "" not in sys.path:
        sys.path.append("")
    try:
        return getattr(importlib.import_module(module), function)
    except Exception as cause:  # whatever happens in a module of yours
        raise error(
            f"The {kind} 'python:{name}' cannot be imported ({cause}): name a function as "
            "python:MODULE.FUNCTION."
        ) from cause


class CustomEngine(SearchEngine):
    """Calls `function(queries, num_documents)`, which gives a list of texts for each query, best first.

    `name` is "module.function".

    Raises:
        EngineError: there is no such function; in a search, it raised something, or returned something else.
    """

    def __init__(self, name: str):
        self.name = name
        self._function = find_function(name, "engine", EngineError)

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        try:
            found = self._function([request.query for request in requests], num_documents)
        except Exception as error:
            raise EngineError(
                f"The engine 'python:{self.name}' failed ({type(error).__name__}: {error}): correct it."
            ) from error
        lists = isinstance(found, list) and all(isinstance(documents, list) for documents in found)
        texts = lists and all(isinstance(text, str) for documents in found for text in documents)
        if not texts or len(found) != len(requests):
            raise EngineError(
                f"The engine 'python:{self.name}' must give a list with a list of texts for each query."
            )
        return [SearchResult.of(documents[:num_documents]) for documents in found]


def build(spec: EngineSpec) -> CustomEngine:
    """Build the engine of the function that the spec names."""
    return CustomEngine(spec.address)
