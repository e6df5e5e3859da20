"""Build an engine by its name."""

from __future__ import annotations

from importlib import import_module

from zs_lib.config.engines import engine_names, find_engine
from zs_lib.engines.base import EngineSpec, SearchEngine
from zs_lib.errors import EngineError


def build_engine(name: str, **parts) -> SearchEngine:
    """Build an engine of `config.engines.ROWS` by name; `parts` are fields of `EngineSpec`.

    - "bm25": the embedded benchmark's passages, those of one `split` (training must not search test facts) or
      all, or `passages` of your own; the index of a corpus file is kept in ZS_INDEXES (data/indexes).
    - "bm25+factbook": these, and the World Factbook's prose about the same countries.
    - "dense": the benchmark's passages by latent semantic vectors; "dense:MODEL": by those of a
      sentence-embedding model, like sentence-transformers/all-MiniLM-L6-v2.
    - "simulated": the simulator in the folder `model` (or so named), prompted and sampled as `simulator`
      says.
    - "mixed": that one, and BM25 for `real_share` of the queries.
    - "self": the policy itself as the simulator; only a training has it (`simulator.living`).
    - "openai:[MODEL@]URL[,URL…]": a simulator on OpenAI-compatible servers, prompted and sampled likewise.
    - "python:MODULE.FUNCTION": your function from (queries, number) to a list of documents for each query.
    - "search-r1:URL", "zerosearch-wiki:URL": retrievers; `zs serve retriever` is one of the first kind.
    - "serpapi", "serper" (Google, with a key, for money), "wikipedia": answers are kept in ZS_SEARCH_CACHE
      (data/search_cache), and each process may spend ZS_SEARCH_BUDGET dollars (10).

    Raises:
        EngineError: there is no such engine (it lists the known ones), or something that it needs is missing.
    """
    row = find_engine(name)
    if row is None:
        raise EngineError(f"Unknown search engine '{name}'. Known: {', '.join(engine_names())}.")
    # Only the file of this engine is imported: a simulator's needs torch, a served one's httpx.
    return import_module(f"zs_lib.engines.{row.module}").build(EngineSpec(name, **parts))
