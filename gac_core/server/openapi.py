"""The OpenAPI document of the server."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from gac_core.server.protocol.chat import ChatBody
from gac_core.server.protocol.completions import CompletionBody
from gac_core.server.protocol.results import (
    ChatCompletion,
    Completion,
    DetokenizedText,
    ErrorBody,
    HealthBody,
    ModelList,
    ModelShown,
    ReadyBody,
    TokenizedPrompt,
    WarmedDocuments,
)
from gac_core.server.protocol.tokenize import DetokenizeBody, TokenizeBody
from gac_core.server.protocol.warm import WarmBody

BODIES: tuple[type[BaseModel], ...] = (ChatBody, CompletionBody, TokenizeBody, DetokenizeBody, WarmBody)
ANSWERS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatCompletion,
    "/v1/completions": Completion,
    "/v1/models": ModelList,
    "/v1/models/{model_id}": ModelShown,
    "/tokenize": TokenizedPrompt,
    "/detokenize": DetokenizedText,
    "/warm": WarmedDocuments,
    "/health": HealthBody,
    "/ready": ReadyBody,
}
_ERRORS = {
    "400": "The request is invalid.",
    "401": "The key is missing or wrong.",
    "403": "The host is not allowed.",
    "404": "There is no such model.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not JSON.",
    "429": "The queue is full.",
    "500": "A member or the server failed.",
    "503": "The server is not ready, or a member is lost.",
    "504": "The request took too long.",
}
_WITHOUT_BODY = ("401", "403", "404", "500", "503")
_STREAMED = ("/v1/chat/completions", "/v1/completions")


def openapi_document(app: FastAPI) -> dict[str, Any]:
    """Returns the OpenAPI document: fields and limits of bodies are those that the server enforces."""
    if app.openapi_schema is not None:
        return app.openapi_schema
    document = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
    models: list[type[BaseModel]] = [*BODIES, *ANSWERS.values(), ErrorBody]
    pairs: list[tuple[type[BaseModel], JsonSchemaMode]] = [(model, "validation") for model in models]
    _, schemas = models_json_schema(pairs, ref_template="#/components/schemas/{model}")
    document["components"] = {"schemas": schemas["$defs"]}
    for path, methods in document["paths"].items():
        for operation in methods.values():
            operation["responses"] = _responses(path, "requestBody" in operation)
    app.openapi_schema = document
    return document


def _responses(path: str, has_body: bool) -> dict[str, Any]:
    """Returns the responses of a route."""
    answer = _content(ANSWERS[path])
    if path in _STREAMED:
        answer["text/event-stream"] = {"schema": {"type": "string"}}
    if path in ("/health", "/ready"):
        return {status: {"description": text, "content": answer} for status, text in (("200", "Yes."), ("503", "No."))}
    errors = _ERRORS if has_body else {status: _ERRORS[status] for status in _WITHOUT_BODY}
    refused = {status: {"description": text, "content": _content(ErrorBody)} for status, text in errors.items()}
    return {"200": {"description": "The answer.", "content": answer}, **refused}


def _content(model: type[BaseModel]) -> dict[str, Any]:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
