"""Tools and structured answers on random members, so that all they get right is the grammar's doing.

Without postponed annotations: LlamaIndex reads those of the functions below.
"""

import itertools
import json
from typing import Literal

import jsonschema
import pytest
from conftest import ensemble_of, talking_pairs
from llama_index.core.agent.workflow import FunctionAgent, ToolCallResult
from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CitableBlock,
    DocumentBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.program import FunctionCallingProgram
from llama_index.core.prompts import ChatPromptTemplate, PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.core.types import PydanticProgramMode
from pydantic import BaseModel, Field, field_validator

from gac_core import (
    AnswerError,
    ChatTemplateError,
    Grammar,
    ImageError,
    Message,
    RequestError,
    ToolCall,
    UnknownArgumentError,
)
from gac_llamaindex import GaCLLM
from gac_llamaindex.messages import convert_messages

ASKED = [ChatMessage("How is the weather in Rome?")]
PLAIN = {"max_tokens": 8, "temperature": 0.0}
PROMPT = PromptTemplate("Describe {what}.")


class Place(BaseModel):
    """A place."""

    name: str = Field(max_length=6)
    kind: Literal["town", "river"]
    bridges: list[int] = Field(max_length=2)


def weather(city: Literal["Rome", "Oslo"], days: Literal[1, 2, 3] = 1) -> str:
    """Tells the weather."""
    return f"sunny in {city} for {days}"


def clock() -> str:
    """Tells the time."""
    return "noon"


WEATHER, CLOCK = FunctionTool.from_defaults(weather), FunctionTool.from_defaults(clock)


@pytest.fixture(scope="module")
def llm(talkers):
    return GaCLLM(ensemble=talkers, max_tokens=400, temperature=1.0, seed=3)


def test_required_calls_come_as_blocks_and_as_selections(llm):
    response = llm.chat_with_tools([WEATHER, CLOCK], "Well?", tool_required=True, allow_parallel_tool_calls=True)
    blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    calls = llm.get_tool_calls_from_response(response)
    assert blocks
    assert [(b.tool_call_id, b.tool_name, b.tool_kwargs) for b in blocks] == [
        (c.tool_id, c.tool_name, c.tool_kwargs) for c in calls
    ]
    assert len({call.tool_id for call in calls}) == len(calls)
    schemas = {tool.metadata.name: tool.metadata.get_parameters_dict() for tool in (WEATHER, CLOCK)}
    for call in calls:
        jsonschema.validate(call.tool_kwargs, schemas[call.tool_name])
    assert response.raw["finish_reason"] == "tool_calls"
    assert [json.loads(c["function"]["arguments"]) for c in response.message.additional_kwargs["tool_calls"]] == [
        c.tool_kwargs for c in calls
    ]


@pytest.mark.parametrize("choice", ["clock", {"type": "function", "function": {"name": "clock"}}])
async def test_a_tool_is_chosen_by_name(llm, choice):
    for response in (
        llm.chat_with_tools([WEATHER, CLOCK], "Well?", tool_choice=choice),
        await llm.achat_with_tools([WEATHER, CLOCK], "Well?", tool_choice=choice),
    ):
        assert [call.tool_name for call in llm.get_tool_calls_from_response(response)] == ["clock"]
    with pytest.raises(RequestError, match="umbrella"):
        llm.chat_with_tools([WEATHER], "Well?", tool_choice="umbrella")
    with pytest.raises(RequestError, match="tool_choice"):
        llm.chat_with_tools([WEATHER], "Well?", tool_choice={"name": "clock"})


class Node(BaseModel):
    """Refers to itself."""

    value: Literal[1]
    children: list["Node"] = Field(max_length=1)


def test_arguments_that_refer_to_themselves_are_enforced(llm):
    tool = FunctionTool.from_defaults(lambda value, children: "seen", name="see", fn_schema=Node)
    for seed in range(4):
        response = llm.chat_with_tools([tool], "Well?", tool_required=True, seed=seed)
        assert Node(**llm.get_tool_calls_from_response(response)[0].tool_kwargs)


