"""What users of LangChain's other models expect: caches, copies, counts, complete answers, and errors with reasons."""

from __future__ import annotations

import copy
import datetime
import logging
import pickle
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import PIL.Image
import pytest
from conftest import EMBEDDED, QUESTION, member_ids
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, trim_messages
from langchain_core.tools import tool
from pydantic import BaseModel, Field

from gac_core import ConfigError, Grammar, Image, PromptTooLongError, RequestError, UnknownArgumentError
from gac_langchain import ChatGaC, GaCLLM

ASK = QUESTION[1]["content"]
HOT = {"temperature": 3.0, "seed": 5, "max_tokens": 8}


@pytest.fixture
def chat(ensemble):
    return ChatGaC(ensemble=ensemble, max_tokens=200)


@pytest.fixture
def llm(ensemble):
    return GaCLLM(ensemble=ensemble, **HOT)


class Node(BaseModel):
    """Refers to itself."""

    value: Literal[1]
    children: list[Node] = Field(max_length=1)


class Pair(BaseModel):
    """A name and a number."""

    name: str = Field(max_length=20)
    number: int = Field(0, ge=10**6)


# ---- caches


async def test_a_cached_text_model_looks_at_the_calls_arguments(ensemble):
    given = [
        {},
        {"max_tokens": 2},
        {"gate": "birch", "threshold": 0.0},
        {"grammar": Grammar.choices(["yes"])},
        {"grammar": Grammar.choices(["no"])},
        {"stop": ["a"]},
    ]
    plain = GaCLLM(ensemble=ensemble, **HOT)
    cached = GaCLLM(ensemble=ensemble, cache=InMemoryCache(), **HOT)
    want = [plain.invoke("In which", **each) for each in given]
    assert len(set(want)) == len(want)
    for _ in range(2):
        assert [cached.invoke("In which", **each) for each in given] == want
        assert [await cached.ainvoke("In which", **each) for each in given] == want
    config = {"configurable": {"gac_threshold": 0.0}}
    assert cached.invoke("In which", config=config) == plain.invoke("In which", threshold=0.0)
    with pytest.raises(UnknownArgumentError, match="treshold"):
        cached.invoke("In which", treshold=1)


def test_a_cache_distinguishes_grammars(ensemble):
    cache = InMemoryCache()
    chat = ChatGaC(ensemble=ensemble, cache=cache)
    grammars = [Grammar.choices(["a"]), Grammar.choices(["b"])]
    assert [chat.invoke(ASK, grammar=each).content for each in grammars] == ["a", "b"]
    own = [ChatGaC(ensemble=ensemble, cache=cache, grammar=each) for each in grammars]
    assert [each.invoke(ASK).content for each in own] == ["a", "b"]


# ---- whole answers


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
async def test_an_answer_that_was_cut_off_is_an_error(chat, method):
    for schema in (Pair, Pair.model_json_schema()):
        # Cut within the number or before it, which LangChain's parsers would complete or fill with defaults.
        for limit in (3, 8, 24 if method == "function_calling" else 10):
            structured = chat.with_structured_output(schema, method=method)
            asked = {"max_tokens": limit, "temperature": 1.0, "seed": limit}
            with pytest.raises(OutputParserException, match="raise max_tokens"):
                structured.invoke(ASK, **asked)
            with pytest.raises(OutputParserException, match="raise max_tokens"):
                list(structured.stream(ASK, **asked))
            with pytest.raises(OutputParserException, match="raise max_tokens"):
                await structured.ainvoke(ASK, **asked)
            raw = chat.with_structured_output(schema, method=method, include_raw=True).invoke(ASK, **asked)
            assert raw["parsed"] is None
            assert "raise max_tokens" in str(raw["parsing_error"])


def test_a_stop_string_may_not_cut_json(chat):
    with pytest.raises(OutputParserException, match="stop strings"):
        chat.with_structured_output(Pair).invoke(ASK, stop=[":"])


# ---- schemas


def test_models_that_refer_to_themselves_are_enforced(chat):
    for seed in range(4):
        asked = {"temperature": 1.0, "seed": seed, "max_tokens": 900}
        assert isinstance(chat.with_structured_output(Node).invoke("Where?", **asked), Node)
        call = chat.bind_tools([Node], tool_choice="any", parallel_tool_calls=False).invoke("Where?", **asked)
        assert Node(**call.tool_calls[0]["args"])


