"""Asking a service over HTTP: many calls at once, each bounded in time, tries and size, and no key in any message."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from random import Random
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
from anyio.from_thread import start_blocking_portal

from zs_lib.errors import EngineError

PASSING = {408, 425, 429, 500, 502, 503, 504}
"""Answers that may be better the next time. All others would be the same again."""
QUOTED = 200
"""Characters of a service's own words in an error."""


@dataclass(frozen=True)
class Limits:
    """What a service may take of our time and memory."""

    concurrency: int = 8
    """Calls under way at once."""
    attempts: int = 4
    """Of one call, the first included."""
    attempt_s: float = 20.0
    """Seconds for one attempt, from connecting to the answer's last byte."""
    search_s: float = 600.0
    """Seconds for all calls of one search together."""
    first_wait_s: float = 0.5
    """Before the second attempt; it doubles with each further one."""
    longest_wait_s: float = 30.0
    """Between two attempts. A service that asks for more time (`Retry-After`) is not asked again."""
    max_bytes: int = 1 << 20
    """Of one answer."""


@dataclass(frozen=True)
class Call:
    """One request to a service: a GET with `params`, or a POST with a `body` (JSON). None of it is secret."""

    path: str
    params: dict[str, str | int] = field(default_factory=dict)
    body: dict | None = None

    def for_httpx(self) -> dict[str, Any]:
        """Arguments of httpx besides the address. Half surrogate pairs, which a model or a terminal may write and no
        server takes, become question marks."""
        if self.body is None:
            return {"method": "GET", "params": {name: str(value).encode(errors="replace").decode() for name, value in self.params.items()}}
        content = json.dumps(self.body, ensure_ascii=False).encode(errors="replace")
        return {"method": "POST", "content": content, "headers": {"Content-Type": "application/json"}}


class Failed(Exception):
    """Why a call brought nothing, with a cure, in one sentence for people."""


class _Again(Exception):
    """An attempt that failed in a way that may pass."""

    def __init__(self, cause: str, wait_s: float = 0.0):
        super().__init__(cause)
        self.wait_s = wait_s


