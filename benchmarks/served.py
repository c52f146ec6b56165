"""A served ensemble: the application on an event loop of this process, and its clients in a process of their own."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import uvicorn
import uvloop

from benchmarks.streaming_client import Answer, Results
from gac_core import Ensemble
from gac_core.server.app import create_app
from gac_core.server.catalog import Catalog
from gac_core.server.lifecycle.connections import LimitedProtocol
from gac_core.server.settings import ServerSettings

NAME = "ensemble"
T = TypeVar("T")
Prompt = str | list[dict[str, str]]


class Server:
    """An application on an event loop in a thread of its own, and the process of its clients.

    Args:
        ensemble: What it serves.
    """

    def __init__(self, ensemble: Ensemble) -> None:
        self._loop = uvloop.new_event_loop()
        app = create_app(Catalog({NAME: ensemble}), ServerSettings(allow_unauthenticated=True))
        config = uvicorn.Config(app, port=0, log_level="warning", http=LimitedProtocol, access_log=False)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        command = [sys.executable, "-m", "benchmarks.streaming_client", str(port)]
        self._client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def _serve(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._server.serve())

    def request(self, plan: Sequence[dict[str, Any]]) -> Results:
        """Has the clients run a plan (see `benchmarks.streaming_client`); raises if an answer is an error."""
        assert self._client.stdin is not None
        assert self._client.stdout is not None
        print(json.dumps(plan), file=self._client.stdin, flush=True)
        values = json.loads(self._client.stdout.readline())
        answers = [[Answer(**answer) for answer in client] for client in values.pop("answers")]
        wrong = [answer for client in answers for answer in client if answer.status != 200 or answer.error]
        if wrong:
            raise RuntimeError(f"{len(wrong)} answers are errors, such as: {wrong[0]}")
        return Results(answers=answers, **values)

    def call(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Runs a coroutine on the server's event loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def seconds(self) -> tuple[float, float]:
        """Returns the processor seconds so far of this process, and of the thread of the event loop."""

        async def of_thread() -> float:
            return time.thread_time()

        return time.process_time(), self.call(of_thread())

    def close(self) -> None:
        """Ends the client process and the server."""
        assert self._client.stdin is not None
        self._client.stdin.close()
        self._client.wait()
        self._server.should_exit = True
        self._thread.join()


@contextmanager
def serving(ensemble: Ensemble) -> Iterator[Server]:
    """Serves an ensemble within the context."""
    server = Server(ensemble)
    try:
        yield server
    finally:
        server.close()


def request_of(prompt: Prompt, tokens: int, **fields: Any) -> tuple[str, str]:
    """Returns path and body of a request for a greedy stream: a completion of a text, an answer to a conversation."""
    values = {"model": NAME, "max_tokens": tokens, "temperature": 0, "stream": True, **fields}
    if isinstance(prompt, str):
        return "/v1/completions", json.dumps({**values, "prompt": prompt})
    return "/v1/chat/completions", json.dumps({**values, "messages": prompt})


def client_of(prompts: Sequence[Prompt], tokens: int, mode: str = "read", **fields: Any) -> dict[str, Any]:
    """Returns a client of a plan."""
    requests = [request_of(prompt, tokens, **fields) for prompt in prompts]
    return {"path": requests[0][0], "bodies": [body for _, body in requests], "mode": mode}
