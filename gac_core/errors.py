"""The exceptions of this library.

Every exception raised on purpose is a `GaCError`::

    GaCError
    ├── ConfigError              a setting of the ensemble or of a member is invalid (also a ValueError)
    │   ├── PlacementError         a member does not fit on the devices
    │   └── UnknownSettingError    a setting does not exist (also an UnknownArgumentError)
    ├── ModelLoadError           a model or tokenizer cannot be loaded
    ├── RequestError             a request is invalid; nothing was generated (also a ValueError)
    │   ├── UnknownArgumentError   an argument does not exist (also a TypeError)
    │   ├── EmptyPromptError       the prompt has no tokens
    │   ├── PromptTooLongError     the prompt exceeds a member's context
    │   ├── ImageError             an image is invalid, or no member that takes part reads images
    │   ├── ChatTemplateError      a member's chat template cannot render the conversation
    │   └── GrammarError           a grammar cannot be compiled or followed
    ├── MemberError              a member failed while running a request
    │   ├── InvalidLogitsError     its logits are not finite
    │   ├── MemberTimeoutError     its forward exceeded ``forward_timeout`` (also a TimeoutError)
    │   ├── MemberLostError        it is gone, for example with its process or node
    │   └── UnwritableTextError    its vocabulary lacks bytes of the chosen token
    ├── AnswerError              the answer lacks the requested form, for example truncated JSON (also a ValueError)
    ├── QueueFullError           too many requests are running or waiting
    ├── RequestTimeoutError      a request exceeded its ``timeout`` (also a TimeoutError)
    ├── EngineStuckError         a step of the engine has been running for too long
    └── EngineClosedError        the ensemble is closed

Messages name the field or member, the value and a remedy; the same facts are attributes (``member``, ``value``, ...).
``request_id`` is the id of the failed request, and ``__cause__`` the original exception of a member. Values in messages
are formatted by `quote`, which limits their length.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from gac_core.quoting import MAX_NAMES
from gac_core.quoting import listed as listed
from gac_core.quoting import quote as quote
from gac_core.quoting import shorten as shorten


class GaCError(Exception):
    """Base class of all exceptions of this library.

    Attributes:
        request_id: Id of the request that failed; None outside a request.
    """

    request_id: str | None = None


class ConfigError(GaCError, ValueError):
    """A setting of the ensemble or of a member is invalid."""


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
    """A request is invalid; nothing was generated."""


class UnknownArgumentError(RequestError, TypeError):
    """Unknown keyword argument.

    Args:
        names: The unknown names.
        known: The accepted names, from which a suggestion is made.
        kind: What the names are, for the message. Default ``"argument"``.
        remedy: What to do instead, appended to the message. Default: nothing.

    Attributes:
        names: The unknown names, sorted.
    """

    def __init__(self, names: Iterable[object], known: Iterable[str], kind: str = "argument", remedy: str = "") -> None:
        known = sorted(known)
        self.names = sorted(name if isinstance(name, str) else quote(name) for name in names)
        hints = []
        for name in self.names[:MAX_NAMES]:
            close = difflib.get_close_matches(name, known, n=1) if len(name) < 100 else []
            hints.append(quote(name) + (f" (did you mean {close[0]!r}?)" if close else ""))
        if len(self.names) > MAX_NAMES:
            hints.append(f"and {len(self.names) - MAX_NAMES} more")
        unknown = shorten(", ".join(hints), 800)
        super().__init__(f"unknown {kind} {unknown}; expected one of: {', '.join(known)}{remedy and '; ' + remedy}")


class UnknownSettingError(ConfigError, UnknownArgumentError):
    """Unknown setting of an ensemble or of a member."""


class EmptyPromptError(RequestError):
    """The prompt has no tokens for a member."""


class PromptTooLongError(RequestError):
    """The prompt does not fit into a member's context. Prompts are never truncated.

    Args:
        member: Name of the member.
        prompt_tokens: Length of the prompt in this member's tokens; a lower bound if ``prompt_bytes`` is given.
        context: The member's context, in tokens.
        prompt_bytes: Length of the prompt in bytes if it was refused before it was encoded. Default None.
        document: Id of the document that it contains, where each is read in a voice of its own. Default None.
    """

    def __init__(
        self,
        member: str,
        prompt_tokens: int,
        context: int,
        prompt_bytes: int | None = None,
        document: str | None = None,
    ) -> None:
        length = f"{prompt_tokens} tokens" if prompt_bytes is None else f"{prompt_bytes} bytes"
        least = "" if prompt_bytes is None else f", at least {prompt_tokens} tokens,"
        what = "the prompt" if document is None else f"the prompt with document {quote(document)}"
        smaller = "(fewer or smaller passages)" if document is None else "or this document"
        super().__init__(
            f"{what} is {length} long{least} for member {quote(member)}, whose context holds {context} tokens; "
            f"shorten the prompt {smaller} or leave this member out"
        )
        self.member, self.context, self.document = member, context, document
        self.prompt_tokens, self.prompt_bytes = prompt_tokens, prompt_bytes

    def with_document(self, document: str) -> PromptTooLongError:
        """Returns this error with the id of the document that the prompt contains."""
        return PromptTooLongError(self.member, self.prompt_tokens, self.context, self.prompt_bytes, document)


class ImageError(RequestError):
    """An image is invalid, or no member that takes part in the request reads images."""


class ChatTemplateError(RequestError):
    """A member's chat template cannot render the conversation.

    Args:
        member: Name of the member.
        reason: Why the template failed.
    """

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"member {quote(member)} cannot render the conversation: {reason}")
        self.member = member


class GrammarError(RequestError):
    """A grammar cannot be compiled, or the members cannot generate a text that it allows."""


class MemberError(GaCError):
    """A member failed while running one request; other requests continue.

    Args:
        member: Name of the member.
        reason: What went wrong and what to do about it.
    """

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"member {quote(member)} failed: {reason}")
        self.member = member
        self.reason = reason


class InvalidLogitsError(MemberError):
    """A member's logits contain NaN or plus infinity, or are minus infinity everywhere."""

    def __init__(self, member: str) -> None:
        super().__init__(
            member,
            "its logits are not finite (NaN, plus infinity, or minus infinity everywhere); "
            "load it in a wider dtype (bfloat16 or float32) or check its weights",
        )


