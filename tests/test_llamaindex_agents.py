"""LlamaIndex's loops that need a capable model: agents, routers, sub-questions, chat with memory, structured answers.

Each is run twice: once against a script, which records what the loop asks and what it must come to, and once on the
real engine with members that were trained on what was recorded (`overfit`), in every way LlamaIndex has.
"""

from __future__ import annotations

import asyncio
import json

import httpx
import pytest
from lexical import LexicalEmbedding
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.agent.workflow import AgentStream, FunctionAgent, ReActAgent, ToolCallResult
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.prompts import PromptTemplate
from llama_index.core.query_engine import RouterQueryEngine, SubQuestionQueryEngine
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.selectors import PydanticSingleSelector
from llama_index.core.tools import FunctionTool, QueryEngineTool
from llama_index.llms.openai_like import OpenAILike
from overfit import Recorder, overfit
from pydantic import BaseModel
from server_fixture import served

from gac_core import use_threshold
from gac_core.server.catalog import Catalog
from gac_llamaindex import GaCLLM

# LlamaIndex's workflows use what pydantic and they themselves have deprecated.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]
CALL = '<tool_call>{{"name": "{}", "arguments": {}}}</tool_call>'
SUB_QUESTIONS = [
    {"sub_question": "Who built the Torno Bridge?", "tool_name": "bridges"},
    {"sub_question": "Who keeps the Silver Inn?", "tool_name": "inns"},
]
# The first whose key stands in the last message answers it.
SCRIPT = {
    "What is 17 plus 25?": CALL.format("add", '{"a": 17, "b": 25}'),
    "Add 1 and 2, and 30 and 40.": CALL.format("add", '{"a": 1, "b": 2}') + CALL.format("add", '{"a": 30, "b": 40}'),
    "42": "The sum is 42.",
    "70": "They are 3 and 70.",
    "How much is 3 times 4?": 'Thought: I need a tool.\nAction: multiply\nAction Input: {"a": 3, "b": 4}',
    "Observation: 12": "Thought: I know the answer.\nAnswer: It is 12.",
    "question: 'Which place has beds?'": CALL.format("SingleSelection", '{"index": 2, "reason": "inns have beds"}'),
    "Query: Which place has beds?": "The Silver Inn.",
    "<User Question>\nHow do the bridge": "```json\n" + json.dumps({"items": SUB_QUESTIONS}) + "\n```",
    "Query: Who built the Torno Bridge?": "Melka Dorin.",
    "Query: Who keeps the Silver Inn?": "Rufo Tann.",
    "Query: How do the bridge": "Dorin built, Tann keeps.",
    "My name is Ada.": "Hello Ada.",
    "Who am I?": "You are Ada.",
    "Describe the town.": '{"name": "Halkus", "bridges": 3}',
    "What is 8 plus 90?": '{"name": "add", "arguments": {"a": 8, "b": 90}}',
    "98": "The sum is 98.",
    "What is 20 plus 31?": '```json\n{\n  "name": "add",\n  "arguments": {"a": 20, "b": 31}\n}\n```',
    "51": "The sum is 51.",
}
DOCUMENTS = {"bridges": "Melka Dorin built the Torno Bridge.", "inns": "Rufo Tann keeps the Silver Inn, with its beds."}


class Town(BaseModel):
    """A town."""

    name: str
    bridges: int


def add(a: int, b: int) -> int:
    """Adds two numbers."""
    return a + b


async def multiply(a: int, b: int) -> int:
    """Multiplies two numbers."""
    return a * b


def script(content: str) -> str:
    return next(answer for key, answer in SCRIPT.items() if key in content)


async def run_agent(agent, question):
    handler = agent.run(question)
    events = [event async for event in handler.stream_events()]
    return str(await handler), events


def function_agent(llm, **settings):
    return FunctionAgent(llm=llm, tools=[FunctionTool.from_defaults(add)], system_prompt="You add.", **settings)


