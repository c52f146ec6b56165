"""Features of LlamaIndex integrations, found by running each of them: the table of docs/comparison.md.

Run by ``python -m benchmarks.peers``, in an environment that also holds the packages llama-index-llms-huggingface and
llama-index-llms-ollama. Each function below is a row; its first line is the row's label.
"""

from __future__ import annotations

import asyncio
import importlib.metadata
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal

import torch
from llama_index.core.agent.workflow import FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatStartEvent, LLMCompletionStartEvent
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field
from rich.console import Console

from benchmarks.rigs import CONTEXT, GaCRig, HuggingFaceRig, OllamaRig

PROMPT = "passages " * 30
ASK = [ChatMessage("How is the weather?")]
# A token limit per call, under the names that integrations may use.
LIMITS = [{"max_tokens": 3}, {"max_new_tokens": 3}, {"num_predict": 3}, {"options": {"num_predict": 3}}]
PATIENCE = 30.0


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


def quiet(rig: Any, seconds: float = 0.3) -> bool:
    """Returns whether the models are idle shortly afterwards."""
    time.sleep(0.1)
    before = rig.work()
    time.sleep(seconds)
    return bool(rig.work() == before)


# ---- requests


def several_models(rig: Any) -> bool:
    """Several models generate one answer."""
    raw = rig.make().complete("In which town").raw
    return isinstance(raw, dict) and len(raw.get("gac", {}).get("members", {})) > 1


def call_arguments(rig: Any) -> bool:
    """A token limit passed per call takes effect."""
    whole = rig.make(long=True).complete(PROMPT).text
    for limit in LIMITS:
        try:
            if len(rig.make(long=True).complete(PROMPT, **limit).text) < len(whole) / 4:
                return True
        except Exception:
            continue
    return False


def unknown_arguments(rig: Any) -> bool:
    """An unknown argument raises."""
    try:
        rig.make().complete("In which town", temprature=0.5)
    except Exception as error:
        return "temprature" in str(error)
    return False


def stop_strings(rig: Any) -> bool:
    """A stop string passed per call ends the text and is not part of it."""
    whole = rig.make(long=True).complete(PROMPT).text
    stop = whole[3:5]
    return stop not in rig.make(long=True).complete(PROMPT, stop=[stop]).text


def long_prompts(rig: Any) -> bool:
    """A prompt longer than the context raises before anything is computed."""
    before = rig.work()
    try:
        rig.make().complete("word " * (CONTEXT + 100))
    except Exception:
        return bool(rig.work() == before)
    return False


def token_counts(rig: Any) -> bool:
    """LlamaIndex's token counter gets the models' own counts, for whole and streamed answers."""
    counter = TokenCountingHandler(tokenizer=lambda text: [0] * 10**6)
    llm = rig.make(callback_manager=CallbackManager([counter]))
    llm.chat(ASK)
    list(llm.stream_chat(ASK))
    # An estimate by the counter's own tokenizer would be in the millions.
    return bool(0 < counter.total_llm_token_count < 10**6)


def logprobs(rig: Any) -> bool:
    """Log probabilities of the tokens."""
    return bool(rig.make().chat(ASK, logprobs=2).logprobs)


def context_window(rig: Any) -> bool:
    """The context window is the model's own."""
    return bool(rig.make().metadata.context_window == CONTEXT)


def images(rig: Any) -> bool:
    """Images in messages."""
    picture = ImageBlock(image=b"\x89PNG\r\n\x1a\n", image_mimetype="image/png")
    rig.make().chat([ChatMessage(blocks=[TextBlock(text="What is it?"), picture])])
    return rig.name == "Ollama"


# ---- streams and event loops


def streams(rig: Any) -> bool:
    """A stream's first piece arrives while the rest is being generated."""
    stream = rig.make(long=True).stream_complete(PROMPT)
    next(stream)
    early = not quiet(rig, 0.02)
    list(stream)
    return early


def abandoned_streams(rig: Any) -> bool:
    """Abandoning a stream stops the models."""
    stream = rig.make(long=True).stream_complete(PROMPT)
    next(stream)
    stream.close()
    return quiet(rig)


