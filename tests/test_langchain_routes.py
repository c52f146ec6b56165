"""Every route of a threshold or a batch to the engine through LangChain."""

from __future__ import annotations

from typing import Literal

import pytest
from conftest import QUESTION
from langchain_core.caches import InMemoryCache
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from pydantic import BaseModel

from gac_core import PromptTooLongError, RequestError, use_threshold
from gac_langchain import ChatGaC, GaCLLM

ASK = QUESTION[1]["content"]
GATE_ALONE = {"configurable": {"gac_threshold": 0.0}}


class Day(BaseModel):
    """A day."""

    kind: Literal["sunny", "rainy"]


@tool
def get_weather(city: str) -> str:
    """Tells the weather of a city."""
    return f"It rains in {city}."


@pytest.fixture
def chat(ensemble):
    return ChatGaC(ensemble=ensemble, max_tokens=16)


@pytest.fixture
def llm(ensemble):
    return GaCLLM(ensemble=ensemble, max_tokens=16, temperature=3.0, seed=5)


@pytest.fixture
def asked(ensemble):
    """The thresholds of the requests that the engine gets."""
    thresholds, inner = [], ensemble._input_processor.choices

    def choices(prompt, params, *rest):
        thresholds.append(params.threshold)
        return inner(prompt, params, *rest)

    ensemble._input_processor.choices = choices
    yield thresholds
    del ensemble._input_processor.choices


@pytest.fixture
def sizes(ensemble):
    """The sizes of the batches that the engine decodes."""
    sizes, engine = [], ensemble._session.worker._engine
    decode = engine._decoder.decode
    engine._decoder.decode = lambda batch: sizes.append(len(batch)) or decode(batch)
    yield sizes
    engine._decoder.decode = decode


def share(message):
    return message.response_metadata["gac"]["share_ensembled"]


def sum_of(chunks):
    chunks = list(chunks)
    return sum(chunks[1:], chunks[0])


# ---- thresholds


def test_the_threshold_reaches_the_engine_on_every_route(chat):
    prompt = HumanMessage(ASK)
    assert share(chat.invoke([prompt])) == 1.0
    routes = {
        "call": chat.invoke([prompt], threshold=0.0),
        "bind": chat.bind(threshold=0.0).invoke([prompt]),
        "tools, then bind": chat.bind_tools([]).bind(threshold=0.0).invoke([prompt]),
        "structured, then bind": chat.with_structured_output({"title": "a", "enum": ["x"]}, include_raw=True)
        .bind(threshold=0.0)
        .invoke([prompt])["raw"],
        "structured with it": chat.with_structured_output(
            {"title": "a", "enum": ["x"]}, include_raw=True, threshold=0.0
        ).invoke([prompt])["raw"],
        "config": chat.invoke([prompt], config=GATE_ALONE),
        "with_config": chat.with_config(configurable={"gac_threshold": 0.0}).invoke([prompt]),
        "copy": chat.with_threshold(0.0).invoke([prompt]),
        "bind, then tools": chat.with_threshold(0.0).bind_tools([]).invoke([prompt]),
        "stream": sum_of(chat.stream([prompt], threshold=0.0)),
        "stream by config": sum_of(chat.stream([prompt], config=GATE_ALONE)),
        "batch": chat.batch([[prompt]], config=GATE_ALONE)[0],
    }
    with use_threshold(0.0):
        routes["surroundings"] = chat.invoke([prompt])
    chain = RunnableLambda(lambda text: [HumanMessage(text)]) | chat
    routes["chain by config"] = chain.invoke(ASK, config=GATE_ALONE)
    assert {name: share(message) for name, message in routes.items()} == dict.fromkeys(routes, 0.0)
    with use_threshold(0.0):
        assert share(chat.invoke([prompt], threshold=None)) == 1.0
    assert chat.with_threshold(0.5)._ensemble is chat._ensemble
    with pytest.raises(RequestError, match="threshold"):
        chat.with_threshold(2)


async def test_the_threshold_reaches_the_engine_from_tasks(chat):
    assert share(await chat.ainvoke(ASK, config=GATE_ALONE)) == 0.0
    chunks = [chunk async for chunk in chat.astream(ASK, config=GATE_ALONE)]
    assert share(sum(chunks[1:], chunks[0])) == 0.0
    assert [share(message) for message in await chat.abatch([ASK, ASK], config=GATE_ALONE)] == [0.0, 0.0]


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
async def test_the_threshold_reaches_streams_of_events(chat, asked):
    whole = chat.invoke(ASK, threshold=0.0).content
    stream = chat.stream_events(ASK, version="v3", config=GATE_ALONE)
    assert "".join(stream.text) == whole
    stream = await chat.astream_events(ASK, version="v3", config=GATE_ALONE)
    assert "".join([piece async for piece in stream.text]) == whole
    events = [event async for event in chat.astream_events(ASK, version="v2", config=GATE_ALONE)]
    assert "".join(e["data"]["chunk"].text for e in events if e["event"] == "on_chat_model_stream") == whole
    stream = chat.stream_events(ASK, version="v3", threshold=0.25)
    assert stream.output.text
    assert asked == [0.0, 0.0, 0.0, 0.0, 0.25]


