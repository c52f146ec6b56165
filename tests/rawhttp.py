"""HTTP/1.1 by hand over a socket, for requests that no client library would send."""

from __future__ import annotations

import json
import socket
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass(frozen=True)
class Response:
    """One response, with the names of `httpx.Response`.

    Attributes:
        status_code: Its status.
        headers: Its headers by name in lower case.
        content: The whole body.
    """

    status_code: int
    headers: dict[str, str]
    content: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return json.loads(self.content)


class RawConnection:
    """One connection to a server.

    Args:
        url: The server's.
        receive_bytes: Size of the socket's receive buffer; None: the system's.
        timeout: Seconds that a read or write may last. Default 10.
    """

    def __init__(self, url: str, receive_bytes: int | None = None, timeout: float = 10.0) -> None:
        parts = urlsplit(url)
        self.socket = socket.socket()
        if receive_bytes is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
        self.socket.settimeout(timeout)
        self.socket.connect((parts.hostname, parts.port))
        self._file = self.socket.makefile("rb")

    def __enter__(self) -> RawConnection:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes it."""
        self._file.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Sends bytes."""
        self.socket.sendall(data)

    def post(self, path: str, body: Any, **headers: str) -> None:
        """Sends a whole request."""
        self.send(head("POST", path, body, **headers) + encoded(body))

    def line(self) -> bytes:
        """Reads one line; empty at the end."""
        return self._file.readline()

    def response_head(self) -> Response:
        """Reads a status line and the headers; the body stays unread."""
        status = int(self.line().split()[1])
        headers: dict[str, str] = {}
        while line := self.line().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return Response(status, headers, b"")

    def response(self, method: str = "POST") -> Response:
        """Reads a whole response."""
        top = self.response_head()
        return top if method == "HEAD" else self.rest(top)

    def rest(self, top: Response) -> Response:
        """Reads the body of a response whose head was read."""
        if "content-length" in top.headers:
            return Response(top.status_code, top.headers, self._file.read(int(top.headers["content-length"])))
        if "chunked" not in top.headers.get("transfer-encoding", ""):
            return Response(top.status_code, top.headers, self._file.read())
        parts = []
        while size := int(self.line(), 16):
            parts.append(self._file.read(size))
            self.line()
        self.line()
        return Response(top.status_code, top.headers, b"".join(parts))

    def ended(self) -> bool:
        """Whether the server closed the connection; reads what is left."""
        try:
            self._file.read()
        except ConnectionError:
            return True
        except TimeoutError:
            return False
        return True


def encoded(body: Any) -> bytes:
    """A body as bytes: bytes as they are, anything else as JSON."""
    return body if isinstance(body, bytes) else json.dumps(body).encode()


def head(method: str, path: str, body: Any = b"", version: str = "HTTP/1.1", **headers: str) -> bytes:
    """The head of a request; ``Content-Length`` and ``Content-Type`` are added where they are not given."""
    given = {name.replace("_", "-").lower(): value for name, value in headers.items()}
    fields = {"host": "localhost", "content-type": "application/json", **given}
    if "transfer-encoding" not in fields:
        fields.setdefault("content-length", str(len(encoded(body))))
    lines = [f"{method} {path} {version}", *(f"{name}: {value}" for name, value in fields.items())]
    return "\r\n".join([*lines, "", ""]).encode("latin-1")


def events(body: bytes) -> list[str]:
    """The data of a stream's events, without comments."""
    return [line[6:] for line in body.decode().splitlines() if line.startswith("data: ")]


def check_error(told: Any, request_id: str) -> dict[str, Any]:
    """Asserts that a body is an error in OpenAI's form with the request's id; returns the error."""
    assert set(told) == {"error"}, "no error"
    error: dict[str, Any] = told["error"]
    assert set(error) == {"message", "type", "param", "code", "request_id"}, "another form"
    assert all(isinstance(error[name], str) and error[name] for name in ("message", "type", "code")), "another type"
    assert error["param"] is None or isinstance(error["param"], str), "another type"
    assert error["request_id"] == request_id, "another id"
    return error


def check_refused(response: Any, status: int) -> dict[str, Any]:
    """Asserts that a response is an error with a status; returns the error."""
    assert response.status_code == status
    return check_error(response.json(), response.headers["x-request-id"])
