"""An HTTP client for services: many calls at once, bounded in time, attempts and size, no key in messages.

A service may have several addresses. A call goes to the replica with the fewest calls in flight, its next
attempt to another; a replica that does not answer is set aside for a while.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import re
import threading
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache, cached_property
from html.entities import html5
from random import Random
from typing import Any
from urllib.parse import urlencode, urlsplit

import httpx
from anyio.from_thread import start_blocking_portal
from requests.utils import get_environ_proxies, select_proxy

from zs_lib.errors import EngineError

TRANSIENT = {408, 425, 429, 500, 502, 503, 504}
"""Status codes that may be better next time; all others would be the same again."""
QUOTED = 200
"""Characters of a service's own words in an error."""
REST_S, LONGEST_REST_S = 60.0, 3600.0
"""Seconds that a replica is set aside: doubled each time, until it answers."""


@dataclass(frozen=True)
class Limits:
    """Bounds on the time and memory that a service may take."""

    concurrency: int = 8
    """Calls in flight at once, a replica."""
    attempts: int = 4
    """Attempts of one call at one replica, the first included."""
    attempt_s: float = 20.0
    """Seconds for one attempt, from connecting to the answer's last byte."""
    search_s: float = 600.0
    """Seconds for all calls of one search together."""
    first_wait_s: float = 0.5
    """Seconds before the second attempt; doubled for each further one."""
    longest_wait_s: float = 30.0
    """Most seconds between two attempts. A service that asks for more (`Retry-After`) is not asked again."""
    max_bytes: int = 1 << 20
    """Bytes of one answer."""


@dataclass(frozen=True)
class Call:
    """One request to a service: a GET with `params`, or a POST with a `body` (JSON). None of it is secret."""

    path: str
    params: dict[str, str | int] = field(default_factory=dict)
    body: dict | None = None

    def for_httpx(self) -> dict[str, Any]:
        """Make httpx's arguments besides the address. Lone surrogates, which no server takes, become "?"."""
        if self.body is None:
            return {"method": "GET", "params": urlencode(self.params, errors="replace")}
        content = json.dumps(self.body, ensure_ascii=False).encode(errors="replace")
        return {"method": "POST", "content": content, "headers": {"Content-Type": "application/json"}}


class Failed(Exception):
    """Why a call failed, with a cure, in one sentence for people.

    `by_content`: what was asked for may be the cause, so parts of it may fare better.
    """

    def __init__(self, sentence: str, by_content: bool = True):
        super().__init__(sentence)
        self.by_content = by_content


class _Transient(Exception):
    """An attempt that failed in a way that may pass; `silent`: there was no answer at all."""

    def __init__(self, cause: str, wait_s: float = 0.0, silent: bool = False, by_content: bool = False):
        super().__init__(cause)
        self.wait_s, self.silent, self.by_content = wait_s, silent, by_content


class _Replica:
    """One address of a service, and how it has done lately in all searches."""

    def __init__(self, address: str):
        self.address, self.lock = address.strip().rstrip("/"), threading.Lock()
        self.in_flight = self.asked = self.failures = 0
        self.rest_s = self.until = 0.0

    @property
    def rests(self) -> bool:
        """Whether it is set aside: not asked for `rest_s`, then by one call at a time until it answers."""
        return self.rest_s > 0 and (self.in_flight > 0 or time.monotonic() < self.until)

    @contextmanager
    def asking(self, attempts: int) -> Iterator[None]:
        """Count an attempt; set the replica aside after one without answer, or `attempts` failed in a row."""
        with self.lock:
            self.in_flight, self.asked = self.in_flight + 1, self.asked + 1
        try:
            yield
            self.failures, self.rest_s, self.until = 0, 0.0, 0.0
        except _Transient as failure:
            self.failures += 1
            resting = time.monotonic() < self.until
            if not resting and (failure.silent or self.failures >= attempts):
                self.rest_s = min(2 * self.rest_s or REST_S, LONGEST_REST_S)
                self.until = time.monotonic() + self.rest_s
            raise
        finally:
            with self.lock:
                self.in_flight -= 1


