"""`LimitedProtocol`: uvicorn's HTTP/1.1 protocol with a limit on heads, and on the time that a request may arrive."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

MAX_HEAD_BYTES = 64 * 1024
"""Largest request line and headers together."""
HEAD_SECONDS = 30.0
"""Time for the request line and headers, from the first byte; for the first request from the connection on."""
MESSAGE_SECONDS = 600.0
"""Time for the body, whether or not it is still read."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection. uvicorn itself limits neither the size of a head nor the time that a request takes to arrive.

    A head that is too large is answered with 431; a request that is late ends the connection. `BodyLimit` refuses late
    bodies earlier, and with an error; what is left are clients that go on sending after their answer.
    """

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self._head_bytes: int | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Starts the time of the first head."""
        super().connection_made(transport)  # type: ignore[arg-type]
        self._expire_in(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops the time."""
        self._expire_in(None)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Counts the bytes of a head that is not complete."""
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            self._refuse_above_limit(self._head_bytes)

    def on_message_begin(self) -> None:
        """Starts the time of a head."""
        super().on_message_begin()
        self._head_bytes = 0
        self._expire_in(HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        """Starts the time of the body."""
        self._head_bytes = None
        self._refuse_above_limit(len(self.url) + sum(len(name) + len(value) for name, value in self.headers))
        if not self.transport.is_closing():
            self._expire_in(MESSAGE_SECONDS)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body; nothing of a request that was refused."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Stops the time."""
        self._expire_in(None)
        if not self.transport.is_closing():
            super().on_message_complete()

    def _refuse_above_limit(self, size: int) -> None:
        if size > MAX_HEAD_BYTES and not self.transport.is_closing():
            self.logger.warning("a request line and headers of more than %d bytes were refused", MAX_HEAD_BYTES)
            self.transport.write(
                b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            )
            self.transport.close()

    def _expire_in(self, seconds: float | None) -> None:
        """Closes the connection after some time, in place of an earlier one; None: not at all."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
