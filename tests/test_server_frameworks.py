"""Clients of frameworks against a server of the embedded members: `langchain-openai` and LlamaIndex's `OpenAILike`.

LangChain's standard tests of `ChatOpenAI` are in `test_langchain_standard.py`, agents of LlamaIndex in
`test_llamaindex_agents.py`: beside the trained members that they need.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Literal

import httpx
import pytest
from conftest import LONG_PROMPT, QUESTION, ROOT
from langchain_core.messages import HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI, OpenAI
from lexical import LexicalEmbedding
from llama_index.core import Document, PromptTemplate, VectorStoreIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from openai import BadRequestError
from pydantic import BaseModel, Field

from gac_langchain import ChatGaC, GaCLLM

MESSAGES = [SystemMessage(QUESTION[0]["content"]), HumanMessage(QUESTION[1]["content"])]
TURNS = [ChatMessage(role=turn["role"], content=turn["content"]) for turn in QUESTION]
GREEDY = {"temperature": 0.0, "max_tokens": 16}
HOT = {"temperature": 1.5, "seed": 5, "max_tokens": 12}


class Place(BaseModel):
    """Where something is."""

    town: Literal["Halkus", "Torno"]
    houses: int = Field(ge=1, le=9)


TOOL = FunctionTool.from_defaults(lambda town, houses: f"{town} {houses}", name="place", fn_schema=Place)


@pytest.fixture
async def http():
    """Connections that the test closes; those of the packages stay open."""
    with httpx.Client() as client:
        async with httpx.AsyncClient() as async_client:
            yield client, async_client


@pytest.fixture
def settings(server, http):
    """What the clients of LangChain need."""
    return {
        "model": "gac",
        "base_url": f"{server.url}/v1",
        "api_key": "none",
        "max_retries": 0,
        "http_client": http[0],
        "http_async_client": http[1],
    }


@pytest.fixture
def llama(server, http):
    """What those of LlamaIndex need."""
    return {
        "model": "gac",
        "api_base": f"{server.url}/v1",
        "api_key": "none",
        "max_retries": 0,
        "http_client": http[0],
        "async_http_client": http[1],
        **GREEDY,
    }


@pytest.fixture
def chat(settings):
    return ChatOpenAI(**settings, **GREEDY, stream_usage=True)


@pytest.fixture
def local(ensemble):
    return ChatGaC(ensemble=ensemble, **GREEDY)


@pytest.fixture
def like(llama):
    return OpenAILike(**llama, is_chat_model=True, is_function_calling_model=True, context_window=1024)


def sum_of(chunks):
    return sum(chunks[1:], chunks[0])


def gac_of(response):
    """The statistics in a response of LlamaIndex."""
    return response.raw.choices[0].model_extra["gac"]


# ---- LangChain: chat


async def test_chat_openai_says_what_the_ensemble_says(chat, local):
    want = local.invoke(MESSAGES)
    assert want.text
    messages = [
        *(chat.invoke(MESSAGES), await chat.ainvoke(MESSAGES)),
        sum_of(list(chat.stream(MESSAGES))),
        sum_of([chunk async for chunk in chat.astream(MESSAGES)]),
        *chat.batch([MESSAGES] * 2),
    ]
    for message in messages:
        assert message.content == want.content
        assert message.response_metadata["finish_reason"] == want.response_metadata["finish_reason"]
        for name in ("input_tokens", "output_tokens", "total_tokens"):
            assert message.usage_metadata[name] == want.usage_metadata[name]


@pytest.mark.parametrize(
    "given",
    [
        {},
        {"presence_penalty": 2.0, "frequency_penalty": 1.0},
        {"logit_bias": "first"},
        {"stop": ["a", "e"]},
        {"top_p": 0.5},
        {"extra_body": {"top_k": 3, "weights": [1, 2, 3], "combine": "geometric"}},
        {"extra_body": {"threshold": 0.5, "gate": "birch"}},
    ],
    ids=lambda given: "+".join(given),
)
def test_parameters_have_the_same_effect(ensemble, chat, local, given):
    if "logit_bias" in given:
        given = {"logit_bias": {ensemble.encode(local.invoke(MESSAGES, **HOT).text)[0]: -100}}
    same = {name: value for name, value in given.items() if name != "extra_body"} | given.get("extra_body", {})
    want = local.invoke(MESSAGES, **same, **HOT).text
    assert chat.invoke(MESSAGES, **given, **HOT).content == want
    assert chat.bind(**given).invoke(MESSAGES, **HOT).content == want


def test_the_threshold_travels_in_the_extra_body(server, settings, chat):
    always = ChatOpenAI(**settings, **GREEDY, extra_body={"threshold": 0.5})
    always.invoke(MESSAGES)
    assert server.last_threshold_is(0.5)
    chat.invoke(MESSAGES, extra_body={"threshold": 0.25})
    assert server.last_threshold_is(0.25)
    list(chat.bind(extra_body={"threshold": 0.75}).stream(MESSAGES))
    assert server.last_threshold_is(0.75)
    chat.invoke(MESSAGES)
    assert server.last_threshold_is(None)
    with pytest.raises(BadRequestError, match="treshold"):
        chat.invoke(MESSAGES, extra_body={"treshold": 0.25})


def test_log_probabilities(chat, local):
    want = local.invoke(MESSAGES, logprobs=2).response_metadata["logprobs"]["content"]
    asked = chat.bind(logprobs=True, top_logprobs=2)
    for message in (asked.invoke(MESSAGES), sum_of(list(asked.stream(MESSAGES)))):
        found = message.response_metadata["logprobs"]["content"]
        assert [entry["token"] for entry in found] == [entry["token"] for entry in want]
        values = [entry["logprob"] for entry in want]
        assert [entry["logprob"] for entry in found] == pytest.approx(values, abs=1e-3)
        assert len(found[0]["top_logprobs"]) == 2


def test_several_answers(chat, local):
    want = local.generate([MESSAGES], n=3, **HOT)
    found = chat.generate([MESSAGES], n=3, **HOT)
    assert [g.text for g in found.generations[0]] == [g.text for g in want.generations[0]]
    usage = found.llm_output["token_usage"]
    assert {name: usage[name] for name in want.llm_output["token_usage"]} == want.llm_output["token_usage"]


# The field of the parsed value has no type in the `openai` package's classes.
@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings:UserWarning")
@pytest.mark.parametrize("method", ["json_schema", "function_calling", "json_mode"])
def test_structured_output(chat, local, method):
    asked = {"max_tokens": 80}
    structured = chat.with_structured_output(Place, method=method)
    if method == "json_mode":
        # JSON of any form: the members were not taught this one.
        raw = chat.with_structured_output(Place, method=method, include_raw=True).invoke("As JSON: where?", **asked)
        assert raw["raw"].content.startswith("{")
        return
    place = structured.invoke("Where is the Torno Bridge?", **asked)
    assert isinstance(place, Place)
    assert list(structured.stream("Where is the Torno Bridge?", **asked))[-1] == place


def test_tool_calls(chat, local):
    asked = {"tool_choice": "any", "parallel_tool_calls": False}
    want = local.bind_tools([Place], **asked).invoke("Where is the Torno Bridge?", max_tokens=80)
    bound = chat.bind_tools([Place], **asked)
    chunks = list(bound.stream("Where is the Torno Bridge?", max_tokens=80))
    assert len([chunk for chunk in chunks if chunk.tool_call_chunks]) > 2
    for message in (bound.invoke("Where is the Torno Bridge?", max_tokens=80), sum_of(chunks)):
        ((name, args),) = [(call["name"], call["args"]) for call in message.tool_calls]
        assert (name, args) == ("Place", want.tool_calls[0]["args"])
        assert Place(**args)
        assert message.response_metadata["finish_reason"] == "tool_calls"


# ---- LangChain: texts


async def test_openai_continues_texts(settings, ensemble):
    llm, local = OpenAI(**settings, **HOT), GaCLLM(ensemble=ensemble, **HOT)
    prompts = ["In which town", "Who built"]
    want = local.generate(prompts)
    found = llm.generate(prompts)
    texts = [own[0].text for own in want.generations]
    assert [own[0].text for own in found.generations] == texts
    assert found.llm_output["token_usage"] == want.llm_output["token_usage"]
    assert [await llm.ainvoke(prompt) for prompt in prompts] == texts
    assert ["".join(llm.stream(prompt)) for prompt in prompts] == texts
    several = OpenAI(**settings, **HOT, n=2, best_of=2).generate(prompts).generations
    again = local.generate(prompts, n=2).generations
    assert [[g.text for g in own] for own in several] == [[g.text for g in own] for own in again]
    info = OpenAI(**settings, **HOT, logprobs=2).generate(prompts).generations[0][0].generation_info
    local_info = local.generate(prompts, logprobs=2).generations[0][0].generation_info
    values = [entry["logprob"] for entry in local_info["logprobs"]["content"]]
    assert info["logprobs"]["token_logprobs"] == pytest.approx(values, abs=1e-3)


# ---- LlamaIndex


async def test_openai_like_chats(like, local):
    want = local.invoke(MESSAGES)
    response = like.chat(TURNS)
    assert response.message.content == want.text == (await like.achat(TURNS)).message.content
    assert response.raw.usage.completion_tokens == want.usage_metadata["output_tokens"]
    assert gac_of(response)["gate"] == want.response_metadata["gac"]["gate"]
    streamed = list(like.stream_chat(TURNS))
    assert "".join(part.delta for part in streamed) == streamed[-1].message.content == want.text
    assert gac_of(streamed[-1])["share_ensembled"] == 1.0
    parts = [part async for part in await like.astream_chat(TURNS)]
    assert "".join(part.delta for part in parts) == want.text


def test_openai_like_has_log_probabilities(like, local):
    want = local.invoke(MESSAGES, logprobs=2).response_metadata["logprobs"]["content"]
    found = like.chat(TURNS, logprobs=True, top_logprobs=2).logprobs
    tokens = [[top["token"] for top in entry["top_logprobs"]] for entry in want]
    assert [[entry.token for entry in top] for top in found] == tokens


async def test_openai_like_completes(llama, ensemble):
    like = OpenAILike(**llama, is_chat_model=False)
    want = ensemble.generate(LONG_PROMPT, **GREEDY).text
    assert want
    assert like.complete(LONG_PROMPT).text == (await like.acomplete(LONG_PROMPT)).text == want
    assert "".join(part.delta for part in like.stream_complete(LONG_PROMPT)) == want


def test_openai_likes_threshold_travels_in_the_extra_body(server, llama, like):
    like.chat(TURNS, extra_body={"threshold": 0.25})
    assert server.last_threshold_is(0.25)
    always = OpenAILike(**llama, is_chat_model=True, additional_kwargs={"extra_body": {"threshold": 0.5}})
    response = always.chat(TURNS)
    assert gac_of(response)["threshold"] == 0.5
    assert server.last_threshold_is(0.5)


def test_openai_like_calls_tools_and_makes_objects(like):
    # The field takes precedence over arguments of calls.
    like.max_tokens = 80
    response = like.predict_and_call([TOOL], "Where is the Torno Bridge?", tool_required=True)
    assert response.response.split()[0] in ("Halkus", "Torno")
    for enforced in (False, True):
        like.should_use_structured_outputs = enforced
        assert isinstance(like.structured_predict(Place, PromptTemplate("Where is {what}?"), what="the bridge"), Place)


def test_openai_like_streams_tool_calls(like):
    like.max_tokens = 80
    responses = list(like.stream_chat_with_tools([TOOL], "Where is the Torno Bridge?", tool_required=True))
    (selection,) = like.get_tool_calls_from_response(responses[-1])
    assert selection.tool_name == "place"
    assert Place(**selection.tool_kwargs)
    assert len(responses) > 3


@pytest.mark.parametrize("streaming", [False, True])
def test_openai_like_in_a_query_engine(like, streaming):
    texts = {"The Torno Bridge stands in Halkus.", "Rufo Tann keeps the Silver Inn."}
    index = VectorStoreIndex.from_documents([Document(text=text) for text in texts], embed_model=LexicalEmbedding())
    engine = index.as_query_engine(llm=like, similarity_top_k=1, streaming=streaming)
    response = engine.query("In which town is the Torno Bridge?")
    text = "".join(response.response_gen) if streaming else str(response)
    assert text.strip()
    assert response.source_nodes[0].text == "The Torno Bridge stands in Halkus."


# ---- the example


def test_the_example_asks_with_every_client(server, ensemble, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    from server_clients import QUESTION as question

    command = [sys.executable, "examples/server_clients.py", "--url", f"{server.url}/v1", "--model", "gac"]
    shown = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    for threshold, lines in ((None, shown[1:4]), (0.5, shown[5:])):
        want = ensemble.generate([{"role": "user", "content": question}], threshold=threshold)
        share = f"{want.stats.share_ensembled:.0%} of the steps ensembled"
        tokens = f"{want.usage.completion_tokens} tokens"
        assert lines == [
            f"  openai: {want.text!r}, {share}",
            f"  ChatOpenAI: {want.text!r}, {tokens}",
            f"  OpenAILike: {want.text!r}, {share}",
        ]
