"""``timeout`` ends every call of both wrappers while a forward hangs: of the prompt, or in the middle of an answer."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable
from types import SimpleNamespace

import pytest
from holding import held, idle
from langchain import agents
from langchain_core.messages import HumanMessage
from llama_index.core.agent.workflow import FunctionAgent, ReActAgent
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

from gac_core import RequestTimeoutError
from gac_langchain import ChatGaC, GaCLLM
from gac_llamaindex import GaCLLM as IndexLLM

TIMEOUT = 0.1
# LlamaIndex's workflows use what pydantic and they themselves have deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]


class Stay(BaseModel):
    """A stay."""

    town: str = Field(min_length=200, max_length=400)


def book(town: str) -> str:
    """Books a stay."""
    return town


TOOL = FunctionTool.from_defaults(book)
TOWN = PromptTemplate("Book {town}.")
TALK = [ChatMessage(role="user", content="Who")]
ASKING = {"messages": [("user", "Who")]}

RUNNABLES = {
    "invoke": lambda model: model.invoke("Who"),
    "stream": lambda model: list(model.stream("Who")),
    "batch": lambda model: model.batch(["Who"] * 2),
    "batch_as_completed": lambda model: list(model.batch_as_completed(["Who"] * 2)),
    "ainvoke": lambda model: model.ainvoke("Who"),
    "astream": lambda model: model.astream("Who"),
    "abatch": lambda model: model.abatch(["Who"] * 2),
    "astream_events": lambda model: model.astream_events("Who", version="v2"),
}
LANGCHAIN = {
    f"{name} {way}": lambda models, name=name, call=call: call(getattr(models, name))
    for name in ("chat", "text", "tools", "json_schema", "function_calling")
    for way, call in RUNNABLES.items()
} | {
    "chat streaming": lambda models: models.streaming.invoke("Who"),
    "chat generate": lambda models: models.chat.generate([[HumanMessage("Who")]] * 2),
    "chat agenerate": lambda models: models.chat.agenerate([[HumanMessage("Who")]] * 2),
    "chat of one member": lambda models: models.chat.invoke("Who", model="m1"),
    "text generate": lambda models: models.text.generate(["Who"] * 2),
    "text agenerate": lambda models: models.text.agenerate(["Who"] * 2),
    "agent invoke": lambda models: models.agent.invoke(ASKING),
    "agent stream": lambda models: list(models.agent.stream(ASKING, stream_mode="messages")),
    "agent ainvoke": lambda models: models.agent.ainvoke(ASKING),
    "agent astream": lambda models: models.agent.astream(ASKING, stream_mode="messages"),
    "agent with a structured answer": lambda models: models.typed_agent.invoke(ASKING),
}


async def agent_run(agent):
    return await agent.run("Who")


LLAMAINDEX = {
    "chat": lambda llm: llm.chat(TALK),
    "stream_chat": lambda llm: list(llm.stream_chat(TALK)),
    "complete": lambda llm: llm.complete("Who"),
    "complete formatted": lambda llm: llm.complete("Who", formatted=True),
    "stream_complete": lambda llm: list(llm.stream_complete("Who")),
    "predict": lambda llm: llm.predict(TOWN, town="Rome"),
    "stream": lambda llm: list(llm.stream(TOWN, town="Rome")),
    "structured_predict": lambda llm: llm.structured_predict(Stay, TOWN, town="Rome"),
    "stream_structured_predict": lambda llm: list(llm.stream_structured_predict(Stay, TOWN, town="Rome")),
    "chat_with_tools": lambda llm: llm.chat_with_tools([TOOL], "Who", tool_required=True),
    "stream_chat_with_tools": lambda llm: list(llm.stream_chat_with_tools([TOOL], "Who", tool_required=True)),
    "predict_and_call": lambda llm: llm.predict_and_call([TOOL], "Who"),
    "structured chat": lambda llm: llm.as_structured_llm(Stay).chat(TALK),
    "structured stream_chat": lambda llm: list(llm.as_structured_llm(Stay).stream_chat(TALK)),
    "structured complete": lambda llm: llm.as_structured_llm(Stay).complete("Who"),
    "achat": lambda llm: llm.achat(TALK),
    "astream_chat": lambda llm: llm.astream_chat(TALK),
    "acomplete": lambda llm: llm.acomplete("Who"),
    "astream_complete": lambda llm: llm.astream_complete("Who"),
    "apredict": lambda llm: llm.apredict(TOWN, town="Rome"),
    "astream": lambda llm: llm.astream(TOWN, town="Rome"),
    "astructured_predict": lambda llm: llm.astructured_predict(Stay, TOWN, town="Rome"),
    "astream_structured_predict": lambda llm: llm.astream_structured_predict(Stay, TOWN, town="Rome"),
    "achat_with_tools": lambda llm: llm.achat_with_tools([TOOL], "Who", tool_required=True),
    "astream_chat_with_tools": lambda llm: llm.astream_chat_with_tools([TOOL], "Who", tool_required=True),
    "apredict_and_call": lambda llm: llm.apredict_and_call([TOOL], "Who"),
    "structured achat": lambda llm: llm.as_structured_llm(Stay).achat(TALK),
    "structured astream_chat": lambda llm: llm.as_structured_llm(Stay).astream_chat(TALK),
    "structured acomplete": lambda llm: llm.as_structured_llm(Stay).acomplete("Who"),
    "function agent": lambda llm: agent_run(FunctionAgent(tools=[TOOL], llm=llm)),
    "function agent without streaming": lambda llm: agent_run(FunctionAgent(tools=[TOOL], llm=llm, streaming=False)),
    "react agent": lambda llm: agent_run(ReActAgent(tools=[TOOL], llm=llm)),
}


def langchain_models(one):
    asked = {"ensemble": one, "max_tokens": 400, "timeout": TIMEOUT}
    chat = ChatGaC(**asked)
    methods = ("json_schema", "function_calling")
    return SimpleNamespace(
        chat=chat,
        streaming=ChatGaC(streaming=True, **asked),
        text=GaCLLM(**asked),
        tools=chat.bind_tools([book], tool_choice="any"),
        agent=agents.create_agent(chat, [book]),
        typed_agent=agents.create_agent(chat, [], response_format=Stay),
        **{method: chat.with_structured_output(Stay, method=method) for method in methods},
    )


def llamaindex_model(one):
    return IndexLLM(ensemble=one, max_tokens=400, timeout=TIMEOUT)


WAYS = [
    *(pytest.param(langchain_models, call, id=f"langchain {name}") for name, call in LANGCHAIN.items()),
    *(pytest.param(llamaindex_model, call, id=f"llamaindex {name}") for name, call in LLAMAINDEX.items()),
]


async def read(asked):
    """Reads an asynchronous call to its end: a value, a stream, or the awaitable of a stream."""
    result = asked if isinstance(asked, AsyncIterator) else await asked
    if isinstance(result, AsyncIterator):
        async for _ in result:
            pass


def run(call, model):
    """Makes a call, in an event loop of its own if it is asynchronous."""
    result = call(model)
    if isinstance(result, Awaitable | AsyncIterator):
        asyncio.run(read(result))


@pytest.mark.parametrize("place", ["prompt", "answer"])
@pytest.mark.parametrize(("model", "call"), WAYS)
def test_a_timeout_ends_a_call_whose_forward_hangs(talkers, model, call, place):
    asked = model(talkers)
    began = time.monotonic()
    with held(talkers, 1, after=0 if place == "prompt" else 2), pytest.raises(RequestTimeoutError) as caught:
        run(call, asked)
    assert time.monotonic() - began < 5
    assert caught.value.timeout == TIMEOUT
    assert idle(talkers)
