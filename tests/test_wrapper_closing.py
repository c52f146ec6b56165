"""Closing the models of both frameworks: what they have loaded is freed, what others use stays."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import EMBEDDED
from llama_index.core.llms import ChatMessage

from gac_core import (
    ConfigError,
    EngineClosedError,
    Ensemble,
    Grammar,
    MemberConfig,
    RequestError,
    default_pool,
    use_gate,
    use_weights,
)
from gac_langchain import ChatGaC
from gac_langchain import GaCLLM as LangChainText
from gac_llamaindex import GaCLLM as LlamaIndexModel

WRAPPERS = {
    "chat": (ChatGaC, lambda model: model.invoke("Hi")),
    "text": (LangChainText, lambda model: model.invoke("Hi")),
    "llamaindex": (LlamaIndexModel, lambda model: model.chat([ChatMessage(content="Hi")])),
}
CASES = pytest.mark.parametrize("wrapper", WRAPPERS)
SETTINGS = {"models": EMBEDDED[:1], "max_tokens": 2, "dtype": "float16"}
# A dtype that no other test loads this member with, so that its being freed can be seen.
KEY = "float16"


def loaded() -> int:
    """The models of these tests in the process's pool."""
    gc.collect()
    return sum(model.dtype == KEY for model in default_pool().models())


def freed() -> bool:
    """Whether no model of these tests is left; the thread of an engine may hold the last one for a moment."""
    return any(loaded() == 0 or time.sleep(0.05) for _ in range(200))


@CASES
def test_the_block_closes_what_the_model_has_loaded(wrapper):
    make, ask = WRAPPERS[wrapper]
    assert freed()
    with make(**SETTINGS) as model:
        ask(model)
        assert (loaded(), model.closed) == (1, False)
    assert (freed(), model.closed) == (True, True)
    model.close()
    for use in (ask, lambda model: model.__enter__(), lambda model: ask(copy.copy(model))):
        with pytest.raises(EngineClosedError, match="closed; make a new one"):
            use(model)
    assert model.model_name == "ash"
    assert ask(pickle.loads(pickle.dumps(model)))


@pytest.mark.parametrize("wrapper", ["chat", "llamaindex"])
def test_others_with_the_same_settings_keep_working(wrapper):
    make, ask = WRAPPERS[wrapper]
    first, second = make(**SETTINGS), make(**SETTINGS)
    strict, deep = first.with_threshold(0.9), copy.deepcopy(first)
    first.close()
    assert [bool(ask(model)) for model in (second, strict, deep)] == [True] * 3
    second.close()
    strict.close()
    assert ask(deep)
    assert loaded() == 1
    deep.close()
    assert freed()


def test_a_copy_of_a_closed_model_does_not_keep_the_models():
    chat = ChatGaC(**SETTINGS)
    strict = chat.with_threshold(0.9)
    chat.close()
    late = copy.copy(chat)
    strict.close()
    assert (freed(), late.closed) == (True, True)


@CASES
def test_a_constructor_that_fails_after_loading_frees_the_models(wrapper):
    make, _ = WRAPPERS[wrapper]
    with pytest.raises(RequestError, match="logit_bias") as caught:
        make(**SETTINGS, logit_bias={10**9: 1.0})
    assert caught.value is not None
    assert freed()


def test_garbage_does_not_keep_the_models():
    chat = ChatGaC(**SETTINGS)
    chat.with_threshold(0.9)
    gc.collect()
    chat.close()
    assert freed()
    ChatGaC(**SETTINGS).invoke("Hi")
    assert freed()


@CASES
def test_the_callers_ensemble_stays_open(ensemble, wrapper):
    make, ask = WRAPPERS[wrapper]
    with make(ensemble=ensemble, max_tokens=2) as model:
        other = model.with_threshold(0.5)
    assert not ensemble.closed
    assert ask(other)
    with pytest.raises(EngineClosedError):
        ask(model)


async def test_the_async_block_closes_too():
    async with ChatGaC(**SETTINGS) as chat:
        await chat.ainvoke("Hi")
    assert freed()
    with pytest.raises(EngineClosedError):
        await chat.ainvoke("Hi")
    await chat.aclose()


