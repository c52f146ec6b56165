"""Every error that GaC raises on purpose.

The tree::

    GaCError
    ├── ConfigError            a setting of the ensemble is wrong (also a ValueError)
    │   └── UnknownSettingError  (also an UnknownArgumentError)
    ├── ModelLoadError         a member could not be loaded
    ├── RequestError           what was asked for cannot be done (also a ValueError)
    │   ├── UnknownArgumentError
    │   ├── EmptyPromptError
    │   ├── PromptTooLongError
    │   ├── ChatTemplateError
    │   └── GrammarError
    ├── MemberError            a member failed while it worked on a request
    │   ├── InvalidLogitsError
    │   └── UnwritableTextError
    ├── AnswerError            an answer is not what was asked for, for example cut short (also a ValueError)
    ├── QueueFullError         too many requests wait already
    ├── RequestTimeoutError    a request took longer than its ``timeout`` (also a TimeoutError)
    ├── EngineStuckError       a step of the engine does not return
    └── EngineClosedError      the ensemble was closed before the request was done

An error carries its object (``.member``, ``.value``), and its message names the member, the value and the remedy. The
error of a request carries the request's id (``.request_id``); ``__cause__`` is what a member raised.
Values are quoted by `quote`, which keeps messages short.
"""

from __future__ import annotations

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any

_MAX_NAMES = 20
_MAX_QUOTE = 160


class _Quoter(reprlib.Repr):
    """The limits of `quote`."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = 80

    def repr_int(self, x: Any, level: int) -> str:
        """Python refuses to write integers of more than a few thousand digits."""
        return repr(x) if x.bit_length() <= 128 else f"<an integer of {x.bit_length()} bits>"


_quoter = _Quoter()


def quote(value: object) -> str:
    """Returns a value as Python writes it, shortened to fit into an error message; never raises."""
    try:
        text = _quoter.repr(value)
    except Exception:
        text = f"<a {type(value).__name__}>"
    return shorten(text, _MAX_QUOTE)


def shorten(text: str, limit: int = 400) -> str:
    """Returns a text with its middle left out if it is longer than ``limit`` characters."""
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} ... {text[-(limit // 3) :]}"


def listed(names: Iterable[object]) -> str:
    """Returns names separated by commas, at most 20 of them, each shortened."""
    names = list(names)
    rest = [f"and {len(names) - _MAX_NAMES} more"] if len(names) > _MAX_NAMES else []
    return ", ".join([*(shorten(str(name), 60) for name in names[:_MAX_NAMES]), *rest])


class GaCError(Exception):
    """Base of every error of this library.

    Attributes:
        request_id: Id of the request that it ended; None where there was no request.
    """

    request_id: str | None = None


class ConfigError(GaCError, ValueError):
    """A setting of the ensemble or of a member is wrong."""


class ModelLoadError(GaCError):
    """A member's model or tokenizer could not be loaded.

    Args:
        member: Name or path of the model.
        reason: What went wrong and what to do about it.
    """

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"cannot load member {quote(member)}: {reason}")
        self.member = member


class RequestError(GaCError, ValueError):
    """What was asked for cannot be done; nothing was generated."""


class UnknownArgumentError(RequestError, TypeError):
    """An argument has a name that nothing here knows.

    Args:
        names: The unknown names.
        known: The names that would have been accepted.
    """

    def __init__(self, names: Iterable[object], known: Iterable[str]) -> None:
        known = sorted(known)
        self.names = sorted(name if isinstance(name, str) else quote(name) for name in names)
        hints = []
        for name in self.names[:_MAX_NAMES]:
            close = difflib.get_close_matches(name, known, n=1) if len(name) < 100 else []
            hints.append(quote(name) + (f" (did you mean {close[0]!r}?)" if close else ""))
        if len(self.names) > _MAX_NAMES:
            hints.append(f"and {len(self.names) - _MAX_NAMES} more")
        super().__init__(f"unknown argument {shorten(', '.join(hints), 800)}; known are: {', '.join(known)}")


class UnknownSettingError(ConfigError, UnknownArgumentError):
    """A setting of an ensemble or of a member has a name that does not exist."""


class EmptyPromptError(RequestError):
    """The prompt holds no token for some member."""


class PromptTooLongError(RequestError):
    """The prompt does not fit into a member's context. It is never cut.

    Args:
        member: Name of the member.
        prompt_tokens: Length of the prompt in this member's tokens; at least, where ``prompt_bytes`` is given.
        context: The longest text this member can read, in tokens.
        prompt_bytes: Length of the prompt in bytes, where it was refused for that alone. Default None.
    """

    def __init__(self, member: str, prompt_tokens: int, context: int, prompt_bytes: int | None = None) -> None:
        length = f"{prompt_tokens} tokens" if prompt_bytes is None else f"{prompt_bytes} bytes"
        least = "" if prompt_bytes is None else f", at least {prompt_tokens} tokens,"
        super().__init__(
            f"the prompt is {length} long{least} for member {quote(member)}, whose context holds {context}; "
            "shorten the prompt (fewer or smaller passages) or leave this member out"
        )
        self.member = member
        self.prompt_tokens = prompt_tokens
        self.prompt_bytes = prompt_bytes
        self.context = context


class ChatTemplateError(RequestError):
    """A member cannot render the conversation.

    Args:
        member: Name of the member.
        reason: What its template said.
    """

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"member {quote(member)} cannot render the conversation: {reason}")
        self.member = member


class GrammarError(RequestError):
    """A grammar cannot be compiled, or the members cannot write a text in it."""


class MemberError(GaCError):
    """A member failed while it worked on one request; other requests go on.

    Args:
        member: Name of the member.
        reason: What went wrong and what to do about it.
    """

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"member {quote(member)} failed: {reason}")
        self.member = member


class InvalidLogitsError(MemberError):
    """A member's logits are NaN, plus infinity, or minus infinity everywhere."""

    def __init__(self, member: str) -> None:
        super().__init__(
            member,
            "its logits are not finite (NaN, infinite, or nothing allowed); "
            "load it in a wider dtype (bfloat16 or float32) or check its weights",
        )


