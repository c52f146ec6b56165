"""LlamaIndex's response modes, query engines, chat engines and memories on real models.

What is asserted holds for any model: the engines return what the ensemble generates for their prompts, in every way.
"""

from __future__ import annotations

import gc
import json

import pytest
from llama_index.core import Settings, get_response_synthesizer
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.evaluation import RelevancyEvaluator
from llama_index.core.indices.query.query_transform import HyDEQueryTransform
from llama_index.core.memory import ChatSummaryMemoryBuffer, Memory
from llama_index.core.query_engine import (
    CitationQueryEngine,
    RetryQueryEngine,
    RouterQueryEngine,
    SubQuestionQueryEngine,
    TransformQueryEngine,
)
from llama_index.core.question_gen import LLMQuestionGenerator
from llama_index.core.schema import QueryBundle
from llama_index.core.selectors import (
    LLMMultiSelector,
    LLMSingleSelector,
    PydanticMultiSelector,
    PydanticSingleSelector,
)
from llama_index.core.tools import QueryEngineTool, ToolMetadata
from real_index import NODES, QUESTION, TEXTS, asked, both, vector_index  # noqa: F401

from gac_core import Grammar
from gac_llamaindex import GaCLLM

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*aiosqlite.*:ResourceWarning"),
]


@pytest.fixture
def llm(both):
    return GaCLLM(ensemble=both, max_tokens=8)


@pytest.fixture(autouse=True)
def the_only_model(llm, monkeypatch):
    """Some of LlamaIndex's classes make their parts of the model in the settings, whichever they are given."""
    monkeypatch.setattr(Settings, "_llm", llm)
    yield
    # LlamaIndex does not close the databases of its memories, which is a warning where they are collected.
    gc.collect()


# ---- response modes


CALLS = {
    "refine": 2,
    "compact": 1,
    "tree_summarize": 1,
    "simple_summarize": 1,
    "accumulate": 2,
    "compact_accumulate": 1,
    "generation": 1,
    "no_text": 0,
    "context_only": 0,
}


@pytest.mark.parametrize("mode", CALLS)
async def test_every_response_mode_in_every_way(llm, asked, mode):
    whole = get_response_synthesizer(llm=llm, response_mode=mode)
    text = str(whole.synthesize(QUESTION, NODES).response or "")
    assert len(asked.seen) == CALLS[mode]
    answers = asked.answers(last=1)
    if answers:
        assert answers[-1].strip() in text
        assert text.strip()
    assert str((await whole.asynthesize(QUESTION, NODES)).response or "") == text
    assert len(asked.take()) == CALLS[mode]
    if mode in ("accumulate", "compact_accumulate", "no_text", "context_only"):
        return  # LlamaIndex does not stream these.
    streaming = get_response_synthesizer(llm=llm, response_mode=mode, streaming=True)
    assert "".join(streaming.synthesize(QUESTION, NODES).response_gen) == text
    response = await streaming.asynthesize(QUESTION, NODES)
    assert "".join([piece async for piece in response.async_response_gen()]) == text
    assert len(asked.take()) == 2 * CALLS[mode]


# ---- query engines


async def test_citations_have_numbered_sources(llm, asked):
    engine = CitationQueryEngine.from_args(vector_index(), llm=llm, similarity_top_k=1)
    response = engine.query(QUESTION)
    assert asked.answers() == [str(response)] != [""]
    assert [node.text.split("\n")[0] for node in response.source_nodes] == ["Source 1:"]
    assert TEXTS["bridge"] in response.source_nodes[0].text
    assert str(await engine.aquery(QUESTION)) == str(response)


def tools(llm):
    engine = vector_index().as_query_engine(llm=llm, similarity_top_k=1)
    return [QueryEngineTool.from_defaults(engine, name=name, description=f"About the {name}.") for name in TEXTS]


def sub_questions(count):
    question = {
        "type": "object",
        "properties": {"sub_question": {"type": "string", "maxLength": 20}, "tool_name": {"enum": list(TEXTS)}},
        "required": ["sub_question", "tool_name"],
    }
    items = {"type": "array", "items": question, "minItems": count, "maxItems": count}
    return Grammar.json_schema({"type": "object", "properties": {"items": items}, "required": ["items"]})


async def test_sub_questions_each_have_an_answer(llm, asked):
    generator = LLMQuestionGenerator.from_defaults(
        llm=llm.model_copy(update={"max_tokens": 100}).with_grammar(sub_questions(2))
    )
    engine = SubQuestionQueryEngine.from_defaults(
        tools(llm), question_gen=generator, llm=llm, use_async=False, verbose=False,
        response_synthesizer=get_response_synthesizer(llm=llm),
    )  # fmt: skip
    response = await engine.aquery("Who built the bridge and who keeps the inn?")
    generated, *_, last = asked.answers()
    wanted = [(item["tool_name"], item["sub_question"]) for item in json.loads(generated)["items"]]
    pairs = [node.metadata.get("qa_pair") or node.text for node in response.source_nodes]
    assert len(wanted) == 2
    assert all(any(question in str(pair) for pair in pairs) for _, question in wanted)
    assert str(response) == last


