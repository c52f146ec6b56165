"""No grammar ends, stops or occupies the process: a result or a `GrammarError`, and other requests go on."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections import UserDict
from pathlib import Path

import numpy as np
import pytest
from conftest import EMBEDDED, shared_ensemble, start

from gac_core import Grammar, GrammarError, RequestError, Tool
from gac_core.grammar import checker as grammar_check
from gac_core.grammar import closing as closing_module
from gac_core.grammar import compiler as compiler_module
from gac_core.grammar.checker import GrammarChecker, Verdict
from gac_core.grammar.compiler import Compiler
from gac_core.grammar.constraint import Constraint
from gac_core.grammar.schema import is_recursive

ROOT = Path(__file__).parent.parent


def chained_rules(count):
    rules = [f"r{index}: r{index + 1}" for index in range(count)]
    return Grammar.lark_grammar("\n".join(["start: r0", *rules, f'r{count}: "x"']))


def chained_definitions(count):
    parts = {f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(count)}
    return Grammar.json_schema({"$ref": "#/$defs/d0", "$defs": {**parts, f"d{count}": {"type": "string"}}})


CRASHES = [chained_rules(3000), chained_rules(30000), chained_definitions(1000)]


@pytest.fixture
def checker():
    one = GrammarChecker()
    yield one
    one.close()


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


def test_a_child_that_is_silent_is_ended(checker, monkeypatch):
    monkeypatch.setattr(grammar_check, "_WALL_SECONDS", 0.3)
    child = checker._take()
    os.kill(child.process.pid, signal.SIGSTOP)
    checker._idle = child
    verdict = checker.check(Grammar.choices(["a"]).source)
    assert "took more than" in verdict.refusal
    assert not verdict.lasting
    monkeypatch.setattr(grammar_check, "_WALL_SECONDS", 15.0)
    assert checker.check(Grammar.choices(["a"]).source) == Verdict()


def test_memory_is_bounded(checker):
    assert checker.check(Grammar.choices(["a"]).source) == Verdict()
    child = checker._idle.process.pid
    assert resource.prlimit(child, resource.RLIMIT_AS)[0] == 2**30
    pages = int(Path(f"/proc/{child}/statm").read_text().split()[0])
    resource.prlimit(child, resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**21,) * 2)
    many = Grammar.choices([f"{'long ' * 8}choice number {index}" for index in range(60000)])
    assert "GiB of memory" in checker.check(many.source).refusal
    assert checker.check(many.source) == Verdict()


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
    monkeypatch.setattr(closing_module, "_MOST_MASKS", 0)
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
    monkeypatch.setattr(compiler_module, "_KEPT", 3)
    compiler = Compiler(ensemble._input_processor._compiler._union)
    for index in range(5):
        compiler.start(Grammar.choices([f"a{index}"]))
    assert list(compiler._known) == [Grammar.choices([f"a{index}"]) for index in (2, 3, 4)]


# ---- the child process


def test_a_child_is_kept_and_replaced_when_it_is_gone(checker):
    fine = Grammar.choices(["a"]).source
    assert checker.check(fine) == Verdict()
    first = checker._idle.process
    assert checker.check(fine) == Verdict()
    assert checker._idle.process is first
    first.kill()
    assert checker.check(fine) == Verdict()
    assert checker._idle.process is not first
    assert "nested" in checker.check(CRASHES[0].source).refusal
    assert checker.check(fine) == Verdict()
    assert len(checker._children) == 1


def test_grammars_are_tried_at_the_same_time(checker):
    verdicts = []
    sources = [*(grammar.source for grammar in CRASHES), *(Grammar.choices([f"a{i}"]).source for i in range(9))]
    threads = [threading.Thread(target=lambda s=s: verdicts.append(checker.check(s))) for s in sources]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert verdicts.count(Verdict()) == 9
    assert len(verdicts) == 12
    assert len(checker._children) == 1


def test_a_process_that_cannot_be_started_is_told(checker, monkeypatch):
    monkeypatch.setattr(sys, "executable", "")
    verdict = checker.check(Grammar.choices(["a"]).source)
    assert "cannot be started" in verdict.refusal
    assert not verdict.lasting


def test_the_child_ends_with_its_parent():
    code = """
import os, signal
from gac_core.grammar.checker import checker
from gac_core import Grammar
assert checker.check(Grammar.choices(["a"]).source).refusal is None
print(checker._idle.process.pid, flush=True)
if ENDED: os.kill(os.getpid(), signal.SIGKILL)
"""
    for kill in (True, False):
        told = code.replace("ENDED", str(kill))
        done = subprocess.run([sys.executable, "-W", "error", "-c", told], capture_output=True)
        assert done.stderr == b""
        child = int(done.stdout)
        for _ in range(100):
            if not Path(f"/proc/{child}").exists() or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2]:
                break
            time.sleep(0.02)
        else:
            raise AssertionError("the child lives")


def test_a_forked_process_has_a_child_of_its_own():
    code = """
import os
from gac_core.grammar.checker import checker
from gac_core import Grammar
source = Grammar.choices(["a"]).source
assert checker.check(source).refusal is None
first = checker._idle.process.pid
pid = os.fork()
if not pid:
    assert checker._idle is None
    assert checker.check(source).refusal is None
    assert checker._idle.process.pid != first
    raise SystemExit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
assert checker.check(source).refusal is None
assert checker._idle.process.pid == first
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")


# ---- values


