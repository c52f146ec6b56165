"""Whether a grammar can be compiled within bounds: tried in a child process, so that none can harm this one.

llguidance recurses over rules, definitions and expressions without a bound, so that a long enough chain of them
overflows the stack, which ends the process in which it happens.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import llguidance

# Limits of llguidance: its own defaults, except that errors do not list its state.
LIMITS = {"verbose_errors": False}
# Threads that compile grammars and compute masks in this process have this much stack, in bytes ...
STACK_SIZE = 16 * 2**20
# ... and the child a part of it: other threads of this process may have as little as 4 MiB.
_CHILD_STACK_SIZE = 2 * 2**20
_MEMORY = 2**30
_SECONDS = 2.0
# Where processor time is not measured, or the machine is busy.
_WALL_SECONDS = 15.0
# Bytes that a text may begin with without a choice: all of them are committed in one step.
_FORCED = 2**16
# Children that run at once.
_CHILDREN = 4
_APPENDED = re.compile("\n<(?:state|non-verbose|backtrace)")
_SMALLER = "make it smaller: fewer alternatives, smaller numbers of repetitions, or check the answer instead"
_REFUSALS = {
    ("SIGSEGV", "SIGBUS", "SIGILL"): "it is nested too deeply, or its rules or definitions refer to one another in too "
    "long a chain; write it flatter, with hundreds of levels less",
    ("SIGPROF", "SIGXCPU"): f"that takes more than {_SECONDS:g} s of processor time; {_SMALLER}",
    ("SIGABRT",): f"that takes more than {_MEMORY / 2**30:g} GiB of memory; {_SMALLER}",
}


def reason_of(error: str) -> str:
    """Returns an error of llguidance without the state and the backtrace that follow it."""
    return _APPENDED.split(error)[0].strip()


@dataclass(frozen=True)
class Verdict:
    """What trying a grammar showed.

    Attributes:
        error: What llguidance reports as wrong with it, or None.
        refusal: Which bound it exceeds, and the remedy, or None.
        lasting: Whether another try would show the same.
    """

    error: str | None = None
    refusal: str | None = None
    lasting: bool = True


class _Child:
    """A process that tries grammars, one at a time."""

    def __init__(self) -> None:
        if not sys.executable:
            raise OSError("sys.executable is not set")
        settings = {
            "path": [str(Path(llguidance.__file__).parent.parent)],
            "limits": LIMITS,
            "stack_size": _CHILD_STACK_SIZE,
            "memory": _MEMORY,
            "seconds": _SECONDS,
        }
        script = Path(__file__).with_name("process.py")
        # Unbuffered: buffers have locks, which a fork may leave held.
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(script), json.dumps(settings)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.overran = False

    def ask(self, grammar: str) -> dict[str, Any] | None:
        """Returns the child's answer, or None where it ended without one."""
        timer = threading.Timer(_WALL_SECONDS, self._stop)
        timer.daemon = True
        timer.start()
        try:
            with suppress(OSError):
                self._send(json.dumps({"grammar": grammar}).encode() + b"\n")
                answer: dict[str, Any] | None = self._receive()
                return answer
            return None
        finally:
            timer.cancel()

    def _stop(self) -> None:
        self.overran = True
        self.process.kill()

    def _send(self, data: bytes) -> None:
        assert self.process.stdin is not None
        view = memoryview(data)
        while view:
            view = view[self.process.stdin.write(view) :]

    def _receive(self) -> Any:
        assert self.process.stdout is not None
        data = b""
        while not data.endswith(b"\n"):
            part = self.process.stdout.read(2**16)
            if not part:
                return None
            data += part
        return json.loads(data)

    def close(self, wait: float = 0.0) -> int:
        """Ends the process, after some seconds in which it may end by itself; returns its exit status."""
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(wait)
        self.process.kill()
        status = self.process.wait()
        self._close_pipes()
        return status

    def forget(self) -> None:
        """Lets go of a process that is the child of the process that this one was forked from."""
        self._close_pipes()
        # Popen would warn that it is still running.
        self.process.returncode = 0

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class GrammarChecker:
    """Tries grammars in child processes; may be used from many threads.

    A child is started when one is needed, kept for the next grammar, and ended with this process. Grammars that are
    tried at the same time have children of their own.
    """

    def __init__(self) -> None:
        self._reset()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._room = threading.Semaphore(_CHILDREN)
        self._children: set[_Child] = set()
        self._idle: _Child | None = None

    def _forget(self) -> None:
        children = self._children
        self._reset()
        for child in children:
            child.forget()

    def close(self) -> None:
        """Ends the children; the next grammar starts one again."""
        with self._lock:
            children, idle = self._children, self._idle
            self._children, self._idle = set(), None
        for child in children:
            if child is idle:
                child.close()
            else:
                # Whoever waits for its answer closes it.
                child.process.kill()

    def check(self, grammar: str) -> Verdict:
        """Returns what trying a grammar shows: compiling it, and the first steps in it."""
        with self._room:
            # A child may have been ended from outside, while it waited or now: then another one is asked.
            for attempt in range(2):
                try:
                    child = self._take()
                except OSError as error:
                    reason = f"the process that tries grammars first cannot be started ({error})"
                    return Verdict(refusal=f"{reason}; run Python where it may start processes", lasting=False)
                answer = child.ask(grammar)
                if answer is not None:
                    self._give_back(child)
                    return _judged(answer)
                status = child.close(0.0 if child.overran else 1.0)
                with self._lock:
                    self._children.discard(child)
                refusal = _refusal(status, child.overran)
                if refusal is not None or attempt:
                    break
        ended = f"the process that tries grammars first was ended from outside (exit status {status})"
        return Verdict(refusal=refusal or f"{ended}; try again", lasting=refusal is not None and not child.overran)

    def _take(self) -> _Child:
        with self._lock:
            child, self._idle = self._idle, None
            if child is None:
                child = _Child()
                self._children.add(child)
            return child

    def _give_back(self, child: _Child) -> None:
        with self._lock:
            if self._idle is None and child in self._children:
                self._idle = child
                return
            self._children.discard(child)
        child.close()


def _judged(answer: dict[str, Any]) -> Verdict:
    if answer["forced"] > _FORCED:
        return Verdict(
            refusal=f"it leaves no choice about its first {answer['forced']} bytes, more than {_FORCED}; "
            "use smaller numbers of repetitions and shorter constants"
        )
    return Verdict(error=answer["error"])


def _refusal(status: int, overran: bool) -> str | None:
    """What an exit status says of the grammar; None where it says nothing of it."""
    if overran:
        return f"that took more than {_WALL_SECONDS:g} s; {_SMALLER}, or try again when the machine is less busy"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        return None
    return next((text for names, text in _REFUSALS.items() if name in names), None)


checker = GrammarChecker()
"""The one of this process."""
