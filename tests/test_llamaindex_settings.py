"""GaCLLM's settings: how completions are sent, members without templates, pickles, events, and what is refused."""

from __future__ import annotations

import logging
import pickle

import pytest
from conftest import EMBEDDED, copied_pair, ensemble_of, pair
from llama_index.core import PromptTemplate
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.callbacks import CallbackManager, LlamaDebugHandler
from llama_index.core.callbacks.schema import CBEventType, EventPayload
from llama_index.core.postprocessor import StructuredLLMRerank
from llama_index.core.schema import NodeWithScore, TextNode
from pydantic import BaseModel

from gac_core import (
    AnswerError,
    ChatTemplateError,
    ConfigError,
    FinishReason,
    Grammar,
    OutputChunk,
    RequestError,
    RequestOutput,
    RequestStats,
    UnknownArgumentError,
    Usage,
    use_gate,
    use_threshold,
)
from gac_core.chat.tools import tell_schema
from gac_llamaindex import GaCLLM
from gac_llamaindex.responses import CompletionReader, completion_response

PROMPT = "Where is the Torno Bridge?"
ASKED = [{"role": "user", "content": PROMPT}]
DRAWN = {"max_tokens": 12, "temperature": 3.0, "seed": 5}


def first_words(messages):
    return f"Q: {messages[-1].content}"


def as_question(prompt):
    return f"Q: {prompt}"


@pytest.fixture
def as_chat(ensemble):
    return ensemble.generate(ASKED, **DRAWN).text


@pytest.fixture
def as_text(ensemble):
    return ensemble.generate(PROMPT, **DRAWN).text


@pytest.fixture
def mixed():
    """Two members, of which the second has no chat template."""
    pairs = [pair(EMBEDDED[0]), copied_pair(EMBEDDED[1])]
    pairs[1][1].chat_template = None
    with ensemble_of(pairs) as loaded:
        yield loaded


# ---- complete


async def every_completion(llm, **kwargs):
    """What each of the four ways to complete comes to."""
    return {
        llm.complete(PROMPT, **kwargs, **DRAWN).text,
        (await llm.acomplete(PROMPT, **kwargs, **DRAWN)).text,
        "".join(part.delta for part in llm.stream_complete(PROMPT, **kwargs, **DRAWN)),
        "".join([part.delta async for part in await llm.astream_complete(PROMPT, **kwargs, **DRAWN)]),
    }


async def test_a_completion_is_one_user_message_through_the_templates(ensemble, as_chat, as_text):
    assert as_chat != as_text
    auto = GaCLLM(ensemble=ensemble)
    assert await every_completion(auto) == {as_chat} == {auto.chat([ChatMessage(PROMPT)], **DRAWN).message.content}
    assert await every_completion(auto, formatted=True) == {as_text}
    assert await every_completion(GaCLLM(ensemble=ensemble, complete_as="text")) == {as_text}
    chat = GaCLLM(ensemble=ensemble, complete_as="chat", completion_to_prompt=as_question)
    assert await every_completion(chat) == {as_chat}


async def test_who_formats_prompts_sends_text(ensemble, as_text):
    formats = GaCLLM(ensemble=ensemble, completion_to_prompt=as_question)
    assert await every_completion(formats) == {ensemble.generate(as_question(PROMPT), **DRAWN).text}
    assert await every_completion(GaCLLM(ensemble=ensemble, messages_to_prompt=first_words)) == {as_text}
    both = GaCLLM(ensemble=ensemble, messages_to_prompt=first_words, complete_as="chat")
    assert await every_completion(both) == {ensemble.generate(f"Q: {PROMPT}", **DRAWN).text}


async def test_without_all_templates_a_completion_is_text(mixed):
    assert await every_completion(GaCLLM(ensemble=mixed)) == {mixed.generate(PROMPT, **DRAWN).text}
    with pytest.raises(ChatTemplateError, match=r"'m1'.*messages_to_prompt"):
        GaCLLM(ensemble=mixed, complete_as="chat").complete(PROMPT)


