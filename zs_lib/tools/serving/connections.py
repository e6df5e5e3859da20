"""Bound what a connection can hold: idle ones give way to others, and a whole request must arrive in time."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

READ_S, WRITE_S = 10.0, 30.0
"""Seconds within which a request must arrive, and for which a client may leave its answer unread."""
MAX_CONNECTIONS = 800
"""Connections at once, below the usual limit of 1,024 open files; one more closes the oldest idle one."""


class Connection(H11Protocol):
    """uvicorn's connection, with the time limits that it does not have.

    uvicorn closes a connection that is silent after an answer, but not one that is silent from the start,
    sends its request byte by byte, or does not read. The application limits the time for a request's body.
    """

    _unsent: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _since = 0.0

    @property
    def idle(self) -> bool:
        """Whether there is no whole request that waits for its answer."""
        return self.cycle is None or self.cycle.response_complete or self.cycle.more_body

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._since = self.loop.time()
        self._expect_request()
        if len(self.connections) > MAX_CONNECTIONS:
            idle = [connection for connection in self.connections if connection.idle]
            min(idle, key=lambda connection: connection._since).transport.abort()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._expect_request()

    def _expect_request(self) -> None:
        """Start the time for a request's head if none is running, or stop it where the head has arrived."""
        arrived = self.cycle is not None and not self.cycle.response_complete
        if arrived and self._unsent:
            self._unsent.cancel()
            self._unsent = None
        elif not arrived and not self._unsent:
            self._unsent = self.loop.call_later(READ_S, self.transport.abort)

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(WRITE_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread:
            self._unread.cancel()

    def connection_lost(self, error: Exception | None) -> None:
        super().connection_lost(error)
        for timer in filter(None, (self._unsent, self._unread)):
            timer.cancel()