def deep(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


def twofold(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"anyOf": [schema, schema]}
    return schema


def circular():
    schema = {"properties": {}}
    schema["properties"]["a"] = schema
    return schema


class Broken(UserDict):
    def __getitem__(self, key):
        raise KeyError("gone")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Grammar.choices(1.0), r"choices must be a list.*1\.0"),
        (lambda: Grammar.choices([1]), "each of the choices"),
        (lambda: Grammar.choices(range(10**12)), "1000000000000 choices"),
        (lambda: Grammar.choices(["x" * 5_000_000]), "more than 4000000"),
        (lambda: Grammar.tool_calls(5), "tools must be a mapping"),
        (lambda: Grammar.tool_calls({"a": {"minimum": float("nan")}}), "tool 'a'.*minimum is nan"),
        (lambda: Grammar.tool_calls({f"t{i}": {} for i in range(1001)}), "1001 tools"),
        (lambda: Grammar.regex("a" * 5_000_000), "more than 4000000"),
        (lambda: Grammar.lark_grammar("start: A\n" * 1_000_000), "more than 4000000"),
        (lambda: Grammar("tools", "start: A", tools=5), "pairs of strings"),
        (lambda: Grammar("tools", "start: A", tools=((1, "a"),)), "pairs of strings"),
        (lambda: Grammar.json_schema({"$defs": [1]}), r"\$defs is \[1\]; make it an object"),
        (lambda: Grammar.json_schema({"definitions": 3}), "definitions is 3"),
        (lambda: Grammar.json_schema({"properties": {"a": {"minimum": 10**400}}}), "properties/a/minimum is <an int"),
        (lambda: Grammar.json_schema({"maximum": float("inf")}), "maximum is inf"),
        (lambda: Grammar.json_schema('{"maximum": 1e999}'), "maximum is inf"),
        (lambda: Grammar.json_schema('{"maximum": NaN}'), "maximum is nan"),
        (lambda: Grammar.json_schema('{"maximum": ' + "1" * 5000 + "}"), "no JSON"),
        (lambda: Grammar.json_schema('{"type": "string", "type": "null"}'), "'type' twice"),
        (lambda: Grammar.json_schema({"properties": {1: {}}}), "properties has the key 1"),
        (lambda: Grammar.json_schema({"enum": [{1, 2}]}), "enum/0 is {1, 2}"),
        (lambda: Grammar.json_schema({"enum": ["\ud800"]}), "surrogate"),
        (lambda: Grammar.json_schema({"required": [{}]}), "required"),
        (lambda: Grammar.json_schema({"oneOf": [3], "discriminator": {"propertyName": "a"}}), "within the schema is 3"),
        (lambda: Grammar.json_schema({"items": "a"}), "within the schema is 'a'"),
        (lambda: Grammar.json_schema({"pattern": 5}), "pattern is 5"),
        (lambda: Grammar.json_schema({"propertyNames": {"pattern": 5}}), "pattern is 5"),
        (lambda: Grammar.json_schema(deep(2000)), "more than 100 deep"),
        (lambda: Grammar.json_schema('{"items": ' * 2000 + "{}" + "}" * 2000), "more than 100 deep"),
        (lambda: Grammar.json_schema("[" * 100_000), "more than 100 deep"),
        (lambda: Grammar.json_schema(twofold(40)), "more than 200000 values"),
        (lambda: Grammar.json_schema(circular()), "more than 100 deep"),
        (lambda: Grammar.json_schema(Broken(a=1)), "KeyError"),
        (lambda: Grammar.json_schema("x" * 10_000), "no JSON"),
        (lambda: Grammar.json_schema({"const": "x" * 5_000_000}), "4000000 characters"),
    ],
)
def test_values_of_wrong_kinds_are_told_shortly(make, told):
    with pytest.raises(GrammarError, match=told) as caught:
        make()
    assert len(str(caught.value)) < 800


def test_whether_a_schema_refers_to_itself_is_told_of_any_value():
    for schema in ({"$defs": [1]}, {"$defs": {"a": {1}}}, circular(), deep(2000), {"a": float("nan")}, {1: 2}):
        assert is_recursive(schema) is False


def test_messages_of_the_compiler_are_short(ensemble):
    for grammar in (
        Grammar.regex("(" + "a" * 50_000),
        Grammar.lark_grammar("start: " + "a" * 50_000),
        Grammar.json_schema({"type": "x" * 50_000}),
        Grammar("x" * 50_000, "start: nothing"),
    ):
        with pytest.raises(GrammarError) as caught:
            ensemble.generate("x", grammar=grammar)
        assert len(str(caught.value)) < 700


def test_a_panic_of_the_matcher_is_told_shortly(ensemble):
    class Panicked:
        def is_stopped(self):
            return True

        def is_error(self):
            return True

        def get_error(self):
            return "panic: assertion failed\n<backtrace>\n   0: <unknown>\n"

    constraint = Constraint(Panicked(), ensemble._input_processor._compiler._union)
    with pytest.raises(GrammarError, match=r"the grammar cannot go on: panic: assertion failed$"):
        constraint.forced()


def test_tools_with_such_schemas_are_refused(ensemble):
    for schema in (deep(2000), {"$defs": [1]}, {"minimum": 10**400}, {"properties": {1: {}}}):
        with pytest.raises(RequestError) as caught:
            ensemble.generate([{"role": "user", "content": "x"}], tools=[Tool("a", "", schema)], tool_choice="required")
        assert len(str(caught.value)) < 800


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