def test_closing_ends_a_stream_that_another_thread_reads():
    chat = ChatGaC(**{**SETTINGS, "max_tokens": 500}, grammar=Grammar.regex("[a-z]{400}"))
    begun, go_on = threading.Event(), threading.Event()

    def read() -> None:
        for _ in chat.stream("Hi"):
            begun.set()
            go_on.wait(60)

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        assert begun.wait(60)
        chat.close()
        go_on.set()
        error = reading.exception(60)
    assert isinstance(error, EngineClosedError)
    assert freed()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_closing_in_a_forked_process_leaves_the_parents_model():
    chat = ChatGaC(**SETTINGS)
    with warnings.catch_warnings():
        # Of Python, about threads; those of the engine do not matter to a child that closes only.
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
    if child == 0:
        try:
            chat.close()
            os._exit(0 if chat.closed else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert chat.invoke("Hi")
    chat.close()


@CASES
def test_fields_that_take_effect_by_call_can_be_changed_and_others_cannot(ensemble, wrapper):
    make, _ = WRAPPERS[wrapper]
    model = make(ensemble=ensemble)
    for name, value in (("models", ["other"]), ("dtype", "float16"), ("executor", "ray"), ("devices", ["cpu"])):
        with pytest.raises(ConfigError, match=rf"{name} cannot be changed.*make a new one: {make.__name__}"):
            setattr(model, name, value)
        with pytest.raises(ConfigError, match=f"{name} cannot be changed"):
            model.model_copy(update={name: value})
        assert getattr(model, name) is None or name == "models"
    wrong = {"temperature": -1.0, "gate": "oak", "weights": [1.0], "stop": [""], "max_tokens": "many", "threshold": 3}
    for name, value in wrong.items():
        before = getattr(model, name)
        with pytest.raises(RequestError, match=name):
            setattr(model, name, value)
        with pytest.raises(RequestError):
            model.model_copy(update={name: value})
        assert getattr(model, name) == before
    model.temperature, model.gate = 0.5, "birch"
    assert (model.temperature, model.gate) == (0.5, "birch")


@pytest.mark.parametrize("make", [ChatGaC, LangChainText, LlamaIndexModel])
@pytest.mark.parametrize("weights", [[1, 1], {"ash": 3.0}, "perplexity"])
def test_weights_that_contradict_those_of_members_are_refused(make, weights):
    models = [MemberConfig(EMBEDDED[0], weight=2.0), EMBEDDED[1]]
    with pytest.raises(ConfigError, match=r"weights=.* and the weight 2 of member 'ash' exclude each other"):
        make(models=models, weights=weights)


@CASES
def test_own_values_are_checked_outside_contexts(ensemble, wrapper):
    make, _ = WRAPPERS[wrapper]
    with use_gate("oak"), use_weights([1, 2, 3, 4, 5]):
        model = make(ensemble=ensemble)
        model.temperature = 0.5
        assert model.with_gate("birch").gate == "birch"
    with use_gate("birch"), pytest.raises(RequestError, match="'oak' is not a member"):
        make(ensemble=ensemble, gate="oak")


@CASES
def test_changes_are_refused_only_where_calls_would_be(wrapper, caplog):
    make, _ = WRAPPERS[wrapper]
    with Ensemble.shared(EMBEDDED[:2], gate="ash") as ensemble:
        caplog.clear()
        model = make(ensemble=ensemble, weights={"ash": 0})
        assert model.with_gate(None).with_gate("birch").gate == "birch"
        model.weights = None
        model.gate = "birch"
        with pytest.raises(RequestError, match="'birch' has the weight 0"):
            model.weights = {"birch": 0}
        assert not caplog.records


@CASES
def test_assigned_values_are_kept_as_constructors_keep_them(ensemble, wrapper):
    make, _ = WRAPPERS[wrapper]
    model = make(ensemble=ensemble)
    model.weights = (1, 2, 3)
    for each in (model, make(ensemble=ensemble).model_copy(update={"weights": (1, 2, 3)})):
        assert each.model_dump(include={"weights"})["weights"] == [1, 2, 3]


@pytest.mark.parametrize("make", [ChatGaC, LlamaIndexModel])
def test_choices_of_tools_have_the_same_forms_in_both_frameworks(ensemble, make):
    model = make(ensemble=ensemble, tool_choice={"type": "function", "function": {"name": "clock"}})
    for wrong in ("", {}):
        with pytest.raises(RequestError, match="tool_choice must be"):
            make(ensemble=ensemble, tool_choice=wrong)
        with pytest.raises(RequestError, match="tool_choice must be"):
            model.tool_choice = wrong
