"""LlamaIndex integrations to compare that are clients of a server: Ollama's, vLLM's and those for OpenAI's interface.

They talk to `ScriptedServer`, so that only the integrations are compared; one talks to this project's own server.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

from llama_index.core.llms import LLM

from benchmarks.rigs import LONG, SHORT, GaCRig
from benchmarks.scripted_server import ScriptedServer

JSON_OBJECT: list[tuple[dict[str, Any], dict[str, Any]]] = [({}, {"response_format": {"type": "json_object"}})]


class RemoteRig:
    """Base of the rigs that talk to a `ScriptedServer`."""

    remote = True
    once: ClassVar[dict[str, Any]] = {}
    json: ClassVar[list[tuple[dict[str, Any], dict[str, Any]]]] = []
    harmless: ClassVar[dict[str, Any]] = {}
    roomy: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.server = ScriptedServer()

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        raise NotImplementedError

    def load(self) -> Any:
        """Constructs an LLM; the server holds the weights."""
        self.make()
        return self.server

    def work(self) -> int:
        """Words written so far."""
        return self.server.words

    def read(self) -> int:
        """Words read so far; what the server caches is unknown."""
        return self.server.prompts

    def widest(self) -> int:
        """Returns the largest number of concurrent requests since the last call."""
        most, self.server.most = self.server.most, 0
        return most

    @contextmanager
    def failing(self) -> Iterator[None]:
        """Makes the server fail after some words."""
        self.server.fails = True
        try:
            yield
        finally:
            self.server.fails = False

    @contextmanager
    def flaky(self) -> Iterator[None]:
        """Makes the server refuse one request."""
        self.server.refusals = 1
        try:
            yield
        finally:
            self.server.refusals = 0

    def templated(self) -> bool:
        """Returns whether a completion is sent as messages, to which the server applies a template."""
        self.make().complete("In which town")
        return "messages" in self.server.body


class OllamaRig(RemoteRig):
    """Ollama's client."""

    name = "Ollama"
    harmless: ClassVar = {"think": False}
    json: ClassVar = [({"json_mode": True}, {}), ({}, {"format": "json"})]

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        from llama_index.llms.ollama import Ollama

        options = {"num_predict": LONG if long else SHORT}
        return Ollama(model="model", base_url=self.server.url, additional_kwargs=options, **fields)


class VllmRig(RemoteRig):
    """The client of vLLM's demonstration server."""

    name = "VllmServer"
    harmless: ClassVar = {"seed": 1}

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        from llama_index.llms.vllm import VllmServer

        return VllmServer(api_url=f"{self.server.url}/generate", max_new_tokens=LONG if long else SHORT, **fields)


class OpenAILikeRig(RemoteRig):
    """The client of servers with OpenAI's interface."""

    name = "OpenAILike"
    harmless: ClassVar = {"seed": 1}
    once: ClassVar = {"max_retries": 0}
    json: ClassVar = JSON_OBJECT

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        return openai_like(f"{self.server.url}/v1", **{"max_tokens": LONG if long else SHORT, **fields})


class ServedRig(GaCRig):
    """The client of servers with OpenAI's interface, at this project's server."""

    name = "OpenAILike at gac serve"
    once: ClassVar = {"max_retries": 0}
    json: ClassVar = JSON_OBJECT

    def __init__(self) -> None:
        super().__init__()
        import uvicorn

        from gac_core.server.app import create_app
        from gac_core.server.catalog import Catalog
        from gac_core.server.settings import ServerSettings

        app = create_app(Catalog({"model": self.ensemble}), ServerSettings(allow_unauthenticated=True))
        self._server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
        threading.Thread(target=self._server.run, daemon=True).start()
        while not self._server.started:
            time.sleep(0.01)
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self._url = f"http://127.0.0.1:{port}/v1"

    def make(self, long: bool = False, **fields: Any) -> LLM:
        """Returns an LLM; with ``long``, one that generates until its limit."""
        sampling: dict[str, Any] = {"seed": fields.pop("seed", 1)}
        values = {"max_tokens": LONG if long else SHORT, "additional_kwargs": sampling}
        if long:
            gate = self.members[self.ensemble.names.index(self.ensemble.gate)]
            sampling["logit_bias"] = {gate.tokenizer.eos_token_id: -100}
            values["temperature"] = 2.0
        return openai_like(self._url, **{**values, **fields})

    def load(self) -> Any:
        """Constructs an LLM; the server holds the weights."""
        self.make()
        return self._server


def openai_like(url: str, **fields: Any) -> LLM:
    """Returns a client of a chat model with tools."""
    from llama_index.llms.openai_like import OpenAILike

    return OpenAILike(
        model="model",
        api_base=url,
        api_key="none",
        is_chat_model=True,
        is_function_calling_model=True,
        **fields,
    )
