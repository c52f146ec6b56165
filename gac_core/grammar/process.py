"""Tries grammars out in a process of its own, which they may crash, exhaust or occupy for too long.

Run by path, isolated (``python -I``), with the settings as JSON; imports nothing of this package and no torch. Reads
one JSON text a line, ``{"grammar": ...}``, and answers each with ``{"error": ..., "forced": ...}``. Ends with its
input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

# Tokens that are tried after the beginning, which meets the code that runs while a text is written.
_STEPS = 6


class _Bytes:
    """Single bytes as a tokenizer: what a grammar needs in time and stack hardly depends on the vocabulary."""

    bos_token_id = None
    eos_token_id = 256
    special_token_ids = (256,)
    tokens = (*(bytes([value]) for value in range(256)), b"\xff<end>")

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _restrict(settings: dict[str, Any]) -> None:
    """Bounds memory, writes no core files, and leaves interrupts to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource
    except ImportError:
        return
    for kind, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, settings["memory"])):
        # Not every system knows every limit, and a lower one may be in force.
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _allow(seconds: float) -> None:
    """Has the system end this process after some processor time; 0 takes that back."""
    if hasattr(signal, "setitimer"):
        signal.setitimer(signal.ITIMER_PROF, seconds)


def _try(llguidance: Any, tokenizer: Any, limits: Any, grammar: str) -> dict[str, Any]:
    """Compiles a grammar and takes a few steps in it."""
    matcher = llguidance.LLMatcher(tokenizer, grammar, log_level=0, limits=limits)
    forced = b"" if matcher.is_error() else matcher.compute_ff_bytes()
    if not matcher.is_error():
        matcher.compute_bitmask()
    answer = {"error": matcher.get_error()[:4000] if matcher.is_error() else None, "forced": len(forced)}
    if not matcher.is_error():
        matcher.try_consume_tokens(list(forced))
    for step in range(_STEPS):
        if matcher.is_error() or matcher.is_stopped():
            break
        words = matcher.compute_bitmask()
        allowed = [token for token in range(256) if words[token >> 3] >> (token & 7) & 1]
        if not allowed or not matcher.try_consume_tokens([allowed[-step % len(allowed)]]):
            break
        matcher.compute_ff_bytes()
    return answer


def _serve(settings: dict[str, Any]) -> None:
    sys.path += [path for path in settings["path"] if path not in sys.path]
    import llguidance

    tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(_Bytes()), slices=[])
    limits = llguidance.LLParserLimits(**settings["limits"])
    for line in sys.stdin.buffer:
        _allow(settings["seconds"])
        try:
            answer = _try(llguidance, tokenizer, limits, json.loads(line)["grammar"])
        except MemoryError:
            # As where llguidance runs out of memory.
            os.abort()
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:4000], "forced": 0}
        _allow(0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def main() -> None:
    """Serves until the input ends."""
    settings = json.loads(sys.argv[1])
    _restrict(settings)
    # A smaller stack than the parent's: what fits into it fits there.
    threading.stack_size(settings["stack_size"])
    thread = threading.Thread(target=_serve, args=(settings,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
