"""The middleware that keeps web pages from using a server on this machine that asks for no key."""

from __future__ import annotations

from urllib.parse import urlsplit

from starlette.types import ASGIApp, Receive, Scope, Send

from gac_core.errors import quote
from gac_core.server.access.refusals import refuse
from gac_core.server.errors import ApiError
from gac_core.server.settings import ServerSettings, is_loopback


class HostCheck:
    """ASGI middleware that answers 403 to requests for a host that is not this machine.

    A page can make its own name resolve to 127.0.0.1 (DNS rebinding); the browser then takes the server for the page's
    own. Such requests have the page's name in the header ``Host``. They are refused if the server listens on a loopback
    address and asks for no key; a server with keys or on another address does not need this.

    Args:
        app: The application behind it.
        settings: Its ``host``, ``api_keys`` and ``allowed_hosts``, with or without ports.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self._hosts = {_name(host) for host in settings.allowed_hosts}
        self._active = is_loopback(settings.host) and not settings.api_keys and "*" not in self._hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        given = [value.decode("latin-1") for name, value in scope.get("headers", ()) if name == b"host"]
        if not self._active or scope["type"] != "http" or all(map(self._allows, given)):
            await self.app(scope, receive, send)
            return
        error = ApiError(
            403,
            "host_not_allowed",
            f"the header Host, {quote(', '.join(given))}, does not name this machine; use localhost or 127.0.0.1, or "
            "start the server with --allowed-host NAME or with API keys",
        )
        await refuse(scope, receive, send, error)

    def _allows(self, host: str) -> bool:
        name = _name(host)
        return name is not None and (is_loopback(name) or name in self._hosts)


def _name(host: str) -> str | None:
    """Returns the name in a header ``Host`` in lower case, without port and final dot; None where there is none."""
    try:
        name = urlsplit(f"//{host}").hostname
    except ValueError:
        return None
    return name and name.removesuffix(".")