def test_a_tool_whose_arguments_cannot_be_enforced_is_named(llm):
    def tag(words: set[str]) -> str:
        """Tags."""
        return ""

    with pytest.raises(RequestError, match=r"tool 'tag'.*uniqueItems") as caught:
        llm.chat_with_tools([CLOCK, FunctionTool.from_defaults(tag)], "Well?")
    assert "\n" not in str(caught.value)


def test_streams_hold_no_empty_responses(llm):
    responses = list(llm.stream_chat_with_tools([WEATHER], "Well?", tool_required=True, seed=8))
    assert len(responses) > 2
    seen = [str(response.message.blocks) for response in responses[:-1]]
    assert all(one != two for one, two in itertools.pairwise(seen))


def test_one_call_unless_several_are_allowed(llm):
    for seed in range(8):
        response = llm.chat_with_tools([WEATHER, CLOCK], "Well?", tool_required=True, seed=seed)
        assert len(llm.get_tool_calls_from_response(response)) == 1
        assert str(llm.predict_and_call([WEATHER], "Well?", tool_required=True, seed=seed)).startswith("sunny in ")


def test_streamed_calls_grow_to_the_whole(llm):
    asked = {"tool_choice": "weather", "seed": 8}
    whole = llm.get_tool_calls_from_response(llm.chat_with_tools([WEATHER], "Well?", **asked))
    responses = list(llm.stream_chat_with_tools([WEATHER], "Well?", **asked))
    steps = [llm.get_tool_calls_from_response(r, error_on_no_tool_call=False) for r in responses]
    begun = [calls for calls in steps if calls]
    assert len(begun) > 2
    assert len({calls[0].tool_id for calls in begun}) == 1
    assert [len(c[0].tool_kwargs) for c in begun] == sorted(len(c[0].tool_kwargs) for c in begun)
    assert begun[-1][0].tool_kwargs == whole[0].tool_kwargs
    assert responses[-1].raw["finish_reason"] == "tool_calls"
    # What was given away stays as it was.
    assert begun[0][0].tool_kwargs == llm.get_tool_calls_from_response(responses[steps.index(begun[0])])[0].tool_kwargs


def test_no_call_and_malformed_calls_are_distinguished(llm):
    with pytest.raises(AnswerError, match="called no tool"):
        llm.get_tool_calls_from_response(llm.chat(ASKED, max_tokens=5))
    assert llm.get_tool_calls_from_response(llm.chat(ASKED, max_tokens=5), error_on_no_tool_call=False) == []
    with pytest.raises(AnswerError, match="raise max_tokens"):
        llm.chat_with_tools([WEATHER], "Well?", tool_required=True, max_tokens=14)
    cut = list(llm.stream_chat_with_tools([WEATHER], "Well?", tool_required=True, max_tokens=14))[-1]
    with pytest.raises(AnswerError, match="raise max_tokens"):
        llm.get_tool_calls_from_response(cut, error_on_no_tool_call=False)


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning")
async def test_an_agent_whose_first_call_is_forced(llm):
    handler = FunctionAgent(llm=llm, tools=[WEATHER], initial_tool_choice="weather").run("How is the weather?")
    results = [event async for event in handler.stream_events() if isinstance(event, ToolCallResult)]
    await handler
    assert [result.tool_name for result in results] == ["weather"]
    assert str(results[0].tool_output).startswith("sunny in ")


async def test_structured_answers_fit_their_class(llm):
    for seed in range(4):
        asked = {"llm_kwargs": {"seed": seed}, "what": "a place"}
        place = llm.structured_predict(Place, PROMPT, **asked)
        assert isinstance(place, Place)
        assert await llm.astructured_predict(Place, PROMPT, **asked) == place
        assert list(llm.stream_structured_predict(Place, PROMPT, **asked))[-1] == place
        streamed = [value async for value in await llm.astream_structured_predict(Place, PROMPT, **asked)]
        assert streamed[-1] == place


