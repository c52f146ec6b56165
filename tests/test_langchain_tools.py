"""Tools, structured output and thresholds of the LangChain models, on random members whose grammar does the work."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated

import pytest
from conftest import EMBEDDED, QUESTION, member_ids
from holding import idle, ticks_while_held
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage, ToolMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from gac_core import Grammar, RequestError, UnknownArgumentError
from gac_langchain import ChatGaC, GaCLLM
from gac_langchain.answers import invalidating_suffix

ASK = QUESTION[1]["content"]
LONG = Grammar.regex("[a-z ]{5000}")


@tool
def get_weather(city: Annotated[str, Field(max_length=200)], days: Annotated[int, Field(ge=1, le=99)] = 1) -> str:
    """Tells the weather of a city."""
    return f"It rains in {city} for {days} days."


class Point(BaseModel):
    """A place on a board."""

    column: int = Field(ge=0, le=7)
    row: int = Field(ge=0, le=7)


class Stay(BaseModel):
    """A stay in a place."""

    at: Point
    kind: str = Field(pattern="^(day|night)$")


@pytest.fixture
def chat(talkers):
    return ChatGaC(ensemble=talkers, temperature=1.0, seed=3, max_tokens=1500)


@pytest.fixture
def trained(ensemble):
    return ChatGaC(ensemble=ensemble, max_tokens=16)


def share(message):
    return message.response_metadata["gac"]["share_ensembled"]


# ---- tools


def test_calls_come_whole_and_in_pieces(chat):
    bound = chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    message = bound.invoke("How is the weather?")
    assert message.content == ""
    assert [call["name"] for call in message.tool_calls] == ["get_weather"]
    assert message.response_metadata["finish_reason"] == "tool_calls"
    assert isinstance(message.tool_calls[0]["args"]["city"], str)
    chunks = list(bound.stream("How is the weather?"))
    full = sum(chunks[1:], chunks[0])
    assert [(c["name"], c["args"]) for c in full.tool_calls] == [(c["name"], c["args"]) for c in message.tool_calls]
    pieces = [piece for chunk in chunks for piece in chunk.tool_call_chunks]
    assert pieces[0]["name"] == "get_weather"
    assert pieces[0]["id"] == full.tool_calls[0]["id"]
    assert len(pieces) > 2


@pytest.mark.parametrize("choice", ["get_weather", {"type": "function", "function": {"name": "get_weather"}}, True])
def test_choices_in_every_form(chat, choice):
    assert chat.bind_tools([get_weather], tool_choice=choice).invoke("Hi").tool_calls


def test_tools_in_every_form(chat):
    schema = {"name": "look", "description": "Looks.", "parameters": {"type": "object", "properties": {}}}
    for form in (get_weather, Point, schema, {"type": "function", "function": schema}):
        assert chat.bind_tools([form], tool_choice="any").invoke("Hi").tool_calls
    assert chat.bind_tools([]).invoke("Hi", max_tokens=4).tool_calls == []
    with pytest.raises(RequestError, match="nobody"):
        chat.bind_tools([get_weather], tool_choice="nobody")


def test_results_go_back(chat):
    call = chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False).invoke("Hi")
    result = get_weather.invoke(call.tool_calls[0])
    assert isinstance(result, ToolMessage)
    answer = chat.bind_tools([get_weather]).invoke([HumanMessage("Hi"), call, result], max_tokens=8)
    assert isinstance(answer, AIMessage)


def test_a_call_that_is_cut_off_is_invalid(chat):
    bound = chat.bind_tools([get_weather], tool_choice="any")
    message = bound.invoke("Hi", max_tokens=24)
    assert message.tool_calls == []
    assert len(message.invalid_tool_calls) == 1


def sum_of(chunks):
    first, *rest = chunks
    return sum(rest, first)


def test_no_stream_mends_a_call_that_was_cut_off(chat):
    bound = chat.bind_tools([get_weather], tool_choice="any", parallel_tool_calls=False)
    named = 0
    for end in range(4, 40, 3):
        plain, streamed = bound.invoke("Hi", max_tokens=end), sum_of(bound.stream("Hi", max_tokens=end))
        assert streamed.response_metadata["finish_reason"] == "length"
        assert streamed.tool_calls == plain.tool_calls == []
        assert [c["name"] for c in streamed.invalid_tool_calls] == [c["name"] for c in plain.invalid_tool_calls]
        named += any(c["name"] for c in plain.invalid_tool_calls)
        finished = bound.stream_events("Hi", version="v3", max_tokens=end).output
        assert finished.tool_calls == []
    assert named > 3


def test_truncated_arguments_are_invalidated_wherever_they_end():
    begun = '{"a": "x\\"y\\\\z\\u00e9[", "b": [1, {"c": [true, "]"]}], "d": {}}'
    for end in range(len(begun) + 1):
        chunks = [tool_call_chunk(name="f", args=begun[:end], id="1", index=0)]
        chunks.append(tool_call_chunk(args=invalidating_suffix(begun[:end]), index=0))
        message = sum_of(AIMessageChunk("", tool_call_chunks=[chunk]) for chunk in chunks)
        assert message.tool_calls == []
        assert message.invalid_tool_calls[0]["name"] == "f"


def test_an_agent_that_streams_runs_no_tool_whose_call_was_cut_off(chat):
    agents = pytest.importorskip("langchain.agents")
    ran, settings = [], {"parallel_tool_calls": False}

    @tool
    def note(text: str = "nothing") -> str:
        """Notes a text."""
        ran.append(text)
        return "noted"

    @agents.middleware.wrap_model_call
    def calling(request, handler):
        return handler(request.override(tool_choice="any", model_settings=settings))

    agent = agents.create_agent(chat, [note], middleware=[calling])
    for settings["max_tokens"] in (14, 20, 30):
        *_, (_, state) = agent.stream({"messages": [HumanMessage("Hi")]}, stream_mode=["messages", "values"])
        assert state["messages"][-1].response_metadata["finish_reason"] == "length"
    assert ran == []


# ---- structured output


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_enforced(chat, method):
    for seed in range(6):
        stay = chat.with_structured_output(Stay, method=method).invoke("Where?", seed=seed)
        assert isinstance(stay, Stay)
    values = chat.with_structured_output(Stay.model_json_schema(), method=method).invoke("Where?")
    assert Stay(**values)
    raw = chat.with_structured_output(Stay, method=method, include_raw=True).invoke("Where?")
    assert isinstance(raw["raw"], AIMessage)
    assert isinstance(raw["parsed"], Stay)
    assert raw["parsing_error"] is None
    cut = chat.with_structured_output(Stay, method=method, include_raw=True, max_tokens=20).invoke("Where?")
    assert cut["parsed"] is None
    # LangChain's parser returns None without a call; the raw message has the malformed one.
    assert cut["parsing_error"] is not None or cut["raw"].invalid_tool_calls


async def test_structured_output_async_and_streamed(chat):
    structured = chat.with_structured_output(Stay)
    assert isinstance(await structured.ainvoke("Where?"), Stay)
    assert [type(part) for part in structured.stream("Where?")][-1] is Stay
    partial = [part async for part in chat.with_structured_output(Stay.model_json_schema()).astream("Where?")]
    assert len(partial) > 1
    assert Stay(**partial[-1])


def test_json_mode_and_wrong_methods(chat):
    with pytest.raises(RequestError, match="yaml"):
        chat.with_structured_output(Stay, method="yaml")
    with pytest.raises(RequestError, match="response_format"):
        chat.invoke("x", response_format={"type": "xml"})


# ---- agents


def test_an_agent_gives_a_structured_answer(chat):
    agents = pytest.importorskip("langchain.agents")
    agent = agents.create_agent(chat, [], response_format=Stay)
    state = agent.invoke({"messages": [HumanMessage("Where?")]}, config={"recursion_limit": 6})
    assert isinstance(state["structured_response"], Stay)


# ---- many callers


def test_64_threads_get_their_solo_answers(trained):
    prompts = [ASK, "Who", "In which town", "14:15"] * 16
    solo = {prompt: trained.invoke(prompt).content for prompt in prompts[:4]}
    with ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(lambda prompt: trained.invoke(prompt).content, prompts))
    assert answers == [solo[prompt] for prompt in prompts]


def counted(engine):
    """The engine's steps from now on, one entry each."""
    steps, step = [], engine.step
    engine.step = lambda: steps.append(None) or step()
    return steps


