"""Every error that GaC raises on purpose.

The tree::

    GaCError
    ├── ConfigError            a setting of the ensemble is wrong (also a ValueError)
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
    └── EngineClosedError      the ensemble was closed before the request was done

An error carries its object (``.member``, ``.value``), and its message names the member, the value and the remedy. This
module knows nothing of what raises them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GaCError(Exception):
    """Base of every error of this library."""


class ConfigError(GaCError, ValueError):
    """A setting of the ensemble or of a member is wrong."""


class ModelLoadError(GaCError):
    """A member's model or tokenizer could not be loaded.

    Args:
        member: Name or path of the model.
        reason: What went wrong and what to do about it.
    """

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"cannot load member {member!r}: {reason}")
        self.member = member


class RequestError(GaCError, ValueError):
    """What was asked for cannot be done; nothing was generated."""


class UnknownArgumentError(RequestError, TypeError):
    """An argument has a name that nothing here knows.

    Args:
        names: The unknown names.
        known: The names that would have been accepted.
    """

    def __init__(self, names: Iterable[str], known: Iterable[str]) -> None:
        known = sorted(known)
        self.names = sorted(names)
        hints = []
        for name in self.names:
            close = difflib.get_close_matches(name, known, n=1)
            hints.append(f"{name!r}" + (f" (did you mean {close[0]!r}?)" if close else ""))
        super().__init__(f"unknown argument {', '.join(hints)}; known are: {', '.join(known)}")


class EmptyPromptError(RequestError):
    """The prompt holds no token for some member."""


class PromptTooLongError(RequestError):
    """The prompt does not fit into a member's context. It is never cut.

    Args:
        member: Name of the member.
        prompt_tokens: Length of the prompt in this member's tokens.
        context: The longest text this member can read, in tokens.
    """

    def __init__(self, member: str, prompt_tokens: int, context: int) -> None:
        super().__init__(
            f"the prompt is {prompt_tokens} tokens long for member {member!r}, whose context holds {context}; "
            "shorten the prompt (fewer or smaller passages) or leave this member out"
        )
        self.member = member
        self.prompt_tokens = prompt_tokens
        self.context = context


class ChatTemplateError(RequestError):
    """A member cannot render the conversation.

    Args:
        member: Name of the member.
        reason: What its template said.
    """

    def __init__(self, member: str, reason: str) -> None:
        super().__init__(f"member {member!r} cannot render the conversation: {reason}")
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
        super().__init__(f"member {member!r} failed: {reason}")
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
            f"its vocabulary cannot write {value!r} (no byte tokens to fall back on); "
            "leave this member out or use one whose tokenizer has byte fallback",
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


class EngineClosedError(GaCError):
    """The ensemble is closed; load it anew."""
