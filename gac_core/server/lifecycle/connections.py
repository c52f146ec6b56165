"""`LimitedProtocol`: uvicorn's HTTP/1.1 protocol with a limit on heads, and on the time that a request may arrive."""

from __future__ import annotations

import asyncio
import json
from http import HTTPStatus
from typing import Any

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gac_core.server.errors import ApiError
from gac_core.server.request_ids import HEADER, request_id

ABORT = "gac.abort"
"""The extension of an ASGI scope that closes its connection without sending what is buffered."""

MAX_HEAD_BYTES = 64 * 1024
"""Largest request line and headers together."""
HEAD_SECONDS = 30.0
"""Time for the request line and headers, from the first byte; for the first request from the connection on."""
MESSAGE_SECONDS = 600.0
"""Time for the body, whether or not it is still read."""
CLOSE_SECONDS = 30.0
"""Time for a client to take what is left when its connection is closed."""


class LimitedProtocol(HttpToolsProtocol):
    """One connection. uvicorn itself limits neither the size of a head nor the time that a request takes to arrive.

    A head that is too large is answered with 431; a request that is late ends the connection. `BodyLimit` refuses late
    bodies earlier, and with an error; what is left are clients that go on sending after their answer. A connection that
    is closed is aborted if the client does not take the rest of a response.

    Requests to upgrade to another protocol (HTTP/2 without TLS, which Java's client asks for by default) are answered
    in HTTP/1.1. uvicorn would drop their bodies.
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
        """Parses data, and counts the bytes of a head that is not complete."""
        self._unset_keepalive_if_required()
        rest: bytes | None = data
        while rest is not None:
            data = rest
            try:
                rest = self._parse(data)
            except httptools.HttpParserError:
                self.send_400_response("this is not an HTTP request")
                return
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            self._refuse_above_limit(self._head_bytes)
        if self._deadline is None and (self.cycle is None or self.cycle.response_complete):
            # Data between requests, or the end of a body that was refused, has stopped the time of an idle connection.
            self._expire_in(HEAD_SECONDS)

    def _parse(self, data: bytes) -> bytes | None:
        """Parses data; what is left, with a request whose parsing must begin again, where it asks for an upgrade."""
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            # The parser skips the body of such a request, and cannot be told not to. CONNECT has no such header.
            if self._asks_for_upgrade():
                head = self._head_without_upgrade()
                self.parser = httptools.HttpRequestParser(self)
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
                return head + data[upgrade.args[0] :]
        return None

    def on_message_begin(self) -> None:
        """Starts the time of a head."""
        super().on_message_begin()
        # For clients that take nothing: `transport.close` would wait until they take what is buffered.
        self.scope["extensions"] = {ABORT: self.transport.abort}  # type: ignore[dict-item]
        self._head_bytes = 0
        self._expire_in(HEAD_SECONDS)

    def on_headers_complete(self) -> None:
        """Starts the time of the body."""
        self._head_bytes = None
        self._refuse_above_limit(len(self.url) + sum(len(name) + len(value) for name, value in self.headers))
        if not self.transport.is_closing() and not self._asks_for_upgrade():
            self._expire_in(MESSAGE_SECONDS)
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """Takes a part of the body; nothing of a request that was refused."""
        if not self.transport.is_closing():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """Stops the time."""
        if not self.transport.is_closing() and not self._asks_for_upgrade():
            self._expire_in(None)
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Goes on with the next request, or closes the connection."""
        super().on_response_complete()
        self._limit_close()

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection."""
        super().timeout_keep_alive_handler()
        self._limit_close()

    def shutdown(self) -> None:
        """Closes the connection, after the response if there is one to send."""
        super().shutdown()
        self._limit_close()

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP request, and closes the connection."""
        self._refuse(ApiError(400, "invalid_http", f"{msg.rstrip('.')}; send HTTP/1.1 without TLS"))

    def _refuse_above_limit(self, size: int) -> None:
        if size > MAX_HEAD_BYTES and not self.transport.is_closing():
            message = f"the request line and headers have more than {MAX_HEAD_BYTES} bytes; send fewer"
            self._refuse(ApiError(431, "headers_too_large", message))

    def _refuse(self, error: ApiError) -> None:
        own_id = request_id(())
        body = json.dumps(error.body(own_id)).encode()
        self.logger.warning("refused: %s", error.message, extra={"request_id": own_id, "error": error.code})
        head = [
            f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            f"{HEADER}: {own_id}",
            "connection: close",
        ]
        # Within a response it would be taken for a part of it.
        if self.cycle is None or self.cycle.response_complete or not self.cycle.response_started:
            self.transport.write("\r\n".join([*head, "", ""]).encode() + body)
        self.transport.close()
        self._limit_close()

    def _asks_for_upgrade(self) -> bool:
        return self.parser.should_upgrade() and any(name == b"upgrade" for name, _ in self.headers)

    def _head_without_upgrade(self) -> bytes:
        lines = [b"%s %s HTTP/%s" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())]
        lines += [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        return b"\r\n".join([*lines, b"", b""])

    def _expire_in(self, seconds: float | None) -> None:
        """Closes the connection after some time, in place of an earlier one; None: not at all."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        if self.transport.is_closing():
            self.transport.abort()
        else:
            self.transport.close()
            self._limit_close()

    def _limit_close(self) -> None:
        """Starts the time that a client has to take the rest, if the connection is being closed."""
        if self.transport.is_closing():
            self._expire_in(CLOSE_SECONDS)
