"""An application that takes and gives JSON over HTTP, and believes nothing of what it is sent."""

from __future__ import annotations

import asyncio
import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.routing import Route

MAX_BODY, READ_S = 1 << 20, 10.0
"""Bytes of a request, and seconds for its arrival."""


class Refused(Exception):
    """A request that is not answered: the HTTP status, and why."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


def json_application(
    posts: dict[str, Callable[[dict], Awaitable[dict]]],
    gets: dict[str, dict],
    token: str,
    lifespan: Callable | None = None,
) -> Starlette:
    """`posts` maps paths to functions from one JSON object to another, `gets` to the objects themselves; who lacks the
    token (if there is one) gets neither."""

    def endpoint(answer: Callable[[Request], Awaitable[dict]]) -> Callable:
        async def guarded(request: Request) -> JSONResponse:
            try:
                sent = request.headers.get("Authorization", "")
                if token and not hmac.compare_digest(sent.encode(), f"Bearer {token}".encode()):
                    raise Refused(
                        401, "the server's token must come with the request: 'Authorization: Bearer …'"
                    )
                return JSONResponse(await answer(request))
            except Refused as refused:
                return JSONResponse({"error": {"message": str(refused)}}, refused.status)
            except asyncio.CancelledError:
                return JSONResponse({"error": {"message": "the server is being stopped"}}, 503)

        return guarded

    def posted(answer):
        async def read(request: Request) -> dict:
            return await answer(await _body(request))

        return endpoint(read)

    def stated(value):
        async def read(request: Request) -> dict:
            return value

        return endpoint(read)

    routes = [Route(path, posted(answer), methods=["POST"]) for path, answer in posts.items()]
    return Starlette(
        routes=routes + [Route(path, stated(value)) for path, value in gets.items()], lifespan=lifespan
    )


async def _body(request: Request) -> dict:
    """The JSON object of a request, which must be short and come soon."""
    body = bytearray()
    try:
        with anyio.fail_after(READ_S):
            async for part in request.stream():
                body += part
                if len(body) > MAX_BODY:
                    raise Refused(413, f"a request may have {MAX_BODY:,} bytes")
    except TimeoutError:
        raise Refused(408, f"the request did not arrive within {READ_S:g} s") from None
    except ClientDisconnect:
        raise Refused(400, "the request broke off") from None
    try:
        asked = json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(400, "the body is no JSON") from None
    if not isinstance(asked, dict):
        raise Refused(400, "the body is no JSON object")
    return asked


def take(asked: dict, name: str, kind: type, default: Any = None) -> Any:
    """A value of a request, or its default (null counts as left out); Refused if it is of another kind."""
    value = default if asked.get(name) is None else asked[name]
    if kind is float and type(value) is int:
        value = float(value)
    if type(value) is not kind:  # `type`, for True is an int to isinstance
        raise Refused(400, f"'{name}' must be given, as {kind.__name__}")
    return value


def within(name: str, value: float, low: float, high: float) -> Any:
    if not low <= value <= high:
        raise Refused(400, f"'{name}' must be from {low:g} to {high:g}")
    return value