def failing_streams(rig: Any) -> bool:
    """An error within a stream reaches its consumer."""
    with rig.failing():
        try:
            list(rig.make(long=True).stream_complete(PROMPT))
        except Exception as error:
            return "out of luck" in str(error)
    return False


async def _longest_gap(task: asyncio.Task[Any]) -> float:
    gaps, last = [], time.perf_counter()
    while not task.done():
        await asyncio.sleep(0.001)
        gaps.append(time.perf_counter() - last)
        last += gaps[-1]
    await task
    return sorted(gaps)[len(gaps) * 9 // 10]


def event_loop(rig: Any) -> bool:
    """The event loop keeps running during `acomplete`."""

    async def run() -> float:
        return await _longest_gap(asyncio.create_task(rig.make(long=True).acomplete(PROMPT)))

    return asyncio.run(run()) < 0.05


def event_loop_streams(rig: Any) -> bool:
    """The event loop keeps running during `astream_complete`."""

    async def read() -> None:
        async for _ in await rig.make(long=True).astream_complete(PROMPT):
            pass

    async def run() -> float:
        return await _longest_gap(asyncio.create_task(read()))

    return asyncio.run(run()) < 0.05


def cancelled_tasks(rig: Any) -> bool:
    """Cancelling `acomplete` stops the models."""

    async def run() -> bool:
        task = asyncio.create_task(rig.make(long=True).acomplete(PROMPT))
        await asyncio.sleep(0.2)
        if task.done():
            return False
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        return await asyncio.to_thread(quiet, rig)

    return asyncio.run(run())


def together(rig: Any) -> bool:
    """Eight concurrent `acomplete` calls run concurrently (with a server: are sent concurrently)."""

    async def run() -> None:
        llm = rig.make(long=True)
        await asyncio.gather(*(llm.acomplete(f"{number} {PROMPT}") for number in range(8)))

    rig.widest()
    asyncio.run(run())
    return bool(rig.widest() > 4)


def prefixes(rig: Any) -> bool:
    """A prompt prefix shared with an earlier prompt is not computed again."""
    llm, begin = rig.make(), "The bridge of stone stands in the town. " * 12
    counts = []
    for end in ("Who?", "Where?"):
        before = rig.read()
        llm.complete(begin + end)
        counts.append(rig.read() - before)
    return bool(counts[1] < counts[0] / 2)


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


ROWS: tuple[Callable[[Any], bool], ...] = (
    several_models, call_arguments, unknown_arguments, stop_strings, long_prompts, token_counts, logprobs,
    context_window, images, streams, abandoned_streams, event_loop, event_loop_streams, cancelled_tasks, together,
    prefixes, agents, forced_calls, call_ids, objects, object_streams, histories, llm_kwargs, events, written_down,
    shared, failing_streams,
)  # fmt: skip

PEERS = ("llama-index-llms-huggingface", "llama-index-llms-ollama")
OF_SERVERS = (long_prompts, prefixes, shared)


def found(row: Callable[[Any], bool], rig: Any) -> str:
    """Returns the cell of one row for one integration: yes, no, or no with the error or "never ends"."""
    if rig.remote and row in OF_SERVERS:
        return "depends on the server"
    result = ["no (never ends)"]

    def run() -> None:
        try:
            result[0] = "yes" if row(rig) else "no"
        except Exception as error:
            result[0] = f"no (`{type(error).__name__}`)"

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(PATIENCE)
    return result[0]


def main() -> None:
    """Prints the table.

    Raises:
        SystemExit: An integration is not installed.
    """
    for peer in PEERS:
        try:
            importlib.metadata.distribution(peer)
        except importlib.metadata.PackageNotFoundError:
            raise SystemExit(f"{peer} is not installed: pip install {' '.join(PEERS)}") from None
    torch.manual_seed(0)
    rigs = [GaCRig(), HuggingFaceRig(), OllamaRig()]
    out = Console(width=200, soft_wrap=True)
    out.print("| | " + " | ".join(rig.name for rig in rigs) + " |", "|" + "---|" * (len(rigs) + 1), sep="\n")
    for row in ROWS:
        label = (row.__doc__ or "").rstrip(".")
        out.print(f"| {label} | " + " | ".join(found(row, rig) for rig in rigs) + " |", markup=False)


if __name__ == "__main__":
    main()
