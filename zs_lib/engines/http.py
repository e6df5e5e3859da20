"""Search engines over HTTP: retrievers, search APIs, and simulators on OpenAI-compatible servers.

Keys come from the environment. A failed search is a result with status "failed" and an error that names the
service, the cause and the cure; a missing or refused key is an EngineError.
"""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from zs_lib import __version__, protocol
from zs_lib.config import paths
from zs_lib.config.arms import SimulatorArm
from zs_lib.engines.base import EngineSpec, SearchEngine, SearchRequest, SearchResult
from zs_lib.engines.client import Call, Failed, Limits, Service
from zs_lib.engines.simulated import SYSTEM, simulator_prompt, stop_string
from zs_lib.engines.wrappers import BudgetedEngine, CachedEngine
from zs_lib.errors import EngineError
from zs_lib.qa.forms import titled
from zs_lib.rng import Key, seeded

SERPAPI_KEYS = ("SERPAPI_API_KEY", "SER_API_KEY")
"""The second name is the original's."""
SERPER_KEYS = ("SERPER_API_KEY",)
SECRET_LENGTH = 8
"""Keys of fewer characters are hidden in errors, not in documents."""
SERVER_KEYS = ("ZS_SERVE_TOKEN",)
"""Sent to servers whose address the user gives; `zs serve` asks for it."""


class HttpEngine(SearchEngine, ABC):
    """A search engine behind a `Service`: how to ask it, and how to read its answer."""

    usd_per_query = 0.0
    """Price of a query in dollars."""
    together = 1
    """Requests of one call."""

    def __init__(self, name: str, service: Service):
        self.name, self.service = name, service
        if self.together == 1:  # else calls are full only where the requests of many rollouts come at once
            self.lanes = service.limits.concurrency * len(service.replicas)

    def search(self, requests: Sequence[SearchRequest], num_documents: int) -> list[SearchResult]:
        """Search; where the requests of one call fail together, make each alone: one may be the cause."""
        results: list[SearchResult | None] = [None] * len(requests)
        for together in (self.together, 1):
            left = [place for place, result in enumerate(results) if result is None]
            groups = [left[start : start + together] for start in range(0, len(left), together)]
            calls = [self._call([requests[place] for place in group], num_documents) for group in groups]
            for group, answer in zip(groups, self.service.fetch(calls), strict=True):
                try:
                    found = self._read(answer, len(group), num_documents)
                except Failed as failed:
                    alone = failed.by_content and len(group) > 1
                    found = [None if alone else SearchResult.failed(failed)] * len(group)
                for place, result in zip(group, found, strict=True):
                    results[place] = result
        return results

    def _read(self, answer: Any, count: int, num_documents: int) -> list[SearchResult]:
        if isinstance(answer, Failed):
            raise answer
        try:
            lists = self._documents(answer, num_documents)
            if len(lists) != count:
                raise ValueError
            # A page or a proxy may echo the request; a short key may be an ordinary word of documents.
            hidden = self.service.hide_key if len(self.service.key) >= SECRET_LENGTH else str
            return [
                SearchResult.of([hidden(text) for text in map(str.strip, texts) if text][:num_documents])
                for texts in lists
            ]
        except (LookupError, TypeError, AttributeError, ValueError):
            raise self.service.failed(
                "the answer has another form than expected",
                f"check that the address is a server for '{self.name.partition(':')[0]}'",
            ) from None

    @abstractmethod
    def _call(self, group: Sequence[SearchRequest], num_documents: int) -> Call:
        """The call for a group of requests."""

    @abstractmethod
    def _documents(self, answer: Any, num_documents: int) -> list[list[str]]:
        """The documents of each request of a group; any exception on an answer of the wrong form."""


class SearchR1Engine(HttpEngine):
    """Search-R1's retriever: POST /retrieve {"queries", "topk", "return_scores"}."""

    together = 8

    def __init__(self, address: str, limits: Limits = Limits()):
        super().__init__(f"search-r1:{address}", own_server("the Search-R1 retriever", address, limits))

    def _call(self, group, num_documents):
        # With scores, as Search-R1's own client: its server is known to fail without.
        body = {"queries": [request.query for request in group], "topk": num_documents, "return_scores": True}
        return Call("/retrieve", body=body)

    def _documents(self, answer, num_documents):
        """The items are {"document": …, "score": …}, or bare documents."""
        return [[item.get("document", item)["contents"] for item in items] for items in answer["result"]]


