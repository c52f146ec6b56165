"""`create_app`: the server as an ASGI application."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema
from sse_starlette.sse import AppStatus
from starlette.exceptions import HTTPException
from starlette.responses import Response

from gac_core.server.catalog import Catalog
from gac_core.server.drain import Drain
from gac_core.server.errors import ApiError, as_api_error, error_response
from gac_core.server.metrics import ServerMetrics
from gac_core.server.protection import protect
from gac_core.server.protocol.chat import ChatBody
from gac_core.server.protocol.completions import CompletionBody
from gac_core.server.record import Observer, RecordMiddleware
from gac_core.server.routes.generation import generation_router
from gac_core.server.routes.health import health_router
from gac_core.server.routes.metrics import metrics_router
from gac_core.server.routes.models import models_router
from gac_core.server.settings import ServerSettings

BODIES = (ChatBody, CompletionBody)


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
        yield
        metrics.close()

    summary = "Several language models that answer as one, behind OpenAI's protocol."
    app = FastAPI(title="GaC", summary=summary, lifespan=lifespan)
    app.state.catalog, app.state.settings, app.state.drain = catalog, settings, drain
    for router in (generation_router(catalog, settings), models_router(catalog), health_router(catalog)):
        app.include_router(router)
    app.include_router(metrics_router(metrics))
    app.add_exception_handler(ApiError, _api_error)
    app.add_exception_handler(HTTPException, _http_error)
    protect(app, settings, drain)
    app.add_middleware(RecordMiddleware, observers=(metrics.observe, *observers))
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    return app


async def _api_error(request: Request, error: Exception) -> Response:
    return error_response(request.scope, as_api_error(error))


async def _http_error(request: Request, error: Exception) -> Response:
    """Answers errors of routing, such as an unknown path, in the same form as all others."""
    assert isinstance(error, HTTPException)
    code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "invalid_request")
    message = f"{error.detail}: {request.method} {request.url.path}"
    return error_response(request.scope, ApiError(error.status_code, code, message, headers=error.headers))


def _openapi(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI document."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        models = [(model, "validation") for model in BODIES]
        _, schemas = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
        document.setdefault("components", {}).setdefault("schemas", {}).update(schemas["$defs"])
        app.openapi_schema = document
    return app.openapi_schema
