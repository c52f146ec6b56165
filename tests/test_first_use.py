"""The first minutes with the library: imports without torch, and what is shown while an ensemble is opened."""

from __future__ import annotations

import logging
import os
import subprocess
import sys

import pytest
from conftest import EMBEDDED, ROOT

import gac_core
from gac_core import Ensemble, MemberConfig
from gac_core.placement.sizes import format_bytes

HEAVY = {"torch", "transformers", "llguidance", "huggingface_hub", "accelerate"}


def run(code: str) -> str:
    """Returns what a fresh interpreter prints; warnings are errors."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_library_and_its_commands_are_imported_without_torch():
    assert run(f"import sys, gac_core, gac_core.cli; print(sorted({HEAVY} & set(sys.modules)))") == "[]"


@pytest.mark.parametrize(
    ("wrapper", "framework"), [("langchain", "langchain_core"), ("llamaindex", "llama_index.core")]
)
def test_wrappers_import_nothing_heavy_beside_their_framework(wrapper, framework):
    pytest.importorskip(framework)
    before = f"import sys, {framework}; before = set(sys.modules); import gac_{wrapper}; "
    assert run(before + f"print(sorted({HEAVY} & (set(sys.modules) - before)))") == "[]"


@pytest.mark.parametrize(
    ("wrapper", "package", "extra"),
    [("gac_langchain", "langchain_core", "langchain"), ("gac_llamaindex", "llama_index", "llamaindex")],
)
def test_a_wrapper_without_its_framework_names_the_extra(wrapper, package, extra):
    code = f"""
import sys
sys.modules[{package!r}] = None
try:
    import {wrapper}
except ImportError as error:
    print(error)
"""
    assert run(code).endswith(f": pip install 'gac-ensemble[{extra}]'")


def test_settings_are_made_and_checked_without_torch():
    code = """
import sys
from gac_core import ConfigError, EnsembleConfig, MemberConfig, SamplingParams
EnsembleConfig(members=(MemberConfig("a"), MemberConfig("b")), combine="power:2", gate_rule="margin", threshold=0.5)
SamplingParams(combine="geometric", weights={"a": 1.0})
try:
    EnsembleConfig(members=(MemberConfig("a"),), combine="nope")
except ConfigError:
    print("torch" in sys.modules)
"""
    assert run(code) == "False"


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"chat_template": "{% bad"}, "the chat_template of member 'ash' cannot render a user message .*unknown tag"),
        ({"chat_template": "{{ 1 / 0 }}"}, "cannot render a user message .ZeroDivisionError"),
        ({"device": "meta"}, "'meta' cannot be used: torch's meta device holds shapes alone"),
        ({"device_map": "meta"}, "the device_map of member 'ash' names 'meta'"),
        ({"device_map": {"": "meta"}}, "the device_map of member 'ash' names 'meta'"),
    ],
)
def test_settings_that_no_request_could_use_are_errors_of_loading(settings, reason):
    with pytest.raises(gac_core.GaCError, match=reason):
        Ensemble.load([{"model": EMBEDDED[0], **settings}], dtype="float32")


def test_devices_without_memory_are_refused():
    with pytest.raises(gac_core.ConfigError, match="devices names 'meta', which cannot be used"):
        Ensemble.load([{"model": EMBEDDED[0]}], dtype="float16", devices=["meta"])


@pytest.mark.parametrize("part", ["message.content", "message.content[0].text"])
def test_a_template_may_expect_a_string_or_parts(part):
    template = "{% for message in messages %}{{ " + part + " }}{% endfor %}"
    with Ensemble.load([{"model": EMBEDDED[0], "chat_template": template}], dtype="float32") as ensemble:
        assert ensemble.names == ["ash"]


def test_every_public_name_is_listed_and_star_imported():
    assert set(gac_core.__all__) <= set(dir(gac_core))
    space: dict[str, object] = {}
    exec("from gac_core import *", space)
    assert set(gac_core.__all__) <= set(space)
    with pytest.raises(AttributeError, match="has no attribute 'nope'"):
        gac_core.nope  # noqa: B018


def test_many_threads_import_the_engine_at_once():
    """Each of them finds complete modules, whichever of them comes first."""
    code = f"""
import threading
from concurrent.futures import ThreadPoolExecutor
import gac_core
start = threading.Barrier(8)
def use(index):
    start.wait()
    if index % 2:
        return gac_core.default_pool() is not None
    with gac_core.Ensemble.load([{EMBEDDED[0]!r}]) as ensemble:
        return ensemble.generate("The sky is", max_tokens=1).usage.completion_tokens == 1
with ThreadPoolExecutor(8) as pool:
    print(all(pool.map(use, range(8))))
"""
    assert run(code) == "True"


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_fork_before_the_first_ensemble_loads_its_own():
    code = f"""
import os, gac_core
def answer():
    with gac_core.Ensemble.load([{EMBEDDED[0]!r}]) as ensemble:
        return ensemble.generate("The sky is", max_tokens=1).usage.completion_tokens
child = os.fork()
if not child:
    os._exit(0 if answer() == 1 else 1)
print(answer(), os.waitpid(child, 0)[1])
"""
    assert run(code) == "1 0"


def test_a_summary_has_members_gate_devices_and_memory(ensemble):
    weights = format_bytes(sum(member.weight_bytes for member in ensemble.health().members))
    assert ensemble.summary() == (
        "3 members: ash 1, birch 1, cedar 1; gate ash (largest model of those with the largest weight), no threshold; "
        f"cpu; {weights} of weights, KV caches of up to 3.0 GiB, documents of up to 1.5 GiB"
    )
    assert repr(ensemble) == "<Ensemble of ash, birch, cedar; gate ash, no threshold>"


def test_a_summary_counts_shared_weights_once_and_names_several_devices():
    members = [
        MemberConfig(EMBEDDED[0], name="one", device="cpu:0", weight=2),
        MemberConfig(EMBEDDED[0], name="two", device="cpu:0", chat_template="plain"),
        MemberConfig(EMBEDDED[1], name="other", device="cpu:1", weight=0.5),
    ]
    with Ensemble.load(members, threshold=0.5, cache_gib=0.5) as ensemble:
        sizes = [member.weight_bytes for member in ensemble.health().members]
        assert ensemble.summary() == (
            "3 members: one 2, two 1, other 0.5; gate one (largest weight), threshold 0.5; one and two on cpu:0, other "
            f"on cpu:1; {format_bytes(sizes[0] + sizes[2])} of weights, KV caches of up to 1.5 GiB, "
            "documents of up to 1.5 GiB"
        )


@pytest.mark.parametrize("progress", [True, None])
def test_the_summary_is_printed_after_bars_and_logged_in_any_case(progress, capfd, caplog):
    caplog.set_level(logging.INFO, "gac_core")
    with Ensemble.load([EMBEDDED[1]], dtype="float16", progress=progress) as ensemble:
        line = ensemble.summary()
    out, err = capfd.readouterr()
    assert out == ""
    assert err.endswith(f"\n{line}\n") if progress else err == ""
    assert [record.getMessage() for record in caplog.records if record.name == "gac_core"] == [line]