class MemberTimeoutError(MemberError, TimeoutError):
    """A member's forward exceeded ``forward_timeout``; requests that need the member fail until it has returned.

    Args:
        member: Name of the member.
        seconds: How long the forward has been running.
    """

    def __init__(self, member: str, seconds: float) -> None:
        super().__init__(
            member,
            f"its forward has been running for {seconds:.3g} s and has not returned; check its device, or raise "
            'forward_timeout if forwards may take that long; with on_member_failure="drop" requests go on without it '
            "while min_members others are left",
        )
        self.seconds = seconds


class MemberLostError(MemberError):
    """A member is gone: its process died or its node is not reachable. ``reason`` says which, as in `MemberError`."""


class UnwritableTextError(MemberError):
    """A member's vocabulary cannot encode the bytes that the ensemble chose.

    Args:
        member: Name of the member.
        value: The bytes.
    """

    def __init__(self, member: str, value: bytes) -> None:
        super().__init__(
            member,
            f"its vocabulary cannot encode {quote(value)} (it has no byte fallback); make another member the gate, "
            "leave this member out, or use a model whose tokenizer has byte fallback",
        )
        self.value = value


class AnswerError(GaCError, ValueError):
    """An answer was generated but does not have the requested form, for example truncated JSON.

    Args:
        what: What is wrong and what to do about it.
        text: The text that was generated.
    """

    def __init__(self, what: str, text: str) -> None:
        super().__init__(what)
        self.text = text


class QueueFullError(GaCError):
    """The maximum number of requests is running or waiting; nothing was generated.

    Args:
        limit: That maximum.
    """

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} requests are running or waiting; try again later, or raise max_queue or max_batch_size in the "
            "ensemble's configuration"
        )
        self.limit = limit


class RequestTimeoutError(GaCError, TimeoutError):
    """A request exceeded its ``timeout`` and was cancelled.

    Args:
        seconds: Time since the call.
        timeout: The limit, in seconds.
        tokens: Number of tokens generated.
        member: Name of the member whose forward is running; None if none is.
    """

    def __init__(self, seconds: float, timeout: float, tokens: int, member: str | None) -> None:
        running = "" if member is None else f"; the forward of member {quote(member)} is running"
        super().__init__(
            f"the request was cancelled after {seconds:.2f} s (timeout={timeout:g}) with {tokens} tokens generated"
            f"{running}; raise timeout, or lower max_tokens"
        )
        self.seconds, self.timeout = seconds, timeout
        self.tokens, self.member = tokens, member


class EngineStuckError(GaCError):
    """A step of the engine has been running for longer than ``stuck_after``; nothing was generated.

    Args:
        member: Name of the member whose forward is running; None if none is.
        seconds: Duration of the step so far.
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
    """The ensemble is closed, or was closed before the request finished."""
