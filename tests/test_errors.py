"""Bad input gives a named error that says what to do, and the engine lives on."""

from __future__ import annotations

import pytest
from conftest import EMBEDDED, QUESTION, ensemble_of, random_pair

import gac_core
from gac_core import (
    ChatTemplateError,
    ConfigError,
    EmptyPromptError,
    EngineClosedError,
    Ensemble,
    EnsembleConfig,
    GaCError,
    MemberConfig,
    ModelLoadError,
    PromptTooLongError,
    RequestError,
    SamplingParams,
    errors,
)
from gac_core.inspection import load


def test_an_unknown_model_is_named():
    with pytest.raises(ModelLoadError, match="no/such-folder"):
        Ensemble.load(["./no/such-folder/at-all"])
    with pytest.raises(ModelLoadError, match=r"nobody/nothing.*no such folder exists here.*hub"):
        Ensemble.load(["nobody/nothing"])
    with pytest.raises(ModelLoadError, match=r"there is no folder '/nowhere/a'"):
        load("/nowhere/a")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_named(device):
    with pytest.raises(ModelLoadError, match=rf"device '{device}' cannot be used: .*this machine has cpu"):
        Ensemble.load([EMBEDDED[0]], device=device)


def test_a_folder_without_a_model_is_told_from_no_folder(tmp_path):
    with pytest.raises(ModelLoadError, match="the folder must hold"):
        Ensemble.load([tmp_path])


def test_one_model_in_place_of_a_list_is_refused():
    with pytest.raises(ConfigError, match="must be a list"):
        Ensemble.load(EMBEDDED[0])


def test_names_and_gates_are_checked():
    with pytest.raises(ConfigError, match="two members are called 'a'"):
        EnsembleConfig((MemberConfig("x/a"), MemberConfig("y/a")))
    with pytest.raises(ConfigError, match="'oak' is not a member; members are: a"):
        EnsembleConfig((MemberConfig("a"),), gate="oak")
    with pytest.raises(ConfigError, match="at least one member"):
        EnsembleConfig(())
    with pytest.raises(ConfigError, match=r"weights has 2 values, \[1, 2\], but there are 3 members; give one"):
        Ensemble.load(EMBEDDED, weights=[1, 2])
    with pytest.raises(ConfigError, match=r"weights has 1 value, \[1\], but there are 3 members"):
        Ensemble.load(EMBEDDED, weights=[1])
    with pytest.raises(ConfigError, match="weights names 'oak', which is not a member"):
        Ensemble.load(EMBEDDED, weights={"oak": 1})
    with pytest.raises(ConfigError, match="weight of member 'ash' must be above 0, not 0; leave the member out, or"):
        Ensemble.load(EMBEDDED, weights=[0, 1, 1])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"max_tokens": 0}, "max_tokens must be at least 1, not 0"),
        ({"max_tokens": -3}, "max_tokens"),
        ({"max_tokens": 2.5}, "max_tokens must be an integer"),
        ({"temperature": -1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"top_p": 0}, "top_p must be above 0"),
        ({"top_k": 0}, "top_k"),
        ({"min_p": 2}, "min_p"),
        ({"repetition_penalty": 0}, "repetition_penalty"),
        ({"logprobs": 101}, "logprobs"),
        ({"stop": [""]}, "stop"),
        ({"seed": 1.5}, "seed"),
        ({"gate": "oak"}, "'oak' is not a member; members are: ash, birch, cedar"),
        ({"treshold": 0.5}, "did you mean 'threshold'"),
    ],
)
def test_wrong_arguments_are_named(ensemble, arguments, words):
    with pytest.raises(RequestError, match=words):
        ensemble.generate(QUESTION, **arguments)


def test_unknown_arguments_are_type_errors_too(ensemble):
    with pytest.raises(TypeError):
        ensemble.generate(QUESTION, max_length=3)


@pytest.mark.parametrize("prompt", ["", []])
def test_empty_prompts_are_refused(ensemble, prompt):
    with pytest.raises(EmptyPromptError):
        ensemble.generate(prompt)


@pytest.mark.parametrize(
    "prompt",
    [b"bytes", 3, {"role": "user", "content": "x"}, ["x"], [{"role": "robot", "content": "x"}], [{"role": "user"}]],
)
def test_prompts_of_a_wrong_shape_are_refused(ensemble, prompt):
    with pytest.raises(RequestError):
        ensemble.generate(prompt)


@pytest.mark.parametrize("prompt", ["a \ud800 b", [{"role": "user", "content": "a \ud800 b"}]])
def test_a_lone_surrogate_is_named(ensemble, prompt):
    with pytest.raises(RequestError, match=r"lone surrogate '\\ud800'"):
        ensemble.generate(prompt)


def test_a_long_prompt_names_member_and_lengths(ensemble):
    with pytest.raises(PromptTooLongError, match=r"'ash', whose context holds 1024") as caught:
        ensemble.generate("word " * 3000)
    assert caught.value.member == "ash"
    assert caught.value.prompt_tokens > caught.value.context == 1024


def test_a_context_beyond_the_models_is_refused():
    with pytest.raises(ConfigError, match="'m0' is set to 300, but its model reads at most 256"):
        ensemble_of([random_pair("gpt2")], contexts=[300])


def test_a_full_context_ends_the_text_as_too_long():
    model, tokenizer = random_pair("llama")
    ids = tokenizer.encode("In which town is the bridge")
    with ensemble_of([(model, tokenizer)], contexts=[len(ids) + 2]) as small:
        output = small.generate("In which town is the bridge", max_tokens=50)
        assert output.finish_reason == "length"
        # The text that fits, and one token more that is written but never read.
        assert len(output.tokens) == 3


@pytest.mark.shared
def test_messages_without_a_chat_template_are_refused(stories):
    with pytest.raises(ChatTemplateError, match=r"'stories260K'.*no chat template"):
        stories.generate(QUESTION)


def test_whoever_waits_hears_of_the_engines_end(monkeypatch):
    one = ensemble_of([random_pair("llama")])
    running = one.stream("In which", max_tokens=500)
    next(running)
    monkeypatch.setattr(one._session.worker, "_take_over", None)
    monkeypatch.setattr("threading.excepthook", lambda arguments: None)
    with pytest.raises(EngineClosedError):
        list(running)
    one._session.worker._thread.join(10)
    assert one.closed
    with pytest.raises(EngineClosedError):
        one.generate("Who", max_tokens=2)


@pytest.mark.parametrize("asked", [{"temperature": 10**20}, {"repetition_penalty": 2**64}])
def test_large_whole_numbers_are_numbers(ensemble, asked):
    assert ensemble.generate("Hi", max_tokens=2, seed=1, **asked).text


def test_numbers_beyond_all_floats_are_refused():
    with pytest.raises(RequestError, match="temperature"):
        SamplingParams(temperature=10**400)


def test_a_closed_ensemble_says_so():
    one = ensemble_of([random_pair("llama")])
    running = one.stream("In which", max_tokens=500)
    next(running)
    one.close()
    one.close()
    with pytest.raises(EngineClosedError):
        list(running)
    with pytest.raises(EngineClosedError):
        one.generate("In which")


def test_every_error_of_the_package_is_public():
    """Callers can catch each by name, or all of them as `GaCError`."""
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)]
    assert len(kinds) > 10
    assert [kind.__name__ for kind in kinds if not issubclass(kind, GaCError)] == []
    assert [kind.__name__ for kind in kinds if kind.__name__ not in gac_core.__all__] == []
