"""The child process that tries grammars: bounded in time and memory, replaced when it ends, one per process."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from schemas import CRASHES

from gac_core import Grammar
from gac_core.grammar import checker as grammar_check
from gac_core.grammar.checker import GrammarChecker, Verdict


@pytest.fixture
def checker():
    one = GrammarChecker()
    yield one
    one.close()


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


def test_a_process_that_cannot_be_started_is_reported(checker, monkeypatch):
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
