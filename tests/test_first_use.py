"""The first minutes with the library: imports without torch."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from conftest import EMBEDDED, ROOT

import gac_core

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
