"""A small corpus, requests to search it, and an engine that always finds the same."""

from dataclasses import replace

from zs_lib import config
from zs_lib.config.arms import SimulatorArm
from zs_lib.engines import SearchRequest, SearchResult

TEXTS = [
    "The capital of France is Paris.",
    "The capital of Spain is Madrid.",
    "Lyon is a city in the country of France.",
    "Vigo is a city by the sea.",
    "Gijon is a city by the sea.",
]


def ask(query: str, **kwargs) -> SearchRequest:
    return SearchRequest(query, "which?", ("Paris",), **kwargs)


class FixedEngine:
    """Answers every query with the first of its documents, or fails; keeps the requests."""

    name = "fixed"

    def __init__(self, *documents: str, failing: bool = False):
        self.documents, self.failing, self.requests = documents, failing, []

    @property
    def queries(self) -> list[str]:
        return [request.query for request in self.requests]

    def search(self, requests, num_documents) -> list[SearchResult]:
        self.requests += requests
        found = SearchResult.of(self.documents[:num_documents])
        return [replace(found, status="failed", error="down") if self.failing else found for _ in requests]


def simulator_arm(template: str = "paper", temperature: float = 0.8, max_tokens: int = 60) -> SimulatorArm:
    """A simulator that is prompted and sampled as told."""
    arm = config.load_profile("tiny").simulators[0]
    return replace(arm, template=template, temperature=temperature, max_tokens=max_tokens)
