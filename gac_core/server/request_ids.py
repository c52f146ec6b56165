"""Ids of requests, which responses, errors, log records and traces have in common."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

HEADER = "x-request-id"
MAX_CHARS = 128


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Returns the id of a request.

    Args:
        headers: Those of the request, names in lower case.

    Returns:
        The header ``x-request-id`` if there is one, of 1 to 128 printable ASCII characters without spaces at its ends;
        else a new id. Other values are replaced and not refused, since proxies set this header.
    """
    given = [value for name, value in headers if name == HEADER.encode()]
    if len(given) == 1 and _is_acceptable(given[0]):
        return given[0].decode("ascii")
    return f"req-{uuid.uuid4().hex}"


def _is_acceptable(value: bytes) -> bool:
    return 0 < len(value) <= MAX_CHARS and all(0x20 <= byte < 0x7F for byte in value) and value == value.strip()
