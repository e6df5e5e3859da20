"""The search engines by name: one row an engine, which profiles, `zs serve`, the playground and help all
read.

To add one: a row here, and a file in `zs_lib/engines/` whose `build(spec)` makes it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class EngineRow:
    """One kind of engine, as profiles and the command line name it."""

    name: str
    """The name that people write; after a colon stands what it takes: URL, MODEL, MODULE.FUNCTION."""
    module: str
    """The file in `zs_lib/engines/` that makes it."""
    simulates: bool = False
    """A simulator writes the documents; else they are found (a "real" engine)."""
    from_store: bool = False
    """Its simulator is a run of the store, rather than somebody else's server."""
    ranks: bool = False
    """Ranks passages with scores on this machine, so `zs serve retriever` can serve it."""


ROWS = (
    EngineRow("bm25", "bm25", ranks=True),
    EngineRow("bm25+factbook", "bm25"),
    EngineRow("dense", "dense", ranks=True),
    EngineRow("dense:MODEL", "dense", ranks=True),
    EngineRow("serpapi", "http"),
    EngineRow("serper", "http"),
    EngineRow("wikipedia", "http"),
    EngineRow("search-r1:URL", "http"),
    EngineRow("zerosearch-wiki:URL", "http"),
    EngineRow("python:MODULE.FUNCTION", "custom"),
    EngineRow("simulated", "simulated", simulates=True, from_store=True),
    EngineRow("openai:URL", "http", simulates=True),
    EngineRow("mixed", "wrappers", simulates=True, from_store=True),
    EngineRow("self", "simulated", simulates=True),
)
"""URL is the address of a server, like http://127.0.0.1:8000, or of several that answer alike, as URL,URL;
for openai also MODEL@URL."""
_BY_KIND = {(row.name.partition(":")[0], ":" in row.name): row for row in ROWS}


def find_engine(name: str) -> EngineRow | None:
    """Find the row of an engine's name, whatever its address; None if there is no such engine."""
    kind, _, address = name.partition(":")
    return _BY_KIND.get((kind, bool(address)))


def without_address(name: str) -> str:
    """Replace the address in an engine's name by URL, or what else it takes: an address may be private."""
    row = find_engine(name)
    return row.name if row else name


def engine_names(**flags: bool) -> list[str]:
    """List the engines whose rows have these values: engine_names(simulates=False)."""
    return [row.name for row in ROWS if all(getattr(row, flag) == value for flag, value in flags.items())]


def simulates(name: str) -> bool:
    """Tell whether a simulator writes this engine's documents; False for "none" and unknown names."""
    row = find_engine(name)
    return row is not None and row.simulates


def from_store(name: str) -> bool:
    """Tell whether an engine's simulator is a run of the store, which must be made first."""
    row = find_engine(name)
    return row is not None and row.from_store