async def test_the_threshold_reaches_structured_answers(chat, asked):
    for raw in (False, True):
        for method in ("json_schema", "function_calling"):
            bound = chat.with_structured_output(Day, method=method, include_raw=raw).bind(threshold=0.0, max_tokens=60)
            bound.invoke(ASK)
            list(bound.stream(ASK))
            bound.batch([ASK])
            await bound.ainvoke(ASK)
            async for _ in bound.astream(ASK):
                pass
            bound.with_config(GATE_ALONE).invoke(ASK)
    assert asked == [0.0] * 24


async def test_the_threshold_reaches_the_text_model_on_every_route(llm, asked):
    llm.invoke("In which", threshold=0.0)
    llm.bind(threshold=0.0).invoke("In which")
    llm.invoke("In which", config=GATE_ALONE)
    list(llm.stream("In which", config=GATE_ALONE))
    llm.batch(["In which"] * 2, config=GATE_ALONE)
    await llm.ainvoke("In which", config=GATE_ALONE)
    assert [piece async for piece in llm.astream("In which", config=GATE_ALONE)]
    await llm.abatch(["In which"] * 2, config=GATE_ALONE)
    llm.with_threshold(0.0).invoke("In which")
    with use_threshold(0.0):
        llm.invoke("In which")
    assert asked == [0.0] * 12


async def test_runs_of_one_batch_may_differ(chat, llm, asked):
    configs = [{"configurable": {"gac_threshold": value}} for value in (0.0, 0.5)]
    assert share(chat.batch([ASK, ASK], configs)[0]) == 0.0
    assert llm.batch(["In which"] * 2, configs) == [llm.invoke("In which", threshold=each) for each in (0.0, 0.5)]
    assert await llm.abatch(["In which"] * 2, configs) == llm.batch(["In which"] * 2, configs)
    assert sorted(asked) == [0.0] * 5 + [0.5] * 5


def test_agents_pass_the_threshold_on(chat, asked):
    agents = pytest.importorskip("langchain.agents")
    from langchain.agents.middleware import wrap_model_call

    limit = {"recursion_limit": 4}
    state = agents.create_agent(chat, [get_weather]).invoke({"messages": [("user", "Hi")]}, {**GATE_ALONE, **limit})
    assert share(state["messages"][-1]) == 0.0

    @wrap_model_call
    def sure(request, handler):
        return handler(request.override(model_settings={"threshold": 0.0}))

    agent = agents.create_agent(chat, [get_weather], middleware=[sure])
    assert share(agent.invoke({"messages": [("user", "Hi")]}, limit)["messages"][-1]) == 0.0
    agent = agents.create_agent(chat.with_threshold(0.0), [get_weather])
    assert share(agent.invoke({"messages": [("user", "Hi")]}, limit)["messages"][-1]) == 0.0
    assert asked == [0.0] * 3


def test_a_cache_distinguishes_thresholds(ensemble, asked):
    chat = ChatGaC(ensemble=ensemble, max_tokens=4, cache=InMemoryCache())
    for _ in range(2):
        chat.invoke(ASK)
        chat.invoke(ASK, threshold=0.25)
        chat.invoke(ASK, config={"configurable": {"gac_threshold": 0.5}})
        chat.with_threshold(0.75).invoke(ASK)
        with use_threshold(0.875):
            chat.invoke(ASK)
    assert asked == ["default", 0.25, 0.5, 0.75, 0.875]


# ---- batches


def test_a_batch_of_calls_is_a_batch_of_the_engine(chat, llm, sizes):
    prompts = [f"{ASK} ({number})" for number in range(16)]
    alone = [chat.invoke(prompt).content for prompt in prompts[:3]]
    sizes.clear()
    assert [message.content for message in chat.batch(prompts)][:3] == alone
    assert max(sizes) > 12
    sizes.clear()
    chat.batch(prompts, config={"max_concurrency": 2})
    assert max(sizes) <= 2
    sizes.clear()
    chain = RunnableLambda(lambda text: text) | chat
    chain.batch(prompts)
    assert max(sizes) > 8
    sizes.clear()
    llm.batch(["In which"] * 16)
    assert max(sizes) > 12


async def test_an_asynchronous_batch_fits_any_queue(ensemble, chat, llm, sizes, monkeypatch):
    monkeypatch.setattr(ensemble._session.client, "max_requests", ensemble.config.max_batch_size)
    count = 2 * ensemble.config.max_batch_size
    assert len(await chat.abatch(["In which"] * count, max_tokens=1)) == count
    assert len(await llm.abatch(["In which"] * count, max_tokens=1)) == count
    assert len(chat.batch(["In which"] * count, max_tokens=1)) == count
    assert len(llm.batch(["In which"] * count, max_tokens=1)) == count


async def test_an_error_stands_in_its_own_place(ensemble, chat, llm):
    too_long = "word " * 3000
    for model in (chat, llm):
        for answers in (
            model.batch(["In which", too_long], return_exceptions=True),
            await model.abatch(["In which", too_long], return_exceptions=True),
        ):
            assert not isinstance(answers[0], Exception)
            assert isinstance(answers[1], PromptTooLongError)
        with pytest.raises(PromptTooLongError):
            model.batch(["In which", too_long])
        with pytest.raises(PromptTooLongError):
            await model.abatch(["In which", too_long])