def test_a_program_of_llamaindex_itself(llm):
    given = {"seed": 4, "tool_choice": "auto"}
    program = FunctionCallingProgram.from_defaults(output_cls=Place, llm=llm, prompt=PROMPT)
    assert isinstance(program(llm_kwargs=dict(given), what="a place"), Place)
    own = llm.model_copy(update={"pydantic_program_mode": PydanticProgramMode.FUNCTION})
    assert isinstance(own.structured_predict(Place, PROMPT, llm_kwargs=given, what="a place"), Place)
    assert isinstance(list(own.stream_structured_predict(Place, PROMPT, llm_kwargs=given, what="x"))[-1], BaseModel)
    assert given == {"seed": 4, "tool_choice": "auto"}


async def test_members_without_chat_templates(llm):
    with ensemble_of(talking_pairs(templates=False)) as ensemble:
        bare = GaCLLM(ensemble=ensemble, max_tokens=400, temperature=1.0, seed=3)
        assert not bare.metadata.is_chat_model
        assert not bare.metadata.is_function_calling_model
        asked = {"what": "a place"}
        place = bare.structured_predict(Place, PROMPT, **asked)
        assert await bare.astructured_predict(Place, PROMPT, **asked) == place
        assert list(bare.stream_structured_predict(Place, PROMPT, **asked))[-1] == place
        assert [value async for value in await bare.astream_structured_predict(Place, PROMPT, **asked)][-1] == place
        with pytest.raises(ChatTemplateError, match="m0"):
            bare.chat(ASKED)
        # LlamaIndex's own format of a conversation applies if it is given.
        formatted = GaCLLM(
            ensemble=ensemble, max_tokens=8, messages_to_prompt=lambda messages: f"Q: {messages[0].content}"
        )
        assert formatted.chat(ASKED).message.content == bare.complete(f"Q: {ASKED[0].content}", **PLAIN).text
        shaped = GaCLLM(ensemble=ensemble, max_tokens=8, completion_to_prompt=lambda prompt: f"Q: {prompt}")
        assert (
            shaped.complete("Well?").text
            == formatted.complete("Q: Well?").text
            == shaped.complete("Q: Well?", True).text
        )
        with pytest.raises(RequestError, match="messages_to_prompt"):
            formatted.chat_with_tools([CLOCK], "Well?")


def test_what_a_structured_answer_cannot_be(llm):
    class Picky(BaseModel):
        kind: Literal["town", "river"]

        @field_validator("kind")
        @classmethod
        def none_of_them(cls, value: str) -> str:
            raise ValueError("no kind is good enough")

    with pytest.raises(AnswerError, match=r"Place is not complete JSON: it ended \(length\)"):
        llm.structured_predict(Place, PROMPT, llm_kwargs={"max_tokens": 3}, what="a place")
    with pytest.raises(AnswerError, match="Place is not complete"):
        list(llm.stream_structured_predict(Place, PROMPT, llm_kwargs={"max_tokens": 3}, what="a place"))
    with pytest.raises(ValueError, match="no kind is good enough"):
        llm.structured_predict(Picky, PROMPT, what="a place")
    with pytest.raises(RequestError, match="'grammar'"):
        llm.structured_predict(Place, PROMPT, llm_kwargs={"grammar": Grammar.choices(["x"])}, what="a place")
    with pytest.raises(UnknownArgumentError, match="treshold"):
        llm.structured_predict(Place, PROMPT, llm_kwargs={"treshold": 1}, what="a place")


def test_a_grammar_holds_in_chat_and_completion(llm):
    either = Grammar.choices(["yes", "no"])
    assert llm.chat(ASKED, grammar=either).message.content in ("yes", "no")
    assert llm.complete("Well?", grammar=either).text in ("yes", "no")
    response = llm.chat_with_tools([CLOCK], "Well?", grammar=either)
    assert response.message.content in ("yes", "no") or llm.get_tool_calls_from_response(response)


