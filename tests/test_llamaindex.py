"""The LlamaIndex model: nine methods, per-call threshold, counts, and a query engine."""

from __future__ import annotations

import pytest
from conftest import EMBEDDED, QUESTION
from llama_index.core import Document, SummaryIndex
from llama_index.core.base.llms.types import ChatMessage

from gac_core import ConfigError, RequestError, UnknownArgumentError
from gac_llamaindex import GaCLLM

DRAWN = {"max_tokens": 16, "temperature": 3.0, "seed": 5}
MESSAGES = [ChatMessage(role=m["role"], content=m["content"]) for m in QUESTION]


@pytest.fixture
def llm(ensemble):
    return GaCLLM(ensemble=ensemble, max_tokens=16)


@pytest.fixture
def answer(ensemble):
    return ensemble.generate(QUESTION, max_tokens=16)


@pytest.fixture
def text(ensemble):
    # Sampled hot: as bare text the embedded members mostly end at once, which would prove little.
    return ensemble.generate("In which town", **DRAWN).text


def test_metadata(llm):
    assert llm.metadata.context_window == 1024
    assert llm.metadata.is_chat_model
    assert llm.metadata.num_output == 16
    assert llm.metadata.model_name == "ash+birch+cedar"


def test_chat_and_its_stream(llm, answer):
    response = llm.chat(MESSAGES)
    assert response.message.content == answer.text
    assert response.raw["usage"]["completion_tokens"] == answer.usage.completion_tokens
    streamed = list(llm.stream_chat(MESSAGES))
    assert streamed[-1].message.content == answer.text == "".join(r.delta for r in streamed)
    assert streamed[-1].raw["usage"]["prompt_tokens"] == answer.usage.prompt_tokens


async def test_async_chat_and_its_stream(llm, answer):
    assert (await llm.achat(MESSAGES)).message.content == answer.text
    assert "".join([r.delta async for r in await llm.astream_chat(MESSAGES)]) == answer.text


def test_complete_and_its_stream(llm, text):
    assert text
    assert llm.complete("In which town", **DRAWN).text == text
    streamed = list(llm.stream_complete("In which town", **DRAWN))
    assert streamed[-1].text == text == "".join(r.delta for r in streamed)


async def test_async_complete_and_its_stream(llm, text):
    assert (await llm.acomplete("In which town", **DRAWN)).text == text
    assert "".join([r.delta async for r in await llm.astream_complete("In which town", **DRAWN)]) == text


@pytest.mark.parametrize("threshold", [0.0, 0.5, None])
def test_the_threshold_is_per_call(ensemble, llm, threshold):
    want = ensemble.generate(QUESTION, max_tokens=16, threshold=threshold)
    response = llm.chat(MESSAGES, threshold=threshold)
    assert response.message.content == want.text
    assert response.raw["gac"]["share_ensembled"] == want.stats.share_ensembled
    own = GaCLLM(ensemble=ensemble, max_tokens=16, threshold=threshold)
    assert own.chat(MESSAGES).raw["gac"]["share_ensembled"] == want.stats.share_ensembled


def test_wrong_things_are_refused(ensemble, llm):
    with pytest.raises(UnknownArgumentError, match="treshold"):
        llm.chat(MESSAGES, treshold=0.5)
    with pytest.raises(UnknownArgumentError, match="treshold"):
        GaCLLM(ensemble=ensemble, treshold=0.5)
    with pytest.raises(ConfigError, match="GAC_CONFIG"):
        GaCLLM()
    with pytest.raises(ConfigError, match="one of models"):
        GaCLLM(EMBEDDED, ensemble=ensemble)
    with pytest.raises(ConfigError, match="dtype goes with models"):
        GaCLLM(ensemble=ensemble, dtype="float32")
    with pytest.raises(RequestError, match="threshold"):
        llm.with_threshold(1.5)


def test_the_callers_messages_stay_as_they_were(llm):
    before = [message.model_copy(deep=True) for message in MESSAGES]
    llm.chat(MESSAGES)
    list(llm.stream_chat(MESSAGES))
    assert before == MESSAGES


def test_it_loads_models_itself(answer):
    assert GaCLLM(EMBEDDED, dtype="float32", max_tokens=16).chat(MESSAGES).message.content == answer.text


@pytest.mark.parametrize("streaming", [False, True])
def test_a_query_engine_answers_from_its_documents(llm, streaming):
    index = SummaryIndex.from_documents([Document(text="The Torno Bridge stands in Halkus.")])
    response = index.as_query_engine(llm=llm, streaming=streaming).query("In which town is the Torno Bridge?")
    text = "".join(response.response_gen) if streaming else str(response)
    assert text.strip()
    assert response.source_nodes[0].text == "The Torno Bridge stands in Halkus."
