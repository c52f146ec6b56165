"""What members and requests raise while they run, as errors of this library that keep the cause.

Pure functions on exceptions.
"""

from __future__ import annotations

from typing import TypeVar

from gac_core.errors import GaCError, MemberError

E = TypeVar("E", bound=BaseException)


def caused(error: E, cause: BaseException) -> E:
    """Returns an error with what caused it, as ``raise error from cause`` would."""
    error.__cause__ = cause
    return error


def request_failure(what: str, error: BaseException) -> GaCError:
    """Returns the error of one request where its own processing raised; errors of this library stay as they are.

    Args:
        what: What was done.
        error: What was raised.
    """
    if isinstance(error, GaCError):
        return error
    return caused(GaCError(f"the request failed at {what} ({type(error).__name__}: {error})"), error)


def member_failure(member: str, error: BaseException, what: str = "") -> MemberError:
    """Returns the error of a member whose model, tokenizer or alignment raised another one, with a remedy if known.

    Args:
        member: Name of the member.
        error: What was raised.
        what: What it did when it failed; default: a forward.
    """
    if isinstance(error, MemberError):
        return error
    said = f"{what and what + ': '}{type(error).__name__}: {error}"
    if _is_out_of_memory(error):
        said += "; use a smaller max_batch_size, prefill_tokens or context, another dtype or device, or quantization"
    return caused(MemberError(member, said), error)


def _is_out_of_memory(error: BaseException) -> bool:
    text = str(error).lower()
    said = "out of memory" in text or "can't allocate memory" in text or "not enough memory" in text
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or said
