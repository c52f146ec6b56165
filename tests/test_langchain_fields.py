"""The fields of the LangChain models: descriptions, wrong values, defaults of conversations, changes after loading."""

from __future__ import annotations

from typing import Literal

import pytest
from conftest import EMBEDDED
from langchain_core.runnables import ConfigurableField
from langchain_core.tools import tool
from test_langchain_manners import ASK

from gac_core import ConfigError, EngineClosedError, Grammar, ModelLoadError, RequestError
from gac_langchain import ChatGaC, GaCLLM

BOTH = pytest.mark.parametrize("make", [ChatGaC, GaCLLM])


@tool
def clock(zone: Literal["utc", "cet"]) -> str:
    """Tells the time."""
    return "noon"


@tool
def sundial() -> str:
    """Tells the time in the garden."""
    return "noon"


@pytest.fixture
def chat(ensemble):
    return ChatGaC(ensemble=ensemble, max_tokens=200)


@BOTH
def test_every_field_is_described(make):
    assert [name for name, field in make.model_fields.items() if not (field.description or "").endswith(".")] == []


WRONG = [
    *(("max_tokens", 0), ("temperature", -0.1), ("temperature", "warm"), ("top_k", 0), ("top_p", 2.0), ("min_p", -1)),
    *(
        ("repetition_penalty", 0),
        ("presence_penalty", "x"),
        ("frequency_penalty", float("nan")),
        ("n", 0),
        ("seed", 1.5),
    ),
    *(("logit_bias", {"no such token at all": 1.0}), ("logit_bias", {1: "x"}), ("logit_bias", {10**9: 1.0})),
    *(
        ("stop", [""]),
        ("stop", [3]),
        ("stop", 3),
        ("logprobs", -1),
        ("logprobs", 10**6),
        ("grammar", "x"),
        ("drafts", 2),
    ),
    *(
        ("parse_special", "x"),
        ("token_stats", "x"),
        ("timeout", 0),
        ("timeout", "x"),
        ("threshold", 1.5),
        ("gate", "oak"),
    ),
    *(("weights", [1.0]), ("weights", {"oak": 1.0}), ("weights", [0, 0, 0]), ("weights", "auto"), ("weights", "x")),
    *(("combine_documents", "x"), ("combine_documents", "contrast:-1")),
    *(("alignment", "x"), ("gate_rule", "x"), ("streaming", "x"), ("callbacks", 3), ("cache", "x")),
    *(("ensemble", "x"), ("metadata", 3), ("tags", "x"), ("verbose", "x")),
]
OF_CHATS = [
    *(("tool_choice", 3), ("tool_choice", {}), ("tool_choice", ""), ("tool_choice", {"function": {}})),
    *(("parallel_tool_calls", "x"), ("enable_thinking", "x"), ("rate_limiter", 3), ("disable_streaming", "x")),
    *(("output_version", 3), ("profile", 3)),
]
OF_LOADING = [
    *(("dtype", "float3"), ("device", "moon"), ("device_map", 3), ("quantization", "3bit"), ("commit", "x")),
    *(("max_batch_size", 0), ("max_queue", -1), ("prefill_tokens", 0), ("prefill_seconds", -1), ("cache_gib", -1)),
    ("document_cache_gib", -1),
    *(("deterministic", "x"), ("stuck_after", 0), ("on_member_failure", "x"), ("min_members", 9), ("executor", "x")),
    *(("forward_timeout", 0), ("devices", ["moon"]), ("progress", "x"), ("calibration", "no/such/file.yaml")),
    ("absence", "no/such/file.json"),
    *(("gate_must_live", "x"), ("models", "ash"), ("ray_address", 3)),
]


@BOTH
def test_wrong_values_are_errors_of_the_constructor_and_of_assignments(ensemble, make):
    model = make(ensemble=ensemble)
    for name, value in [*WRONG, *(OF_CHATS if make is ChatGaC else [])]:
        with pytest.raises((RequestError, ConfigError)) as caught:
            make(**{"ensemble": ensemble, name: value})
        assert name in str(caught.value), (name, value)
        with pytest.raises((RequestError, ConfigError)) as caught:
            setattr(model, name, value)
        assert name in str(caught.value), (name, value)


