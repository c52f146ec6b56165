"""GaCLLM's parameters: by field, by call and by context, tool choices, log-probabilities, and checks of new values."""

from __future__ import annotations

import pickle
from typing import Literal

import pytest
from conftest import EMBEDDED, QUESTION
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel

from gac_core import ConfigError, EngineClosedError, Ensemble, Grammar, RequestError, use_combine, use_weights
from gac_core import as_logprobs as openai_logprobs
from gac_llamaindex import GaCLLM

MESSAGES = [ChatMessage(role=m["role"], content=m["content"]) for m in QUESTION]
PROMPT = "Where is the Torno Bridge?"


@pytest.fixture
def llm(ensemble):
    return GaCLLM(ensemble=ensemble, max_tokens=8)


@pytest.fixture
def asked(ensemble):
    """The prompt and the parameters of each request."""
    seen, inner = [], ensemble._input_processor.request

    def request(prompt, params, *rest):
        seen.append((prompt, params))
        return inner(prompt, params, *rest)

    ensemble._input_processor.request = request
    yield seen
    del ensemble._input_processor.request


class Bell(BaseModel):
    """Arguments of `ring`."""

    bell: Literal["big", "small"]


def ring(bell: str) -> str:
    """Rings a bell."""
    return bell


RING = FunctionTool.from_defaults(ring, fn_schema=Bell)


# ---- context, field, call


def test_weights_and_combination_of_a_context(ensemble, llm, asked):
    want = ensemble.generate(QUESTION, max_tokens=8, weights=[0, 3, 1], combine="geometric")
    with use_weights([0, 3, 1]), use_combine("geometric"):
        response = llm.chat(MESSAGES)
        llm.chat(MESSAGES, weights={"ash": 5}, combine="min")
        direct = ensemble.generate(QUESTION, max_tokens=8)
        payload = llm.to_payload()
        with use_weights(None), use_combine(None):
            assert llm.chat(MESSAGES).raw["gac"]["combine"] == "arithmetic"
    assert response.message.content == want.text == direct.text
    assert response.raw["gac"]["weights"] == {"birch": 0.75, "cedar": 0.25}
    assert (response.raw["gac"]["combine"], direct.stats.settings.combine) == ("geometric", "geometric")
    assert payload["weights"] == [0, 3, 1]
    assert [(params.weights, params.combine) for _, params in asked[2:3]] == [({"ash": 5.0}, "min")]


def test_contexts_are_checked(llm):
    with pytest.raises(RequestError, match="combine must be one of"), use_combine("mean"):
        pass
    with pytest.raises(RequestError, match="weights"), use_weights([-1]):
        pass
    with use_weights({"oak": 1}), pytest.raises(RequestError, match="'oak', which is not a member"):
        llm.chat(MESSAGES)


# ---- log-probabilities


async def test_streamed_responses_have_log_probabilities_as_raw_values(ensemble, llm):
    given = {"logprobs": True, "top_logprobs": 3}
    whole = llm.chat(MESSAGES, **given)
    assert all(len(entry["top_logprobs"]) == 3 for entry in whole.raw["logprobs"]["content"])
    streams = [
        list(llm.stream_chat(MESSAGES, **given)),
        list(GaCLLM(ensemble=ensemble, max_tokens=8, top_logprobs=3).stream_chat(MESSAGES)),
        [part async for part in await llm.astream_chat(MESSAGES, **given)],
    ]
    for parts in streams:
        *middle, last = parts
        told = [entry["token"] for part in middle for entry in part.raw["logprobs"]["content"]]
        everything = [entry["token"] for entry in last.raw["logprobs"]["content"]]
        assert told == everything[: len(told)] != []
        assert everything == [entry["token"] for entry in whole.raw["logprobs"]["content"]]
        assert all("usage" not in part.raw for part in middle)
        assert last.raw["usage"]["completion_tokens"] == len(everything) - (last.raw["finish_reason"] == "stop")
    assert all(part.raw is None for part in list(llm.stream_chat(MESSAGES))[:-1])
    output = ensemble.generate(QUESTION, max_tokens=8, logprobs=3)
    assert openai_logprobs(output.logprobs).keys() == whole.raw["logprobs"].keys()


def test_contradicting_numbers_of_log_probabilities_are_refused(ensemble, llm):
    with pytest.raises(RequestError, match="top_logprobs=3 contradicts logprobs=2"):
        llm.chat(MESSAGES, logprobs=2, top_logprobs=3)
    with pytest.raises(RequestError, match="top_logprobs=3 contradicts logprobs=False"):
        GaCLLM(ensemble=ensemble, logprobs=False, top_logprobs=3)


# ---- tools


def choices(asked):
    return [(talk.tool_choice, talk.parallel_tool_calls) for talk, _ in asked]


@pytest.mark.parametrize("choice", ["required", "ring", True, "any"])
def test_a_tool_choice_of_the_model(ensemble, asked, choice):
    llm = GaCLLM(ensemble=ensemble, max_tokens=64, tool_choice=choice)
    assert [call.tool_name for call in llm.get_tool_calls_from_response(llm.chat_with_tools([RING], PROMPT))] == [
        "ring"
    ]
    llm.chat_with_tools([RING], PROMPT, tool_choice="none", max_tokens=1)
    llm.chat_with_tools([RING], PROMPT, tool_choice={"type": "function", "function": {"name": "ring"}}, max_tokens=64)
    llm.chat(MESSAGES, max_tokens=1)
    llm.complete(PROMPT, max_tokens=1)
    wanted = "ring" if choice == "ring" else "required"
    assert [talk.tool_choice for talk, _ in asked] == [wanted, "none", "ring", "auto", "auto"]