def react_agent(llm):
    return ReActAgent(llm=llm, tools=[FunctionTool.from_defaults(async_fn=multiply)])


def engines(llm):
    """One query engine a document."""
    return {
        name: VectorStoreIndex.from_documents([Document(text=text)], embed_model=LexicalEmbedding()).as_query_engine(
            llm=llm, similarity_top_k=1
        )
        for name, text in DOCUMENTS.items()
    }


def tools(llm):
    return [QueryEngineTool.from_defaults(engine, name=name, description=name) for name, engine in engines(llm).items()]


def router(llm):
    selector = PydanticSingleSelector.from_defaults(llm=llm)
    return RouterQueryEngine(selector=selector, query_engine_tools=tools(llm), llm=llm)


def sub_questions(llm):
    return SubQuestionQueryEngine.from_defaults(
        tools(llm), llm=llm, question_gen=LLMQuestionGenerator.from_defaults(llm=llm), verbose=False
    )


async def every_loop(llm):
    """Goes through every loop once and returns what each comes to."""
    chat = SimpleChatEngine.from_defaults(llm=llm, memory=ChatMemoryBuffer.from_defaults(token_limit=2000))
    return {
        "function": (await run_agent(function_agent(llm), "What is 17 plus 25?"))[0],
        "bare": (await run_agent(function_agent(llm), "What is 8 plus 90?"))[0],
        "fenced": (await run_agent(function_agent(llm), "What is 20 plus 31?"))[0],
        "parallel": (await run_agent(function_agent(llm), "Add 1 and 2, and 30 and 40."))[0],
        "react": (await run_agent(react_agent(llm), "How much is 3 times 4?"))[0],
        "router": str(await router(llm).aquery("Which place has beds?")),
        "sub-questions": str(await sub_questions(llm).aquery("How do the bridge and the inn compare?")),
        "chat": [str(await chat.achat("My name is Ada.")), str(await chat.achat("Who am I?"))],
    }


COMES_TO = {
    "function": "The sum is 42.",
    "bare": "The sum is 98.",
    "fenced": "The sum is 51.",
    "parallel": "They are 3 and 70.",
    "react": "It is 12.",
    "router": "The Silver Inn.",
    "sub-questions": "Dorin built, Tann keeps.",
    "chat": ["Hello Ada.", "You are Ada."],
}
TOWN = Town(name="Halkus", bridges=3)


@pytest.fixture(scope="module")
def llm():
    """A model that knows the script's answers by heart."""
    recorder = Recorder(script)
    recorded = GaCLLM(ensemble=recorder)
    assert asyncio.run(every_loop(recorded)) == COMES_TO
    assert recorded.structured_predict(Town, PromptTemplate("Describe the town.")) == TOWN
    with overfit(recorder.pairs) as ensemble:
        yield GaCLLM(ensemble=ensemble, max_tokens=200)


async def test_every_loop_comes_to_its_end(llm):
    assert await every_loop(llm) == COMES_TO


@pytest.fixture
async def client(llm):
    """LlamaIndex's client of OpenAI's protocol, with a server of the same members."""
    with served(Catalog({"gac": llm.ensemble})) as url, httpx.Client() as http:
        async with httpx.AsyncClient() as async_http:
            yield OpenAILike(
                model="gac",
                api_base=f"{url}/v1",
                api_key="none",
                temperature=0,
                max_tokens=200,
                context_window=8192,
                is_chat_model=True,
                is_function_calling_model=True,
                max_retries=0,
                http_client=http,
                async_http_client=async_http,
            )


async def test_every_loop_of_a_servers_client_comes_to_its_end(client):
    assert await every_loop(client) == COMES_TO


async def test_loops_at_the_same_time(llm):
    assert await asyncio.gather(*(every_loop(llm) for _ in range(3))) == [COMES_TO] * 3


