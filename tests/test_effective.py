"""The gate of calls on every route, and what statistics and metadata report of the settings that were in force."""

from __future__ import annotations

import asyncio
import json

import pytest
from conftest import EMBEDDED, QUESTION, shared_ensemble
from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from llama_index.core.base.llms.types import ChatMessage

import gac_llamaindex
from gac_core import (
    RequestError,
    SamplingParams,
    ambient_gate,
    request_params,
    use_gate,
    use_threshold,
)
from gac_langchain import ChatGaC, GaCLLM

ASK = QUESTION[1]["content"]
BIRCH = {"configurable": {"gac_gate": "birch", "gac_threshold": 0.5}}


@pytest.fixture
def chat(ensemble):
    return ChatGaC(ensemble=ensemble, max_tokens=4)


@pytest.fixture
def llm(ensemble):
    return GaCLLM(ensemble=ensemble, max_tokens=4)


@pytest.fixture
def index(ensemble):
    return gac_llamaindex.GaCLLM(ensemble=ensemble, max_tokens=4)


@pytest.fixture
def asked(ensemble):
    """The gates and thresholds of the requests that the engine gets."""
    seen, inner = [], ensemble._session.submit

    def submit(request, *args, **kwargs):
        seen.append((request.gate.name, request.threshold))
        return inner(request, *args, **kwargs)

    ensemble._session.submit = submit
    yield seen
    del ensemble._session.submit


def sum_of(chunks):
    chunks = list(chunks)
    return sum(chunks[1:], chunks[0])


# ---- the gate


def test_wrong_gates_are_refused(ensemble, chat, index):
    told = {"oak": "is not a member; members are: ash, birch, cedar", "": "gate must be a non-empty string"}
    for wrong, message in told.items():
        with pytest.raises(RequestError, match=message):
            ensemble.generate(QUESTION, gate=wrong)
        for model in (chat, index):
            with pytest.raises(RequestError, match=message):
                model.with_gate(wrong)
    with pytest.raises(RequestError, match="gate must be"):
        SamplingParams(gate=1)
    with pytest.raises(RequestError, match="gate must be"), use_gate(1):
        pass
    with use_gate("oak"), pytest.raises(RequestError, match="is not a member"):
        chat.invoke(ASK)


def test_a_call_stands_above_its_surroundings_and_those_above_defaults():
    defaults = {"gate": "ash"}
    assert request_params(defaults, {}).gate == "ash"
    with use_gate("birch"):
        assert (request_params(defaults, {}).gate, ambient_gate("ash")) == ("birch", "birch")
        assert request_params(defaults, {"gate": "cedar"}).gate == "cedar"
        with use_gate(None):
            assert request_params(defaults, {}).gate is None
        assert request_params(defaults, {}).gate == "birch"
    assert (request_params(defaults, {}).gate, ambient_gate("ash")) == ("ash", "ash")


async def test_tasks_see_the_gate_of_their_starter():
    async def seen():
        await asyncio.sleep(0)
        return request_params({}, {}).gate

    with use_gate("birch"):
        inner = asyncio.create_task(seen())
    assert await inner == "birch"
    assert await seen() is None


# ---- routes


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
async def test_the_gate_reaches_the_engine_on_every_route_of_the_chat_model(chat, asked):
    prompt = HumanMessage(ASK)
    chat.invoke([prompt], gate="birch", threshold=0.5)
    chat.bind(gate="birch", threshold=0.5).invoke([prompt])
    chat.invoke([prompt], config=BIRCH)
    chat.with_config(BIRCH).invoke([prompt])
    chat.with_gate("birch").with_threshold(0.5).invoke([prompt])
    sum_of(chat.stream([prompt], config=BIRCH))
    chat.batch([[prompt]] * 2, config=BIRCH)
    with use_gate("birch"), use_threshold(0.5):
        chat.invoke([prompt])
    (RunnableLambda(lambda text: [HumanMessage(text)]) | chat).invoke(ASK, config=BIRCH)
    await chat.ainvoke(ASK, config=BIRCH)
    assert [chunk async for chunk in chat.astream(ASK, config=BIRCH)]
    await chat.abatch([ASK], config=BIRCH)
    assert chat.stream_events(ASK, version="v3", config=BIRCH).output
    assert [piece async for piece in (await chat.astream_events(ASK, version="v3", config=BIRCH)).text]
    assert [event async for event in chat.astream_events(ASK, version="v2", config=BIRCH)]
    structured = chat.with_structured_output({"title": "a", "enum": ["x"]}, include_raw=True)
    structured.with_config(BIRCH).invoke(ASK)
    assert asked == [("birch", 0.5)] * 17


