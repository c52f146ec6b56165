"""Rows of `benchmarks.peers`: requests, streams and event loops. The first line of each function is its row's label."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress
from typing import Any

import torch
from llama_index.core.base.llms.types import ChatMessage, ImageBlock, TextBlock
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler

from benchmarks.rigs import CONTEXT

PROMPT = "passages " * 30
ASK = [ChatMessage("How is the weather?")]
# A token limit per call, under the names that integrations may use.
LIMITS = [{"max_tokens": 3}, {"max_new_tokens": 3}, {"num_predict": 3}, {"options": {"num_predict": 3}}]


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
    # A server has them in its choices.
    values = raw if isinstance(raw, dict) else getattr(getattr(raw, "choices", [raw])[0], "model_extra", None) or {}
    return len(values.get("gac", {}).get("members", {})) > 1


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
    # Some repeat the prompt.
    texts = [
        rig.make(long=True).complete(PROMPT, **given).text.removeprefix(PROMPT).strip()
        for given in ({}, {"stop": [" "]})
    ]
    return " " in texts[0] and " " not in texts[1]


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
    # A number of them, or as in OpenAI's interface; by call or as a field.
    for given in ({"logprobs": 2}, {"logprobs": True, "top_logprobs": 2}):
        for fields, kwargs in (({}, given), (given, {})):
            with suppress(Exception):
                if rig.make(**fields).chat(ASK, **kwargs).logprobs:
                    return True
    return False


def context_window(rig: Any) -> bool:
    """The context window is the model's own."""
    return bool(rig.make().metadata.context_window == CONTEXT)


def images(rig: Any) -> bool:
    """Images in messages."""
    picture = ImageBlock(image=b"\x89PNG\r\n\x1a\n", image_mimetype="image/png")
    rig.make().chat([ChatMessage(blocks=[TextBlock(text="What is it?"), picture])])
    server = getattr(rig, "server", None)
    # The image in base64.
    return server is not None and "iVBORw0KGgo" in json.dumps(server.body)


def templates(rig: Any) -> bool:
    """`complete` goes through the model's chat template by default."""
    return bool(rig.templated())


def echoes(rig: Any) -> bool:
    """The text of a completion does not repeat the prompt."""
    return "In which town" not in rig.make().complete("In which town").text


def penalties(rig: Any) -> bool:
    """A frequency penalty passed per call takes effect or is sent."""
    texts = []
    for given in ({}, {"frequency_penalty": 2.0}):
        torch.manual_seed(0)
        texts.append(rig.make(long=True).complete(PROMPT, **given).text)
    server = getattr(rig, "server", None)
    return bool(texts[0] != texts[1] if server is None else server.body.get("frequency_penalty") == 2.0)


def time_limits(rig: Any) -> bool:
    """A request can be given a time limit, which raises an error."""
    for limit in ({"timeout": 0.05}, {"request_timeout": 0.05}):
        try:
            rig.make(long=True, **limit, **rig.once).complete(PROMPT)
        except Exception as error:
            if "time" in f"{type(error).__name__} {error}".lower() and "argument" not in str(error):
                return True
    return False


def retries(rig: Any) -> bool:
    """A request that fails once is repeated."""
    with rig.flaky():
        # A prompt that no other row has, since what is cached needs no forward.
        rig.make().complete("Which town has an inn with nine rooms?")
    return True


def json_mode(rig: Any) -> bool:
    """A completion can be required to be JSON, without a schema class."""
    for fields, kwargs in rig.json:
        text = rig.make(**fields).complete("A place as JSON?", **kwargs).text
        with suppress(ValueError):
            json.loads(text)
            return True
    return False


# ---- streams and event loops


def streams(rig: Any) -> bool:
    """A stream's first piece arrives long before the last is generated."""
    before = rig.work()
    stream = rig.make(long=True).stream_complete(PROMPT)
    next(stream)
    first = rig.work() - before
    list(stream)
    return bool(first < (rig.work() - before) / 2)


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