class WikiRetrieverEngine(HttpEngine):
    """ZeroSearch's wiki retriever: POST /retrieve {"query", "top_k"} → [{"text"}]."""

    def __init__(self, address: str, limits: Limits = Limits()):
        super().__init__(f"zerosearch-wiki:{address}", own_server("the wiki retriever", address, limits))

    def _call(self, group, num_documents):
        return Call("/retrieve", body={"query": group[0].query, "top_k": num_documents})

    def _documents(self, answer, num_documents):
        return [[item["text"] for item in answer]]


class SerpApiEngine(HttpEngine):
    """Google through SerpAPI, as in the paper: titles and snippets of the organic results."""

    usd_per_query = 0.015
    """75 dollars for 5,000 (November 2026); larger plans cost less."""

    def __init__(self, address: str = "https://serpapi.com", limits: Limits = Limits()):
        key, names = _key("SerpAPI", SERPAPI_KEYS), " or ".join(SERPAPI_KEYS)
        super().__init__("serpapi", Service("SerpAPI", address, limits, {}, key, names, "api_key"))

    def _call(self, group, num_documents):
        return Call("/search.json", {"engine": "google", "q": group[0].query, "num": num_documents})

    def _documents(self, answer, num_documents):
        found, error = answer.get("organic_results"), answer.get("error", "")
        if found is None and error and not re.search("returned any results|no results", error, re.I):
            said = self.service.quote(error)
            raise self.service.failed(f"an error ({said})", "see the account at SerpAPI, or go on later")
        return [[titled(item.get("title"), item.get("snippet")) for item in found or ()]]


class SerperEngine(HttpEngine):
    """Google through Serper: titles and snippets of the organic results, comparable with SerpAPI."""

    usd_per_query = 0.001
    """The most expensive plan (November 2026)."""

    def __init__(self, address: str = "https://google.serper.dev", limits: Limits = Limits()):
        key = _key("Serper", SERPER_KEYS)
        service = Service("Serper", address, limits, {"X-API-KEY": key}, key, SERPER_KEYS[0])
        super().__init__("serper", service)

    def _call(self, group, num_documents):
        return Call("/search", body={"q": group[0].query, "num": num_documents})

    def _documents(self, answer, num_documents):
        return [[titled(item.get("title"), item.get("snippet")) for item in answer["organic"]]]


class WikipediaEngine(HttpEngine):
    """Wikipedia's public API: the pages that its search finds, each as the beginning of its introduction."""

    PAGES, QUERY, EXTRACT = 20, 300, 700
    """Most pages, characters of a query, and characters of an extract (a passage's usual length)."""

    def __init__(self, address: str = "https://en.wikipedia.org", limits: Limits = Limits(concurrency=2)):
        agent = f"zerosearch-workbench/{__version__} (https://arxiv.org/abs/2505.04588)"
        super().__init__("wikipedia", Service("Wikipedia", address, limits, {"User-Agent": agent}))

    def _call(self, group, num_documents):
        pages = min(num_documents, self.PAGES)
        answer = {"action": "query", "format": "json", "formatversion": 2}
        found = {"generator": "search", "gsrsearch": group[0].query[: self.QUERY], "gsrlimit": pages}
        text = {"exintro": 1, "explaintext": 1, "exchars": self.EXTRACT, "exlimit": pages}
        return Call("/w/api.php", answer | found | {"prop": "extracts"} | text)

    def _documents(self, answer, num_documents):
        if "error" in answer:
            said = self.service.quote(answer["error"]["info"])
            raise self.service.failed(f"an error ({said})", "go on later")
        pages = sorted(answer.get("query", {}).get("pages", ()), key=lambda page: page["index"])
        return [[titled(page["title"], page["extract"]) for page in pages if page.get("extract")]]