async def test_the_gate_reaches_the_engine_on_every_route_of_the_text_model(llm, asked):
    llm.invoke("In which", gate="birch", threshold=0.5)
    llm.invoke("In which", config=BIRCH)
    list(llm.stream("In which", config=BIRCH))
    llm.batch(["In which"] * 2, config=BIRCH)
    await llm.ainvoke("In which", config=BIRCH)
    assert [piece async for piece in llm.astream("In which", config=BIRCH)]
    await llm.abatch(["In which"] * 2, config=BIRCH)
    llm.with_gate("birch").with_threshold(0.5).invoke("In which")
    with use_gate("birch"), use_threshold(0.5):
        llm.invoke("In which")
    assert asked == [("birch", 0.5)] * 11
    configs = [{"configurable": {"gac_gate": name, "gac_threshold": 0.5}} for name in ("ash", "birch")]
    llm.batch(["In which"] * 2, configs)
    assert sorted(asked[11:]) == [("ash", 0.5), ("birch", 0.5)]


async def test_the_gate_reaches_the_engine_through_llamaindex(index, asked):
    message = [ChatMessage(ASK)]
    index.chat(message, gate="birch", threshold=0.5)
    index.with_gate("birch").with_threshold(0.5).chat(message)
    with use_gate("birch"), use_threshold(0.5):
        index.complete("In which")
        list(index.stream_chat(message))
        await index.achat(message)
        assert [response async for response in await index.astream_complete("In which")]
    assert asked == [("birch", 0.5)] * 6


def test_agents_pass_the_gate_on(chat, asked):
    agents = pytest.importorskip("langchain.agents")
    from langchain.agents.middleware import wrap_model_call

    @tool
    def get_weather(city: str) -> str:
        """Tells the weather of a city."""
        return f"It rains in {city}."

    @wrap_model_call
    def gated(request, handler):
        return handler(request.override(model_settings={"gate": "birch", "threshold": 0.5}))

    asking, limit = {"messages": [("user", "Hi")]}, {"recursion_limit": 4}
    agents.create_agent(chat, [get_weather]).invoke(asking, {**BIRCH, **limit})
    agents.create_agent(chat, [get_weather], middleware=[gated]).invoke(asking, limit)
    agents.create_agent(chat.with_gate("birch").with_threshold(0.5), [get_weather]).invoke(asking, limit)
    assert set(asked) == {("birch", 0.5)}
    assert len(asked) >= 3


def test_one_member_alone_is_not_touched_by_a_configured_gate(chat, asked):
    assert chat.invoke(ASK, model="cedar", config=BIRCH).response_metadata["gac"]["gate"] == "cedar"
    chat.invoke(ASK, model=chat.model_name, config=BIRCH)
    with use_gate("birch"):
        chat.invoke(ASK, model="cedar")
    assert asked == [("cedar", 0.0), ("birch", 0.5), ("cedar", 0.0)]


# ---- what was in force


