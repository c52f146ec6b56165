"""A server for LlamaIndex's clients: it does everything that the interfaces of Ollama, OpenAI and vLLM's demo promise.

It writes a word every few milliseconds, calls the tool it is offered, follows formats, counts tokens, and stops when
its client disconnects.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from benchmarks.rigs import CONTEXT

CITIES = ("Rome", "Oslo")
OBJECT = '{"name": "Rome"}'


class Failure(Exception):
    """The server fails in the middle of an answer."""


@dataclass(frozen=True)
class Plan:
    """An answer.

    Attributes:
        prompt: The last message, or the prompt.
        pieces: The text as it is written.
        calls: Arguments of the calls of the tool.
    """

    prompt: str
    pieces: list[str]
    calls: list[dict[str, str]]

    @classmethod
    def of(cls, prompt: str, limit: int, stop: list[str], form: object, calls: list[dict[str, str]]) -> Plan:
        """Returns an answer within a limit of words that ends before a stop string."""
        text = OBJECT if form else " ".join(["word"] * limit) + " "
        for each in stop:
            text = text.split(each)[0]
        words = [text] if form else [f"{word} " for word in text.split(" ") if word]
        return cls(prompt, [] if calls else words, calls)

    @property
    def counts(self) -> tuple[int, int]:
        """Words of the prompt and of the answer."""
        return len(self.prompt.split()), max(1, len(self.pieces))


class ScriptedServer:
    """The server, in threads of this process.

    Attributes:
        words: Words written so far.
        prompts: Words read so far.
        most: The largest number of concurrent requests since it was set to 0.
        fails: Whether answers fail in their middle.
        refusals: How many requests to come are refused with a status of 503.
        body: The last request.
    """

    def __init__(self) -> None:
        self.words = self.prompts = self.most = self._open = self.refusals = 0
        self.fails = False
        self.body: dict[str, Any] = {}
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                server.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def answer(self, http: BaseHTTPRequestHandler) -> None:
        """Answers one request in the format of its path."""
        self.body = body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        if self.refusals and http.path != "/api/show":
            self.refusals -= 1
            http.send_error(503, "overloaded")
            return
        http.send_response(200)
        events = "/v1/" in http.path and body.get("stream")
        http.send_header("Content-Type", "text/event-stream" if events else "application/json")
        http.send_header("Transfer-Encoding", "chunked")
        http.send_header("Connection", "close")
        http.end_headers()
        answers = {
            "/api/show": self._show,
            "/api/chat": self._ollama,
            "/v1/chat/completions": self._openai,
            "/generate": self._vllm,
        }
        self._open += 1
        self.most = max(self.most, self._open)
        try:
            answers[http.path](http, body)
            http.wfile.write(b"0\r\n\r\n")
        except OSError:
            pass  # The client has disconnected.
        finally:
            self._open -= 1

    # ---- interfaces

    def _show(self, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        self._send(http, json.dumps({"model_info": {"llama.context_length": CONTEXT}}))

    def _ollama(self, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        options, prompt = body.get("options") or {}, body["messages"][-1]["content"]
        calls = _calls(body) if "weather" in prompt else []
        plan = Plan.of(prompt, options.get("num_predict", 128), options.get("stop") or [], body.get("format"), calls)

        def send(message: dict[str, Any], **fields: Any) -> None:
            values = {"model": "model", "created_at": "2024-01-01T00:00:00Z", "done": False, **fields}
            self._send(http, json.dumps({**values, "message": {"role": "assistant", **message}}) + "\n")

        streams = body.get("stream")
        try:
            for piece in self._written(http, plan, streams):
                if streams:
                    send({"content": piece})
        except Failure:
            self._send(http, json.dumps({"error": "out of luck"}) + "\n")
            return
        name = body["tools"][0]["function"]["name"] if calls else None
        tools = [{"function": {"name": name, "arguments": given}} for given in plan.calls]
        read, written = plan.counts
        last = {"content": "" if streams else "".join(plan.pieces), "tool_calls": tools or None}
        send(last, done=True, done_reason="stop", prompt_eval_count=read, eval_count=written)

    def _openai(self, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        content = body["messages"][-1]["content"]
        prompt = content if isinstance(content, str) else " ".join(part.get("text", "") for part in content)
        required = body.get("tool_choice") not in (None, "auto", "none")
        calls = _calls(body) if "weather" in prompt or required else []
        if body.get("parallel_tool_calls") is False or "weather" not in prompt:
            calls = calls[:1]
        form = (body.get("response_format") or {"type": "text"})["type"] != "text"
        stop = body.get("stop") or []
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or 128
        plan = Plan.of(prompt, limit, [stop] if isinstance(stop, str) else stop, form, calls)
        streams = body.get("stream")
        try:
            for piece in self._written(http, plan, streams):
                if streams:
                    self._event(http, body, {"content": piece}, [piece])
        except Failure:
            self._send(http, f"data: {json.dumps({'error': {'message': 'out of luck'}})}\n\n")
            return
        tools = [
            {
                "id": f"call_{place}",
                "index": place,
                "type": "function",
                "function": {"name": body["tools"][0]["function"]["name"], "arguments": json.dumps(given)},
            }
            for place, given in enumerate(plan.calls)
        ]
        read, written = plan.counts
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        reason = "tool_calls" if tools else "stop"
        if streams:
            for tool in tools:
                self._event(http, body, {"tool_calls": [tool]}, [])
            self._event(http, body, {}, [], finish_reason=reason)
            if (body.get("stream_options") or {}).get("include_usage"):
                last = {**_head("chat.completion.chunk"), "choices": [], "usage": usage}
                self._send(http, f"data: {json.dumps(last)}\n\n")
            self._send(http, "data: [DONE]\n\n")
            return
        message = {"role": "assistant", "content": "".join(plan.pieces) or None, "tool_calls": tools or None}
        choice = {"index": 0, "message": message, "finish_reason": reason, "logprobs": _logprobs(body, plan.pieces)}
        self._send(http, json.dumps({**_head("chat.completion"), "choices": [choice], "usage": usage}))

    def _event(
        self, http: BaseHTTPRequestHandler, body: dict[str, Any], delta: dict[str, Any], pieces: list[str], **end: str
    ) -> None:
        choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": None, **end}
        choice["logprobs"] = _logprobs(body, pieces)
        self._send(http, f"data: {json.dumps({**_head('chat.completion.chunk'), 'choices': [choice]})}\n\n")

    def _vllm(self, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        prompt, stop = body["prompt"], body.get("stop") or []
        plan = Plan.of(prompt, body.get("max_tokens") or 128, stop, None, [])
        # vLLM's demonstration server returns the prompt with the text.
        text, streams = prompt, body.get("stream")
        try:
            for piece in self._written(http, plan, streams):
                text += piece
                if streams:
                    self._send(http, json.dumps({"text": [text]}) + "\0")
        except Failure:
            self._send(http, json.dumps({"error": "out of luck"}) + "\0")
            return
        if not streams:
            self._send(http, json.dumps({"text": [text]}))

    # ---- writing

    def _written(self, http: BaseHTTPRequestHandler, plan: Plan, streams: object) -> Iterator[str]:
        """Yields the pieces as they are written, until the client disconnects."""
        self.prompts += plan.counts[0]
        for count, piece in enumerate(plan.pieces):
            time.sleep(0.005)
            self.words += 1
            if self.fails and count > 5:
                raise Failure
            if not streams and _gone(http):
                raise BrokenPipeError
            yield piece

    @staticmethod
    def _send(http: BaseHTTPRequestHandler, text: str) -> None:
        data = text.encode()
        http.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        http.wfile.flush()


def _calls(body: dict[str, Any]) -> list[dict[str, str]]:
    """Returns arguments of two calls of the first tool: cities as its first parameter."""
    if not body.get("tools"):
        return []
    first = next(iter(body["tools"][0]["function"]["parameters"]["properties"]))
    return [{first: city} for city in CITIES]


def _head(kind: str) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1700000000, "model": "model"}


def _logprobs(body: dict[str, Any], pieces: list[str]) -> dict[str, Any] | None:
    if not body.get("logprobs"):
        return None
    entries = [{"token": piece, "logprob": -0.1, "bytes": None} for piece in pieces]
    return {"content": [{**entry, "top_logprobs": [entry]} for entry in entries]}


def _gone(http: BaseHTTPRequestHandler) -> bool:
    readable, _, _ = select.select([http.connection], [], [], 0)
    return bool(readable) and not http.connection.recv(1, socket.MSG_PEEK)
