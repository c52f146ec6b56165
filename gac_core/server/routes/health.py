"""`/health` and `/ready`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from gac_core.health import EnsembleHealth
from gac_core.server.catalog import Catalog
from gac_core.server.generation.responses import Object, json_response


def health_router(catalog: Catalog) -> APIRouter:
    """Returns the routes that tell whether the server works."""
    router = APIRouter()

    @router.get("/health", summary="Whether the process works")
    async def health() -> Response:
        stuck = {
            name: f"a step has been running for {seconds:.0f} s"
            for name, ensemble in catalog.ensembles.items()
            if (seconds := ensemble.health().step_seconds or 0.0) > ensemble.config.stuck_after
        }
        return json_response({"status": "stuck" if stuck else "ok", "reasons": stuck}, 503 if stuck else 200)

    @router.get("/ready", summary="Whether requests are answered")
    async def ready(request: Request) -> Response:
        draining = bool(getattr(request.app.state.drain, "draining", False))
        shown = {name: _described(ensemble.health()) for name, ensemble in catalog.ensembles.items()}
        is_ready = not draining and all(each["ready"] for each in shown.values())
        status = "ready" if is_ready else "draining" if draining else "not ready"
        return json_response({"status": status, "ensembles": shown}, 200 if is_ready else 503)

    return router


def _described(health: EnsembleHealth) -> Object:
    members = {member.name: {"state": member.state, "reason": member.reason} for member in health.members}
    return {"ready": health.healthy, "reason": health.reason, "members": members}