def selection(count):
    choice = {
        "type": "object",
        "properties": {"choice": {"enum": [1, 2]}, "reason": {"type": "string", "maxLength": 20}},
    }
    choice["required"] = ["choice", "reason"]
    return Grammar.json_schema({"type": "array", "items": choice, "minItems": 1, "maxItems": count})


async def test_routers_with_every_selector(llm, asked):
    roomy = llm.model_copy(update={"max_tokens": 80})
    metadata = [ToolMetadata(name=name, description=f"About the {name}.") for name in TEXTS]
    for selector, most in (
        (LLMSingleSelector.from_defaults(llm=roomy.with_grammar(selection(1))), 1),
        (LLMMultiSelector.from_defaults(llm=roomy.with_grammar(selection(2))), 2),
    ):
        result = selector.select(metadata, QUESTION)
        assert 1 <= len(result.selections) <= most
        assert all(chosen.index in (0, 1) for chosen in result.selections)
        assert (await selector.aselect(metadata, QUESTION)).selections == result.selections
    for pydantic in (PydanticSingleSelector, PydanticMultiSelector):
        selected = pydantic.from_defaults(llm=roomy).select(metadata, QUESTION)
        assert all(isinstance(chosen.index, int) and isinstance(chosen.reason, str) for chosen in selected.selections)
    asked.take()
    selector = LLMSingleSelector.from_defaults(llm=roomy.with_grammar(selection(1)))
    response = RouterQueryEngine(selector, tools(llm), llm=llm).query(QUESTION)
    picked, answer = asked.answers()
    assert response.metadata["selector_result"].ind == json.loads(picked)[0]["choice"] - 1
    assert str(response) == answer


def test_transformed_and_repeated_queries(llm, asked):
    engine = vector_index().as_query_engine(llm=llm, similarity_top_k=1)
    hyde = HyDEQueryTransform(llm=llm, include_original=True)
    response = TransformQueryEngine(engine, hyde).query(QUESTION)
    imagined, answer = asked.answers()
    assert hyde.run(QueryBundle(QUESTION)).embedding_strs == [imagined, QUESTION]
    assert str(response) == answer
    asked.take()
    never = RelevancyEvaluator(llm=llm.with_grammar(Grammar.choices(["NO"])))
    always = RelevancyEvaluator(llm=llm.with_grammar(Grammar.choices(["YES"])))
    assert str(RetryQueryEngine(engine, always, max_retries=2).query(QUESTION)) == asked.answers()[0]
    RetryQueryEngine(engine, never, max_retries=2).query(QUESTION)
    assert len(asked.take()) > 2


# ---- chat engines


MESSAGES = ["Tell me about the Silver Inn.", "Who is its keeper?"]


@pytest.mark.parametrize("mode", ["condense_question", "condense_plus_context", "context", "simple"])
async def test_every_chat_engine_in_every_way(llm, asked, mode):
    def engine():
        return vector_index().as_chat_engine(chat_mode=mode, llm=llm, similarity_top_k=1)

    whole = engine()
    texts = [str(whole.chat(message)) for message in MESSAGES]
    assert len(asked.seen) == (3 if "condense" in mode else 2)
    assert asked.answers(last=1) == texts[1:]
    assert all(texts)
    assert [message.content for message in whole.chat_history] == [MESSAGES[0], texts[0], MESSAGES[1], texts[1]]
    assert [message.role for message in whole.chat_history] == ["user", "assistant"] * 2
    tasks, streams, async_streams = engine(), engine(), engine()
    assert str(await tasks.achat(MESSAGES[0])) == texts[0]
    assert "".join(streams.stream_chat(MESSAGES[0]).response_gen) == texts[0]
    for message, text in zip(MESSAGES, texts, strict=True):
        response = await async_streams.astream_chat(message)
        assert "".join([piece async for piece in response.async_response_gen()]) == text


def test_the_best_chat_engine_is_one_of_these(llm):
    index = vector_index()
    engines = [index.as_chat_engine(chat_mode=mode, llm=llm) for mode in ("best", "condense_plus_context")]
    assert len({type(engine) for engine in engines}) == 1


# ---- memory


async def test_memories_count_with_the_gates_tokenizer(llm, asked):
    long = [ChatMessage(role=role, content=f"{text} " * 3) for text in TEXTS.values() for role in ("user", "assistant")]
    limit = sum(len(llm.encode(message.content)) for message in long[2:]) + 20
    memory = Memory.from_defaults(
        "test", token_limit=limit, chat_history_token_ratio=1.0, token_flush_size=1, tokenizer_fn=llm.encode
    )
    await memory.aput_messages(long)
    kept = await memory.aget()
    assert kept == long[len(long) - len(kept) :]
    assert 0 < len(kept) < len(long)
    # LlamaIndex changes the list.
    summary = ChatSummaryMemoryBuffer.from_defaults(list(long), llm=llm, token_limit=limit, tokenizer_fn=llm.encode)
    first, *rest = summary.get()
    assert [first.content] == asked.answers() != [""]
    assert first.role == "system"
    assert rest == long[len(long) - len(rest) :]