@BOTH
def test_wrong_settings_of_loading_are_errors_before_anything_is_loaded(make):
    for name, value in OF_LOADING:
        with pytest.raises((ConfigError, RequestError, ModelLoadError)) as caught:
            make(**{"models": EMBEDDED[:1], name: value})
        assert name in str(caught.value), (name, value, str(caught.value))


# ---- conversations


def test_a_choice_of_tools_is_a_default_of_calls_with_tools(ensemble, chat):
    chosen = ChatGaC(ensemble=ensemble, max_tokens=200, tool_choice="any", parallel_tool_calls=False)
    asked = chosen.bind_tools([clock]).invoke(ASK)
    assert asked.tool_calls[0]["name"] == "clock"
    assert len(asked.tool_calls) == 1
    assert chosen.invoke(ASK).content == chat.invoke(ASK).content
    own = chosen.bind_tools([clock], tool_choice="none").invoke(ASK)
    assert own.content == chat.bind_tools([clock], tool_choice="none").invoke(ASK).content
    assert own.tool_calls == []
    assert chosen.invoke(ASK, tools=[clock], tool_choice="none").tool_calls == []


def test_a_chosen_tool_that_a_call_lacks_is_named(ensemble, chat):
    chat.tool_choice = "clock"
    assert chat.bind_tools([sundial, clock]).invoke(ASK).tool_calls[0]["name"] == "clock"
    with pytest.raises(RequestError, match="'clock'; tools are: sundial"):
        chat.bind_tools([sundial]).invoke(ASK)
    assert chat.invoke(ASK).tool_calls == []


def test_conversation_fields_are_part_of_the_cache_key(chat):
    keys = {chat._get_llm_string()}
    for name, value in (("tool_choice", "any"), ("parallel_tool_calls", False), ("enable_thinking", True)):
        keys.add(chat.model_copy(update={name: value})._get_llm_string())
    assert len(keys) == 4


# ---- derived models


def test_what_was_loaded_cannot_be_bound_or_configured(chat):
    with pytest.raises(ConfigError, match=r"dtype cannot be changed.*make a new one"):
        chat.bind(dtype="float16")
    with pytest.raises(ConfigError, match=r"models cannot be changed.*configurable_alternatives"):
        chat.configurable_fields(models=ConfigurableField(id="models"))
    with pytest.raises(RequestError, match=r"dtype.*cannot be changed once the members are loaded"):
        chat.invoke(ASK, dtype="float16")
    with pytest.raises(RequestError, match="temperature"):
        chat.bind(temperature=-1.0)
    with pytest.raises(RequestError, match="tool_choice must be"):
        chat.bind(tool_choice={})
    with pytest.raises(ConfigError, match="parallel_tool_calls cannot be 'x'"):
        chat.bind(parallel_tool_calls="x")
    with pytest.raises(RequestError, match=r"gac_treshold.*did you mean 'gac_threshold'"):
        chat.with_config(configurable={"gac_treshold": 0.5})
    with pytest.raises(RequestError, match="'oak' is not a member"):
        chat.with_config(configurable={"gac_gate": "oak"})
    assert chat.with_config(configurable={"gac_gate": "ash", "thread_id": "1"}).invoke(ASK)


@BOTH
def test_configurable_fields_keep_the_loaded_ensemble(ensemble, make):
    model = make(config=ensemble.config, max_tokens=2)
    varied = model.configurable_fields(max_tokens=ConfigurableField(id="length"), threshold=ConfigurableField(id="t"))
    runnable, _ = varied.prepare({"configurable": {"length": 5, "t": 0.5}})
    assert (runnable._ensemble is model._ensemble, runnable.max_tokens, runnable.threshold) == (True, 5, 0.5)
    assert (
        varied.invoke("Hi", config={"configurable": {"length": 5}})
        == varied.with_config(configurable={"length": 5}).invoke("Hi")
        or make is ChatGaC
    )
    model.close()
    with pytest.raises(EngineClosedError):
        varied.invoke("Hi")


def test_assigned_fields_apply_to_the_next_call(chat):
    chat.grammar = Grammar.choices(["yes"])
    assert chat.invoke(ASK).content == "yes"
    chat.grammar = None
    chat.max_tokens = 1
    assert chat.invoke(ASK).usage_metadata["output_tokens"] == 1
