"""A continuation as callers give it, before any tokenizer is known."""

from __future__ import annotations

from collections.abc import Sequence

from gac_core.errors import RequestError, quote

Continuation = str | bytes | Sequence[bytes]
"""A text, or its union tokens."""


def encoded(text: object) -> bytes:
    """Returns a continuation in UTF-8.

    Raises:
        RequestError: It is no string, is empty, or contains a lone surrogate.
    """
    if not isinstance(text, str):
        raise RequestError(f"the continuation must be a string, not {quote(text)}")
    if not text:
        raise RequestError("the continuation is empty (''); give at least one character")
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RequestError(
            f"the continuation contains the lone surrogate {text[error.start]!r}, which is not a character; remove it"
        ) from None
