"""Checks in a child process whether a grammar can be compiled within limits of stack, memory and time.

llguidance recurses over rules, definitions and expressions without a limit. A long chain of them overflows the stack,
which ends the process, so that the first attempt is made in a child process.
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

# Settings of llguidance: its defaults, except that error messages do not list its state.
LIMITS = {"verbose_errors": False}
STACK_SIZE = 16 * 2**20
"""Bytes of stack of the threads that compile grammars and compute masks in this process."""

# Bytes of stack in the child: less than any thread of this process has.
_CHILD_STACK_SIZE = 2 * 2**20
# Limits of the child: bytes of memory, and seconds of processor time per grammar.
_MEMORY = 2**30
_SECONDS = 2.0
# Limit in elapsed seconds, for systems that do not measure processor time and for busy machines.
_WALL_SECONDS = 15.0
# Longest forced beginning of a text, in bytes: it is computed in one step.
_MAX_FORCED = 2**16
# Children that run at the same time.
_MAX_CHILDREN = 4
_APPENDED = re.compile("\n<(?:state|non-verbose|backtrace)")
_SMALLER = "make it smaller: fewer alternatives, smaller numbers of repetitions, or check the answer instead"
_REFUSALS = {
    ("SIGSEGV", "SIGBUS", "SIGILL"): "it is nested too deeply, or its rules or definitions form too long a chain of "
    "references; write it flatter, with hundreds of levels less",
    ("SIGPROF", "SIGXCPU"): f"that takes more than {_SECONDS:g} s of processor time; {_SMALLER}",
    ("SIGABRT",): f"that takes more than {_MEMORY / 2**30:g} GiB of memory; {_SMALLER}",
}


def reason_of(error: str) -> str:
    """Returns an error message of llguidance without the parser state and the backtrace that it may include."""
    return _APPENDED.split(error)[0].strip()


@dataclass(frozen=True)
class Verdict:
    """The result of checking a grammar.

    Attributes:
        error: The error message of llguidance, or None.
        refusal: The limit that the grammar exceeds and the remedy, or None.
        lasting: Whether another check would have the same result.
    """

    error: str | None = None
    refusal: str | None = None
    lasting: bool = True


class _Child:
    """A child process that checks grammars, one at a time."""

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
        # Unbuffered, because buffers have locks, and a lock that is held during a fork is never released in the child.
        self.process = subprocess.Popen(
            [sys.executable, "-I", str(script), json.dumps(settings)],
            bufsize=0,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.overran = False

    def check(self, grammar: str) -> dict[str, Any] | None:
        """Returns the child's reply, or None if the child ended without one."""
        timer = threading.Timer(_WALL_SECONDS, self._stop)
        timer.daemon = True
        timer.start()
        try:
            with suppress(OSError):
                self._send(json.dumps({"grammar": grammar}).encode() + b"\n")
                reply: dict[str, Any] | None = self._receive()
                return reply
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
        """Ends the process and returns its exit status.

        Args:
            wait: Seconds to wait for the process to end by itself. Default 0.
        """
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(wait)
        self.process.kill()
        status = self.process.wait()
        self._close_pipes()
        return status

    def detach(self) -> None:
        """Closes the pipes of a process that belongs to the parent of this process; the process goes on."""
        self._close_pipes()
        # Without an exit status, Popen would warn that the process is still running.
        self.process.returncode = 0

    def _close_pipes(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


class GrammarChecker:
    """Checks grammars in child processes. Thread-safe.

    A child is started when it is needed, kept for the next grammar, and ended when this process exits. Grammars that
    are checked at the same time use one child each.
    """

    def __init__(self) -> None:
        self._reset()
        atexit.register(self.close)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._detach)

    def _reset(self) -> None:
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(_MAX_CHILDREN)
        self._children: set[_Child] = set()
        self._idle: _Child | None = None

    def _detach(self) -> None:
        children = self._children
        self._reset()
        for child in children:
            child.detach()

    def close(self) -> None:
        """Ends all children; the next check starts a new one."""
        with self._lock:
            children, idle = self._children, self._idle
            self._children, self._idle = set(), None
        for child in children:
            if child is idle:
                child.close()
            else:
                # The thread that waits for its reply closes it.
                child.process.kill()

    def check(self, grammar: str) -> Verdict:
        """Compiles a grammar and takes a few steps in it, in a child process.

        Args:
            grammar: The grammar's source, as `Grammar.source`.
        """
        with self._slots:
            # A child may have been killed by another process; the check is then repeated once with a new child.
            for attempt in range(2):
                try:
                    child = self._take()
                except OSError as error:
                    reason = f"the child process that checks grammars cannot be started ({error})"
                    return Verdict(refusal=f"{reason}; run Python where it may start processes", lasting=False)
                reply = child.check(grammar)
                if reply is not None:
                    self._give_back(child)
                    return _verdict_of(reply)
                status = child.close(0.0 if child.overran else 1.0)
                with self._lock:
                    self._children.discard(child)
                refusal = _refusal(status, child.overran)
                if refusal is not None or attempt:
                    break
        ended = f"the child process that checks grammars was killed (exit status {status})"
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


def _verdict_of(reply: dict[str, Any]) -> Verdict:
    if reply["forced"] > _MAX_FORCED:
        return Verdict(
            refusal=f"it leaves no choice about its first {reply['forced']} bytes, more than {_MAX_FORCED}; "
            "use smaller numbers of repetitions and shorter constants"
        )
    return Verdict(error=reply["error"])


def _refusal(status: int, overran: bool) -> str | None:
    """Returns the refusal that an exit status indicates, or None if the grammar did not cause it."""
    if overran:
        return f"that took more than {_WALL_SECONDS:g} s; {_SMALLER}, or try again when the machine is less busy"
    try:
        name = signal.Signals(-status).name
    except ValueError:
        return None
    return next((text for names, text in _REFUSALS.items() if name in names), None)


checker = GrammarChecker()
"""The checker of this process."""