def test_a_stream_given_up_frees_the_engine(chat):
    engine = chat._ensemble._session.worker._engine
    stream = chat.stream("Hi", grammar=LONG)
    next(stream)
    steps = counted(engine)
    stream.close()
    before = len(steps)
    assert idle(chat._ensemble)
    del engine.step
    assert len(steps) - before <= 2


async def test_a_cancelled_call_frees_the_engine_and_the_loop_ticks(chat):
    task = await ticks_while_held(chat._ensemble, lambda: chat.ainvoke("Hi", grammar=LONG))
    engine = chat._ensemble._session.worker._engine
    steps = counted(engine)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    before = len(steps)
    assert await asyncio.to_thread(idle, chat._ensemble)
    del engine.step
    assert len(steps) - before <= 2


async def test_an_async_stream_given_up_frees_the_engine(chat):
    engine = chat._ensemble._session.worker._engine
    for stream in (chat.astream("Hi", grammar=LONG), (chat.bind(grammar=LONG) | StrOutputParser()).astream("Hi")):
        await anext(stream)
        steps = counted(engine)
        await stream.aclose()
        before = len(steps)
        assert await asyncio.to_thread(idle, chat._ensemble)
        del engine.step
        assert len(steps) - before <= 2


# ---- building


def test_every_way_to_build_one(ensemble, tmp_path, monkeypatch):
    path = tmp_path / "ensemble.yaml"
    path.write_text(f"members: [{EMBEDDED[0]}, {EMBEDDED[1]}]\n", encoding="utf-8")
    one, two = ChatGaC.from_config(path), GaCLLM.from_config(path, max_tokens=3)
    assert member_ids(one._ensemble) == member_ids(two._ensemble)
    monkeypatch.setenv("GAC_CONFIG", str(path))
    assert member_ids(ChatGaC()._ensemble) == member_ids(one._ensemble)
    monkeypatch.delenv("GAC_CONFIG")
    with pytest.raises(ValueError, match="GAC_CONFIG"):
        ChatGaC()
    first = ChatGaC(models=EMBEDDED[:1])
    assert member_ids(ChatGaC(models=EMBEDDED[:1])._ensemble) == member_ids(first._ensemble)
    assert first.profile["tool_calling"] is True
    assert first.profile["max_input_tokens"] == first._ensemble.context


def test_one_member_alone_by_name(trained):
    message = trained.invoke(ASK, model="birch")
    assert message.response_metadata["model_name"] == "birch"
    assert message.content == trained.invoke(ASK, gate="birch", threshold=0.0).content
    with pytest.raises(RequestError, match="oak"):
        trained.invoke(ASK, model="oak")
    with pytest.raises(UnknownArgumentError, match="tool_choise"):
        trained.invoke(ASK, tool_choise="any")


def test_chains_and_broken_calls_in_a_history(trained):
    history = [
        HumanMessage("Hi"),
        AIMessage("", invalid_tool_calls=[{"id": "1", "name": None, "args": "{oops", "error": "x"}]),
        HumanMessage(ASK),
    ]
    assert isinstance((trained | StrOutputParser()).invoke(history), str)
    assert json.dumps(trained.invoke(history).response_metadata)
