"""LlamaIndex's query engines on the engine: sources, streams, counts, concurrency, cancellation and errors."""

from __future__ import annotations

import asyncio

import pytest
from conftest import EMBEDDED, LONG_PROMPT, ensemble_of, pair, random_pair
from holding import busy, idle, ticks_while_held
from lexical import LexicalEmbedding
from llama_index.core import Document, Settings, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import Field
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
    LLMCompletionStartEvent,
)
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.response_synthesizers import get_response_synthesizer
from llama_index.retrievers.bm25 import BM25Retriever

from gac_core import MemberError, PromptTooLongError, use_threshold
from gac_llamaindex import GaCLLM

HANDBOOK = {
    "bridges": "The Torno Bridge is the work of Melka Dorin. The bridge stands in Halkus. It was built in 1874.",
    "inns": "The Silver Inn stands in Marwin. Its keeper is Rufo Tann. It has nine rooms.",
    "museums": "The Museum of Salt stands in Orlen. It opens at 10:30. Entry costs four crowns.",
}
QUESTION = "In which town is the Torno Bridge?"
HOT = {"temperature": 1.5, "max_tokens": 12}


@pytest.fixture
def llm(ensemble):
    return GaCLLM(ensemble=ensemble, max_tokens=16)


@pytest.fixture(scope="module")
def index():
    documents = [Document(text=text, metadata={"source": name}) for name, text in HANDBOOK.items()]
    return VectorStoreIndex.from_documents(documents, embed_model=LexicalEmbedding())


def test_a_vector_index_answers_with_its_sources(llm, index):
    whole = index.as_query_engine(llm=llm, similarity_top_k=1).query(QUESTION)
    streamed = index.as_query_engine(llm=llm, similarity_top_k=1, streaming=True).query(QUESTION)
    pieces = list(streamed.response_gen)
    assert len(pieces) > 1
    assert "".join(pieces) == str(whole) != ""
    for response in (whole, streamed):
        assert [node.metadata["source"] for node in response.source_nodes] == ["bridges"]


def test_bm25_answers_with_its_sources(llm):
    nodes = SentenceSplitter().get_nodes_from_documents([Document(text=text) for text in HANDBOOK.values()])
    retriever = BM25Retriever.from_defaults(nodes=nodes, similarity_top_k=1)
    for streaming in (False, True):
        synthesizer = get_response_synthesizer(llm=llm, streaming=streaming)
        response = RetrieverQueryEngine(retriever, synthesizer).query("Who is the keeper of the Silver Inn?")
        assert ("".join(response.response_gen) if streaming else str(response)).strip()
        assert [node.text for node in response.source_nodes] == [HANDBOOK["inns"]]


async def test_many_queries_at_once_are_one_batch_and_say_what_they_say_alone(ensemble, index):
    llm = GaCLLM(ensemble=ensemble, seed=4, temperature=0.7, max_tokens=12)
    engine = index.as_query_engine(llm=llm, similarity_top_k=1)
    questions = [f"{question} ({number})" for number in range(8) for question in (QUESTION, "Who keeps the inn?")]
    alone = [str(await engine.aquery(question)) for question in questions]
    inner, sizes = ensemble._session.worker._engine, []
    decode = inner._decoder.decode
    inner._decoder.decode = lambda batch: sizes.append(len(batch)) or decode(batch)
    try:
        together = await asyncio.gather(*(engine.aquery(question) for question in questions))
    finally:
        inner._decoder.decode = decode
    assert [str(response) for response in together] == alone
    assert max(sizes) >= 8
    assert len(set(alone)) > 1


async def test_the_event_loop_ticks_while_an_answer_is_written(ensemble):
    llm = GaCLLM(ensemble=ensemble, temperature=5.0, seed=1, max_tokens=10)

    async def streamed():
        return [r async for r in await llm.astream_complete(LONG_PROMPT)]

    for ask in (lambda: llm.acomplete(LONG_PROMPT), streamed):
        await (await ticks_while_held(ensemble, ask))


async def test_giving_up_frees_the_engine():
    with ensemble_of([pair(EMBEDDED[0])]) as one:
        llm = GaCLLM(ensemble=one, temperature=5.0, seed=1, max_tokens=900)
        stream = llm.stream_complete(LONG_PROMPT)
        next(stream)
        stream.close()
        assert await asyncio.to_thread(idle, one)
        async_stream = await llm.astream_complete(LONG_PROMPT)
        await anext(async_stream)
        await async_stream.aclose()
        assert await asyncio.to_thread(idle, one)
        task = asyncio.create_task(llm.acomplete(LONG_PROMPT))
        assert await asyncio.to_thread(busy, one)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(idle, one)


