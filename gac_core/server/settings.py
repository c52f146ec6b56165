"""`ServerSettings`: address, keys, limits and logs of a server."""

from __future__ import annotations

import ipaddress
import re
import threading
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from gac_core.checks import check_flag, check_int, check_list, check_number, check_option, check_text
from gac_core.errors import ConfigError, quote
from gac_core.voices import MAX_VOICES

LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class ServerSettings:
    """How a server listens, whom it answers, and its limits.

    Attributes:
        host: Address or name to bind to. Default 127.0.0.1, which other machines cannot reach. Any other than a
            loopback address needs ``api_keys`` or ``allow_unauthenticated``.
        port: TCP port, 0 to 65535; 0 takes a free one. Default 8000.
        api_keys: SHA-256 digests of the accepted keys in hexadecimal (`gac_core.server.access.auth.digest`), never the
            keys themselves. Empty (default): no key is needed.
        allow_unauthenticated: Whether an address that is not loopback may be bound to without keys. Default False.
        max_body_bytes: Largest body of a request, in bytes. Default 4 MiB.
        body_timeout: Seconds from the head of a request to the last byte of its body, 600 at most. Default 60.
        max_tokens: Largest ``max_tokens`` of a request, and the default of a request that has none. None (default):
            what is left of the context; 4096 where there is no context limit.
        max_choices: Largest ``n`` of a request, 1 to 128. Default 16.
        max_documents: Most documents of a request, 1 to 1024; each member reads every one of them in a row of its own,
            and so does every one of ``n`` answers. Default 64.
        request_timeout: Largest ``timeout`` of a request in seconds, and the default of a request that has none. None:
            no limit. Default 600.
        drain_timeout: Seconds that requests may go on after SIGTERM or SIGINT. What is left then ends with an error.
            Default 30.
        temperature: That of requests that have none, 0 or more. Default 1, as in the protocol.
        log_prompts: Whether prompts and answers are logged and traced. Default False.
        log_level: Least severe level that is logged: ``"debug"``, ``"info"`` (default), ``"warning"``, ``"error"`` or
            ``"critical"``.
        cors_origins: Origins, such as ``"https://chat.example.org"``, whose pages may call the server; ``"*"`` is every
            one. Empty (default): none, and no CORS header is sent.
        allowed_hosts: Names that the header ``Host`` may have besides ``localhost`` and loopback addresses, where the
            server listens on a loopback address without keys; ``"*"`` is every one. For proxies on the same
            machine that pass the header on. Empty (default): no others.
        otlp_endpoint: URL of an OpenTelemetry collector (gRPC) that receives traces, such as
            ``"http://127.0.0.1:4317"``; needs the extra ``otel``. None (default): no traces.
        ping_seconds: Seconds of silence after which a comment is sent in a stream, which keeps proxies from closing it.
            Default 15.
        send_timeout: Seconds after which a client that takes nothing of a stream is disconnected. Default 30.

    Raises:
        ConfigError: A value is out of its range, or the address needs keys.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_keys: tuple[str, ...] = field(default=(), repr=False)
    allow_unauthenticated: bool = False
    max_body_bytes: int = 4 * 2**20
    body_timeout: float = 60.0
    max_tokens: int | None = None
    max_choices: int = 16
    max_documents: int = 64
    request_timeout: float | None = 600.0
    drain_timeout: float = 30.0
    temperature: float = 1.0
    log_prompts: bool = False
    log_level: str = "info"
    cors_origins: tuple[str, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    otlp_endpoint: str | None = None
    ping_seconds: float = 15.0
    send_timeout: float = 30.0

    def __post_init__(self) -> None:
        self._set("host", check_text(ConfigError, "host", self.host))
        self._set("port", check_int(ConfigError, "port", self.port, 0, 65535))
        self._check_keys()
        self._check_limits()
        check_flag(ConfigError, "log_prompts", self.log_prompts)
        self._set("log_level", check_option(ConfigError, "log_level", self.log_level, LOG_LEVELS))
        origins = check_list(ConfigError, "cors_origins", self.cors_origins, "origins")
        self._set("cors_origins", tuple(_checked_origin(origin) for origin in origins))
        hosts = check_list(ConfigError, "allowed_hosts", self.allowed_hosts, "names")
        self._set("allowed_hosts", tuple(check_text(ConfigError, "each of allowed_hosts", host) for host in hosts))
        if self.otlp_endpoint is not None:
            self._set("otlp_endpoint", _checked_url("otlp_endpoint", self.otlp_endpoint, "http://127.0.0.1:4317"))

    def _check_keys(self) -> None:
        keys = check_list(ConfigError, "api_keys", self.api_keys, "SHA-256 digests")
        if not all(isinstance(key, str) and DIGEST.fullmatch(key) for key in keys):
            # The value is left out: it may be a key.
            raise ConfigError(
                "api_keys must be SHA-256 digests of 64 hexadecimal digits in lower case, not keys; "
                "gac_core.server.access.auth.digest makes them"
            )
        self._set("api_keys", tuple(keys))
        check_flag(ConfigError, "allow_unauthenticated", self.allow_unauthenticated)
        if not (self.api_keys or self.allow_unauthenticated or is_loopback(self.host)):
            raise ConfigError(
                f"host={quote(self.host)} can be reached from other machines, and there are no API keys; give keys "
                "(--api-keys FILE or GAC_API_KEYS), bind to 127.0.0.1, or allow every client (--allow-unauthenticated)"
            )

    def _check_limits(self) -> None:
        self._set("max_body_bytes", check_int(ConfigError, "max_body_bytes", self.max_body_bytes, 1))
        if self.max_tokens is not None:
            self._set("max_tokens", check_int(ConfigError, "max_tokens", self.max_tokens, 1))
        self._set("max_choices", check_int(ConfigError, "max_choices", self.max_choices, 1, 128))
        self._set("max_documents", check_int(ConfigError, "max_documents", self.max_documents, 1, MAX_VOICES))
        if self.request_timeout is not None:
            self._set("request_timeout", _seconds("request_timeout", self.request_timeout))
        for name in ("ping_seconds", "send_timeout"):
            self._set(name, _seconds(name, getattr(self, name)))
        self._set("body_timeout", check_number(ConfigError, "body_timeout", self.body_timeout, 0, 600, low_open=True))
        drain = check_number(ConfigError, "drain_timeout", self.drain_timeout, 0, threading.TIMEOUT_MAX)
        self._set("drain_timeout", drain)
        self._set("temperature", check_number(ConfigError, "temperature", self.temperature, 0))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def is_loopback(host: str) -> bool:
    """Returns whether only this machine can reach an address; names other than ``localhost`` count as reachable."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _seconds(name: str, value: object) -> float:
    return check_number(ConfigError, name, value, 0, threading.TIMEOUT_MAX, low_open=True)


def _checked_origin(origin: object) -> str:
    """Returns an origin: scheme, host and perhaps a port, as browsers send it."""
    text = check_text(ConfigError, "each of cors_origins", origin)
    if text == "*":
        return text
    text = _checked_url("each of cors_origins", text, "https://chat.example.org")
    url = urlsplit(text)
    if f"{url.scheme}://{url.netloc}" != text or url.username is not None:
        raise ConfigError(
            f"each of cors_origins must be scheme, host and port alone, such as 'https://chat.example.org', without a "
            f"path or a slash at the end, not {quote(text)}"
        )
    return text


def _checked_url(name: str, value: object, example: str) -> str:
    text = check_text(ConfigError, name, value)
    try:
        url = urlsplit(text)
        usable = url.scheme in ("http", "https") and bool(url.hostname) and url.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ConfigError(f"{name} must be a URL such as {example!r}, not {quote(text)}")
    return text