def test_schemas_in_every_form(chat):
    plain = {"type": "object", "properties": {"k": {"enum": ["q", "w"]}}, "required": ["k"]}
    named = {"name": "x", "schema": plain}
    for form in (plain, {"title": "x", **plain}, named, {"type": "json_schema", "json_schema": named}):
        assert chat.with_structured_output(form).invoke("Where?")["k"] in ("q", "w")


def test_types_of_python_that_json_has_no_words_for(chat):
    class Cat(BaseModel):
        kind: Literal["cat"] = "cat"
        lives: int = Field(ge=1, le=9)

    class Dog(BaseModel):
        kind: Literal["dog"] = "dog"
        size: Literal["small", "large"]

    class Color(Enum):
        RED = "red"
        BLUE = "blue"

    class Owner(BaseModel):
        pet: Annotated[Cat | Dog, Field(discriminator="kind")]
        color: Color | None
        home: Path = Field(json_schema_extra={"maxLength": 5})

    for seed in range(4):
        owner = chat.with_structured_output(Owner).invoke("Who?", temperature=1.0, seed=seed)
        assert isinstance(owner.pet, Cat | Dog)


def test_a_tool_whose_arguments_cannot_be_enforced_is_named(chat):
    @tool
    def tag(words: set[str]) -> str:
        """Tags."""
        return ""

    @tool
    def see(color: str) -> str:
        """Sees."""
        return color

    with pytest.raises(RequestError, match=r"tool 'tag'.*uniqueItems.*list in place of a set"):
        chat.bind_tools([see, tag]).invoke("Hi")


@pytest.mark.parametrize("parameters", [{}, {"properties": {"x": {"enum": [1]}}, "required": ["x"]}, None])
def test_arguments_are_objects_in_any_case(chat, parameters):
    function = {"name": "now", "description": "Tells the time."}
    form = {"type": "function", "function": function if parameters is None else {**function, "parameters": parameters}}
    bound = chat.bind_tools([form], tool_choice="any", parallel_tool_calls=False)
    for seed in range(3):
        call = bound.invoke("Hi", temperature=2.0, seed=seed).tool_calls[0]
        assert call["args"] == ({"x": 1} if parameters else {})


def test_the_prompt_describes_the_schema(chat):
    plain = chat.invoke("Who?", max_tokens=1).usage_metadata["input_tokens"]
    described = chat.with_structured_output(Pair, include_raw=True).invoke("Who?")["raw"].usage_metadata["input_tokens"]
    assert described > plain + 20
    system = [SystemMessage("Be brief."), HumanMessage("Who?")]
    longer = chat.with_structured_output(Pair, include_raw=True).invoke(system)["raw"].usage_metadata["input_tokens"]
    assert described < longer < described + 20


# ---- counts


def test_what_is_trimmed_to_the_context_fits_it(chat):
    messages = [m for n in range(60) for m in (HumanMessage(f"{ASK} {n}"), AIMessage("It is there."))]
    messages.append(HumanMessage(ASK))
    limit = chat.profile["max_input_tokens"]
    with pytest.raises(PromptTooLongError):
        chat.invoke(messages)
    trimmed = trim_messages(messages, max_tokens=limit - 20, token_counter=chat, start_on="human")
    assert len(trimmed) > 20
    # The trimmer counts the messages; the answer's place is what was left of the limit.
    assert chat.invoke(trimmed, max_tokens=10).usage_metadata["output_tokens"] > 0
    assert chat.get_num_tokens_from_messages(trimmed) <= limit - 20


def test_counts_include_tools_and_refuse_unsupported_messages(chat):
    @tool
    def now() -> str:
        """Tells the time."""
        return "noon"

    asked = [HumanMessage("Hi")]
    with_tools = chat.get_num_tokens_from_messages(asked, tools=[now])
    assert with_tools > chat.get_num_tokens_from_messages(asked) + 50
    counted = [
        chat.bind_tools([now]).invoke(asked, max_tokens=1, gate=name).usage_metadata["input_tokens"]
        for name in ("ash", "birch", "cedar")
    ]
    assert with_tools == max(counted)
    with pytest.raises(RequestError, match="do not read sound"):
        chat.get_num_tokens_from_messages([HumanMessage([{"type": "input_audio", "input_audio": {}}])])
    own = ChatGaC(ensemble=chat.ensemble, custom_get_token_ids=lambda text: [1, 2, 3])
    assert own.get_token_ids("anything") == [1, 2, 3]


