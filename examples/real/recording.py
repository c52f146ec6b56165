"""Collects the statistics (``gac``) of a LlamaIndex model's answers, which engines and programs do not return."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent

_calls: ContextVar[list[dict[str, Any]] | None] = ContextVar("calls", default=None)


class Recorder(BaseEventHandler):
    """Adds the statistics of each answer to the list of its context."""

    def handle(self, event: BaseEvent, **kwargs: Any) -> None:
        """Receives an event."""
        calls = _calls.get()
        if calls is not None and isinstance(event, LLMChatEndEvent) and event.response is not None:
            calls.append(event.response.raw["gac"])


get_dispatcher().add_event_handler(Recorder())


@contextmanager
def recorded() -> Iterator[list[dict[str, Any]]]:
    """Yields a list that receives the statistics of all answers within, other threads' and tasks' excluded."""
    calls: list[dict[str, Any]] = []
    token = _calls.set(calls)
    try:
        yield calls
    finally:
        _calls.reset(token)