def test_what_callers_give_stays_as_it_was(llm):
    history = [ChatMessage("system", role="system"), ChatMessage("Well?", additional_kwargs={"note": 1})]
    llm_kwargs = {"seed": 1, "tool_choice": "auto", "tool_required": True}
    before = [message.model_copy(deep=True) for message in history]
    template = ChatPromptTemplate(message_templates=history)
    for _ in range(2):
        llm.structured_predict(Place, template, llm_kwargs=llm_kwargs)
        list(llm.stream_structured_predict(Place, template, llm_kwargs=llm_kwargs))
        llm.chat_with_tools([CLOCK], "More?", chat_history=history, tool_required=True)
    assert history == before
    assert template.message_templates == before
    assert llm_kwargs == {"seed": 1, "tool_choice": "auto", "tool_required": True}


def test_messages_of_every_kind():
    call = ToolCallBlock(tool_call_id="c1", tool_name="clock", tool_kwargs={"zone": "é"})
    openai = {"id": "c2", "type": "function", "function": {"name": "clock", "arguments": "{}"}}
    messages = [
        ChatMessage("rules", role=MessageRole.DEVELOPER),
        ChatMessage(blocks=[TextBlock(text="a"), TextBlock(text="b")]),
        ChatMessage(role="assistant", blocks=[ThinkingBlock(content="hm"), TextBlock(text="so"), call]),
        ChatMessage("noon", role="tool", additional_kwargs={"tool_call_id": "c1"}),
        ChatMessage(role="assistant", additional_kwargs={"tool_calls": [openai]}),
        ChatMessage("one", role="function", additional_kwargs={"tool_call_id": "c2", "name": "clock"}),
        ChatMessage("one", role="assistant", additional_kwargs={"tool_call_id": "c2"}),
    ]
    assert convert_messages(messages) == [
        Message("system", "rules"),
        Message("user", "a\nb"),
        Message("assistant", "so", tool_calls=(ToolCall("c1", "clock", '{"zone": "é"}'),), reasoning="hm"),
        Message("tool", "noon", tool_call_id="c1"),
        Message("assistant", "", tool_calls=(ToolCall("c2", "clock", "{}"),)),
        Message("tool", "one", tool_call_id="c2", name="clock"),
        Message("assistant", "one"),
    ]
    with pytest.raises(ImageError, match="not PNG, JPEG, WebP or GIF"):
        convert_messages([ChatMessage(blocks=[ImageBlock(image=b"x")])])
    with pytest.raises(RequestError, match="additional_kwargs"):
        convert_messages([ChatMessage(role="assistant", additional_kwargs={"tool_calls": ["clock"]})])


def test_own_answers_can_be_sent_again(llm):
    response = llm.chat_with_tools([CLOCK], "Well?", tool_required=True)
    again = ChatResponse.model_validate_json(response.model_dump_json())
    (message,) = convert_messages([again.message])
    assert [call.id for call in message.tool_calls] == [
        call.tool_id for call in llm.get_tool_calls_from_response(response)
    ]
    result = ChatMessage("noon", role="tool", additional_kwargs={"tool_call_id": message.tool_calls[0].id})
    follow_up = llm.chat_with_tools([CLOCK], chat_history=[*ASKED, response.message, result], max_tokens=8)
    assert follow_up.raw["usage"]["prompt_tokens"] > response.raw["usage"]["prompt_tokens"]


def test_the_text_of_citable_blocks_is_read():
    citable = CitableBlock(title="Handbook", source="h.md", content=[TextBlock(text="It stands."), TextBlock(text="x")])
    (message,) = convert_messages([ChatMessage(blocks=[TextBlock(text="Read:"), citable])])
    assert message.content == "Read:\nIt stands.\nx"
    damaged = CitableBlock(title="t", source="s", content=[ImageBlock(image=b"x")])
    with pytest.raises(ImageError, match="not PNG, JPEG, WebP or GIF"):
        convert_messages([ChatMessage(blocks=[damaged])])
    with pytest.raises(RequestError, match="DocumentBlock"):
        convert_messages([ChatMessage(blocks=[DocumentBlock(data=b"x")])])
