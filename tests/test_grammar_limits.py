"""No grammar ends, stops or occupies the process: a result or a `GrammarError`, and other requests go on."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import EMBEDDED, shared_ensemble, start
from schemas import CRASHES, chained_definitions, chained_rules

from gac_core import Grammar, GrammarError
from gac_core.grammar import checker as grammar_check
from gac_core.grammar import closing as closing_module
from gac_core.grammar import compiler as compiler_module
from gac_core.grammar.checker import GrammarChecker, Verdict
from gac_core.grammar.compiler import Compiler
from gac_core.grammar.constraint import Constraint

ROOT = Path(__file__).parent.parent


# ---- crashes


@pytest.mark.parametrize("grammar", CRASHES, ids=["rules", "more rules", "definitions"])
def test_what_would_overflow_the_stack_is_refused(ensemble, grammar):
    for _ in range(2):
        with pytest.raises(GrammarError, match=r"is not compiled: it is nested too deeply.*flatter"):
            ensemble.generate("x", grammar=grammar)
    assert ensemble.generate("x", grammar=Grammar.choices(["still here"])).text == "still here"


def test_chains_of_usual_length_are_compiled(ensemble):
    assert ensemble.generate("x", grammar=chained_rules(300)).text == "x"
    text = ensemble.generate("x", grammar=chained_definitions(60), max_tokens=8, temperature=0.0).text
    assert text.startswith("{")


def test_the_tool_at_fault_is_named(ensemble):
    deep = json.loads(chained_definitions(1000).lark.partition("%json ")[2])
    for schema, told in ((deep, "is not compiled: it is nested"), ({"not": {"type": "string"}}, "cannot be compiled")):
        grammar = Grammar.tool_calls({"fine": {"type": "object"}, "bad": schema}, required=True)
        with pytest.raises(GrammarError, match=f"the schema of tool 'bad''s arguments {told}"):
            ensemble.generate("x", grammar=grammar)


# ---- time and memory


def test_what_takes_too_long_is_refused(ensemble, monkeypatch):
    checker = GrammarChecker()
    monkeypatch.setattr(grammar_check, "_SECONDS", 0.2)
    monkeypatch.setattr(compiler_module, "checker", checker)
    grammar = Grammar.json_schema({"type": "integer", "multipleOf": 999983})
    began = time.perf_counter()
    with pytest.raises(GrammarError, match=r"is not compiled: that takes more than 2 s of processor time; make"):
        ensemble.generate("x", grammar=grammar)
    assert time.perf_counter() - began < 5
    # The error is known now.
    monkeypatch.setattr(compiler_module, "checker", None)
    with pytest.raises(GrammarError, match="processor time"):
        ensemble.generate("x", grammar=grammar)
    checker.close()


@pytest.mark.parametrize("pattern", ["(a{1000}){1000}", "(abc){40000}"])
def test_endless_forced_beginnings_are_refused(ensemble, pattern):
    with pytest.raises(GrammarError, match=r"no choice about its first \d+ bytes"):
        ensemble.generate("x", grammar=Grammar.regex(pattern))


def test_what_is_forced_is_committed_in_parts(ensemble):
    grammar = Grammar.regex("[ab](xyz){2000}")
    constraint = ensemble._input_processor._compiler.start(grammar)
    constraint.accept(b"a")
    parts = []
    while (forced := constraint.forced()) != [None]:
        assert len(forced) <= 256
        parts += forced
        for data in forced:
            constraint.accept(data)
    assert b"".join(parts) == b"xyz" * 2000
    output = ensemble.generate("x", grammar=grammar, max_tokens=300)
    assert (output.finish_reason.value, len(output.tokens)) == ("length", 300)
    assert len(parts) > 512


def test_many_choices_are_compiled_and_kept(ensemble):
    texts = [f"choice number {index} of them" for index in range(20000)]
    assert ensemble.generate("x", grammar=Grammar.choices(texts)).text in texts


def test_choices_allow_what_alternatives_of_a_rule_allow(ensemble):
    texts = ["yes", "no", "yes, but", "Größe", "a\nb", 'q"uote', "a/b", "yesterday"]
    compiler = ensemble._input_processor._compiler
    rules = Grammar.lark_grammar("start: " + " | ".join(map(json.dumps, texts)))
    for text in texts:
        pair = compiler.start(Grammar.choices(texts)), compiler.start(rules)
        for byte in text.encode():
            assert pair[0].forced() == pair[1].forced()
            assert np.array_equal(pair[0].mask(()).numpy(), pair[1].mask(()).numpy())
            for constraint in pair:
                constraint.accept(bytes([byte]))
        assert np.array_equal(pair[0].mask(()).numpy(), pair[1].mask(()).numpy())
        assert pair[0].forced() == pair[1].forced()


def test_a_closing_that_takes_too_long_ends_its_request_alone(ensemble, monkeypatch):
    monkeypatch.setattr(closing_module, "_MAX_MASKS", 0)
    names = {"type": "array", "items": {"type": "string"}}
    schema = {"type": "object", "properties": {"names": names}, "required": ["names"]}
    other = start(ensemble, "The bridge", max_tokens=20)
    with pytest.raises(GrammarError, match="masks are needed"):
        ensemble.generate("x", grammar=Grammar.json_schema(schema, closes=True), max_tokens=60)
    assert list(other)[-1].output is not None


# ---- callers do not wait for one another


def test_a_slow_compilation_delays_no_other_request(ensemble, monkeypatch):
    slow, begun, go = Grammar.choices(["slow"]), threading.Event(), threading.Event()
    real, calls = grammar_check.checker.check, []

    class Slow:
        def check(self, source):
            calls.append(source)
            if source == slow.source:
                begun.set()
                assert go.wait(10)
            return real(source)

    monkeypatch.setattr(compiler_module, "checker", Slow())
    compiler = Compiler(ensemble._input_processor._compiler._union)
    monkeypatch.setattr(ensemble._input_processor, "_compiler", compiler)
    texts = []
    threads = [
        threading.Thread(target=lambda: texts.append(ensemble.generate("x", grammar=slow).text)) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    assert begun.wait(10)
    assert ensemble.generate("x", grammar=Grammar.choices(["quick"])).text == "quick"
    assert not texts
    go.set()
    for thread in threads:
        thread.join(10)
    assert texts == ["slow"] * 3
    assert calls.count(slow.source) == 1


def test_only_lasting_errors_are_kept(ensemble, monkeypatch):
    verdicts = [Verdict(refusal="not now", lasting=False), Verdict()]

    class Once:
        def check(self, source):
            return verdicts.pop(0)

    monkeypatch.setattr(compiler_module, "checker", Once())
    compiler = Compiler(ensemble._input_processor._compiler._union)
    with pytest.raises(GrammarError, match="not now"):
        compiler.start(Grammar.choices(["a"]))
    assert isinstance(compiler.start(Grammar.choices(["a"])), Constraint)
    assert isinstance(compiler.start(Grammar.choices(["a"])), Constraint)


def test_only_some_grammars_are_kept(ensemble, monkeypatch):
    monkeypatch.setattr(compiler_module, "_MAX_CACHED", 3)
    compiler = Compiler(ensemble._input_processor._compiler._union)
    for index in range(5):
        compiler.start(Grammar.choices([f"a{index}"]))
    assert list(compiler._known) == [Grammar.choices([f"a{index}"]) for index in (2, 3, 4)]


# ---- errors of the matcher


def test_a_panic_of_the_matcher_is_reported_briefly(ensemble):
    class Panicked:
        def is_stopped(self):
            return True

        def is_error(self):
            return True

        def get_error(self):
            return "panic: assertion failed\n<backtrace>\n   0: <unknown>\n"

    constraint = Constraint(Panicked(), ensemble._input_processor._compiler._union)
    with pytest.raises(GrammarError, match=r"the grammar failed during generation: panic: assertion failed$"):
        constraint.forced()


# ---- threads


def gac_threads():
    return {thread for thread in threading.enumerate() if thread.name.startswith("gac-")}


def test_no_thread_outlives_close():
    before = gac_threads()
    with shared_ensemble(EMBEDDED) as one:
        one.generate("x", grammar=Grammar.json_schema({"type": "string", "maxLength": 9}), temperature=1.0)
        assert {thread.name for thread in gac_threads() - before} >= {"gac-engine", "gac-masks-0"}
    for _ in range(100):
        if not gac_threads() - before:
            break
        time.sleep(0.02)
    assert not gac_threads() - before
