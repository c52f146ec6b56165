"""What the wrappers share: fields, arguments of calls, structured output, and the ensemble's settings per call."""

from __future__ import annotations

import pickle

import pytest
from conftest import EMBEDDED, QUESTION
from langchain_core.runnables import ConfigurableField, RunnableLambda
from llama_index.core.base.llms.types import ChatMessage
from pydantic import BaseModel

from gac_core import (
    ENSEMBLE_FIELDS,
    LOADING_FIELDS,
    SAMPLING_FIELDS,
    WRAPPER_FIELDS,
    AnswerError,
    ConfigError,
    EffectiveSettings,
    EnsembleConfig,
    FinishReason,
    Grammar,
    InvalidToolCall,
    MemberStats,
    RequestError,
    RequestOutput,
    RequestStats,
    SamplingParams,
    StructuredOutput,
    UnknownArgumentError,
    Usage,
    check_tool_calls,
    field_error,
    member_weights,
    open_ensemble,
    read_json_answer,
    read_tool_choice,
    recursive_schema,
    split_arguments,
    token_counts,
    with_recursive_parameters,
)
from gac_langchain import ChatGaC
from gac_langchain import GaCLLM as LangChainLLM
from gac_langchain.settings import EnsembleSettings
from gac_llamaindex import GaCLLM

ASK = QUESTION[1]["content"]
WRAPPERS = [ChatGaC, LangChainLLM, GaCLLM]
NOWHERE = ["no/such-folder", "no/such-other"]
# The settings of an ensemble that are parameters of a request as well.
PER_CALL = {"weights": {"ash": 3.0, "birch": 0.0}, "combine": "geometric", "alignment": "token", "gate_rule": "margin"}


# ---- fields


def test_the_table_has_every_field():
    assert set(WRAPPER_FIELDS) == set(ENSEMBLE_FIELDS) | SAMPLING_FIELDS
    assert set(PER_CALL) == set(ENSEMBLE_FIELDS) & SAMPLING_FIELDS
    assert set(ENSEMBLE_FIELDS) - set(PER_CALL) == LOADING_FIELDS
    params = SamplingParams()
    assert {name: getattr(params, name) or None for name in SAMPLING_FIELDS} == {
        name: WRAPPER_FIELDS[name].default or None for name in SAMPLING_FIELDS
    }


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_have_the_fields_of_the_table(wrapper):
    # LlamaIndex serializes fields, which grammars cannot be; whether it parses special tokens depends on its functions.
    own = {"grammar", "parse_special"} if wrapper is GaCLLM else set()
    for name in set(WRAPPER_FIELDS) - own:
        field, entry = wrapper.model_fields[name], WRAPPER_FIELDS[name]
        assert (field.annotation, field.default, field.description) == (entry.type, entry.default, entry.description)


def test_fields_have_a_json_schema():
    for model in (EnsembleSettings, GaCLLM):
        properties = model.model_json_schema()["properties"]
        assert properties["max_tokens"]["default"] == 256
        assert properties["gate_rule"]["description"] == WRAPPER_FIELDS["gate_rule"].description


def test_the_first_invalid_field_is_named():
    class Model(BaseModel):
        stop: str | list[str] = "x"
        other: int = 0

    with pytest.raises(ValueError, match="stop") as caught:
        Model(stop=5, other="y")
    errors = caught.value.errors()
    assert str(field_error(errors, {"stop": "Strings that end the text."})).startswith("stop cannot be 5: Input should")
    assert str(field_error(errors, {"stop": "Strings that end the text."})).endswith("(Strings that end the text.)")
    assert isinstance(field_error(errors, {"stop": None}), ConfigError)
    assert field_error(errors, {"other": None}) is None


# ---- arguments of a call


def test_arguments_are_split_by_what_they_set():
    given = {"max_tokens": 3, "weights": [1], "tools": [], "tool_choice": "auto", "model": "a"}
    arguments = split_arguments(given, other=["model"])
    assert arguments.sampling == {"max_tokens": 3, "weights": [1]}
    assert arguments.conversation == {"tools": [], "tool_choice": "auto"}
    assert arguments.other == {"model": "a"}
    with pytest.raises(UnknownArgumentError, match="'model'"):
        split_arguments(given)
    with pytest.raises(UnknownArgumentError, match="did you mean 'tool_choice'"):
        split_arguments({"tool_choise": "auto"})
    with pytest.raises(UnknownArgumentError, match="'tools'"):
        split_arguments({"tools": []}, conversation=())


