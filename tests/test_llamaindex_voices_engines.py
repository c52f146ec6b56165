"""`VoicesSynthesizer` in LlamaIndex's query and chat engines, its events, and streams that are given up."""

from __future__ import annotations

import asyncio

import pytest
from conftest import EMBEDDED, ensemble_of, pair
from holding import idle
from lexical import LexicalEmbedding
from llama_index.core import VectorStoreIndex
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.chat_engine import CondenseQuestionChatEngine
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.events.llm import LLMPredictEndEvent, LLMPredictStartEvent
from llama_index.core.instrumentation.events.synthesis import SynthesizeEndEvent, SynthesizeStartEvent
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.query_engine import CitationQueryEngine, RetrieverQueryEngine
from test_llamaindex_engines import Events
from test_llamaindex_voices import NODES, QUESTION, TEMPLATE, TEXTS, llm, synthesizer  # noqa: F401

from gac_llamaindex import GaCLLM, VoicesSynthesizer


@pytest.fixture(scope="module")
def index():
    return VectorStoreIndex([each.node for each in NODES], embed_model=LexicalEmbedding())


async def test_query_engines_and_chat_engines(ensemble, llm, synthesizer, index):
    engine = index.as_query_engine(llm=llm, response_synthesizer=synthesizer, similarity_top_k=3)
    response = engine.query(QUESTION)
    assert str(await engine.aquery(QUESTION)) == str(response)
    assert set(response.metadata["document_shares"]) == set(TEXTS)
    retriever = index.as_retriever(similarity_top_k=3)
    assert str(RetrieverQueryEngine(retriever, synthesizer).query(QUESTION)) == str(response)
    memory = ChatMemoryBuffer.from_defaults(llm=llm)
    chat = CondenseQuestionChatEngine.from_defaults(engine, llm=llm, memory=memory)
    answer = chat.chat(QUESTION)
    assert str(answer) == str(response)
    assert answer.source_nodes[0].score == pytest.approx(response.source_nodes[0].score, abs=1e-4)
    memory.reset()
    streamed = chat.stream_chat(QUESTION)
    assert "".join(streamed.response_gen) == str(response)
    cited = CitationQueryEngine.from_args(index, llm=llm, response_synthesizer=synthesizer, similarity_top_k=2)
    response = cited.query(QUESTION)
    assert {each.text.split("\n")[0] for each in response.source_nodes} == {"Source 1:", "Source 2:"}
    assert {each["document"] for each in response.metadata["citations"]} <= {
        each.node_id for each in response.source_nodes
    }


def test_prompts_are_read_and_replaced(llm, index):
    synthesizer = VoicesSynthesizer(llm)
    engine = index.as_query_engine(llm=llm, response_synthesizer=synthesizer, similarity_top_k=2)
    before = str(engine.query(QUESTION))
    assert set(engine.get_prompts()) == {"response_synthesizer:text_qa_template"}
    engine.update_prompts({"response_synthesizer:text_qa_template": TEMPLATE})
    assert engine.get_prompts() == {"response_synthesizer:text_qa_template": TEMPLATE}
    assert str(engine.query(QUESTION)) != before


def test_events_are_those_of_other_synthesizers(ensemble):
    debug, root, handler = LlamaDebugHandler(print_trace_on_end=False), get_dispatcher(), Events()
    manager = CallbackManager([debug])
    llm = GaCLLM(ensemble=ensemble, max_tokens=4, callback_manager=manager)
    synthesizer = VoicesSynthesizer(llm, text_qa_template=TEMPLATE, callback_manager=manager)
    root.add_event_handler(handler)
    try:
        response = synthesizer.synthesize(QUESTION, NODES)
    finally:
        root.event_handlers.remove(handler)
    order = [SynthesizeStartEvent, LLMPredictStartEvent, LLMPredictEndEvent, SynthesizeEndEvent]
    found = [event for event in handler.seen if type(event) in order]
    assert [type(event) for event in found] == order
    assert found[-1].response.metadata == response.metadata
    (start, end), *more = debug.get_event_pairs(CBEventType.SYNTHESIZE)
    assert more == []
    assert start.payload["query_str"] == QUESTION
    assert end.payload["response"] is response
    assert len(debug.get_event_pairs(CBEventType.LLM)) == 1


async def test_giving_up_a_stream_frees_the_engine():
    with ensemble_of([pair(EMBEDDED[0])]) as one:
        llm = GaCLLM(ensemble=one, temperature=5.0, seed=1, max_tokens=400)
        synthesizer = VoicesSynthesizer(llm, streaming=True)
        response = synthesizer.synthesize(QUESTION, NODES)
        next(response.response_gen)
        del response
        assert await asyncio.to_thread(idle, one)
        response = await synthesizer.asynthesize(QUESTION, NODES)
        await anext(response.response_gen)
        await response.response_gen.aclose()
        assert await asyncio.to_thread(idle, one)
