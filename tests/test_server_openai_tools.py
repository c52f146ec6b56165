"""Tools and structured answers with the `openai` package, on random members whose grammar does the work."""

from __future__ import annotations

import json

import openai
import pytest
from conftest import QUESTION
from openai import OpenAI
from pydantic import BaseModel, Field
from server_fixture import served

from gac_core import Conversation, Message
from gac_core.server.catalog import Catalog
from gac_core.server.settings import ServerSettings

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 8}, "days": {"type": "integer", "maximum": 9}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}


class Point(BaseModel):
    """A place on a board."""

    column: int = Field(ge=0, le=7)
    row: int = Field(ge=0, le=7)


class FindPoint(BaseModel):
    """Returns a place."""

    name: str = Field(max_length=6)
    at: Point


@pytest.fixture(scope="module")
def client(talkers):
    with (
        served(Catalog({"talkers": talkers}), ServerSettings()) as base,
        OpenAI(base_url=f"{base}/v1", api_key="none", max_retries=0, timeout=60) as made,
    ):
        yield made


def test_tools_and_back(client, talkers):
    asked = {"model": "talkers", "tools": [WEATHER], "temperature": 1.0, "seed": 3, "max_tokens": 400}
    messages = [{"role": "user", "content": "How is the weather?"}]
    answer = client.chat.completions.create(
        messages=messages, tool_choice="required", parallel_tool_calls=False, **asked
    )
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_weather"
    assert set(json.loads(call.function.arguments)) == {"city", "days"}
    talk = [*messages, choice.message, {"role": "tool", "tool_call_id": call.id, "content": "rain"}]
    after = client.chat.completions.create(messages=talk, tool_choice="none", **{**asked, "max_tokens": 8})
    said = [
        Message("user", "How is the weather?"),
        Message("assistant", tool_calls=[call.model_dump()]),
        Message("tool", "rain", tool_call_id=call.id),
    ]
    want = talkers.generate(
        Conversation(said, tools=[WEATHER], tool_choice="none"), max_tokens=8, temperature=1.0, seed=3
    )
    assert after.choices[0].message.content == want.text


@pytest.mark.parametrize("parallel", [True, False])
def test_streamed_calls_equal_whole_ones(client, parallel):
    asked = {
        "model": "talkers",
        "messages": QUESTION,
        "tools": [WEATHER],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}} if not parallel else "required",
        "parallel_tool_calls": parallel,
        "temperature": 1.0,
        "seed": 4,
        "max_tokens": 300,
    }
    whole = client.chat.completions.create(**asked).choices[0]
    with client.chat.completions.stream(**asked) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion().choices[0]
    assert "tool_calls.function.arguments.delta" in kinds
    calls = [[(c.function.name, c.function.arguments) for c in each.message.tool_calls] for each in (whole, final)]
    assert calls[0] == calls[1] != []
    assert final.finish_reason == whole.finish_reason
    # Calls that the SDK assembled have their index.
    after = {**asked, "messages": [*QUESTION, final.message], "tool_choice": "none", "max_tokens": 2}
    assert client.chat.completions.create(**after).choices


def test_parse_of_an_answer_and_of_a_call(client):
    asked = {"model": "talkers", "messages": QUESTION, "temperature": 1.0, "seed": 3, "max_tokens": 400}
    point = client.chat.completions.parse(response_format=Point, **asked).choices[0].message.parsed
    assert isinstance(point, Point)
    tools = [openai.pydantic_function_tool(FindPoint)]
    called = client.chat.completions.parse(tools=tools, tool_choice="required", parallel_tool_calls=False, **asked)
    (call,) = called.choices[0].message.tool_calls
    assert isinstance(call.function.parsed_arguments, FindPoint)
    # The answer goes back as it is, with what the SDK added to it.
    talk = [*QUESTION, called.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": "here"}]
    after = {"model": "talkers", "temperature": 0, "max_tokens": 2}
    assert client.chat.completions.create(messages=talk, **after).choices
    with pytest.raises(openai.LengthFinishReasonError):
        client.chat.completions.parse(response_format=FindPoint, **{**asked, "max_tokens": 3})


def test_a_response_format_does_not_concern_required_calls(client):
    asked = {"model": "talkers", "messages": QUESTION, "temperature": 1.0, "seed": 3, "max_tokens": 400}
    required = {"tools": [WEATHER], "tool_choice": "required", "parallel_tool_calls": False, **asked}
    plain, formatted = (
        client.chat.completions.create(**required, **own).choices[0].message
        for own in ({}, {"response_format": {"type": "json_object"}})
    )
    assert formatted.tool_calls[0].function == plain.tool_calls[0].function


def test_json_object(client):
    answer = client.chat.completions.create(
        model="talkers", messages=QUESTION, temperature=0, max_tokens=60, response_format={"type": "json_object"}
    )
    choice = answer.choices[0]
    if choice.finish_reason == "stop":
        assert isinstance(json.loads(choice.message.content), dict)
    else:
        assert choice.message.content.lstrip().startswith("{")
