"""`create_app`: the server as an ASGI application."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from sse_starlette.sse import AppStatus
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gac_core.server.access.drain import Drain
from gac_core.server.access.protection import protect
from gac_core.server.catalog import Catalog
from gac_core.server.errors import ApiError, as_api_error, error_response
from gac_core.server.openapi import openapi_document
from gac_core.server.record import Observer, RecordMiddleware
from gac_core.server.routes.generation import generation_router
from gac_core.server.routes.health import health_router
from gac_core.server.routes.metrics import metrics_router
from gac_core.server.routes.models import models_router
from gac_core.server.routes.routing_errors import routing_error
from gac_core.server.routes.tokens import tokens_router
from gac_core.server.routes.warming import warm_router
from gac_core.server.settings import ServerSettings
from gac_core.server.telemetry.metrics import ServerMetrics

THREADS = 64
"""Most requests whose prompts are encoded and grammars are compiled at once."""


def create_app(catalog: Catalog, settings: ServerSettings, observers: Sequence[Observer] = ()) -> FastAPI:
    """Returns the server.

    Args:
        catalog: The models; whoever loaded the ensembles closes them.
        settings: The settings.
        observers: Called with the record of each request at its end.
    """
    # Streams that run are ended by the drain timeout, not by the signal.
    AppStatus.enable_automatic_graceful_drain = False
    drain, metrics = Drain(), ServerMetrics(catalog)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        # Prompts are encoded and grammars are compiled in threads that mostly wait; the default has few of them.
        loop, threads = asyncio.get_running_loop(), ThreadPoolExecutor(THREADS, "gac-http")
        loop.set_default_executor(threads)
        yield
        metrics.close()
        # asyncio waits 5 minutes for the threads of its executor: a thread that hangs is not waited for.
        threads.shutdown(wait=False, cancel_futures=True)
        loop.set_default_executor(ThreadPoolExecutor(1))

    summary = "Several language models that answer as one, behind OpenAI's protocol."
    # The pages of documentation would load scripts from another host. A redirect to a path
    # without a slash would name the scheme and host that this process sees, not the proxy's.
    pages: dict[str, Any] = {"docs_url": None, "redoc_url": None, "redirect_slashes": False}
    app = FastAPI(title="GaC", summary=summary, lifespan=lifespan, **pages)
    app.state.drain = drain
    for router in (models_router(catalog), tokens_router(catalog), health_router(catalog), metrics_router(metrics)):
        app.include_router(router)
    app.include_router(generation_router(catalog, settings))
    app.include_router(warm_router(catalog, settings))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    protect(app, settings, drain)
    app.add_middleware(RecordMiddleware, observers=(metrics.observe, *observers))
    app.openapi = lambda: openapi_document(app)  # type: ignore[method-assign]
    return app


async def _api_error(request: Request, error: Exception) -> Response:
    return error_response(request.scope, as_api_error(error))


async def _http_error(request: Request, error: Exception) -> Response:
    """Answers errors of routing in the same form as all others."""
    assert isinstance(error, HTTPException)
    return error_response(request.scope, routing_error(error, request.scope))
