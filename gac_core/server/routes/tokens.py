"""`/tokenize` and `/detokenize`."""

from __future__ import annotations

from fastapi import APIRouter, Request
from starlette.responses import Response

from gac_core.errors import RequestError
from gac_core.sampling import SamplingParams
from gac_core.server.catalog import Catalog, ServedModel
from gac_core.server.errors import ApiError, as_api_error
from gac_core.server.generation.conversations import conversation_of
from gac_core.server.generation.responses import Object, json_response
from gac_core.server.protocol.chat import ImagePart, UserMessage
from gac_core.server.protocol.tokenize import ChatTokens, DetokenizeBody, TextTokens, TokenizeBody
from gac_core.server.record import record_of
from gac_core.server.routes.bodies import beside_loop, documented, in_thread, read_body

MAX_BYTES = 2**20
"""Largest body whose text is encoded, unless the context is larger: it takes seconds, which cannot be cut short."""
BYTES_PER_TOKEN = 8
"""Bytes of a body for each token of the context, where that allows more than `MAX_BYTES`."""


def tokens_router(catalog: Catalog) -> APIRouter:
    """Returns the routes that convert between text and tokens."""
    router = APIRouter()

    @router.post("/tokenize", **documented(TokenizeBody, "Tokens of a prompt"))
    async def tokenize(request: Request) -> Response:
        body = (await read_body(request, TokenizeBody)).root
        served = _found(request, body.model)
        _check_size(len(await request.body()) - _image_bytes(body), served)
        return await in_thread(request, lambda: json_response(_tokens(body, served)))

    @router.post("/detokenize", **documented(DetokenizeBody, "Text of tokens"))
    async def detokenize(request: Request) -> Response:
        body = await read_body(request, DetokenizeBody)
        served = _found(request, body.model)
        try:
            text = await beside_loop(request, lambda: served.ensemble.decode(body.tokens, served.member))
        except RequestError as error:
            raise as_api_error(error, "tokens") from error
        return json_response({"prompt": text.decode(errors="replace")})

    def _found(request: Request, model_id: str | None) -> ServedModel:
        record = record_of(request)
        record.model = model_id
        served = catalog.find(model_id)
        record.model = served.id
        return served

    return router


def _image_bytes(body: TextTokens | ChatTokens) -> int:
    """Returns how many bytes of a body are images, which are not encoded as text."""
    if isinstance(body, TextTokens):
        return 0
    contents = [message.content for message in body.messages if isinstance(message, UserMessage)]
    parts = [part for content in contents if not isinstance(content, str) for part in content]
    return sum(len(part.image_url.url) for part in parts if isinstance(part, ImagePart))


def _check_size(num_bytes: int, served: ServedModel) -> None:
    """Raises if a body is too large for its text to be encoded."""
    limit = max(MAX_BYTES, BYTES_PER_TOKEN * (served.context or 0))
    if num_bytes > limit:
        message = f"the body has {num_bytes} bytes, more than the {limit} that are encoded at once; send it in parts"
        raise ApiError(413, "body_too_large", message)


def _tokens(body: TextTokens | ChatTokens, served: ServedModel) -> Object:
    """Returns the tokens of a prompt.

    Raises:
        ApiError: The prompt is wrong.
    """
    ensemble = served.ensemble
    is_text = isinstance(body, TextTokens)
    try:
        if isinstance(body, TextTokens) and body.add_special_tokens is False:
            tokens = ensemble.encode(body.prompt, served.member)
            return {"tokens": tokens, "count": len(tokens), "max_model_len": served.context}
        prompt = body.prompt if isinstance(body, TextTokens) else conversation_of(body)
        by_member = ensemble.prompt_tokens(prompt, SamplingParams(**served.settings()))
    except RequestError as error:
        raise as_api_error(error, "prompt" if is_text else "messages") from error
    counts = {name: len(tokens) for name, tokens in by_member.items()}
    return {
        "tokens": by_member[served.member or ensemble.gate],
        "count": max(counts.values()),
        "members": counts,
        "max_model_len": served.context,
    }