@dataclass(frozen=True)
class Service:
    """Somebody who answers over HTTP. `fetch` may be called from several threads, and where an event loop runs."""

    name: str
    """For people."""
    address: str
    """http(s)://host[:port][/path], without user, password or query."""
    limits: Limits = Limits()
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    key: str = field(default="", repr=False)
    """Empty where none is needed."""
    key_names: str = ""
    """The environment variables that hold the key: what errors name."""
    key_parameter: str = ""
    """The parameter of the address that takes the key, where it does not stand in the headers."""

    def __post_init__(self):
        try:
            url, parts = httpx.URL(self.address), urlsplit(self.address)  # each lets through what the other does not
            sound = url.scheme in ("http", "https") and parts.hostname and not (url.userinfo or url.query or url.fragment)
        except (httpx.InvalidURL, ValueError):
            sound = False
        if not sound:  # it is not repeated: it may hold a password
            raise EngineError(f"The address of {self.name} is none that can be used: give http://HOST:PORT or "
                              "https://HOST, without user, password or query.")

    def fetch(self, calls: Sequence[Call]) -> list[Any]:
        """The answers (JSON values) in the order of the calls, or a `Failed` in the place of one.

        Raises EngineError at once if the service refuses the key: no other call could fare better.
        """
        if not calls:
            return []
        with start_blocking_portal() as portal:  # a thread with a loop of its own, for Jupyter's is busy
            return portal.call(self._fetch, calls)

    def failed(self, cause: str, cure: str) -> Failed:
        return Failed(f"{self.name}: {cause}; {cure}.")

    async def _fetch(self, calls: Sequence[Call]) -> list[Any]:
        slots = asyncio.Semaphore(self.limits.concurrency)
        deadline = asyncio.get_running_loop().time() + self.limits.search_s
        transport = _KeyedTransport(self)
        headers = {"Accept-Encoding": "identity"} | self.headers  # what is read is then no longer than what is sent
        async with httpx.AsyncClient(transport=transport, headers=headers, timeout=None) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(self._answer(client, call, slots, deadline)) for call in calls]
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _answer(self, client: httpx.AsyncClient, call: Call, slots: asyncio.Semaphore, deadline: float) -> Any:
        try:
            async with asyncio.timeout_at(deadline), slots:
                return await self._try(client, call)
        except TimeoutError:
            return self.failed(f"the search was not over within {self.limits.search_s:g} s", "ask for less at once, or "
                               "look whether the service is overloaded")
        except Failed as failure:
            return failure

    async def _try(self, client: httpx.AsyncClient, call: Call) -> Any:
        attempts = range(1, self.limits.attempts + 1)
        for attempt in attempts:
            try:
                return await self._attempt(client, call)
            except _Again as again:
                if again.wait_s > self.limits.longest_wait_s:
                    raise self.failed(f"{again}, and wants to be left alone for {again.wait_s:.0f} s",
                                      "go on later, or with fewer runs side by side") from None
                cause, wait_s = str(again), max(again.wait_s, self._pause(call, attempt))
            if attempt < attempts[-1]:
                await asyncio.sleep(wait_s)
        raise self.failed(f"{cause} ({len(attempts)} attempts)", f"check that {self.address} is up and can be reached, then "
                          "go on") from None

    def _pause(self, call: Call, attempt: int) -> float:
        """Seconds: doubled each time, and spread by a draw that depends on the call and the attempt alone."""
        spread = 0.5 + Random(f"{call} {attempt}").random()
        return min(self.limits.longest_wait_s, self.limits.first_wait_s * 2 ** (attempt - 1) * spread)

    async def _attempt(self, client: httpx.AsyncClient, call: Call) -> Any:
        """One attempt: the answer's JSON, else Failed, _Again or EngineError. No message of httpx is passed on."""
        try:
            async with (
                asyncio.timeout(self.limits.attempt_s),
                client.stream(url=self.address + call.path, **call.for_httpx()) as answer,
            ):
                body = await self._read(answer)
        except TimeoutError:
            raise _Again(f"no whole answer within {self.limits.attempt_s:g} s") from None
        except (httpx.RequestError, httpx.InvalidURL) as error:
            raise _Again(f"no answer ({type(error).__name__})") from None
        if answer.status_code in (401, 403):
            cure = f"put the right key into {self.key_names}" if self.key_names else "it turns this machine or network away"
            raise EngineError(f"{self.name} refuses to answer (HTTP {answer.status_code}): {cure}.")
        if answer.status_code in PASSING:
            raise _Again(f"HTTP {answer.status_code}", _retry_after(answer.headers.get("Retry-After", "")))
        if not answer.is_success:
            said = self.quote(body.decode(errors="replace"))
            raise self.failed(f"HTTP {answer.status_code} ({said or 'nothing more'})", "correct the address or the request")
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise self.failed("the answer is no JSON", f"check that {self.address} is what you meant") from None

    async def _read(self, answer: httpx.Response) -> bytes:
        body = bytearray()
        async for part in answer.aiter_raw():
            body += part
            if len(body) > self.limits.max_bytes:
                raise self.failed(f"the answer is longer than {self.limits.max_bytes:,} bytes", "ask for fewer documents")
        return bytes(body)

    def quote(self, words: str) -> str:
        """A service's own words, short, on one line, and without the key, should they repeat it."""
        for form in {self.key, quote(self.key, safe="")} - {""}:
            words = words.replace(form, "[key]")
        return " ".join(words.split())[:QUOTED]


class _KeyedTransport(httpx.AsyncHTTPTransport):
    """Puts the key into a request on its way out: httpx's log and exceptions, which tell addresses, never see it."""

    def __init__(self, service: Service):
        url = httpx.URL(service.address)  # httpx looks for proxies only where it has its own transport
        direct = is_loopback(url.host) or urllib.request.proxy_bypass(url.host)
        super().__init__(proxy=None if direct else urllib.request.getproxies().get(url.scheme))
        self.service = service

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.service.key_parameter:
            return await super().handle_async_request(request)
        url = request.url.copy_add_param(self.service.key_parameter, self.service.key)
        keyed = httpx.Request(request.method, url, headers=request.headers, stream=request.stream, extensions=request.extensions)
        return await super().handle_async_request(keyed)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine, seen from itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _retry_after(header: str) -> float:
    """Seconds of a Retry-After header, which is a number or a date; 0 for anything else."""
    try:
        return max(0.0, float(header))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return 0.0