@pytest.mark.parametrize(
    ("choice", "want"),
    [
        (None, None),
        (False, None),
        (True, "required"),
        ("any", "required"),
        ("required", "required"),
        ("auto", "auto"),
        ("none", "none"),
        ("clock", "clock"),
        ({"type": "function", "function": {"name": "clock"}}, "clock"),
        ({"type": "tool", "name": "clock"}, "clock"),
        ({"type": "any"}, "required"),
        ({"type": "auto"}, "auto"),
    ],
)
def test_tool_choices_of_all_frameworks(choice, want):
    assert read_tool_choice(choice, ["clock"]) == want


@pytest.mark.parametrize("choice", ["sundial", 3, [], {}, {"type": "function"}, {"function": {"name": ["clock"]}}])
def test_a_tool_choice_that_is_not_there_is_an_error(choice):
    with pytest.raises(RequestError, match=r"tool_choice must be .*tools are: clock"):
        read_tool_choice(choice, ["clock"])


# ---- answers


def output(**values):
    parts = {"text": "", "tokens": (), "finish_reason": FinishReason.STOP, "stopped_by": None, "logprobs": None}
    usage, stats = values.pop("usage", Usage(7, 2)), values.pop("stats", RequestStats())
    return RequestOutput("id", **{**parts, **values}, usage=usage, stats=stats, seed=None)


def test_cached_tokens_are_those_that_every_member_reused():
    members = {"a": MemberStats(reused_tokens=9), "b": MemberStats(reused_tokens=5)}
    counts = token_counts(output(stats=RequestStats(members=members)))
    assert (counts.prompt, counts.completion, counts.total, counts.cached) == (7, 2, 9, 5)
    assert token_counts(output(usage=Usage(3, 0), stats=RequestStats(members=members))).cached == 3
    assert token_counts(output()).cached == 0


class Tree(BaseModel):
    """A class that refers to itself."""

    branches: list[Tree]


class Leaf(BaseModel):
    color: str


def test_recursive_schemas_replace_what_frameworks_make_of_them():
    tool = {"type": "function", "function": {"name": "grow", "parameters": {"type": "object"}}}
    assert recursive_schema(Tree) == Tree.model_json_schema()
    assert with_recursive_parameters(tool, Tree)["function"] == {"name": "grow", "parameters": Tree.model_json_schema()}
    assert tool["function"]["parameters"] == {"type": "object"}
    for model in (Leaf, Tree(branches=[]), {"type": "object"}, None, print):
        assert recursive_schema(model) is None
        assert with_recursive_parameters(tool, model) is tool


def test_structured_output_enforces_and_describes_a_schema():
    schema = Leaf.model_json_schema()
    wanted = StructuredOutput.of(schema)
    assert wanted.grammar == Grammar.json_schema(schema)
    assert '"color"' in wanted.instruction
    assert StructuredOutput.of(schema, close=True).grammar == Grammar.json_schema(schema, True)
    assert StructuredOutput.of(schema, tools=True).instruction.startswith("Where you call no tool")


def test_truncated_json_is_an_error():
    assert read_json_answer('{"a": [1]}', "stop") == {"a": [1]}
    for text in ("", '{"a": [1', "[" * 100_000):
        with pytest.raises(
            AnswerError, match=r"the Leaf is not complete JSON: it ended \(length\).*raise max_tokens"
        ) as caught:
            read_json_answer(text, FinishReason.LENGTH, "the Leaf")
        assert caught.value.text == text


