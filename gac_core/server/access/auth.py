"""API keys: where they come from, and the middleware that asks for them."""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from gac_core.errors import ConfigError, quote
from gac_core.server.access.refusals import refuse
from gac_core.server.errors import ApiError
from gac_core.server.settings import ServerSettings

logger = logging.getLogger(__name__)

KEYS_VARIABLE = "GAC_API_KEYS"
OPEN_PATHS = frozenset({"/health", "/ready", "/metrics"})
"""Routes for probes and monitoring, which need no key and answer while the server drains."""
MIN_CHARS = 16
"""Shorter keys are accepted with a warning."""


def digest(key: str) -> str:
    """Returns the SHA-256 digest of a key in hexadecimal, which `ServerSettings` holds."""
    return hashlib.sha256(key.encode()).hexdigest()


def read_keys(path: str | Path | None, environment: Mapping[str, str] = os.environ) -> tuple[str, ...]:
    """Returns the digests of all keys, without duplicates.

    Args:
        path: A file with one key per line; empty lines and lines that begin with ``#`` are skipped. None: no file.
        environment: Where ``GAC_API_KEYS``, keys separated by commas, is looked up. Default: that of the process.

    Raises:
        ConfigError: The file cannot be read or has no keys, or a key cannot be sent in a header.
    """
    keys: list[str] = []
    if path is not None:
        keys += _keys_of_file(Path(path))
    if KEYS_VARIABLE in environment:
        found = [key.strip() for key in environment[KEYS_VARIABLE].split(",") if key.strip()]
        if not found:
            raise ConfigError(
                f"the environment variable {KEYS_VARIABLE} has no keys; set it to KEY,KEY,... or unset it"
            )
        keys += _checked(found, f"the environment variable {KEYS_VARIABLE}")
    return tuple(dict.fromkeys(digest(key) for key in keys))


def _keys_of_file(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise ConfigError(f"cannot read the API keys in {quote(str(path))}: {reason}; check --api-keys") from None
    lines = [line.strip() for line in text.splitlines()]
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"the file of API keys {quote(str(path))} has no keys; write one per line")
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("other users can read the API keys in %s; run: chmod 600 %s", path, path)
    return _checked(keys, f"the file {quote(str(path))}")


def _checked(keys: list[str], place: str) -> list[str]:
    """Returns the keys; messages have their number, never the keys."""
    for number, key in enumerate(keys, 1):
        if not all("!" <= char <= "~" for char in key):
            raise ConfigError(
                f"API key {number} of {place} must be printable ASCII without spaces; make one with: "
                "openssl rand -hex 32"
            )
        if len(key) < MIN_CHARS:
            logger.warning(
                "API key %d of %s has fewer than %d characters and can be guessed; make one with: openssl rand -hex 32",
                number,
                place,
                MIN_CHARS,
            )
    return keys


class Authentication:
    """ASGI middleware that answers 401 to requests without an accepted key, ``Authorization: Bearer KEY``.

    Args:
        app: The application behind it.
        settings: Its ``api_keys``; without any, every request passes.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self._digests = tuple(key.encode() for key in settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if not self._digests or scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, key = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        if scheme.lower() == b"bearer" and self._accepts(key.strip()):
            await self.app(scope, receive, send)
            return
        message = "the API key is wrong" if key else "no API key was given"
        error = ApiError(
            401,
            "invalid_api_key",
            f"{message}; send the header Authorization: Bearer KEY with a key of this server",
            headers={"WWW-Authenticate": "Bearer"},
        )
        await refuse(scope, receive, send, error)

    def _accepts(self, key: bytes) -> bool:
        """Compares with all keys, in a time that depends on none of them."""
        candidate = hashlib.sha256(key).hexdigest().encode()
        matches = [hmac.compare_digest(candidate, known) for known in self._digests]
        return any(matches)
