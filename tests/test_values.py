"""Every value of every constructor is checked by name, before anything loads, and quoted briefly."""

from __future__ import annotations

import pytest
from conftest import EMBEDDED, member_ids
from fuzzing import DEEP_LIST, HUGE, LONG, Unprintable
from pydantic import ValidationError

from gac_core import (
    ConfigError,
    Ensemble,
    EnsembleConfig,
    MemberConfig,
    RequestError,
    SamplingParams,
    UnknownArgumentError,
    open_ensemble,
    quote,
    use_threshold,
)
from gac_langchain import ChatGaC
from gac_langchain import GaCLLM as LangChainLLM
from gac_llamaindex import GaCLLM

# Whoever tried to load this would raise a ModelLoadError.
NOWHERE = ["./no/such-folder", "./neither/this-one"]
WRAPPERS = [ChatGaC, LangChainLLM, GaCLLM]


def short_id(value):
    """Names a case; pytest would write values out."""
    return quote(value)[:40].encode("ascii", "replace").decode()


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "1"),
        ("a", "'a'"),
        (HUGE, "<an integer of 19932 bits>"),
        ([HUGE], "[<an integer of 19932 bits>]"),
        ("\ud800", r"'\ud800'"),
    ],
    ids=short_id,
)
def test_values_are_quoted(value, text):
    assert quote(value) == text


@pytest.mark.parametrize(
    "value", [LONG, LONG.encode(), [LONG] * 50, {LONG: LONG}, DEEP_LIST, {1: {2: {3: {4: {}}}}}], ids=short_id
)
def test_quotes_are_short(value):
    assert len(quote(value)) < 200


def test_what_cannot_be_written_is_quoted_by_its_type():
    assert "Unprintable" in quote(Unprintable())
    with pytest.raises(RequestError, match=r"max_tokens must be an integer, not <Unprintable instance"):
        SamplingParams(max_tokens=Unprintable())


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("max_tokens", value) for value in (None, "5", True, 2.5, HUGE, -HUGE, float("nan"))),
        *(("temperature", value) for value in (None, "1", True, HUGE, float("inf"), [1])),
        *(("top_k", value) for value in (0, True, 1.5, "3", HUGE)),
        *(("seed", value) for value in (HUGE, "1", True)),
        *(("stop", value) for value in (True, 3, b"x", {"a": 1}, ["a", 3], [""], "", ["\ud800"], [[]])),
        *(("threshold", value) for value in ("sure", "0.5", [0.5], True, HUGE, -0.1, 1.1, float("nan"))),
        *(("timeout", value) for value in (0, -1, "3", True, float("nan"), float("inf"), 1e300)),
        *(("gate", value) for value in ("", 3, ["ash"], True)),
        *(("grammar", value) for value in ("a|b", {}, 3)),
        *(("drafts", value) for value in (None, 1, "yes")),
    ],
    ids=short_id,
)
def test_sampling_parameters_are_named(field, value):
    with pytest.raises(RequestError, match=field):
        SamplingParams(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("model", value) for value in (None, 3, b"a", "", ["a"], "a\ud800")),
        *(("name", value) for value in ("", 3, ["a"])),
        *(("weight", value) for value in (None, 0, -1, HUGE, "1", [1], True, float("nan"), float("inf"))),
        *(("dtype", value) for value in (None, "fp8", ["float32"], 16)),
        *(("device", value) for value in (["cpu"], 0, "")),
        *(("device_map", value) for value in (3, "", {}, {1: "cpu"}, {"": ["cpu"]})),
        *((field, value) for field in ("revision", "tokenizer", "chat_template") for value in ("", 3, True)),
        *(("context", value) for value in ("x", 0, 1.5, True, HUGE)),
        *((field, value) for field in ("trust_remote_code", "compile", "allow_pickle") for value in ("false", 0, None)),
        *(("quantization", value) for value in ("3bit", 8, ["8bit"], True)),
    ],
    ids=short_id,
)
def test_settings_of_members_are_named(field, value):
    with pytest.raises(ConfigError, match=field):
        MemberConfig(**{"model": "a", field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("members", value) for value in (None, "ab", 3, {"a": 1}, b"ab")),
        *(("member", value) for value in ([], [3], [None], [["a"]])),
        *(("gate", value) for value in ("", 3, ["a"], "oak")),
        *(("threshold", value) for value in ("x", "0.5", [0.5], HUGE, True, -0.1, 1.1, float("nan"))),
        *((f, v) for f in ("stuck_after", "forward_timeout") for v in (None, 0, -1, "600", True, float("inf"))),
        *(("on_member_failure", value) for value in (None, "ignore", "", True, ["drop"])),
        *(("min_members", value) for value in (None, 0, -1, 1.0, "1", True, 2)),
        *(("devices", value) for value in ([], "cuda:0", [3], [""], ["cpu", "cpu"], {"cpu": 1}, 3)),
        *(("progress", value) for value in (1, "true", [])),
        *(("gate_must_live", value) for value in (None, 1, "true")),
        *((f, v) for f in ("max_batch_size", "max_queue", "prefill_tokens") for v in (None, -1, 1.5, "4", True, HUGE)),
        *(("cache_gib", value) for value in (None, -1, "1", float("nan"), float("inf"), HUGE, 1e308, True)),
        *(("commit", value) for value in (None, ["canonical"], 3)),
        *(("alignment", value) for value in (None, ["token"], 3)),
        *(("drafts", value) for value in (3, "lookup", [3], [["lookup"]], ["later"], True)),
    ],
    ids=short_id,
)
def test_settings_of_ensembles_are_named(field, value):
    settings = {"members": ("a",), ("members" if field == "member" else field): value}
    with pytest.raises(ConfigError, match=field):
        EnsembleConfig(**settings)


