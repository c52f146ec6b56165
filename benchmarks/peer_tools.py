"""Rows of `benchmarks.peers`: tools, objects and side effects. The first line of each function is its row's label."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any, Literal

from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent, LLMCompletionStartEvent
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

from benchmarks.peer_requests import ASK


class Place(BaseModel):
    """A place."""

    name: str = Field(max_length=8)


def weather(city: str) -> str:
    """Returns the weather."""
    return f"sunny in {city}"


class City(BaseModel):
    """Arguments of `weather`."""

    city: Literal["Rome", "Oslo"]


TOOL = FunctionTool.from_defaults(weather, fn_schema=City)


# ---- tools and objects


def agents(rig: Any) -> bool:
    """`FunctionAgent` accepts it."""

    async def run() -> None:
        # One step is enough: how a model uses the result is not part of the row.
        try:
            await FunctionAgent(llm=rig.make(), tools=[TOOL]).run("How is the weather?", max_iterations=1)
        except Exception as error:
            if "iterations" not in str(error):
                raise

    asyncio.run(run())
    return True


def forced_calls(rig: Any) -> bool:
    """A tool call can be required (`tool_required`)."""
    llm = rig.make(**rig.roomy)
    response = llm.chat_with_tools([TOOL], "Hello.", tool_required=True)
    return bool(llm.get_tool_calls_from_response(response))


def call_ids(rig: Any) -> bool:
    """Two calls of one tool have different ids."""
    # Depending on the seed, a model calls the tool once or twice.
    for seed in range(20):
        llm = rig.make(**{name: seed if name == "seed" else value for name, value in rig.roomy.items()})
        response = llm.chat_with_tools(
            [TOOL], "How is the weather?", tool_required=True, allow_parallel_tool_calls=True
        )
        ids = [call.tool_id for call in llm.get_tool_calls_from_response(response)]
        if len(ids) > 1:
            return len(set(ids)) == len(ids)
    return False


def objects(rig: Any) -> bool:
    """`structured_predict` returns an object, whatever the model prefers."""
    return isinstance(rig.make().structured_predict(Place, PromptTemplate("A place?")), Place)


def object_streams(rig: Any) -> bool:
    """`stream_structured_predict` ends with that object."""
    parts = list(rig.make().stream_structured_predict(Place, PromptTemplate("A place?")))
    return bool(parts) and parts[-1].name is not None


# ---- side effects


def histories(rig: Any) -> bool:
    """The caller's chat history is not modified."""
    llm, history = rig.make(), list(ASK)
    if llm.metadata.is_function_calling_model:
        llm.chat_with_tools([TOOL], "And now?", chat_history=history)
    else:
        llm.chat(history)
    return history == ASK


def llm_kwargs(rig: Any) -> bool:
    """The caller's `llm_kwargs` are not modified."""
    given = dict(rig.harmless)
    with suppress(ValueError):  # A model that generates no object.
        rig.make().structured_predict(Place, PromptTemplate("A place?"), llm_kwargs=given)
    return bool(given == rig.harmless)


class _Starts(BaseEventHandler):
    """Counts start events of requests."""

    seen: list[str] = Field(default_factory=list)

    def handle(self, event: Any, **kwargs: Any) -> None:
        """Stores one event."""
        if isinstance(event, LLMChatStartEvent | LLMCompletionStartEvent):
            self.seen.append(type(event).__name__)


def events(rig: Any) -> bool:
    """One request is one event for instrumentation."""
    handler, root = _Starts(), get_dispatcher()
    root.add_event_handler(handler)
    try:
        rig.make().chat(ASK)
        rig.make().complete("In which town")
    finally:
        root.event_handlers.remove(handler)
    return handler.seen == ["LLMChatStartEvent", "LLMCompletionStartEvent"]


def written_down(rig: Any) -> bool:
    """`from_dict(to_dict())` gives the same answers."""
    llm = rig.make()
    return bool(type(llm).from_dict(llm.to_dict()).complete("In which town").text == llm.complete("In which town").text)


def shared(rig: Any) -> bool:
    """Models with the same settings share one copy of the weights."""
    first = rig.load()
    return rig.load() is first
