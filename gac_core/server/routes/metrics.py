"""``GET /metrics``: Prometheus metrics, as text."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from gac_core.server.telemetry.metrics import ServerMetrics


def metrics_router(metrics: ServerMetrics) -> APIRouter:
    """Returns the route of an application's metrics."""
    router = APIRouter()

    # Not async: it runs in a thread, so that streams go on meanwhile.
    @router.get("/metrics", include_in_schema=False)
    def scrape(request: Request) -> Response:
        body, content_type = metrics.render(request.headers.get("accept"))
        return Response(body, headers={"content-type": content_type})

    return router
