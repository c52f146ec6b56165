"""`protect`: adds the middlewares that refuse requests before a route sees them."""

from __future__ import annotations

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

from gac_core.server.access.auth import Authentication
from gac_core.server.access.drain import Drain, RefuseWhileDraining
from gac_core.server.access.hosts import HostCheck
from gac_core.server.access.limits import BodyLimit
from gac_core.server.request_ids import HEADER
from gac_core.server.settings import ServerSettings


def protect(app: FastAPI, settings: ServerSettings, drain: Drain) -> None:
    """Adds the middlewares for hosts, keys, bodies, draining and, with origins, CORS.

    The middleware that makes records of requests is added after them, so that it sees what they refuse.

    Args:
        app: The application.
        settings: Hosts, keys, limits and origins.
        drain: Whether the server is about to end.
    """
    # The last one that is added is the outermost.
    app.add_middleware(BodyLimit, settings=settings)
    app.add_middleware(Authentication, settings=settings)
    app.add_middleware(HostCheck, settings=settings)
    app.add_middleware(RefuseWhileDraining, drain=drain)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=[HEADER, "retry-after"],
            allow_credentials=False,
        )