@dataclass(frozen=True)
class Service:
    """A service over HTTP; `fetch` may be called from several threads, and where an event loop runs."""

    name: str
    """Its name for people."""
    address: str
    """http(s)://host[:port][/path], without user, password or query; several replicas with commas between."""
    limits: Limits = Limits()
    headers: dict[str, str] = field(default_factory=dict, repr=False)
    key: str = field(default="", repr=False)
    """The secret; empty where none is needed."""
    key_names: str = ""
    """Environment variables of the key, which errors name."""
    key_parameter: str = ""
    """The URL parameter of the key, where it is not in the headers."""

    def __post_init__(self):
        if not all(_sound(replica.address) for replica in self.replicas):
            raise EngineError(  # which does not repeat it: it may hold a password
                f"The address of {self.name} is none that can be used: give http://HOST:PORT or "
                "https://HOST, without user, password or query."
            )

    @cached_property
    def replicas(self) -> tuple[_Replica, ...]:
        return tuple(map(_Replica, self.address.split(",")))

    def fetch(self, calls: Sequence[Call]) -> list[Any]:
        """Fetch the answers (JSON values) in the order of the calls; a `Failed` for a call that failed.

        Raises:
            EngineError: the service refuses the key: no other call could fare better.
        """
        if not calls:
            return []
        with start_blocking_portal() as portal:  # a thread with a loop of its own, for Jupyter's is busy
            return portal.call(self._fetch, calls)

    def failed(self, cause: str, cure: str, by_content: bool = True) -> Failed:
        """Make the failure of a call: what happened and what to do about it."""
        return Failed(f"{self.name}: {cause}; {cure}.", by_content)

    async def _fetch(self, calls: Sequence[Call]) -> list[Any]:
        slots = asyncio.Semaphore(self.limits.concurrency * len(self.replicas))
        deadline = asyncio.get_running_loop().time() + self.limits.search_s
        transports = {replica.address: _Transport(self, replica.address) for replica in self.replicas}
        # Uncompressed, so that what is read is no longer than what is sent.
        headers = {"Accept-Encoding": "identity"} | self.headers
        async with httpx.AsyncClient(
            mounts=transports, headers=headers, verify=_tls(), timeout=None, trust_env=False
        ) as client:
            try:
                async with asyncio.TaskGroup() as group:
                    answers = [self._answer(client, call, slots, deadline) for call in calls]
                    tasks = list(map(group.create_task, answers))
            except BaseExceptionGroup as several:
                raise several.exceptions[0] from None
        return [task.result() for task in tasks]

    async def _answer(
        self, client: httpx.AsyncClient, call: Call, slots: asyncio.Semaphore, deadline: float
    ) -> Any:
        try:
            async with asyncio.timeout_at(deadline), slots:
                return await self._try(client, call)
        except TimeoutError:
            return self.failed(
                f"the search was not over within {self.limits.search_s:g} s",
                "ask for less at once, or look whether the service is overloaded",
                by_content=False,
            )
        except Failed as failure:
            return failure

    async def _try(self, client: httpx.AsyncClient, call: Call) -> Any:
        """The answer of whichever replica has one; after all attempts Failed, which names each replica."""
        tries, due, failures, by_content = Counter(), {}, {}, False
        now = asyncio.get_running_loop().time
        while left := [replica for replica in self.replicas if tries[replica] < self.limits.attempts]:
            replica = min(left, key=lambda one: (one.rests, tries[one], one.in_flight, one.asked))
            try:
                with replica.asking(self.limits.attempts):
                    await asyncio.sleep(due.get(replica, 0.0) - now())
                    return await self._attempt(client, replica.address, call)
            except _Transient as failure:
                tries[replica] += 1
                by_content = by_content or failure.by_content
                cause = f"{failure} ({tries[replica]} attempts)"
                cure = f"check that {replica.address} is up and can be reached, then go on"
                if failure.wait_s > self.limits.longest_wait_s:
                    asks = f"{replica.address} wants to be left alone for {failure.wait_s:.0f} s"
                    cause = f"{failure}, and {asks}"
                    cure = "go on later, or with fewer runs side by side"
                    tries[replica] = self.limits.attempts
                failures[replica] = self.failed(cause, cure)
                due[replica] = now() + max(failure.wait_s, self._pause(call, tries[replica]))
        raise Failed(" ".join(map(str, failures.values())), by_content)

    def _pause(self, call: Call, attempt: int) -> float:
        """Seconds to wait: doubled each time, and spread by a draw that depends on call and attempt alone."""
        spread = Random(f"{call} {attempt}").uniform(0.5, 1.5)
        return min(self.limits.longest_wait_s, self.limits.first_wait_s * 2 ** (attempt - 1) * spread)

    async def _attempt(self, client: httpx.AsyncClient, address: str, call: Call) -> Any:
        """The JSON of one attempt; else Failed, _Transient or EngineError, none with words of httpx."""
        try:
            async with (
                asyncio.timeout(self.limits.attempt_s),
                client.stream(url=address + call.path, **call.for_httpx()) as answer,
            ):
                body = await self._read(answer)
        except TimeoutError:
            raise _Transient(f"no whole answer within {self.limits.attempt_s:g} s", silent=True) from None
        except (httpx.RequestError, httpx.InvalidURL) as error:
            proxy = _proxy(address)
            through = f" through the proxy {proxy.url}" if proxy else ""
            raise _Transient(f"no answer{through} ({type(error).__name__})", silent=True) from None
        if answer.status_code in (401, 403):
            known = f"put the right key into {self.key_names}"
            cure = known if self.key_names else "it turns this machine or network away"
            raise EngineError(f"{self.name} refuses to answer (HTTP {answer.status_code}): {cure}.")
        if answer.status_code in TRANSIENT:
            wait_s, broke = _retry_after(answer.headers.get("Retry-After", "")), answer.status_code == 500
            raise _Transient(f"HTTP {answer.status_code}", wait_s, by_content=broke)
        if not answer.is_success:
            said = self.quote(body.decode(errors="replace"))
            raise self.failed(
                f"HTTP {answer.status_code} ({said or 'nothing more'})",
                f"correct the address {address} or the request",
            )
        try:
            return json.loads(body)
        except (ValueError, RecursionError):
            raise self.failed("the answer is no JSON", f"check that {address} is what you meant") from None

    async def _read(self, answer: httpx.Response) -> bytes:
        body = bytearray()
        async for part in answer.aiter_raw():
            body += part
            if len(body) > self.limits.max_bytes:
                raise self.failed(
                    f"the answer is longer than {self.limits.max_bytes:,} bytes", "ask for fewer documents"
                )
        return bytes(body)

    def quote(self, words: str) -> str:
        """Quote a service's own words, short, on one line, without the key in case they repeat it."""
        return " ".join(self.hide_key(words).split())[:QUOTED]

    def hide_key(self, text: str) -> str:
        """Replace the key in a service's text, in whatever encoding it is echoed, by "[key]"."""
        return self._key_forms.sub("[key]", text) if self.key else text

    @cached_property
    def _key_forms(self) -> re.Pattern[str]:
        """The key as it stands, in base64 or hex, or with each character encoded on its own."""
        packed = b64encode(self.key.encode()).decode().rstrip("=")
        mixed = "".join(map(_character_forms, self.key))
        whole = [re.escape(packed) + "={0,2}", re.escape(self.key.encode().hex()), mixed]
        return re.compile("|".join(whole), re.IGNORECASE)


