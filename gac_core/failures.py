"""Converts exceptions of models, tokenizers and requests into errors of this library, keeping ``__cause__``."""

from __future__ import annotations

from typing import TypeVar

from gac_core.errors import GaCError, MemberError, MemberLostError, MemberTimeoutError

E = TypeVar("E", bound=BaseException)

# How a request could have gone on.
_LOST = (
    '; Ensemble.health() says when it works again, and with on_member_failure="drop" requests go on without it while '
    "min_members others are left"
)


def caused(error: E, cause: BaseException) -> E:
    """Returns an error with its ``__cause__`` set, as ``raise error from cause`` would do."""
    error.__cause__ = cause
    return error


def request_failure(what: str, error: BaseException) -> GaCError:
    """Returns the error of one request whose processing raised; errors of this library are returned unchanged.

    Args:
        what: The stage that failed, for the message.
        error: The exception.
    """
    if isinstance(error, GaCError):
        return error
    return caused(GaCError(f"the request failed at {what} ({type(error).__name__}: {error})"), error)


def member_failure(member: str, error: BaseException, what: str = "") -> MemberError:
    """Returns the error of a member whose model, tokenizer or alignment raised, with a remedy if one is known.

    Args:
        member: Name of the member.
        error: The exception; a `MemberError` is returned unchanged, apart from that of a member as a whole, of which
            each request gets its own.
        what: The stage that failed, for the message. Default: a forward.
    """
    if isinstance(error, MemberError):
        return _own(member, error)
    reason = f"{what and what + ': '}{type(error).__name__}: {error}"
    if _is_out_of_memory(error):
        reason += "; use a smaller max_batch_size, prefill_tokens or context, another dtype or device, or quantization"
    return caused(MemberError(member, reason), error)


def _own(member: str, error: MemberError) -> MemberError:
    own: MemberError
    if isinstance(error, MemberTimeoutError):
        own = MemberTimeoutError(member, error.seconds)
    elif isinstance(error, MemberLostError):
        own = MemberLostError(member, error.reason.removesuffix(_LOST) + _LOST)
    else:
        return error
    own.__cause__ = error.__cause__
    return own


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    messages = ("out of memory", "can't allocate memory", "not enough memory")
    known = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    return known or any(message in text for message in messages)