def test_parallel_calls_of_the_model_stand_above_those_that_llamaindex_passes(ensemble, llm, asked):
    short = {"max_tokens": 1}
    llm.chat_with_tools([RING], PROMPT, **short)
    llm.chat_with_tools([RING], PROMPT, allow_parallel_tool_calls=True, **short)
    llm.chat_with_tools([RING], PROMPT, allow_parallel_tool_calls=True, parallel_tool_calls=False, **short)
    one = GaCLLM(ensemble=ensemble, parallel_tool_calls=False)
    one.chat_with_tools([RING], PROMPT, allow_parallel_tool_calls=True, **short)
    one.chat_with_tools([RING], PROMPT, parallel_tool_calls=True, **short)
    GaCLLM(ensemble=ensemble, parallel_tool_calls=True).chat_with_tools([RING], PROMPT, **short)
    assert [parallel for _, parallel in choices(asked)] == [False, True, False, False, True, True]


def test_a_developer_message_is_a_system_message(llm, asked):
    for role in ("developer", "system"):
        llm.chat([ChatMessage("Be brief.", role=role), ChatMessage(PROMPT)])
    assert asked[0][0] == asked[1][0]
    assert asked[0][0].turns[0].role == "system"


# ---- new values


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("temperature", -1, "temperature must be at least 0"),
        ("max_tokens", None, "max_tokens must be an integer"),
        ("stop", 5, "stop must be a list"),
        ("gate", "oak", "'oak' is not a member"),
        ("weights", [1], "1 value"),
        ("combine", "mean", "combine must be one of"),
        ("logit_bias", {10**9: 1}, "logit_bias has the key 1000000000"),
        ("tool_format", "yaml", "tool_format cannot be 'yaml'"),
        ("complete_as", "raw", "complete_as cannot be 'raw'"),
        ("parallel_tool_calls", 1, "parallel_tool_calls cannot be 1"),
    ],
)
def test_values_are_checked_when_they_are_set(ensemble, name, value, message):
    llm = GaCLLM(ensemble=ensemble)
    before = getattr(llm, name)
    for change in (
        lambda: setattr(llm, name, value),
        lambda: llm.model_copy(update={name: value}),
        lambda: GaCLLM(ensemble=ensemble, **{name: value}),
    ):
        with pytest.raises((ConfigError, RequestError), match=message):
            change()
    assert getattr(llm, name) == before


def test_a_new_value_is_in_force(ensemble, asked):
    llm = GaCLLM(ensemble=ensemble, max_tokens=1)
    llm.stop, llm.weights, llm.combine = "\n", {"ash": 2.0}, "geometric"
    with use_weights([1]):
        llm.temperature = 0.5  # What a context sets is checked by its requests.
    llm.chat(MESSAGES)
    ((_, params),) = asked
    assert (params.stop, params.weights, params.combine, params.temperature) == (
        ("\n",),
        {"ash": 2.0},
        "geometric",
        0.5,
    )


def test_a_grammar_of_the_model(ensemble, llm):
    yes = llm.with_grammar(Grammar.choices(["YES", "NO"]))
    assert yes.ensemble is ensemble
    assert yes.chat(MESSAGES).message.content in ("YES", "NO")
    assert yes.complete(PROMPT, grammar=Grammar.regex("[0-9]{3}")).text.isdigit()
    assert isinstance(yes.structured_predict(Bell, PromptTemplate("Which bell?"), llm_kwargs={"max_tokens": 60}), Bell)
    response = yes.chat_with_tools([RING], PROMPT, max_tokens=64)
    assert yes.get_tool_calls_from_response(response, False) or response.message.content in ("YES", "NO")
    assert llm.grammar is None
    with pytest.raises(RequestError, match="grammar must be"):
        GaCLLM(ensemble=ensemble, grammar="[0-9]+")


@pytest.mark.parametrize("grammar", [Grammar.json_schema({"type": "integer"}), Grammar.tool_calls({"ring": {}})])
def test_a_grammar_is_written_down(grammar):
    own = GaCLLM(EMBEDDED[:1], grammar=grammar)
    for again in (GaCLLM.from_json(own.to_json()), GaCLLM.from_dict(own.to_dict()), pickle.loads(pickle.dumps(own))):
        assert again.grammar == grammar


async def test_closed_models_answer_no_more():
    with GaCLLM(EMBEDDED[:1], max_tokens=2) as llm:
        copied, other = llm.with_threshold(None), GaCLLM(EMBEDDED[:1], max_tokens=2)
        assert llm.complete("In which").text is not None
    with pytest.raises(EngineClosedError, match="make a new one"):
        llm.complete("In which")
    async with copied:
        await copied.acomplete("In which")
    with pytest.raises(EngineClosedError):
        await copied.acomplete("In which")
    assert other.complete("In which").raw["finish_reason"]
    other.close()
    other.close()
    with Ensemble.load(EMBEDDED[:1]) as mine:
        GaCLLM(ensemble=mine).close()
        assert not mine.closed
