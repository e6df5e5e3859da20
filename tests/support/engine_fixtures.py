"""A small corpus, and requests to search it."""

from zs_lib.engines import SearchRequest

TEXTS = [
    "The capital of France is Paris.",
    "The capital of Spain is Madrid.",
    "Lyon is a city in the country of France.",
    "Vigo is a city by the sea.",
    "Gijon is a city by the sea.",
]


def ask(query: str, **kwargs) -> SearchRequest:
    return SearchRequest(query, "which?", ("Paris",), **kwargs)