class Fails:
    """A model's forward that fails after some calls."""

    def __init__(self, model, after):
        self._forward, self._left = model.forward, after
        model.forward = self

    def __call__(self, *args, **kwargs):
        self._left -= 1
        if self._left < 0:
            raise RuntimeError("out of luck")
        return self._forward(*args, **kwargs)


async def test_an_error_within_a_stream_reaches_its_reader():
    model, tokenizer = random_pair("llama")
    with ensemble_of([(model, tokenizer)], drafts=()) as one:
        llm = GaCLLM(ensemble=one, max_tokens=100)
        Fails(model, after=6)
        stream, seen = llm.stream_complete("In which town"), []
        with pytest.raises(MemberError, match="out of luck"):
            seen.extend(stream)
        assert seen
        with pytest.raises(MemberError, match="out of luck"):
            [r async for r in await llm.astream_complete("In which town")]


def test_a_prompt_that_is_too_long_is_refused(llm):
    for ask in (llm.complete, llm.stream_complete):
        with pytest.raises(PromptTooLongError, match="1024"):
            ask("passages " * 2000)


def test_tokens_are_counted_as_the_engine_counts_them(ensemble, index):
    counter = TokenCountingHandler(tokenizer=GaCLLM(ensemble=ensemble).encode)
    llm = GaCLLM(ensemble=ensemble, max_tokens=16, callback_manager=CallbackManager([counter]))
    usages = [llm.chat([ChatMessage(QUESTION)]).raw["usage"], llm.complete("In which", **HOT, seed=5).raw["usage"]]
    usages.append(list(llm.stream_chat([ChatMessage(QUESTION)]))[-1].raw["usage"])
    usages.append(list(llm.stream_complete("In which", **HOT, seed=5))[-1].raw["usage"])
    assert counter.prompt_llm_token_count == sum(usage["prompt_tokens"] for usage in usages)
    assert counter.completion_llm_token_count == sum(usage["completion_tokens"] for usage in usages)
    assert usages[0] == usages[2]
    assert usages[1] == usages[3]
    assert min(usage["completion_tokens"] for usage in usages) > 1


class Events(BaseEventHandler):
    """Records events."""

    seen: list = Field(default_factory=list)

    def handle(self, event, **kwargs):
        self.seen.append(event)


async def test_every_request_has_one_pair_of_events(llm):
    root, handler = get_dispatcher(), Events()
    root.add_event_handler(handler)
    try:
        llm.chat([ChatMessage(QUESTION)])
        await llm.achat([ChatMessage(QUESTION)])
        streamed = list(llm.stream_chat([ChatMessage(QUESTION)]))
        streamed += [r async for r in await llm.astream_chat([ChatMessage(QUESTION)])]
        llm.complete("In which", **HOT)
        await llm.acomplete("In which", **HOT)
        list(llm.stream_complete("In which", **HOT))
        [r async for r in await llm.astream_complete("In which", **HOT)]
    finally:
        root.event_handlers.remove(handler)
    events = [type(event) for event in handler.seen]
    assert events.count(LLMChatStartEvent) == events.count(LLMChatEndEvent) == 4
    assert events.count(LLMCompletionStartEvent) == events.count(LLMCompletionEndEvent) == 4
    assert events.count(LLMChatInProgressEvent) == len(streamed)
    ends = [event for event in handler.seen if isinstance(event, LLMChatEndEvent)]
    assert len({end.response.message.content for end in ends}) == 1


@pytest.mark.parametrize("way", ["query", "aquery"])
async def test_the_threshold_reaches_query_engines(ensemble, llm, index, way):
    asked, inner = [], ensemble._input_processor.request

    def request(prompt, params, *rest):
        asked.append(params.threshold)
        return inner(prompt, params, *rest)

    async def ask(model):
        engine = index.as_query_engine(llm=model)
        return str(await engine.aquery(QUESTION)) if way == "aquery" else str(engine.query(QUESTION))

    ensemble._input_processor.request = request
    try:
        with use_threshold(0.3):
            await ask(llm)
        await ask(llm.with_threshold(None))
        await ask(llm)
    finally:
        del ensemble._input_processor.request
    assert asked == [0.3, None, "default"]


def test_it_stands_in_the_settings(llm, index, monkeypatch):
    monkeypatch.setattr(Settings, "_llm", llm)
    assert str(index.as_query_engine(similarity_top_k=1).query(QUESTION)).strip()
