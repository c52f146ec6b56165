"""Weights, combination, alignment and gate rule as fields of the wrappers and as arguments of calls, on every route."""

from __future__ import annotations

import pickle

import pytest
from conftest import EMBEDDED, QUESTION
from langchain_core.runnables import ConfigurableField, RunnableLambda
from llama_index.core.base.llms.types import ChatMessage

from gac_core import (
    ConfigError,
    EffectiveSettings,
    EnsembleConfig,
    RequestError,
    SamplingParams,
    UnknownArgumentError,
    member_weights,
    open_ensemble,
)
from gac_langchain import ChatGaC
from gac_langchain import GaCLLM as LangChainLLM
from gac_llamaindex import GaCLLM

ASK = QUESTION[1]["content"]
WRAPPERS = [ChatGaC, LangChainLLM, GaCLLM]
NOWHERE = ["no/such-folder", "no/such-other"]


# The settings of an ensemble that are parameters of a request as well.
PER_CALL = {"weights": {"ash": 3.0, "birch": 0.0}, "combine": "geometric", "alignment": "token", "gate_rule": "margin"}


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


@pytest.mark.parametrize(
    ("key", "hint"), [("gac_treshold", r" \(did you mean 'gac_threshold'\?\)"), ("gac_top_p", ".*")]
)
def test_langchain_refuses_other_keys_of_run_configurations(ensemble, key, hint):
    config = {"configurable": {key: 0.5, "another_app": 1}}
    words = rf"unknown key of the run configuration '{key}'{hint}; expected one of: gac_alignment, .*; set other"
    chat = ChatGaC(ensemble=ensemble, max_tokens=2)
    for model in (chat, LangChainLLM(ensemble=ensemble, max_tokens=2)):
        for call in (
            lambda model: model.invoke(ASK, config),
            lambda model: list(model.stream(ASK, config)),
            lambda model: model.batch([ASK, ASK], config),
        ):
            with pytest.raises(UnknownArgumentError, match=words):
                call(model)
    with pytest.raises(UnknownArgumentError, match=words):
        chat.invoke(ASK, config, model="ash")


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
    ("name", "value"), [("weights", {"oak": 1}), ("weights", [1]), ("combine", "product"), ("gate_rule", "mood")]
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