class UnwritableTextError(MemberError):
    """A member's vocabulary cannot spell the bytes that the ensemble chose.

    Args:
        member: Name of the member.
        value: The bytes.
    """

    def __init__(self, member: str, value: bytes) -> None:
        super().__init__(
            member,
            f"its vocabulary cannot write {quote(value)} (no byte tokens to fall back on); make another member the "
            "gate, leave this member out, or use one whose tokenizer has byte fallback",
        )
        self.value = value


class AnswerError(GaCError, ValueError):
    """An answer was generated and is not what was asked for, for example JSON that was cut short.

    Args:
        what: What is wrong with it and what to do about it.
        text: The answer as far as it was written.
    """

    def __init__(self, what: str, text: str) -> None:
        super().__init__(what)
        self.text = text


class QueueFullError(GaCError):
    """As many requests as are allowed run or wait already; nothing was generated.

    Args:
        limit: How many are allowed.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} requests run or wait already; try again later, or raise max_queue or max_batch_size of the "
            "ensemble's configuration"
        )
        self.limit = limit


class RequestTimeoutError(GaCError, TimeoutError):
    """A request took longer than its ``timeout``; it was given up.

    Args:
        seconds: How long it has taken.
        timeout: How long it was allowed to take.
        tokens: How many tokens were written.
        member: Name of the member whose forward was running; None if there was none.
    """

    def __init__(self, seconds: float, timeout: float, tokens: int, member: str | None) -> None:
        running = "" if member is None else f"; the forward of member {quote(member)} is running"
        super().__init__(
            f"the request was given up after {seconds:.2f} s (timeout={timeout:g}), {tokens} tokens were written"
            f"{running}; raise timeout, or ask for fewer max_tokens"
        )
        self.seconds = seconds
        self.timeout = timeout
        self.tokens = tokens
        self.member = member


class EngineStuckError(GaCError):
    """A step of the engine has been running for longer than ``stuck_after``; nothing was generated.

    Args:
        member: Name of the member whose forward does not return; None if it is not a forward.
        seconds: How long it has been running.
    """

    def __init__(self, member: str | None, seconds: float) -> None:
        place = "a step of the engine" if member is None else f"the forward of member {quote(member)}"
        super().__init__(
            f"{place} has been running for {seconds:.0f} s; new requests are refused until it returns. Check its "
            "device, or load the ensemble in a new process; raise stuck_after if steps may take that long"
        )
        self.member = member
        self.seconds = seconds


class EngineClosedError(GaCError):
    """The ensemble is closed; load it anew."""