class Path3(str):
    pass


def test_subclasses_of_plain_types_can_be_written_down():
    config = EnsembleConfig((MemberConfig(Path3("a"), weight=True + 1, dtype=Path3("float32")),), gate=Path3("a"))
    assert EnsembleConfig.from_dict({"members": ["a"], "gate": "a"}).gate == config.gate
    assert "float32" in config.to_yaml()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("members: [a]\nmembers: [b]\n", "key 'members' occurs twice.* line 2"),
        ("members: [{model: a, weight: 1, weight: 2}]\n", "key 'weight' occurs twice"),
        ("members: [a]\ncache_gib: null\n", "cache_gib must be a number, not None"),
        ("members: [a]\nmax_batch_size: null\n", "max_batch_size must be an integer, not None"),
        ("members: [a]\nmax_batch_size: .nan\n", "max_batch_size"),
        ("members: [a]\nmax_batch_size: .inf\n", "max_batch_size"),
        ("members: [a]\nmax_batch_size: 1.5\n", "max_batch_size"),
        ("members: [{model: a, context: x}]\n", "context of member 'a' must be an integer, not 'x'"),
        ("members: [{model: a, trust_remote_code: 'false'}]\n", "trust_remote_code of member 'a' must be True"),
        (b"members: [\xff]\n", "cannot read.*utf-8"),
        ("[" * 20_000, "nested too deeply"),
        ("members: [a]\nmax_queue: " + "9" * 6000, "cannot read.*digits"),
        ("members: !!timestamp x\n", "cannot read"),
        ("members: [a] #" + LONG, "larger than 1048576 bytes"),
        ("a: &a [1]\nmembers: [" + "*a," * 300 + "]\n", "more than 256 aliases"),
        ("{" + ", ".join(f"k{i}: 1" for i in range(1001)) + "}", "more than 1000 keys"),
    ],
    ids=short_id,
)  # fmt: skip
def test_yaml_is_read_strictly(tmp_path, text, words):
    path = tmp_path / "ensemble.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=words) as caught:
        EnsembleConfig.from_yaml(path)
    assert len(str(caught.value)) < 2000


def test_members_may_share_settings_by_a_merge(tmp_path):
    path = tmp_path / "ensemble.yaml"
    path.write_text("members:\n- &first {model: a, dtype: float32, weight: 2}\n- {<<: *first, model: b, weight: 1}\n")
    first, second = EnsembleConfig.from_yaml(path).members
    assert (first.weight, second.model, second.weight, second.dtype) == (2.0, "b", 1.0, "float32")


@pytest.mark.parametrize("path", [3, None, ["a.yaml"], b"a.yaml"])
def test_paths_of_configurations_are_checked(path):
    with pytest.raises(ConfigError, match="path of a configuration"):
        EnsembleConfig.from_yaml(path)


