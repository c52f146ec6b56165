"""Tool calls of real language models that are free to call or not: in both frameworks and in the agent examples."""

from __future__ import annotations

import sys

import pytest
from conftest import ROOT
from langchain.agents import create_agent
from langchain_core.tools import tool
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.tools import FunctionTool

from gac_langchain import ChatGaC
from gac_llamaindex import GaCLLM

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]
MEMBERS = [(("qwen",), None), (("smollm2", "qwen"), [1.0, 3.0])]


@pytest.fixture(scope="module", params=MEMBERS, ids=["qwen", "smollm2-qwen"])
def members(request, real):
    names, weights = request.param
    # Deterministic: in bfloat16 the lengths of drafts, which follow from measured times, may change a token.
    with real.ensemble(*names, dtype="bfloat16", weights=weights, deterministic=True) as ensemble:
        yield ensemble


@tool
def get_weather(city: str) -> str:
    """Returns the current weather in a city."""
    return f"It rains in {city}."


@tool
def add(a: int, b: int) -> str:
    """Adds two integers."""
    return str(a + b)


def test_tools_are_called_where_calls_are_optional(members):
    bound = ChatGaC(ensemble=members, max_tokens=60).bind_tools([get_weather, add])
    messages = bound.batch(["What is the weather in Paris?", "What is 17 plus 25?", "How is the weather in Oslo?"])
    called = [[(call["name"], call["args"]) for call in message.tool_calls] for message in messages]
    assert called == [
        [("get_weather", {"city": "Paris"})],
        [("add", {"a": 17, "b": 25})],
        [("get_weather", {"city": "Oslo"})],
    ]
    assert all(not message.invalid_tool_calls and message.content == "" for message in messages)


def test_an_agent_runs_its_tool(members):
    agent = create_agent(ChatGaC(ensemble=members, max_tokens=60), [add])
    steps = agent.stream({"messages": [("user", "What is 17 plus 25?")]}, stream_mode="values")
    # The model may repeat its call as often as it likes; the first result is enough.
    results = (state["messages"][-1] for state in steps if state["messages"][-1].type == "tool")
    assert next(results).content == "42"


async def test_a_function_agent_runs_its_tool(members):
    tools = [FunctionTool.from_defaults(lambda a, b: a + b, name="add", fn_schema=add.args_schema)]
    handler = FunctionAgent(llm=GaCLLM(ensemble=members, max_tokens=60), tools=tools).run("What is 17 plus 25?")
    async for event in handler.stream_events():
        if isinstance(event, ToolCallResult):
            assert str(event.tool_output) == "42"
            await handler.cancel_run()
            return
    pytest.fail("it called no tool")


@pytest.mark.parametrize(
    ("name", "answer"),
    [("agent_langchain", "building='Torno Bridge' year=1874"), ("agent_llamaindex", "Gilgo")],
)
@pytest.mark.parametrize(("names", "weights"), MEMBERS, ids=["qwen", "smollm2-qwen"])
def test_the_agent_examples_finish_their_tasks(real, monkeypatch, capsys, name, answer, names, weights):
    arguments = ["--models", *map(real.folder, names), "--dtype", "bfloat16"]
    arguments += ["--weights", *map(str, weights)] if weights else []
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr(sys, "argv", [name, *arguments])
    __import__(name).main()
    shown = capsys.readouterr().out
    assert answer in shown
    assert "call" in shown.lower()
