"""Reads bodies of requests, and describes them in the OpenAPI document."""

from __future__ import annotations

from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel

from gac_core.server.protocol.parsing import parsed

_Body = TypeVar("_Body", bound=BaseModel)


async def read_body(request: Request, model: type[_Body]) -> _Body:
    """Returns the body of a request.

    Raises:
        ApiError: It is not JSON, or a field is wrong.
    """
    return parsed(model, await request.body(), request.headers.get("content-type", ""))


def documented(model: type[BaseModel], summary: str) -> dict[str, Any]:
    """Returns the arguments of a route whose body is a model."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content = {"application/json": {"schema": schema}}
    return {"summary": summary, "openapi_extra": {"requestBody": {"required": True, "content": content}}}