def test_what_a_completion_takes(ensemble):
    llm = GaCLLM(ensemble=ensemble)
    assert llm.complete(PROMPT, enable_thinking=False, max_tokens=2).text
    with pytest.raises(UnknownArgumentError, match="'tools'"):
        llm.complete(PROMPT, tools=[])
    with pytest.raises(RequestError, match="enable_thinking"):
        llm.complete(PROMPT, formatted=True, enable_thinking=False)
    with pytest.raises(ConfigError, match="complete_as"):
        GaCLLM(ensemble=ensemble, complete_as="raw")


def test_reasoning_is_no_part_of_a_completion():
    output = RequestOutput(
        "", "yes", (), FinishReason.STOP, None, Usage(1, 1), RequestStats(), None, None, reasoning="hm"
    )
    response = completion_response(output)
    assert (response.text, response.additional_kwargs) == ("yes", {"thinking": "hm"})
    reader = CompletionReader()
    assert reader.read(OutputChunk("", reasoning="hm")).additional_kwargs == {"thinking_delta": "hm"}
    last = reader.read(OutputChunk("yes", output=output))
    assert (last.text, last.additional_kwargs) == ("yes", {"thinking": "hm"})


# ---- members without a chat template


def test_a_member_without_a_template_is_named_when_the_model_is_made(mixed, ensemble, caplog):
    with caplog.at_level(logging.WARNING):
        llm = GaCLLM(ensemble=mixed)
    (record,) = caplog.records
    assert all(word in record.getMessage() for word in ("'m1'", "chat_template", "messages_to_prompt"))
    assert "'m0'" not in record.getMessage()
    assert not llm.metadata.is_chat_model
    assert not llm.metadata.is_function_calling_model
    with pytest.raises(ChatTemplateError, match=r"'m1'.*messages_to_prompt"):
        llm.chat([ChatMessage(PROMPT)])
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        GaCLLM(ensemble=mixed, messages_to_prompt=first_words)
        GaCLLM(ensemble=ensemble)
    assert not caplog.records


def test_only_members_that_take_part_need_a_template(mixed, caplog):
    with caplog.at_level(logging.WARNING):
        gate = GaCLLM(ensemble=mixed, threshold=0.0, max_tokens=4)
    assert not caplog.records
    assert gate.metadata.is_chat_model
    assert gate.chat([ChatMessage(PROMPT)]).raw["gac"]["share_ensembled"] == 0
    with pytest.raises(ChatTemplateError, match="'m1'"):
        gate.chat([ChatMessage(PROMPT)], threshold=None)
    with pytest.raises(ChatTemplateError, match="'m1'"):
        gate.chat([ChatMessage(PROMPT)], gate="m1")


# ---- pickles and changes


def test_pickles_keep_functions_and_the_system_prompt():
    made = GaCLLM(
        EMBEDDED[:1],
        messages_to_prompt=first_words,
        completion_to_prompt=as_question,
        query_wrapper_prompt=PromptTemplate("<{query_str}>"),
        system_prompt="Be brief.",
        callback_manager=CallbackManager([LlamaDebugHandler()]),
    )
    again = pickle.loads(pickle.dumps(made))
    assert (again.messages_to_prompt, again.completion_to_prompt) == (first_words, as_question)
    assert again.query_wrapper_prompt.format(query_str="x") == "<x>"
    assert again.system_prompt == "Be brief."
    assert again.callback_manager.handlers == []
    answers = {one.chat([ChatMessage(PROMPT)], **DRAWN).message.content for one in (made, again)}
    assert len(answers) == 1


@pytest.mark.parametrize("name", ["messages_to_prompt", "completion_to_prompt"])
def test_what_cannot_be_pickled_is_named(ensemble, name):
    with pytest.raises(ConfigError, match=f"{name} cannot be pickled.*top level of a module"):
        pickle.dumps(GaCLLM(ensemble=ensemble, **{name: lambda given: "x"}))


def test_what_was_loaded_cannot_be_changed(ensemble):
    llm = GaCLLM(ensemble=ensemble)
    for name, value in (("models", ["other"]), ("config", {}), ("dtype", "float16"), ("commit", "canonical")):
        before = getattr(llm, name)
        with pytest.raises(ConfigError, match=rf"{name} cannot be changed.*make a new one"):
            setattr(llm, name, value)
        with pytest.raises(ConfigError, match=rf"{name} cannot be changed"):
            llm.model_copy(update={name: value})
        assert getattr(llm, name) == before
    llm.max_tokens, llm.threshold = 3, 0.5
    assert llm.complete(PROMPT, temperature=5.0, seed=1).raw["usage"]["completion_tokens"] <= 3


