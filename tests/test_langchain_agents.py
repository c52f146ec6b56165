"""LangChain's agents and `init_chat_model`: truncated structured answers, models by name."""

from __future__ import annotations

import pytest
from conftest import EMBEDDED
from langchain.agents import create_agent
from langchain.agents.structured_output import ProviderStrategy, ToolStrategy
from langchain.chat_models import base, init_chat_model
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from gac_core import AnswerError, ConfigError, EngineClosedError
from gac_langchain import CHAT_PROVIDER, ChatGaC

ASK = {"messages": [("user", "Where is the Torno Bridge?")]}


class Place(BaseModel):
    """Where something is."""

    town: str = Field(min_length=60, max_length=80)


class Short(BaseModel):
    """An answer."""

    town: str = Field(max_length=8)


@tool
def search(words: str) -> str:
    """Searches the web."""
    return "nothing"


@pytest.fixture
def chat(ensemble):
    return ChatGaC(ensemble=ensemble, max_tokens=24)


# ---- structured answers of agents


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
@pytest.mark.parametrize("tools", [[], [search]])
def test_a_truncated_structured_answer_names_the_limit(chat, strategy, tools):
    agent = create_agent(chat, tools, response_format=strategy(Place))
    with pytest.raises(AnswerError, match=r"length, max_tokens=24.*raise max_tokens"):
        agent.invoke(ASK)
    with pytest.raises(AnswerError, match=r"length, max_tokens=24.*raise max_tokens"):
        list(agent.stream(ASK, stream_mode="messages"))


async def test_a_truncated_structured_answer_names_the_limit_in_event_loops(chat):
    agent = create_agent(chat, [], response_format=ToolStrategy(Place))
    with pytest.raises(AnswerError, match="raise max_tokens"):
        await agent.ainvoke(ASK)
    with pytest.raises(AnswerError, match="raise max_tokens"):
        [event async for event in agent.astream_events(ASK, version="v2")]


@pytest.mark.parametrize("strategy", [ToolStrategy, ProviderStrategy])
def test_a_whole_structured_answer_passes(ensemble, strategy):
    agent = create_agent(ChatGaC(ensemble=ensemble, max_tokens=80), [], response_format=strategy(Short))
    assert isinstance(agent.invoke(ASK)["structured_response"], Short)


def test_truncated_calls_of_tools_that_run_stay_in_the_message(chat):
    message = chat.bind_tools([search], tool_choice="any").invoke("Hi")
    assert (message.tool_calls, len(message.invalid_tool_calls)) == ([], 1)
    assert message.response_metadata["finish_reason"] == "length"


# ---- models by name


@pytest.fixture
def registered(monkeypatch):
    monkeypatch.setitem(base._BUILTIN_PROVIDERS, "gac", CHAT_PROVIDER)
    yield
    base._get_chat_model_creator.cache_clear()


@pytest.fixture
def opened():
    """A model that is open keeps its members loaded for those that are made by name."""
    with ChatGaC(models=EMBEDDED[:2], max_tokens=4) as chat:
        yield chat


def test_models_are_made_by_name(registered, opened):
    name = "gac:" + "+".join(EMBEDDED[:2])
    made = init_chat_model(name, max_tokens=4, threshold=0.5)
    assert isinstance(made, ChatGaC)
    assert (made.model_name, made.threshold) == ("ash+birch", 0.5)
    assert [one is two for one, two in zip(made._ensemble._members, opened._ensemble._members, strict=True)] == [
        True
    ] * 2
    assert init_chat_model(name.removeprefix("gac:"), model_provider="gac", max_tokens=4).invoke("Hi").content
    assert create_agent(name).invoke(ASK)["messages"][-1].response_metadata["model_name"] == "ash+birch"
    made.close()
    with pytest.raises(EngineClosedError):
        made.invoke("Hi")


def test_configurable_models_are_made_by_name(registered, opened, tmp_path):
    name = "gac:" + "+".join(EMBEDDED[:2])
    model = init_chat_model(name, max_tokens=4, configurable_fields=("max_tokens", "threshold"), config_prefix="first")
    answer = model.invoke("Hi", config={"configurable": {"first_max_tokens": 1, "first_threshold": 0.5}})
    assert answer.usage_metadata["output_tokens"] == 1
    assert answer.response_metadata["gac"]["threshold"] == 0.5
    anything = init_chat_model(configurable_fields="any", max_tokens=2)
    assert (
        anything.invoke("Hi", config={"configurable": {"model": name}}).response_metadata["model_name"] == "ash+birch"
    )
    bound = model.bind_tools([search], tool_choice="none")
    assert bound.invoke("Hi").content
    path = tmp_path / "ensemble.yaml"
    path.write_text(f"members: [{EMBEDDED[0]!r}, {EMBEDDED[1]!r}]\n")
    assert init_chat_model(f"gac:{path}").model_name == "ash+birch"
    with pytest.raises(ConfigError, match="no/such"):
        init_chat_model("gac:no/such.yaml")


def test_names_of_folders_may_contain_a_plus_and_names_be_spaced(registered, opened, tmp_path):
    folder = tmp_path / "c++" / "ash"
    folder.parent.mkdir()
    folder.symlink_to(EMBEDDED[0], target_is_directory=True)
    assert init_chat_model(f"gac:{folder}").model_name == "ash"
    assert init_chat_model("gac:" + " + ".join(EMBEDDED[:2])).model_name == "ash+birch"
