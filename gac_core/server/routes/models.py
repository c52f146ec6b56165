"""`/v1/models`: the models that requests can name."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from gac_core.server.catalog import Catalog, ServedModel
from gac_core.server.generation.responses import Object, json_response


def models_router(catalog: Catalog) -> APIRouter:
    """Returns the routes that describe models."""
    router = APIRouter()

    @router.get("/v1/models", summary="All models")
    async def list_models() -> Response:
        return json_response({"object": "list", "data": [_described(model) for model in catalog.models()]})

    @router.get("/v1/models/{model_id:path}", summary="One model")
    async def show_model(model_id: str) -> Response:
        return json_response(_described(catalog.find(model_id)))

    return router


def _described(model: ServedModel) -> Object:
    """Returns a model in OpenAI's form, with fields of our own."""
    ensemble = model.ensemble
    config = ensemble.config
    reads_images = bool(ensemble.vision_members) if model.member is None else model.member in ensemble.vision_members
    shown: Object = {
        "id": model.id,
        "object": "model",
        "created": model.created,
        "owned_by": "gac",
        "max_model_len": model.context,
        "input_modalities": ["text", "image"] if reads_images else ["text"],
    }
    if model.member is not None:
        return {**shown, "kind": "member", "parent": model.id.removesuffix(f"/{model.member}")}
    weights = config.weights if isinstance(config.weights, str) else [each.weight for each in config.members]
    return {
        **shown,
        "kind": "ensemble",
        "members": ensemble.names,
        "vision_members": list(ensemble.vision_members),
        "weights": weights,
        "gate": ensemble.gate,
        "threshold": config.threshold,
        "combine": config.combine,
        "gate_rule": config.gate_rule,
    }
