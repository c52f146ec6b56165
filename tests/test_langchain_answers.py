"""Log-probabilities by chunk, several answers to one prompt, and penalties, with LangChain's models."""

from __future__ import annotations

from typing import Literal

import pytest
from conftest import QUESTION
from langchain_core.messages import ChatMessage, HumanMessage, SystemMessage
from langchain_core.tools import tool

from gac_core import RequestError
from gac_langchain import ChatGaC, GaCLLM

ASK = QUESTION[1]["content"]
HOT = {"temperature": 3.0, "seed": 5, "max_tokens": 8}


@pytest.fixture
def chat(ensemble):
    return ChatGaC(ensemble=ensemble, max_tokens=200)


@tool
def now(zone: Literal["utc", "cet"]) -> str:
    """Tells the time."""
    return "noon"


def sum_of(chunks):
    return sum(chunks[1:], chunks[0])


def assert_same(found, want):
    """Equal up to rounding, where requests share a batch or a prefix."""
    assert [entry["token"] for entry in found["content"]] == [entry["token"] for entry in want["content"]]
    values = [entry["logprob"] for entry in want["content"]]
    assert [entry["logprob"] for entry in found["content"]] == pytest.approx(values, abs=1e-4)


def test_log_probabilities_as_openai_asks_for_them(ensemble, chat):
    want = chat.invoke(ASK, logprobs=3, max_tokens=4).response_metadata["logprobs"]
    given = {"logprobs": True, "top_logprobs": 3}
    own = ChatGaC(ensemble=ensemble, max_tokens=4, **given)
    assert own.logprobs == 3
    for message in (
        chat.bind(**given).invoke(ASK, max_tokens=4),
        chat.invoke(ASK, top_logprobs=3, max_tokens=4),
        own.invoke(ASK),
    ):
        found = message.response_metadata["logprobs"]
        assert_same(found, want)
        assert len(found["content"][0]["top_logprobs"]) == 3
    for contrary in (False, 2, 1):
        with pytest.raises(RequestError, match="top_logprobs=3 contradicts logprobs"):
            chat.invoke(ASK, logprobs=contrary, top_logprobs=3)
    with pytest.raises(RequestError, match="logprobs"):
        chat.invoke(ASK, top_logprobs=101)


@pytest.mark.parametrize("asked", [{"stop": ["t"]}, {"tools": [now], "tool_choice": "any"}])
async def test_each_chunk_of_a_stream_has_the_log_probabilities_of_its_tokens(chat, asked):
    asked = {**asked, "logprobs": 2, "max_tokens": 80, "parallel_tool_calls": False}
    want = chat.invoke(ASK, **asked)
    chunks = list(chat.stream(ASK, **asked))
    having = [chunk for chunk in chunks if "logprobs" in chunk.response_metadata]
    assert len(having) > 1
    for chunk in having[:-1]:
        assert 1 <= len(chunk.response_metadata["logprobs"]["content"]) < 4
    streamed = [sum_of(chunks)]
    chunks = [chunk async for chunk in chat.astream(ASK, **asked)]
    streamed.append(sum_of(chunks))
    for whole in streamed:
        assert_same(whole.response_metadata["logprobs"], want.response_metadata["logprobs"])
        assert whole.response_metadata.keys() == want.response_metadata.keys()
        assert (whole.text, len(whole.tool_calls)) == (want.text, len(want.tool_calls))


async def test_event_streams_of_answers_with_log_probabilities(chat):
    asked = {"logprobs": 2, "max_tokens": 8}
    want = chat.invoke(ASK, **asked).response_metadata["logprobs"]
    events = [event async for event in chat.astream_events(ASK, version="v2", **asked)]
    assert_same(events[-1]["data"]["output"].response_metadata["logprobs"], want)


def test_streams_of_texts_have_the_log_probabilities_of_each_piece(ensemble):
    llm = GaCLLM(ensemble=ensemble, logprobs=2, streaming=True, **HOT)
    want = llm.generate(["In which"]).generations[0][0]
    chunks = list(llm._stream("In which"))
    whole = sum_of(chunks)
    assert len([chunk for chunk in chunks if "logprobs" in (chunk.generation_info or {})]) > 1
    assert_same(whole.generation_info["logprobs"], want.generation_info["logprobs"])
    assert whole.text == want.text


def test_the_developer_role_is_the_system_role(chat):
    want = chat.invoke([SystemMessage("Be brief."), HumanMessage(ASK)], max_tokens=4)
    message = chat.invoke([ChatMessage("Be brief.", role="developer"), HumanMessage(ASK)], max_tokens=4)
    assert message.usage_metadata["input_tokens"] == want.usage_metadata["input_tokens"]
    assert message.content == want.content