def test_malformed_calls_alone_are_an_error():
    broken = InvalidToolCall("1", "clock", '{"zone": "', "the call ended early")
    check_tool_calls([], [])
    check_tool_calls(["call"], [broken], required=True)
    with pytest.raises(
        AnswerError, match=r"tool 'clock' is malformed \(the call ended early\).*raise max_tokens"
    ) as caught:
        check_tool_calls([], [broken])
    assert caught.value.text == '{"zone": "'
    with pytest.raises(AnswerError, match="a tool call is malformed"):
        check_tool_calls([], [InvalidToolCall("1", None, "<", "no name")])
    with pytest.raises(AnswerError, match=r"called no tool: the answer ended \(stop\) after 'Hello'.*tool_choice"):
        check_tool_calls([], [], text="Hello", finish_reason=FinishReason.STOP, required=True)


# ---- weights, combination, alignment and gate rule


def loaded(model):
    return model._ensemble.config


def test_weights_of_a_request():
    config = EnsembleConfig(tuple({"model": name, "weight": 2} for name in ("a", "b")))
    assert member_weights(config, SamplingParams()) == [2, 2]
    assert member_weights(config, SamplingParams(weights=[1, 0])) == [1, 0]
    assert member_weights(config, SamplingParams(weights={"b": 5})) == [2, 5]


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_beside_models_they_configure_the_ensemble(wrapper):
    listed = wrapper(models=EMBEDDED[:2], weights=[1, 3], combine="geometric", gate_rule="margin")
    assert [member.weight for member in loaded(listed).members] == [1, 3]
    assert (loaded(listed).combine, loaded(listed).gate_rule, loaded(listed).alignment) == (
        "geometric",
        "margin",
        "token",
    )
    assert [member.weight for member in loaded(wrapper(models=EMBEDDED[:2], weights={"birch": 3})).members] == [1, 3]
    # An ensemble's weights are above 0; a request's need not be.
    without = wrapper(models=EMBEDDED[:2], weights=[1, 0])
    assert [member.weight for member in loaded(without).members] == [1, 1]
    assert without._sampling_params({}).weights == (1, 0)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("weights", [{"oak": 1.0}, [1.0], [0.0, 0.0], [1.0, -1.0]])
def test_wrong_weights_are_errors_before_anything_loads(wrapper, weights, tmp_path):
    path = tmp_path / "ensemble.yaml"
    path.write_text(f"members: [{', '.join(NOWHERE)}]\n", encoding="utf-8")
    for source in ({"models": NOWHERE}, {"config": path}):
        with pytest.raises(RequestError, match="weight"):
            wrapper(**source, weights=weights)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_beside_an_ensemble_they_are_defaults_of_calls(wrapper, ensemble):
    model = wrapper(ensemble=ensemble, **PER_CALL)
    assert model._ensemble is ensemble
    sent = model._sampling_params({})
    assert {name: getattr(sent, name) for name in PER_CALL} == PER_CALL
    own = model._sampling_params({"weights": [1, 1, 1], "combine": "arithmetic"})
    assert (own.weights, own.combine, own.gate_rule) == ((1, 1, 1), "arithmetic", "margin")
    assert wrapper(ensemble=ensemble)._sampling_params({}) == SamplingParams()
    with pytest.raises(ConfigError, match="dtype goes with models"):
        wrapper(ensemble=ensemble, dtype="float32", **PER_CALL)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize("source", ["models", "config"])
def test_copies_and_pickles_keep_them(wrapper, source, tmp_path):
    path = tmp_path / "ensemble.yaml"
    path.write_text(f"members: [{EMBEDDED[0]}, {EMBEDDED[1]}]\n", encoding="utf-8")
    model = wrapper(**({"models": EMBEDDED[:2]} if source == "models" else {"config": path}), **PER_CALL)
    changed = model.model_copy(update={"weights": [0.0, 1.0]})
    for each, weights in ((model, PER_CALL["weights"]), (changed, (0.0, 1.0))):
        again = pickle.loads(pickle.dumps(each))
        assert again._sampling_params({}) == each._sampling_params({})
        assert again._sampling_params({}).weights == weights
        assert loaded(again) == loaded(each)


