"""LlamaIndex's agents on real models: tools, hand-off, streamed events and the ReAct format.

The models are small, so settings and grammars make the choices that matter; what is asserted holds for any model.
"""

from __future__ import annotations

import gc
from typing import Literal

import pytest
from llama_index.core.agent.workflow import (
    AgentOutput,
    AgentStream,
    AgentWorkflow,
    FunctionAgent,
    ReActAgent,
    ToolCallResult,
)
from llama_index.core.memory import Memory
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel
from real_index import asked, both  # noqa: F401

from gac_core import Grammar
from gac_llamaindex import GaCLLM

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*aiosqlite.*:ResourceWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]


class City(BaseModel):
    """Arguments of `weather`."""

    city: Literal["Rome", "Oslo"]


def weather(city: str) -> str:
    """Returns the weather in a city."""
    return f"It is sunny in {city}."


def clothes(city: str) -> str:
    """Returns what to wear in a city."""
    return f"Wear a hat in {city}."


WEATHER = FunctionTool.from_defaults(weather, fn_schema=City)
CLOTHES = FunctionTool.from_defaults(clothes, fn_schema=City)
ASK = "How is the weather in Rome?"


@pytest.fixture
def llm(both):
    return GaCLLM(ensemble=both, max_tokens=60)


@pytest.fixture(autouse=True)
def freed():
    """LlamaIndex does not close the databases of its memories, which is a warning where they are collected."""
    yield
    gc.collect()


async def run(agent, question, **given):
    """Runs an agent; returns its output and its events."""
    handler = agent.run(question, **given)
    events = [event async for event in handler.stream_events()]
    return await handler, events


def results(events):
    return [(event.tool_name, event.tool_output.raw_output) for event in events if isinstance(event, ToolCallResult)]


async def test_a_function_agent_calls_its_tool_and_answers(llm, asked):
    memory = Memory.from_defaults("agent", tokenizer_fn=llm.encode)
    # The agent's choice for its first step stands above the model's for all, so that two requests suffice.
    once = llm.model_copy(update={"tool_choice": "none", "max_tokens": 30})
    agent = FunctionAgent(llm=once, tools=[WEATHER, CLOTHES], initial_tool_choice="weather")
    output, events = await run(agent, ASK, memory=memory)
    calls = results(events)
    assert {name for name, _ in calls} == {"weather"}
    assert {result for _, result in calls} <= {"It is sunny in Rome.", "It is sunny in Oslo."}
    _, answer = asked.answers()
    assert str(output) == answer
    streamed = [event for event in events if isinstance(event, AgentStream)]
    assert "".join(event.delta for event in streamed).endswith(str(output))
    assert streamed[-1].raw["usage"]["total_tokens"] > 0
    stored = await memory.aget_all()
    assert [stored[0].content, stored[-1].content] == [ASK, str(output)]
    assert [message.role for message in stored].count("tool") == len(calls)


async def test_agents_hand_over(llm, asked):
    first = FunctionAgent(
        name="greeter",
        description="Greets.",
        llm=llm.model_copy(update={"tool_choice": "handoff", "parallel_tool_calls": False, "max_tokens": 120}),
        tools=[CLOTHES],
        can_handoff_to=["forecaster"],
        system_prompt="Hand off to forecaster.",
    )
    second = FunctionAgent(
        name="forecaster",
        description="Knows the weather.",
        llm=llm.model_copy(update={"tool_choice": "weather", "parallel_tool_calls": False}),
        tools=[FunctionTool.from_defaults(weather, fn_schema=City, return_direct=True)],
        can_handoff_to=[],
    )
    workflow = AgentWorkflow(agents=[first, second], root_agent="greeter")
    output, events = await run(workflow, ASK)
    assert [name for name, _ in results(events)] == ["handoff", "weather"]
    assert str(output) in ("It is sunny in Rome.", "It is sunny in Oslo.")
    agents = [event.current_agent_name for event in events if isinstance(event, AgentOutput)]
    assert agents == ["greeter", "forecaster"]
    assert len(asked.take()) == 2


async def test_a_react_agent_reads_its_format_from_a_grammar(llm, asked):
    act = r'Thought: [A-Z][a-z ]{5,30}\.\nAction: weather\nAction Input: \{"city": "(Rome|Oslo)"\}'
    direct = FunctionTool.from_defaults(weather, fn_schema=City, return_direct=True)
    output, events = await run(ReActAgent(llm=llm.with_grammar(Grammar.regex(act)), tools=[direct]), ASK)
    (answer,) = asked.answers()
    ((name, result),) = results(events)
    assert (name, result) == ("weather", "It is sunny in Rome." if "Rome" in answer else "It is sunny in Oslo.")
    assert str(output) == result
    tell = r"Thought: [A-Z][a-z ]{5,30}\.\nAnswer: [A-Z][a-z ]{5,30}\."
    output, events = await run(ReActAgent(llm=llm.with_grammar(Grammar.regex(tell)), tools=[WEATHER]), ASK)
    (answer,) = asked.answers()
    assert str(output) == answer.split("Answer: ")[1]
    assert results(events) == []
    assert "".join(event.delta for event in events if isinstance(event, AgentStream)) == answer