class OpenAIEngine(HttpEngine):
    """A simulator on any OpenAI-compatible server (vLLM, SGLang, Ollama, `zs serve simulator`).

    Prompted, sampled and read like `SimulatedEngine`, but with the server's randomness: it gets a `seed` that
    is a function of the request's key (servers that know none ignore it). `tokens` as there. A server other
    than ours refuses it if the model's template knows no system message (Gemma 2), for it gets an empty one.
    """

    def __init__(
        self,
        address: str,
        arm: SimulatorArm,
        model: str = "",
        limits: Limits = Limits(concurrency=32, attempt_s=120.0),
    ):
        """`model` is a name that the server knows; empty: the only model that it has.

        Several servers (addresses with commas between) must all know it.

        Raises:
            EngineError: none can be asked for its models, or it has several and none is named.
        """
        address = ",".join(one.strip().rstrip("/").removesuffix("/v1") for one in address.split(","))
        super().__init__(f"openai:{address}", own_server("the simulator's server", address, limits))
        self.arm, self.tokens, self.model = arm, 0, model or self._only_model()
        self.lanes = 0  # its runs keep their bits, and a simulator that is busy all the time gains nothing

    def _call(self, group, num_documents):
        # How the server encodes special tokens that a text spells is not known: it gets none.
        prompt = protocol.neutralise(simulator_prompt(group[0], num_documents, self.arm.template))
        # Only where it is needed: other servers than vLLM's, SGLang's and ours may refuse the field.
        thinking = {} if self.arm.thinking else {"chat_template_kwargs": {"enable_thinking": False}}
        return Call(
            "/v1/chat/completions",
            body={
                "model": self.model,
                "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}],
                "temperature": self.arm.temperature,
                "max_tokens": self.arm.max_tokens,
                "stop": [stop_string(num_documents)],
                "seed": seed_of(group[0].key),
            }
            | thinking,
        )

    def _documents(self, answer, num_documents):
        text = answer["choices"][0]["message"]["content"] or ""  # null where all tokens went into a thought
        self.tokens += (answer.get("usage") or {}).get("completion_tokens", 0)
        return [protocol.parse_documents(text, num_documents)]

    def _only_model(self) -> str:
        answer = self.service.fetch([Call("/v1/models")])[0]
        if isinstance(answer, Failed):
            raise EngineError(str(answer))
        try:
            names = [model["id"] for model in answer["data"]]
        except (LookupError, TypeError):
            problem = "does not list its models"
        else:
            if len(names) == 1:
                return names[0]
            known = self.service.quote(", ".join(map(str, names))) or "none"
            problem = f"has not one model but {len(names)} ({known})"
        raise EngineError(f"{self.service.address} {problem}: name one, openai:MODEL@URL.")


def seed_of(key: Key) -> int:
    """Draw 31 bits that depend on the key alone: a seed that every server takes."""
    return seeded(key).getrandbits(31)


def own_server(name: str, address: str, limits: Limits) -> Service:
    """A server, or several replicas, at the user's address; it gets the token, if the environment has one."""
    token = read_key(SERVER_KEYS)
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Service(name, address, limits, headers, token, SERVER_KEYS[0])


def _key(service: str, names: tuple[str, ...]) -> str:
    key = read_key(names)
    if not key:
        raise EngineError(f"{service} needs a key: put it into the environment's {' or '.join(names)}.")
    return key


def read_key(names: tuple[str, ...]) -> str:
    """Read the first of these environment variables that is set; EngineError if no header can hold it."""
    key = next(filter(None, (os.environ.get(name, "").strip() for name in names)), "")
    if not (key.isascii() and key.isprintable()):
        raise EngineError(
            f"The environment's {' or '.join(names)} holds characters that no key has: set it again."
        )
    return key


RETRIEVERS = {"search-r1": SearchR1Engine, "zerosearch-wiki": WikiRetrieverEngine}
SEARCH_APIS = {"serpapi": SerpApiEngine, "serper": SerperEngine, "wikipedia": WikipediaEngine}


def build(spec: EngineSpec) -> SearchEngine:
    """Build a retriever or a simulator at the spec's address, or a search API behind a cache and a budget.

    Raises:
        EngineError: a key, the simulator's arm or a valid budget is missing.
    """
    if spec.kind in RETRIEVERS:
        return RETRIEVERS[spec.kind](spec.address)
    if spec.kind in SEARCH_APIS:
        cache = Path(os.environ.get("ZS_SEARCH_CACHE") or paths.ROOT / "data" / "search_cache")
        return CachedEngine(BudgetedEngine(SEARCH_APIS[spec.kind](), max_usd=_budget()), cache)
    if spec.simulator is None:
        raise EngineError(
            "The engine 'openai' needs a simulator's arm: its template, temperature and max_tokens."
        )
    model, _, address = spec.address.rpartition("@")
    return OpenAIEngine(address, spec.simulator, model)


def _budget() -> float:
    given = os.environ.get("ZS_SEARCH_BUDGET", "10")
    with suppress(ValueError):
        if (usd := float(given)) >= 0:
            return usd
    raise EngineError(f"The environment's ZS_SEARCH_BUDGET is {given!r}: give a number of dollars.")
