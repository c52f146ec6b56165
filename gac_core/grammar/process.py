"""The child process of `checker`, which a grammar may crash, exhaust or occupy for too long.

Run by path, isolated (``python -I``), with the settings as a JSON argument; imports neither this package nor torch.
Reads one JSON object per line, ``{"grammar": ...}``, and replies to each with ``{"error": ..., "forced": ...}``. Ends
at the end of its input.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from contextlib import suppress
from typing import Any

# Tokens consumed after the beginning, which runs the code that is needed during generation.
_STEPS = 6


class _Bytes:
    """A tokenizer of single bytes: the vocabulary hardly affects the time and stack that a grammar needs."""

    bos_token_id = None
    eos_token_id = 256
    special_token_ids = (256,)
    tokens = (*(bytes([value]) for value in range(256)), b"\xff<end>")

    def __call__(self, text: bytes | str) -> list[int]:
        return list(text.encode() if isinstance(text, str) else text)


def _restrict(settings: dict[str, Any]) -> None:
    """Limits memory, disables core files, and ignores interrupts, which the parent handles."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        import resource
    except ImportError:
        return
    for kind, value in ((resource.RLIMIT_CORE, 0), (resource.RLIMIT_AS, settings["memory"])):
        # Not every system supports every limit, and a lower limit may be in force.
        with suppress(OSError, ValueError):
            resource.setrlimit(kind, (value, resource.getrlimit(kind)[1]))


def _limit_time(seconds: float) -> None:
    """Lets the system end this process after this much processor time; 0 removes the limit."""
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
        _limit_time(settings["seconds"])
        try:
            answer = _try(llguidance, tokenizer, limits, json.loads(line)["grammar"])
        except MemoryError:
            # The same exit status as when llguidance itself runs out of memory.
            os.abort()
        except BaseException as error:
            answer = {"error": f"{type(error).__name__}: {error}"[:4000], "forced": 0}
        _limit_time(0)
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()


def main() -> None:
    """Checks grammars until the end of the input."""
    settings = json.loads(sys.argv[1])
    _restrict(settings)
    # A smaller stack than in the parent: a grammar that fits here fits there.
    threading.stack_size(settings["stack_size"])
    thread = threading.Thread(target=_serve, args=(settings,))
    thread.start()
    thread.join()


if __name__ == "__main__":
    main()