# ---- settings


@pytest.mark.parametrize("settings", [{"dtype": "float32"}, {"commit": "canonical"}, {"quantization": "8bit"}])
def test_settings_that_a_loaded_ensemble_would_drop_are_refused(ensemble, tmp_path, settings):
    (name,) = settings
    path = tmp_path / "ensemble.yaml"
    path.write_text(f"members: [{EMBEDDED[0]}]\n", encoding="utf-8")
    with pytest.raises((ConfigError, ValueError), match=name):
        ChatGaC(ensemble=ensemble, **settings)
    with pytest.raises((ConfigError, ValueError), match=name):
        GaCLLM.from_config(path, **settings)


def test_wrong_gates_and_conflicts_are_refused(ensemble, chat):
    with pytest.raises(ValueError, match="oak"):
        ChatGaC(ensemble=ensemble, gate="oak")
    with pytest.raises(RequestError, match="response_format"):
        chat.invoke(ASK, grammar=Grammar.choices(["a"]), response_format={"type": "json_object"})
    with pytest.raises(RequestError, match="one member alone"):
        chat.invoke(ASK, model="ash", gate="birch")
    call = {"name": "now", "args": {"d": datetime.date(2020, 1, 1)}, "id": "1"}
    with pytest.raises(RequestError, match="date"):
        chat.invoke([HumanMessage("Hi"), AIMessage("", tool_calls=[call]), HumanMessage("Well?")])


def test_arguments_of_services_are_logged(ensemble, caplog):
    with caplog.at_level(logging.WARNING):
        ChatGaC(ensemble=ensemble, max_retries=1, api_key="x")
    assert "api_key, max_retries: no effect" in caplog.text
    assert "'x'" not in caplog.text


def test_whether_there_are_log_probabilities(chat):
    for on in (True, 1):
        assert chat.invoke(ASK, logprobs=on, max_tokens=2).response_metadata["logprobs"]["content"]
    assert "logprobs" not in chat.invoke(ASK, logprobs=False, max_tokens=2).response_metadata


class Tokens(BaseCallbackHandler):
    """Keeps the new tokens."""

    def __init__(self):
        self.seen = []

    def on_llm_new_token(self, token, **kwargs):
        self.seen.append(token)


def test_streaming_models_call_callbacks(ensemble):
    for streaming in (False, True):
        handler = Tokens()
        text = ChatGaC(ensemble=ensemble, streaming=streaming).invoke(ASK, config={"callbacks": [handler]}).text
        assert "".join(handler.seen) == (text if streaming else "")


def test_streams_hold_no_empty_chunks(chat):
    @tool
    def now(zone: Literal["utc", "cet"]) -> str:
        """Tells the time."""
        return "noon"

    chunks = list(chat.bind_tools([now], tool_choice="any", parallel_tool_calls=False).stream("Hi"))
    assert all(chunk.tool_call_chunks or chunk.text for chunk in chunks[:-1])
    assert sum(chunks[1:], chunks[0]).tool_calls


# ---- copies


def test_copies_share_the_ensemble_and_others_load_it_anew(ensemble, chat, llm):
    for model in (chat, llm):
        for copied in (copy.copy(model), copy.deepcopy(model), model.model_copy(deep=True)):
            assert copied._ensemble is ensemble
    first = ChatGaC(models=EMBEDDED[:1], max_tokens=3, temperature=0.5)
    again = pickle.loads(pickle.dumps(first))
    assert member_ids(again._ensemble) == member_ids(first._ensemble)
    assert (again.max_tokens, again.temperature, again.threshold) == (3, 0.5, "default")
    assert again.invoke(ASK, temperature=0.0).content == first.invoke(ASK, temperature=0.0).content


def test_text_models_refuse_pictures(llm):
    picture = Image.open(PIL.Image.new("RGB", (1, 1))).data_url
    with pytest.raises(RequestError, match="use ChatGaC"):
        llm.invoke([HumanMessage(["hi", {"type": "image_url", "image_url": {"url": picture}}])])
    assert llm.invoke([HumanMessage("In which")])