def test_every_field_is_described():
    assert len(GaCLLM.model_fields) > 40
    assert [name for name, field in GaCLLM.model_fields.items() if not field.description] == []


# ---- structured answers within max_tokens


class Person(BaseModel):
    """Who was there."""

    age: int
    name: str


class Crowd(BaseModel):
    """A list without bounds."""

    people: list[Person]


async def test_lists_without_bounds_are_closed_within_max_tokens(ensemble, caplog):
    prompt, cut = PromptTemplate("Who was there?"), 0
    told = f"Who was there?\n\n{tell_schema(Crowd.model_json_schema())}"
    for seed in range(4):
        fields = {"max_tokens": 60, "temperature": 1.5, "seed": seed}
        llm = GaCLLM(ensemble=ensemble, **fields)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            crowd = llm.structured_predict(Crowd, prompt)
        assert await llm.astructured_predict(Crowd, prompt) == crowd
        assert list(llm.stream_structured_predict(Crowd, prompt))[-1] == crowd
        unlimited = llm.chat([ChatMessage(told)], grammar=Grammar.json_schema(Crowd.model_json_schema()))
        if unlimited.raw["finish_reason"] == "length":
            cut += 1
            assert "Crowd was closed early" in caplog.text
            with pytest.raises(AnswerError, match="raise max_tokens"):
                GaCLLM(ensemble=ensemble, close_structures=False, **fields).structured_predict(Crowd, prompt)
    assert cut


async def test_a_reranker_that_shall_not_raise_gets_the_error_as_text(ensemble):
    nodes = [NodeWithScore(node=TextNode(text=text)) for text in ("The bridge.", "The inn.")]
    for fields, limit in (({}, 60), ({"raise_on_structured_prediction_failure": False}, 3)):
        llm = GaCLLM(ensemble=ensemble, max_tokens=limit, **fields)
        select = PromptTemplate("{context_str}\n{query_str}")
        reranker = StructuredLLMRerank(
            llm=llm, choice_select_prompt=select, raise_on_structured_prediction_failure=False
        )
        ranked = reranker.postprocess_nodes(nodes, query_str=PROMPT)
        again = await reranker.apostprocess_nodes(nodes, query_str=PROMPT)
        assert [node.score for node in ranked] == [node.score for node in again]
        if fields:
            assert [node.score for node in ranked] == [0.0, 0.0]
    with pytest.raises(AnswerError, match="raise max_tokens"):
        GaCLLM(ensemble=ensemble, max_tokens=3).structured_predict(Crowd, PromptTemplate("Who?"))


# ---- events and messages


def test_start_events_have_members_gate_and_threshold(ensemble):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = GaCLLM(ensemble=ensemble, threshold=0.25, max_tokens=1, callback_manager=CallbackManager([debug]))
    llm.chat([ChatMessage(PROMPT)])
    with use_threshold(0.75):
        llm.complete(PROMPT)
    told = [start.payload[EventPayload.SERIALIZED] for start, _ in debug.get_event_pairs(CBEventType.LLM)]
    assert [one["threshold"] for one in told] == [0.25, 0.75]
    for one in told:
        assert (one["members"], one["weights"], one["gate"]) == (ensemble.names, [1.0] * 3, ensemble.gate)
        assert one["class_name"] == "GaCLLM"
    assert GaCLLM(ensemble=ensemble, gate="birch").to_payload()["gate"] == "birch"
    assert GaCLLM(ensemble=ensemble).to_payload()["threshold"] is None


def test_metadata_follows_the_gate_of_the_surroundings_and_own_prompts(mixed, ensemble):
    llm = GaCLLM(ensemble=mixed, threshold=0.0, gate="m0")
    assert llm.metadata.is_chat_model
    with use_gate("m1"):
        assert not llm.metadata.is_chat_model
    own = GaCLLM(ensemble=ensemble, messages_to_prompt=first_words)
    assert own.metadata.is_chat_model
    assert not own.metadata.is_function_calling_model
