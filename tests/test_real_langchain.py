"""ChatGaC on real instruction models in bfloat16: agents with middleware, structured output, histories, fallbacks."""

from __future__ import annotations

import enum
from typing import Literal

import pytest
from langchain.agents import create_agent
from langchain.agents.middleware import (
    HumanInTheLoopMiddleware,
    LLMToolSelectorMiddleware,
    ModelFallbackMiddleware,
    SummarizationMiddleware,
    ToolCallLimitMiddleware,
    wrap_model_call,
)
from langchain.agents.structured_output import ToolStrategy
from langchain_core.callbacks import UsageMetadataCallbackHandler
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from pydantic import BaseModel, Field

from gac_core import AnswerError
from gac_langchain import ChatGaC, create_voices_chain

pytestmark = pytest.mark.real

ASK = {"messages": [("user", "What is the weather in Paris? Use the tool.")]}


@pytest.fixture(scope="module")
def both(real):
    with real.ensemble("qwen", "smollm2", dtype="bfloat16", weights=[0.8, 0.2]) as loaded:
        yield loaded


@pytest.fixture
def chat(both):
    return ChatGaC(ensemble=both, max_tokens=48)


@tool
def weather(city: str) -> str:
    """The weather in a city."""
    return f"It is sunny in {city}."


@tool
def add(one: int, two: int) -> int:
    """Adds two numbers."""
    return one + two


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Address(BaseModel):
    """An address."""

    street: str = Field(max_length=20)
    number: int | None = None


class Person(BaseModel):
    """A person."""

    name: str = Field(description="first name", max_length=12)
    age: int | None = Field(None, ge=0, le=120)
    colour: Colour = Field(description="favourite colour")
    home: Address | None
    pets: list[Literal["cat", "dog"]] = Field(max_length=2)


def first_call(state):
    return state["messages"][1].tool_calls[0]


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_nested_schemas_are_filled(chat, method):
    text = "Anna is 30, likes blue, lives in Main Street, and has a cat."
    person = chat.with_structured_output(Person, method=method).invoke(text, max_tokens=150)
    assert (person.name, person.age, person.colour, person.pets) == ("Anna", 30, Colour.BLUE, ["cat"])
    assert person.home.street == "Main Street"


def test_an_agent_remembers_the_conversation_and_counts_its_tokens(chat):
    usage = UsageMetadataCallbackHandler()
    agent = create_agent(chat, [], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}, "callbacks": [usage]}
    agent.invoke({"messages": [("user", "My name is Bob.")]}, config=config)
    assert "Bob" in agent.invoke({"messages": [("user", "What is my name?")]}, config=config)["messages"][-1].text
    assert usage.usage_metadata["qwen+smollm2"]["input_tokens"] > 60


def test_fallbacks_and_alternatives_choose_the_model(chat):
    hasty = chat.bind(timeout=0.001)
    chain = hasty.with_fallbacks([chat]) | StrOutputParser()
    assert chain.invoke("What is the capital of France?") == "The capital of France is Paris."
    assert "".join(chain.stream("What is the capital of France?")) == "The capital of France is Paris."
    choice = chat.configurable_alternatives(
        ConfigurableField(id="llm"), default_key="both", one=chat.bind(model="qwen")
    )
    assert choice.invoke("Hi", config={"configurable": {"llm": "one"}}).response_metadata["model_name"] == "qwen"


def test_an_agent_falls_back_and_selects_tools(both, chat):
    selector, fallback = LLMToolSelectorMiddleware(model=chat, max_tools=1), ModelFallbackMiddleware(chat)
    limit = ToolCallLimitMiddleware(run_limit=1, exit_behavior="end")
    hasty = ChatGaC(ensemble=both, timeout=0.001)
    agent = create_agent(hasty, [weather, add], middleware=[selector, fallback, limit])
    state = agent.invoke(ASK, config={"recursion_limit": 20})
    assert (first_call(state)["name"], first_call(state)["args"]) == ("weather", {"city": "Paris"})
    assert state["messages"][2].content == "It is sunny in Paris."


def test_middleware_sets_parameters_of_calls(chat):
    @wrap_model_call
    def short(request, handler):
        return handler(request.override(model_settings={"max_tokens": 5, "threshold": 0.5}))

    message = create_agent(chat, [weather], middleware=[short]).invoke(ASK)["messages"][-1]
    assert message.usage_metadata["output_tokens"] == 5
    assert message.response_metadata["gac"]["threshold"] == 0.5


def test_long_conversations_are_summarised_by_the_models_context(chat):
    middleware = SummarizationMiddleware(model=chat, trigger=("fraction", 0.01), keep=("messages", 2))
    talk = [("user", "Tell me of bridges."), ("assistant", "Bridges are long. " * 60), ("user", "Say yes.")]
    state = create_agent(chat, [], middleware=[middleware]).invoke({"messages": talk}, config={"recursion_limit": 8})
    assert [message.type for message in state["messages"]] == ["human", "ai", "human", "ai"]
    assert state["messages"][0].text.startswith("Here is a summary")


def test_a_call_waits_for_approval(chat):
    approval = HumanInTheLoopMiddleware(interrupt_on={"weather": True})
    agent = create_agent(chat, [weather], middleware=[approval], checkpointer=InMemorySaver())
    config = {"configurable": {"thread_id": "1"}, "recursion_limit": 12}
    assert agent.invoke(ASK, config=config)["__interrupt__"]
    state = agent.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config=config)
    assert "It is sunny in Paris." in [message.content for message in state["messages"]]


def test_structured_agents_answer_or_name_the_limit(both, chat):
    text = {"messages": [("user", "I live in Main Street 5.")]}
    whole = create_agent(chat, [], response_format=ToolStrategy(Address)).invoke(text)["structured_response"]
    assert whole.street.startswith("Main Street")
    agent = create_agent(ChatGaC(ensemble=both, max_tokens=8), [], response_format=ToolStrategy(Address))
    with pytest.raises(AnswerError, match=r"length, max_tokens=8.*raise max_tokens"):
        agent.invoke(text)


def test_answers_from_documents_cite_the_right_one(chat):
    texts = {
        "bridge": "The Marlow Bridge was built in 1871 by the engineer Edith Crane.",
        "lake": "Lake Vessa is 310 metres deep and freezes in most winters.",
        "fair": "The Osmer Fair sells apples, cloth and tin toys every autumn.",
    }
    documents = [Document(text, id=name) for name, text in texts.items()]
    prompt = ChatPromptTemplate([("human", "{context}\n\nAnswer in a few words: {input}")])
    chain = create_voices_chain(chat.bind(combine_documents="contrast"), prompt)
    chain.warm(documents)
    asked = [("bridge", "Who built the bridge?", "Edith Crane"), ("lake", "How deep is it?", "310")]
    for name, question, answer in asked:
        inputs = {"context": documents, "input": question}
        message = chain.invoke(inputs)
        assert answer in message.text
        assert message.content_blocks[0]["annotations"][0]["extras"]["document"] == name
        chunks = list(chain.stream(inputs))
        assert sum(chunks[1:], chunks[0]).content_blocks[0]["annotations"][0]["cited_text"] == texts[name]
    chain.warm(documents, pin=False)
