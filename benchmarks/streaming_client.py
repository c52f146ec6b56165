"""HTTP clients that read streams, for `benchmarks.server`: one process, one connection per client.

Run by ``python -m benchmarks.streaming_client PORT``. Reads one plan per line from standard input, and answers each
with one line. A plan is a JSON list of clients, each ``{"path", "bodies", "mode"}``: the bodies that it posts one after
the other, and whether it is measured (``"read"``), is in the background until these are done (``"background"``), or
reads nothing (``"ignore"``, with a small receive buffer). What arrives is stored with its time, and parsed when the
clock has stopped.
"""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import time
from dataclasses import asdict, dataclass
from typing import Any, cast

END = b"0\r\n\r\n"
"""The end of a chunked response."""


@dataclass(frozen=True)
class Answer:
    """One answer, as it arrived.

    Attributes:
        status: HTTP status.
        text: The text, of all events together.
        began: When the request was written, in seconds of `time.perf_counter`, which the processes of a machine share.
        times: When events arrived; those that arrived together have one entry each.
        size: Bytes of the response.
        error: An error event, or the body of a refusal.
    """

    status: int
    text: str
    began: float
    times: list[float]
    size: int
    error: str | None = None


@dataclass(frozen=True)
class Results:
    """What came of a plan.

    Attributes:
        seconds: From the first request to the end of the last answer.
        cpu: Processor seconds of this process meanwhile.
        answers: Those of each client that is measured.
    """

    seconds: float
    cpu: float
    answers: list[list[Answer]]


class Connection(asyncio.Protocol):
    """A connection that stores what it receives."""

    def __init__(self) -> None:
        self.parts: list[tuple[float, bytes]] = []
        self.began = 0.0
        self._chunked = False
        self._done: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the transport."""
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Stores data with its time."""
        self.parts.append((time.perf_counter(), data))
        if len(self.parts) == 1:
            self._chunked = b"transfer-encoding: chunked" in data.lower()
        # Refusals have a length, and arrive as a whole.
        if self._done is not None and not self._done.done() and (data.endswith(END) or not self._chunked):
            self._done.set_result(None)
            self._done = None

    def connection_lost(self, error: Exception | None) -> None:
        """Ends the wait for a response."""
        if self._done is not None and not self._done.done():
            self._done.set_exception(error or ConnectionResetError("the server closed the connection"))
            self._done = None

    async def post(self, head: bytes, body: bytes) -> None:
        """Sends a request and waits for the end of its response."""
        self.parts = []
        self._done = asyncio.get_running_loop().create_future()
        self.began = time.perf_counter()
        self.transport.write(head + body)
        await self._done


Raw = tuple[float, list[tuple[float, bytes]]]


async def read_all(port: int, client: dict[str, Any]) -> list[Raw]:
    """Posts a client's bodies in turn, and returns the responses as they arrived."""
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, "127.0.0.1", port)
    responses: list[Raw] = []
    try:
        for body in client["bodies"]:
            await connection.post(head_of(client["path"], len(body.encode())), body.encode())
            responses.append((connection.began, connection.parts))
        return responses
    finally:
        connection.transport.close()


def head_of(path: str, length: int) -> bytes:
    """Returns the head of a request."""
    fields = f"host: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {length}"
    return f"POST {path} HTTP/1.1\r\n{fields}\r\n\r\n".encode()


def ignore_all(port: int, client: dict[str, Any]) -> socket.socket:
    """Posts a client's first body on a connection whose answer nothing reads."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(("127.0.0.1", port))
    body = client["bodies"][0].encode()
    connection.sendall(head_of(client["path"], len(body)) + body)
    return connection


async def run(port: int, plan: list[dict[str, Any]]) -> Results:
    """Runs a plan."""
    ignored = [ignore_all(port, client) for client in plan if client["mode"] == "ignore"]
    behind = [asyncio.ensure_future(read_all(port, client)) for client in plan if client["mode"] == "background"]
    if ignored or behind:
        await asyncio.sleep(0.3)
    began, cpu = time.perf_counter(), time.process_time()
    raw = await asyncio.gather(*(read_all(port, client) for client in plan if client["mode"] == "read"))
    seconds, cpu = time.perf_counter() - began, time.process_time() - cpu
    for connection in ignored:
        connection.close()
    for task in behind:
        task.cancel()
    await asyncio.gather(*behind, return_exceptions=True)
    return Results(seconds, cpu, [[parsed(*response) for response in responses] for responses in raw])


def parsed(began: float, parts: list[tuple[float, bytes]]) -> Answer:
    """Returns a response as an answer."""
    data = b"".join(part for _, part in parts)
    head, _, body = data.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if b"transfer-encoding: chunked" not in head.lower():
        return Answer(status, "", began, [], len(data), body.decode())
    text, error = [], None
    for event in unchunked(body).decode().replace("\r\n", "\n").split("\n\n"):
        if not event.startswith("data: ") or event == "data: [DONE]":
            continue
        value = json.loads(event.removeprefix("data: "))
        if "error" in value:
            error = json.dumps(value["error"])
        for choice in value.get("choices", ()):
            text.append(choice["delta"].get("content") or "" if "delta" in choice else choice["text"])
    times = [at for at, part in parts for _ in range(part.count(b"data: {"))]
    return Answer(status, "".join(text), began, times, len(data), error)


def unchunked(body: bytes) -> bytes:
    """Returns the content of a chunked body."""
    parts, place = [], 0
    while place < len(body):
        end = body.index(b"\r\n", place)
        size = int(body[place:end], 16)
        parts.append(body[end + 2 : end + 2 + size])
        place = end + 2 + size + 2
    return b"".join(parts)


def main() -> None:
    """Runs the plans from standard input."""
    port = int(sys.argv[1])
    for line in sys.stdin:
        results = asyncio.run(run(port, json.loads(line)))
        print(json.dumps(asdict(results)), flush=True)


if __name__ == "__main__":
    main()