def test_statistics_name_the_settings_in_force():
    with shared_ensemble(EMBEDDED[:2], weights=[1.0, 3.0], commit="context-free") as ensemble:
        settings = ensemble.generate(QUESTION, max_tokens=2).stats.settings
        assert settings.weights == {"ash": 0.25, "birch": 0.75}
        assert (settings.threshold, settings.gate, settings.alignment, settings.commit) == (
            None,
            "birch",
            "token",
            "context-free",
        )
        assert (settings.temperature, settings.seed) == (0.0, None)
        sampled = ensemble.generate(QUESTION, max_tokens=2, temperature=0.7, threshold=0.3, gate="ash", seed=7)
        settings = sampled.stats.settings
        assert (settings.threshold, settings.gate, settings.temperature, settings.seed) == (0.3, "ash", 0.7, 7)
        drawn = ensemble.generate(QUESTION, max_tokens=2, temperature=0.7)
        assert drawn.stats.settings.seed == drawn.seed is not None
        alone = ensemble.generate(QUESTION, max_tokens=2, threshold=0.0, gate="ash")
        assert alone.stats.settings.weights == {"ash": 1.0}


async def test_metadata_name_the_settings_in_force_on_every_route(chat, llm, index):
    given = {"gate": "birch", "threshold": 0.5, "temperature": 0.7, "seed": 3}
    message, token_stats = [ChatMessage(ASK)], {"token_stats": True}
    found = [
        chat.invoke(ASK, **given).response_metadata,
        sum_of(chat.stream(ASK, **given)).response_metadata,
        (await chat.ainvoke(ASK, **given)).response_metadata,
        llm.generate(["In which"], **given).generations[0][0].generation_info,
        index.chat(message, **given).raw,
        list(index.stream_chat(message, **given))[-1].raw,
        (await index.achat(message, **given)).raw,
        index.complete("In which", **given).raw,
        list(index.stream_complete("In which", **given))[-1].raw,
    ]
    for metadata in found:
        gac = metadata["gac"]
        json.dumps(metadata)
        assert {name: gac[name] for name in given} == given
        assert gac["weights"] == dict.fromkeys(("ash", "birch", "cedar"), pytest.approx(1 / 3))
        assert (gac["alignment"], gac["commit"]) == ("token", "canonical")
        assert 0 < gac["confidence"] <= 1
        assert "token_stats" not in gac
    assert chat.invoke(ASK).response_metadata["gac"]["seed"] is None
    found = [
        chat.invoke(ASK, **token_stats).response_metadata,
        sum_of(chat.stream(ASK, **token_stats)).response_metadata,
        ChatGaC(ensemble=chat._ensemble, max_tokens=4, token_stats=True).invoke(ASK).response_metadata,
        llm.generate([ASK], **token_stats).generations[0][0].generation_info,
        index.chat(message, **token_stats).raw,
        list(index.stream_chat(message, **token_stats))[-1].raw,
        gac_llamaindex.GaCLLM(ensemble=index.ensemble, max_tokens=4, token_stats=True).complete(ASK).raw,
    ]
    for metadata in found:
        json.dumps(metadata)
        first = metadata["gac"]["token_stats"][0]
        keys = {"token", "bytes", "confidence", "agreement", "divergence", "ensembled", "forced", "members"}
        assert set(first) == keys
        assert [member["member"] for member in first["members"]] == ["ash", "birch", "cedar"]
        assert set(first["members"][0]) == {"member", "token", "bytes", "probability", "selected"}
        assert 0 <= first["agreement"] <= 1
        assert first["divergence"] >= 0


async def test_what_surrounds_a_call_reaches_the_core_without_a_wrapper(ensemble):
    with use_threshold(0.4), use_gate("birch"):
        inside = [
            ensemble.generate(QUESTION, max_tokens=1),
            ensemble.generate_batch([QUESTION], max_tokens=1)[0],
            await ensemble.agenerate(QUESTION, max_tokens=1),
        ]
        own = ensemble.generate(QUESTION, max_tokens=1, gate="cedar", threshold=None)
    outside = ensemble.generate(QUESTION, max_tokens=1)
    assert {(o.stats.settings.threshold, o.stats.settings.gate) for o in inside} == {(0.4, "birch")}
    assert (own.stats.settings.threshold, own.stats.settings.gate) == (None, "cedar")
    assert (outside.stats.settings.threshold, outside.stats.settings.gate) == (None, ensemble.gate)