def _character_forms(character: str) -> str:
    """A pattern of one ASCII character: bare, or as URLs, JSON, HTML, Python and shells escape it."""
    code = ord(character)
    names = [name for name, stands_for in html5.items() if stands_for == character and name.endswith(";")]
    forms = [
        rf"\\*{re.escape(character)}",
        rf"%(?:25)*{code:02x}",
        rf"\\+(?:u00|x){code:02x}",
        rf"&(?:amp;)*#(?:0*{code}|x0*{code:x});?",
        *(f"&(?:amp;)*{re.escape(name)}" for name in names),
    ]
    return f"(?:{'|'.join(forms)})"


class _Transport(httpx.AsyncHTTPTransport):
    """Adds the key to the URL of a request on its way out: httpx's log and errors never show it."""

    def __init__(self, service: Service, address: str):
        try:
            super().__init__(verify=_tls(), proxy=_proxy(address))
        except ImportError:
            raise EngineError(
                "The environment's proxy speaks SOCKS, for which a package is missing: "
                "`pip install 'httpx[socks]'`, name an http:// proxy, or except the server by no_proxy."
            ) from None
        self.service = service

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if name := self.service.key_parameter:
            url = request.url.copy_add_param(name, self.service.key)
            rest = {"headers": request.headers, "stream": request.stream, "extensions": request.extensions}
            request = httpx.Request(request.method, url, **rest)
        return await super().handle_async_request(request)


_tls = cache(httpx.create_ssl_context)
"""One for all searches: to read the certificates takes 20 ms."""


def _sound(address: str) -> bool:
    try:
        url, parts = httpx.URL(address), urlsplit(address)  # each lets through what the other does not
        extra = url.userinfo or url.query or url.fragment
        return url.scheme in ("http", "https") and bool(parts.hostname) and not extra
    except (httpx.InvalidURL, ValueError):
        return False


def _proxy(address: str) -> httpx.Proxy | None:
    """The environment's proxy for an address by the rules of `requests`; none where the server is here.

    So all_proxy counts, a proxy without scheme is an http one, and no_proxy takes networks ("10.0.0.0/8").

    Raises:
        EngineError: the proxy cannot be used. It is not repeated, for it may hold a password.
    """
    host = httpx.URL(address).host
    if is_loopback(host) or host in ("0.0.0.0", "::"):
        return None
    try:
        named = select_proxy(address, get_environ_proxies(address))
        if not named:
            return None
        url = named if "://" in named else f"http://{named}"
        if not urlsplit(url).hostname:  # which raises on more than httpx does
            raise ValueError
        return httpx.Proxy(url)
    except (ValueError, httpx.InvalidURL):
        raise EngineError(
            "The environment's http_proxy, https_proxy or all_proxy is none that can be used: give "
            "http://HOST:PORT or socks5://HOST:PORT, or except the server by no_proxy."
        ) from None


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, reachable from itself alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _retry_after(header: str) -> float:
    """Seconds of a Retry-After header, a number or a date; 0 for anything else."""
    with suppress(ValueError):
        return max(0.0, float(header))
    with suppress(ValueError, TypeError):
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    return 0.0
