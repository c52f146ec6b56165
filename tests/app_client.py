"""Clients of the server's application in this process, without a socket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from gac_core import Ensemble
from gac_core.server.app import create_app
from gac_core.server.catalog import Catalog
from gac_core.server.record import Observer, RequestRecord
from gac_core.server.settings import ServerSettings

PROMPT = "In which town is the Velgin Bridge?"
CHAT = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3, "temperature": 0}
KEYS = ("first-key-of-the-server", "second-key-of-the-server")


class AppClient(httpx.AsyncClient):
    """A client of one application.

    Args:
        ensemble: Served as ``gac``.
        observers: Called with records, after ``records``.
        **settings: Fields of `ServerSettings`.
    """

    def __init__(self, ensemble: Ensemble, observers: Sequence[Observer] = (), **settings: Any) -> None:
        self.records: list[RequestRecord] = []
        self.app = create_app(Catalog({"gac": ensemble}), ServerSettings(**settings), [self.records.append, *observers])
        super().__init__(transport=httpx.ASGITransport(self.app), base_url="http://localhost")


def assert_error(response: httpx.Response, status: int, code: str) -> None:
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert error["message"]
    assert error["request_id"] == response.headers["x-request-id"]
