"""LlamaIndex integrations to compare, each with models: this project's, Hugging Face's and Ollama's.

Ollama talks to a simulated server that implements its whole interface, so that only the integration is compared.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

from llama_index.core.llms import LLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from gac_core import Ensemble, EnsembleConfig, MemberConfig
from gac_core.model.member import Member

MODELS = Path(__file__).parent.parent / "examples" / "models"
SHORT, LONG = 24, 250
# Longer than the context window that integrations assume by default.
CONTEXT = 5000


class Counted:
    """A loaded model that counts its forwards and can be made to fail."""

    def __init__(self, name: str) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(MODELS / name)
        self.model = AutoModelForCausalLM.from_pretrained(MODELS / name).eval()
        self.model.config.max_position_embeddings = self.tokenizer.model_max_length = CONTEXT
        self.forwards = self.tokens = self.rows = 0
        self.left: int | None = None
        self.model.register_forward_pre_hook(self._before, with_kwargs=True)

    def _before(self, model: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.forwards += 1
        ids = args[0] if args else kwargs["input_ids"]
        self.tokens += ids.shape[1]
        self.rows = max(self.rows, ids.shape[0])
        if self.left is not None:
            self.left -= 1
            if self.left < 0:
                raise RuntimeError("out of luck")


class LocalRig:
    """Base of the rigs whose models run in this process."""

    counted: list[Counted]

    def work(self) -> int:
        """Forwards so far."""
        return sum(each.forwards for each in self.counted)

    def read(self) -> int:
        """Tokens read so far by the first model."""
        return self.counted[0].tokens

    def widest(self) -> int:
        """Returns the largest number of concurrent generations since the last call."""
        rows = max(each.rows for each in self.counted)
        for each in self.counted:
            each.rows = 0
        return rows

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Makes the models fail after some forwards."""
        for each in self.counted:
            each.left = 6
        try:
            yield
        finally:
            for each in self.counted:
                each.left = None


class GaCRig(LocalRig):
    """Two embedded members."""

    name = "GaCLLM"
    remote = False
    harmless: ClassVar = {"seed": 1}
    roomy: ClassVar = {"temperature": 1.0, "seed": 0, "max_tokens": 200}

    def __init__(self) -> None:
        self.counted = [Counted(name) for name in ("ash", "birch")]
        config = EnsembleConfig(tuple(MemberConfig(str(MODELS / name)) for name in ("ash", "birch")))
        members = [
            Member.from_model(each.model, each.tokenizer, name)
            for each, name in zip(self.counted, config.names, strict=True)
        ]
        self.ensemble = Ensemble(members, config)
        # Models are freed with the last ensemble that uses them.
        self.kept: list[Any] = []

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        from gac_llamaindex import GaCLLM

        talk = {"temperature": 5.0, "seed": 1, "max_tokens": LONG} if long else {"max_tokens": SHORT}
        return GaCLLM(ensemble=self.ensemble, **{**talk, **fields})

    def load(self) -> Any:
        """Constructs an LLM from a model's name; returns the object that holds the weights."""
        from gac_llamaindex import GaCLLM

        self.kept.append(GaCLLM([str(MODELS / "ash")]))
        return self.kept[-1].ensemble._members[0]


class HuggingFaceRig(LocalRig):
    """One embedded model."""

    name = "HuggingFaceLLM"
    remote = False
    harmless: ClassVar = {"seed": 1}
    roomy: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.counted = [Counted("ash")]

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        from llama_index.llms.huggingface import HuggingFaceLLM

        (one,) = self.counted
        talk = {"do_sample": True, "temperature": 5.0, "min_new_tokens": LONG} if long else {}
        return HuggingFaceLLM(
            model=one.model,
            tokenizer=one.tokenizer,
            is_chat_model=True,
            max_new_tokens=LONG if long else SHORT,
            generate_kwargs=talk,
            **fields,
        )

    def load(self) -> Any:
        """Constructs an LLM from a model's name; returns the object that holds the weights."""
        from llama_index.llms.huggingface import HuggingFaceLLM

        name = str(MODELS / "ash")
        return HuggingFaceLLM(model_name=name, tokenizer_name=name, context_window=CONTEXT)._model


class OllamaRig:
    """A server that generates a word every few milliseconds, calls tools and follows formats on request."""

    name = "Ollama"
    remote = True
    harmless: ClassVar = {"think": False}
    roomy: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.words = self.prompts = self.open = self.most = 0
        self.fails = False
        rig = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                rig.answer(self)

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        from llama_index.llms.ollama import Ollama

        return Ollama(
            model="model",
            base_url=f"http://127.0.0.1:{self._server.server_port}",
            additional_kwargs={"num_predict": LONG if long else SHORT},
            **fields,
        )

    def load(self) -> Any:
        """Constructs an LLM; the server holds the weights."""
        self.make()
        return self._server

    def work(self) -> int:
        """Words written so far."""
        return self.words

    def read(self) -> int:
        """Words read so far; what the server caches is unknown."""
        return self.prompts

    def widest(self) -> int:
        """Returns the largest number of concurrent requests since the last call."""
        most, self.most = self.most, 0
        return most

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Makes the server fail after some words."""
        self.fails = True
        try:
            yield
        finally:
            self.fails = False

    def answer(self, http: BaseHTTPRequestHandler) -> None:
        """Answers one request in the format of Ollama's interface."""
        body = json.loads(http.rfile.read(int(http.headers["Content-Length"])))
        http.send_response(200)
        http.end_headers()
        if http.path == "/api/show":
            http.wfile.write(json.dumps({"model_info": {"llama.context_length": CONTEXT}}).encode())
            return
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            self._write(http, body)
        except OSError:
            pass  # The client has disconnected.
        finally:
            self.open -= 1

    def _write(self, http: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        options = body.get("options") or {}
        prompt = body["messages"][-1]["content"]
        self.prompts += len(prompt.split())
        calls = []
        if body.get("tools") and "weather" in prompt:
            name = body["tools"][0]["function"]["name"]
            calls = [{"function": {"name": name, "arguments": {"city": city}}} for city in ("Rome", "Oslo")]
        text = '{"name": "Rome"}' if body.get("format") else "word " * options.get("num_predict", 128)
        for stop in options.get("stop") or ():
            text = text.split(stop)[0]
        pieces = [text] if body.get("format") else text.split(" ")
        written = ""
        for count, piece in enumerate([] if calls else pieces):
            time.sleep(0.005)
            self.words += 1
            written += piece if len(pieces) == 1 else f"{piece} "
            if self.fails and count > 5:
                http.wfile.write(json.dumps({"error": "out of luck"}).encode() + b"\n")
                return
            if body.get("stream"):
                self._send(http, {"message": {"role": "assistant", "content": f"{piece} "}, "done": False})
            elif self._gone(http):
                return
        last = {"role": "assistant", "content": "" if body.get("stream") else written, "tool_calls": calls or None}
        counts = {"prompt_eval_count": len(prompt.split()), "eval_count": len(pieces)}
        self._send(http, {"message": last, "done": True, "done_reason": "stop", **counts})

    @staticmethod
    def _gone(http: BaseHTTPRequestHandler) -> bool:
        readable, _, _ = select.select([http.connection], [], [], 0)
        return bool(readable) and not http.connection.recv(1, socket.MSG_PEEK)

    @staticmethod
    def _send(http: BaseHTTPRequestHandler, part: dict[str, Any]) -> None:
        http.wfile.write(json.dumps({"model": "model", "created_at": "2024-01-01T00:00:00Z", **part}).encode() + b"\n")
        http.wfile.flush()
