"""A real server on 127.0.0.1 that answers as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from zs_lib.engines import SearchRequest
from zs_lib.engines.client import Limits


class Asked(BaseHTTPRequestHandler):
    """One request. The script calls `reply`, or does worse to the connection."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or "null")
        with self.server.lock:
            self.server.asked.append(self)
            self.number = len(self.server.asked)
        self.server.script(self)

    do_POST = do_GET

    def reply(self, value: Any, status: int = 200, **headers: str) -> None:
        """JSON, or bytes as they are."""
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        self.wfile.write(body)

    def reset(self) -> None:
        """End the connection with an RST instead of an answer."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def log_message(self, *_) -> None:
        pass

    def finish(self) -> None:
        try:
            super().finish()
        except (OSError, ValueError):  # the client had enough, or the connection was reset
            pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # Python's 5 would let calls at once wait a second for their connection

    def handle_error(self, *_) -> None:
        pass


@contextmanager
def serving(script: Callable[[Asked], None]) -> Iterator[_Server]:
    """Within it, `script` answers at `server.url`; `server.asked` are the requests, `server.over` is set at
    the end."""
    server = _Server(("127.0.0.1", 0), Asked)
    server.script, server.asked, server.lock, server.over = script, [], threading.Lock(), threading.Event()
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        server.server_close()
        thread.join()


KEY = "planted+key/7f3a9"


QUICK = Limits(attempts=2, attempt_s=0.4, search_s=5, first_wait_s=0.01, longest_wait_s=1)


def ask(*queries):
    return [SearchRequest(query, "which?", ("Paris",), key=(i,)) for i, query in enumerate(queries)]


def completion(text, tokens=7):
    return {
        "choices": [{"message": {"role": "assistant", "content": text}}],
        "usage": {"completion_tokens": tokens},
    }


def hang(asked):
    asked.server.over.wait(5)


def drip(asked):
    asked.send_response(200)
    asked.send_header("Content-Length", "1000")
    asked.end_headers()
    while not asked.server.over.wait(0.05):
        asked.wfile.write(b" ")


def drip_headers(asked):
    asked.wfile.write(b"HTTP/1.1 200 OK\r\n")
    while not asked.server.over.wait(0.05):
        asked.wfile.write(b"X-More: 1\r\n")


def half(asked):
    asked.send_response(200)
    asked.send_header("Content-Length", "1000")
    asked.end_headers()
    asked.wfile.write(b'[{"text": "ha')
    asked.close_connection = True
