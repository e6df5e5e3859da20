"""Answer requests with JSON over HTTP, and check whatever is sent."""

from __future__ import annotations

import asyncio
import hmac
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any
from urllib.parse import urlsplit

import anyio
from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from zs_lib.engines.client import is_loopback
from zs_lib.tools.serving.connections import READ_S

HEALTH = "/health"
MAX_BODY = 1 << 20
"""Bytes of a request, where an application sets no other limit."""
SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
"""JSON's escape for a half of a surrogate pair."""
MAX_REQUESTS = 512
"""Requests that are being answered, or wait for it; further ones are refused (503)."""


class Refused(HTTPException):
    """A request is refused, with an HTTP status and a reason."""


Answer = dict | list | Response
"""An endpoint's answer: JSON, or a response of its own, such as a stream."""


def json_application(
    posts: dict[str, Callable[[dict], Awaitable[Answer]]],
    gets: dict[str, dict],
    token: str,
    lifespan: Callable | None = None,
    max_body: int = MAX_BODY,
) -> Starlette:
    """Build an application that answers with JSON.

    `posts` maps paths to functions of the request's object, `gets` maps paths to the answers themselves,
    `max_body` limits the bytes of a request. If `token` is not empty, requests must have it as their bearer
    token, but for GET /health, which what watches servers asks without (as with vLLM).
    """

    active = 0

    def get(path: str, value: dict) -> Callable:
        async def answer(_: Request) -> Answer:
            return value

        return _guarded(answer, "" if path == HEALTH else token)

    def post(make: Callable[[dict], Awaitable[Answer]]) -> Callable:
        async def answer(request: Request) -> Answer:
            nonlocal active
            fields = await _body(request, max_body)
            if active >= MAX_REQUESTS:
                raise Refused(503, f"{MAX_REQUESTS} requests are being answered: send it again later")
            active += 1
            try:
                return await _while_connected(request, make(fields))
            finally:
                active -= 1

        return _guarded(answer, token)

    routes = [Route(path, post(make), methods=["POST"]) for path, make in posts.items()]
    routes += [Route(path, get(path, value)) for path, value in ({HEALTH: {}} | gets).items()]
    return Starlette(routes=routes, exception_handlers={HTTPException: _http_error}, lifespan=lifespan)


def _guarded(answer: Callable[[Request], Awaitable[Answer]], token: str) -> Callable:
    """Build an endpoint: check the token, then answer."""

    async def guarded(request: Request) -> Response:
        try:
            sent = request.headers.get("Authorization", "")
            if token and not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
                raise Refused(401, "send the server's token with the request: 'Authorization: Bearer …'")
            given = await answer(request)
            return given if isinstance(given, Response) else JSONResponse(given)
        except asyncio.CancelledError:
            raise Refused(503, "the server is stopping") from None

    return guarded


class EventStream(StreamingResponse):
    """Server-sent events; a server that stops ends them with an error."""

    def __init__(self, events: AsyncIterator[str]):
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        except asyncio.CancelledError:
            last = event({"error": {"message": "the server is stopping"}}).encode()
            await send({"type": "http.response.body", "body": last, "more_body": False})


def event(value: dict) -> str:
    """Write a JSON value as a server-sent event."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


async def _while_connected(request: Request, answer: Awaitable[Answer]) -> Answer:
    """Await an answer; cancel it when the client leaves."""

    async def leaves() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    work, left = asyncio.ensure_future(answer), asyncio.ensure_future(leaves())
    try:
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise Refused(503, "the client has left")
        return work.result()
    finally:
        work.cancel()
        left.cancel()


def _error(status: int, reason: str) -> JSONResponse:
    """A refusal in OpenAI's form."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error = {"message": reason, "type": kind, "param": None, "code": status}
    return JSONResponse({"error": error}, status, {"Retry-After": "1"} if status == 503 else None)


class LoopbackOnly:
    """ASGI middleware for a server on a loopback address: only programs of this machine are answered.

    A web page can send requests to it by the user's browser: under a host name of its own (DNS rebinding), or
    as a foreign origin. Both are refused; pages of this machine, such as notebooks, are answered.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        app = self.app
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            places = [f"//{headers.get('Host', '')}", *headers.getlist("Origin")]
            if not all(map(_is_loopback_url, places)):
                app = _error(
                    403, "only loopback hosts and origins are answered here: ask 127.0.0.1 or localhost"
                )
        await app(scope, receive, send)


def _is_loopback_url(url: str) -> bool:
    try:
        return is_loopback(urlsplit(url).hostname or "")
    except ValueError:
        return False


async def _http_error(_: Request, error: HTTPException) -> JSONResponse:
    return _error(error.status_code, error.detail)


async def _body(request: Request, max_body: int) -> dict:
    """The JSON object of a request, at most `max_body` bytes within READ_S seconds."""
    body = bytearray()
    try:
        with anyio.fail_after(READ_S):
            async for part in request.stream():
                body += part
                if len(body) > max_body:
                    raise Refused(413, f"a request may have at most {max_body:,} bytes")
    except TimeoutError:
        raise Refused(408, f"the request did not arrive within {READ_S:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "the request was cut off") from None
    try:
        text = body.decode()
        fields = json.loads(text)
        if SURROGATE.search(text):
            json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(400, "a text has half a surrogate pair, which is no character") from None
    except (ValueError, RecursionError):
        raise Refused(400, "the body is not JSON in UTF-8") from None
    if not isinstance(fields, dict):
        raise Refused(400, "the body is not a JSON object")
    return fields


def take(fields: dict, name: str, kind: type, default: Any = None) -> Any:
    """Return a field of a request, or its default if it is missing or null.

    Raises:
        Refused: it is of another type.
    """
    value = default if fields.get(name) is None else fields[name]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # isinstance would accept True as an int
        raise Refused(400, f"'{name}' must be given, as {kind.__name__}")
    return value


def within(name: str, value: float, low: float, high: float) -> Any:
    """Return a value of a request; Refused if it is not from `low` to `high`."""
    if not low <= value <= high:
        raise Refused(400, f"'{name}' must be from {low:g} to {high:g}")
    return value
