"""`/warm`: keeps documents in the KV caches before they are asked about."""

from __future__ import annotations

from dataclasses import asdict

from fastapi import APIRouter, Request
from starlette.responses import Response

from gac_core.chat.conversation import Prompt
from gac_core.errors import GaCError, PromptTooLongError, quote
from gac_core.sampling import SamplingParams
from gac_core.server.catalog import Catalog
from gac_core.server.errors import ApiError, as_api_error
from gac_core.server.generation.conversations import conversation_of
from gac_core.server.generation.disconnects import while_connected
from gac_core.server.generation.documents import checked_documents, field_of_long_prompt, naming
from gac_core.server.generation.responses import json_response
from gac_core.server.protocol.warm import WarmBody, WarmChat, WarmText
from gac_core.server.record import record_of
from gac_core.server.routes.bodies import beside_loop, documented, read_body
from gac_core.server.settings import ServerSettings
from gac_core.voices import PLACE, Document, DocumentPrompt


def warm_router(catalog: Catalog, settings: ServerSettings) -> APIRouter:
    """Returns the route that keeps documents."""
    router = APIRouter()

    @router.post("/warm", **documented(WarmBody, "Documents kept in the KV caches"))
    async def warm(request: Request) -> Response:
        body = (await read_body(request, WarmBody)).root
        record = record_of(request)
        record.model, record.documents = body.model, len(body.documents)
        served = catalog.find(body.model)
        record.model = served.id
        if served.member is not None:
            message = f"model {quote(served.id)} is one member; name its ensemble, whose members all keep documents"
            raise ApiError(400, "invalid_value", message, param="model")
        prompt, documents = await beside_loop(request, lambda: _checked(body))
        place, params = body.place or PLACE, SamplingParams(timeout=settings.request_timeout)
        warming = served.ensemble.awarm(prompt, documents, params, place=place, pin=body.pin is not False)
        try:
            report = await while_connected(request, warming)
        except PromptTooLongError as error:
            raise as_api_error(error, field_of_long_prompt(error, documents, "documents")) from error
        except GaCError as error:
            raise as_api_error(error, "documents") from error
        return json_response(asdict(report))

    return router


def _checked(body: WarmText | WarmChat) -> tuple[Prompt, tuple[Document, ...]]:
    """Returns the prompt and the documents of a body.

    Raises:
        ApiError: A field is wrong.
    """
    place = body.place or PLACE
    documents = checked_documents(body.documents)
    is_text = isinstance(body, WarmText)
    prompt: Prompt = body.prompt if isinstance(body, WarmText) else conversation_of(body)
    with naming("prompt" if is_text else "messages"):
        DocumentPrompt(prompt, documents, "equal", False, place)
    return prompt, documents