def test_unknown_names_are_listed_briefly():
    with pytest.raises(UnknownArgumentError, match="and 80 more") as caught:
        EnsembleConfig.from_dict({f"{i}{LONG[:1000]}": 1 for i in range(100)})
    assert len(str(caught.value)) < 2000
    with pytest.raises(UnknownArgumentError, match="did you mean 'threshold'"):
        SamplingParams().with_overrides({"treshold": 1})


@pytest.mark.parametrize(
    "settings",
    [
        {"threshold": 2},
        {"gate": "nope"},
        {"dtype": "fp8"},
        {"weights": 3},
        {"weights": [1, "a"]},
        {"weights": [1]},
        {"max_queue": "x"},
        {"stuck_after": 0},
        {"forward_timeout": 0},
        {"on_member_failure": "ignore"},
        {"min_members": 4},
        {"device": ["cpu"]},
        {"devices": "cpu"},
    ],
)
def test_settings_are_checked_before_anything_loads(settings):
    with pytest.raises(ConfigError, match=next(iter(settings)).rstrip("s")):
        Ensemble.load(NOWHERE, **settings)


@pytest.mark.parametrize("wrapper", WRAPPERS)
@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("threshold", 2),
        ("threshold", "sure"),
        ("gate", "nope"),
        ("gate", 3),
        ("max_tokens", 0),
        ("max_tokens", "x"),
        ("temperature", -1),
        ("temperature", [1]),
        ("top_p", 7),
        ("stop", [3]),
        ("stop", 5),
        ("logprobs", 1000),
        ("drafts", "perhaps"),
        ("dtype", "fp8"),
        ("dtype", 3),
        ("device", ["cpu"]),
        ("weights", [1, "a"]),
        ("weights", [1, -1]),
        ("weights", "ab"),
        ("quantization", "3bit"),
        ("commit", "later"),
        ("max_batch_size", 0),
        ("max_batch_size", "many"),
        ("cache_gib", "x"),
        ("cache_gib", -1),
        ("stuck_after", -1),
        ("forward_timeout", -1),
        ("on_member_failure", "ignore"),
        ("min_members", 0),
        ("gate_must_live", 3),
        ("models", "x"),
        ("models", 3),
    ],
)
def test_wrappers_check_before_anything_loads(wrapper, field, value):
    with pytest.raises((ConfigError, RequestError), match=field.rstrip("s")):
        wrapper(**{"models": NOWHERE, field: value})


@pytest.mark.parametrize(
    ("wrapper", "field"), [(ChatGaC, "streaming"), (LangChainLLM, "streaming"), (GaCLLM, "tool_format")]
)
def test_fields_of_one_wrapper_are_checked(wrapper, field):
    with pytest.raises(ConfigError, match=f"{field}.*'perhaps'"):
        wrapper(models=NOWHERE, **{field: "perhaps"})


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_configuration_is_checked_against_the_fields_before_it_loads(wrapper, tmp_path):
    path = tmp_path / "ensemble.yaml"
    path.write_text(f"members: [{NOWHERE[0]}]\n")
    with pytest.raises(RequestError, match="'nope' is not a member; members are: such-folder"):
        wrapper.from_config(path, gate="nope")
    with pytest.raises(RequestError, match="max_tokens"):
        wrapper.from_config(path, max_tokens=0)
    with use_threshold(0.5), pytest.raises(RequestError, match="threshold"):
        wrapper.from_config(path, threshold=2)


@pytest.mark.parametrize("wrapper", [ChatGaC, LangChainLLM])
def test_wrong_values_of_the_fields_of_langchain_are_errors_of_this_library_too(wrapper):
    with pytest.raises(ConfigError, match="tags cannot be 3") as caught:
        wrapper(models=NOWHERE, tags=3)
    assert isinstance(caught.value.__cause__, ValidationError)


def test_langchain_models_take_a_configuration(tmp_path):
    path = tmp_path / "ensemble.yaml"
    path.write_text(f"members: [{EMBEDDED[0]}]\n")
    made = [ChatGaC(config=path)._ensemble, LangChainLLM.from_config(path)._ensemble, open_ensemble(config=path)]
    assert len({tuple(member_ids(each)) for each in made}) == 1
    with pytest.raises(ConfigError, match="models and config"):
        ChatGaC(models=NOWHERE, config=path)