def test_langchain_sends_them_by_every_route(ensemble):
    chat = ChatGaC(ensemble=ensemble, max_tokens=2)
    configurable = {"configurable": {f"gac_{name}": value for name, value in PER_CALL.items()}}
    rules = {name: value for name, value in PER_CALL.items() if name != "weights"}
    named = chat.configurable_fields(weights=ConfigurableField(id="own_weights"))
    chain = RunnableLambda(lambda text: text) | chat
    messages = [
        chat.invoke(ASK, **PER_CALL),
        chat.bind(**PER_CALL).invoke(ASK),
        chat.invoke(ASK, configurable),
        chain.invoke(ASK, configurable),
        ChatGaC(ensemble=ensemble, max_tokens=2, **PER_CALL).invoke(ASK),
        named.invoke(ASK, {"configurable": {"own_weights": PER_CALL["weights"]}}, **rules),
    ]
    settings = [message.response_metadata["gac"] for message in messages]
    for each in settings:
        assert each["weights"] == {"ash": 0.75, "cedar": 0.25}
        assert (each["combine"], each["alignment"], each["gate_rule"]) == ("geometric", "token", "margin")
    text = LangChainLLM(ensemble=ensemble, max_tokens=2)
    for llm, asked in ((text, PER_CALL), (LangChainLLM(ensemble=ensemble, max_tokens=2, **PER_CALL), {})):
        info = llm.generate(["In which"], **asked).generations[0][0].generation_info["gac"]
        assert (info["weights"], info["combine"]) == ({"ash": 0.75, "cedar": 0.25}, "geometric")


def test_langchain_asks_one_member_whatever_the_weights(ensemble):
    chat = ChatGaC(ensemble=ensemble, max_tokens=2, weights={"ash": 0})
    config = {"configurable": {"gac_weights": {"ash": 0}, "gac_combine": "geometric"}}
    message = chat.invoke(ASK, config, model="ash")
    assert message.content == ensemble.generate([QUESTION[1]], max_tokens=2, gate="ash", threshold=0.0).text
    assert message.response_metadata["gac"]["weights"] == {"ash": 1.0}
    with pytest.raises(RequestError, match="leave weights out"):
        chat.invoke(ASK, model="ash", weights={"ash": 1})


def test_the_cache_key_of_langchain_has_them(ensemble):
    models = [ChatGaC(ensemble=ensemble, **{name: PER_CALL[name]}) for name in PER_CALL]
    keys = {model._get_llm_string() for model in [ChatGaC(ensemble=ensemble), *models]}
    assert len(keys) == 5


async def test_llamaindex_sends_them(ensemble):
    llm = GaCLLM(ensemble=ensemble, max_tokens=2)
    own = GaCLLM(ensemble=ensemble, max_tokens=2, **PER_CALL)
    responses = [
        llm.chat([ChatMessage(ASK)], **PER_CALL),
        await llm.achat([ChatMessage(ASK)], **PER_CALL),
        llm.complete(ASK, **PER_CALL),
        own.chat([ChatMessage(ASK)]),
        list(own.stream_complete(ASK))[-1],
    ]
    for response in responses:
        settings = response.raw["gac"]
        assert settings["weights"] == {"ash": 0.75, "cedar": 0.25}
        assert (settings["combine"], settings["gate_rule"]) == ("geometric", "margin")
    assert own.to_payload()["weights"] == [3.0, 0.0, 1.0]
    own.weights = None
    assert own.chat([ChatMessage(ASK)]).raw["gac"]["weights"] == dict.fromkeys(ensemble.names, pytest.approx(1 / 3))


@pytest.mark.parametrize(
    ("name", "value"), [("weights", {"oak": 1}), ("weights", [1]), ("combine", "harmonic"), ("gate_rule", "mood")]
)
def test_wrong_values_of_calls_are_errors(ensemble, name, value):
    with pytest.raises(RequestError, match=name.rstrip("s")):
        ChatGaC(ensemble=ensemble).invoke(ASK, **{name: value})
    with pytest.raises(RequestError, match=name.rstrip("s")):
        GaCLLM(ensemble=ensemble).complete(ASK, **{name: value})


def test_an_open_ensemble_keeps_its_weights(ensemble):
    assert open_ensemble(ensemble=ensemble, weights=[1, 2, 3], combine="geometric") is ensemble
    assert [member.weight for member in ensemble.config.members] == [1, 1, 1]
    defaults = EffectiveSettings()
    assert (defaults.combine, defaults.gate_rule) == ("arithmetic", "confidence")