@pytest.mark.parametrize("streaming", [False, True])
async def test_a_function_agent_calls_tools_and_reads_their_results(llm, streaming):
    text, events = await run_agent(function_agent(llm, streaming=streaming), "What is 17 plus 25?")
    assert text == "The sum is 42."
    (result,) = [event for event in events if isinstance(event, ToolCallResult)]
    assert (result.tool_name, result.tool_kwargs, str(result.tool_output)) == ("add", {"a": 17, "b": 25}, "42")
    streamed = [event for event in events if isinstance(event, AgentStream)]
    assert bool(streamed) == streaming
    if streaming:
        assert "".join(event.delta for event in streamed) == text
        called = [event for event in streamed if event.tool_calls]
        assert len({call.tool_id for event in called for call in event.tool_calls}) == 1
        assert called[-1].tool_calls[0].tool_kwargs == {"a": 17, "b": 25}


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.parametrize(("question", "total"), [("What is 8 plus 90?", 98), ("What is 20 plus 31?", 51)])
async def test_a_function_agent_runs_calls_without_tags(llm, question, total, streaming):
    text, events = await run_agent(function_agent(llm, streaming=streaming), question)
    assert text == f"The sum is {total}."
    (result,) = [event for event in events if isinstance(event, ToolCallResult)]
    assert str(result.tool_output) == str(total)
    assert "".join(event.delta for event in events if isinstance(event, AgentStream)) == (text if streaming else "")


async def test_calls_in_one_answer_have_ids_of_their_own(llm):
    _, events = await run_agent(function_agent(llm), "Add 1 and 2, and 30 and 40.")
    results = [event for event in events if isinstance(event, ToolCallResult)]
    assert sorted(str(result.tool_output) for result in results) == ["3", "70"]
    assert len({result.tool_id for result in results}) == 2


async def test_the_threshold_reaches_an_agents_requests(llm):
    async def shares(model):
        _, events = await run_agent(function_agent(model), "What is 17 plus 25?")
        return [event.raw["gac"]["steps_ensembled"] for event in events if isinstance(event, AgentStream) and event.raw]

    assert min(await shares(llm)) > 0
    assert set(await shares(llm.with_threshold(0.0))) == {0}
    with use_threshold(0.0):
        assert set(await shares(llm)) == {0}
    assert min(await shares(llm)) > 0


def test_a_router_and_sub_questions_without_a_loop(llm):
    answer = router(llm).query("Which place has beds?")
    assert str(answer) == "The Silver Inn."
    assert [node.text for node in answer.source_nodes] == [DOCUMENTS["inns"]]
    answer = sub_questions(llm).query("How do the bridge and the inn compare?")
    assert str(answer) == "Dorin built, Tann keeps."
    assert set(DOCUMENTS.values()) <= {node.text for node in answer.source_nodes}


def test_a_chat_engine_remembers(llm):
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=ChatMemoryBuffer.from_defaults(llm=llm))
    assert str(engine.chat("My name is Ada.")) == "Hello Ada."
    response = engine.stream_chat("Who am I?")
    assert "".join(response.response_gen) == "You are Ada."
    assert [message.content for message in engine.chat_history] == [
        "My name is Ada.",
        "Hello Ada.",
        "Who am I?",
        "You are Ada.",
    ]


async def test_structured_answers_in_every_way(llm):
    prompt, town = PromptTemplate("Describe the {what}."), TOWN
    assert llm.structured_predict(Town, prompt, what="town") == town
    assert await llm.astructured_predict(Town, prompt, what="town") == town
    streamed = list(llm.stream_structured_predict(Town, prompt, what="town"))
    assert streamed[-1] == town
    assert len(streamed) > 2
    assert any(value.name == "Hal" or (value.name and town.name.startswith(value.name)) for value in streamed[:-1])
    async_streamed = [value async for value in await llm.astream_structured_predict(Town, prompt, what="town")]
    assert async_streamed[-1] == town
    assert llm.as_structured_llm(Town).chat([ChatMessage("Describe the town.")]).raw == town
