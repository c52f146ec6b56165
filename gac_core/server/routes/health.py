"""`/health` and `/ready`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from gac_core.config import EnsembleConfig
from gac_core.ensemble import Ensemble
from gac_core.health import EnsembleHealth
from gac_core.server.catalog import Catalog
from gac_core.server.generation.responses import Object, json_response


def health_router(catalog: Catalog) -> APIRouter:
    """Returns the routes that tell whether the server works."""
    router = APIRouter()

    @router.get("/health", summary="Whether the process works")
    async def health() -> Response:
        states = ((name, ensemble, ensemble.health()) for name, ensemble in catalog.ensembles.items())
        stuck = {
            name: f"a step has been running for {state.step_seconds:.0f} s"
            for name, ensemble, state in states
            if _is_stuck(ensemble.config, state)
        }
        return json_response({"status": "stuck" if stuck else "ok", "reasons": stuck}, 503 if stuck else 200)

    @router.get("/ready", summary="Whether requests are answered")
    async def ready(request: Request) -> Response:
        states = {name: (ensemble, ensemble.health()) for name, ensemble in catalog.ensembles.items()}
        shown = {name: _described(*each) for name, each in states.items()}
        is_ready = all(each["ready"] for each in shown.values())
        if request.app.state.drain.draining:
            status, is_ready = "draining", False
        elif is_ready:
            status = "ready" if all(state.healthy for _, state in states.values()) else "degraded"
        else:
            status = "not ready"
        return json_response({"status": status, "ensembles": shown}, 200 if is_ready else 503)

    return router


def _described(ensemble: Ensemble, state: EnsembleHealth) -> Object:
    members = {member.name: {"state": member.state, "reason": member.reason} for member in state.members}
    return {"ready": can_answer(ensemble.config, ensemble.gate, state), "reason": state.reason, "members": members}


def _is_stuck(config: EnsembleConfig, state: EnsembleHealth) -> bool:
    return (state.step_seconds or 0.0) > config.stuck_after


def can_answer(config: EnsembleConfig, gate: str, state: EnsembleHealth) -> bool:
    """Returns whether an ensemble answers requests: with ``on_member_failure="drop"`` also without some members.

    Args:
        config: Its configuration.
        gate: Its gate's name.
        state: Its state.
    """
    if state.healthy or config.on_member_failure != "drop" or _is_stuck(config, state):
        return state.healthy
    alive = [member.name for member in state.members if member.alive]
    needs_gate = config.gate_must_live and config.threshold is not None
    return len(alive) >= config.min_members and (gate in alive or not needs_gate)
