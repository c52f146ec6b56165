"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from fastapi import APIRouter, Request
from starlette.responses import Response

from gac_core.server.catalog import Catalog, ServedModel
from gac_core.server.generation.answers import Answers
from gac_core.server.generation.disconnects import while_connected
from gac_core.server.generation.echo import echoes_of, scored_output
from gac_core.server.generation.event_stream import EventStream
from gac_core.server.generation.responses import (
    Envelope,
    answer_body,
    answer_response,
    chat_choice,
    completion_choice,
)
from gac_core.server.generation.streaming import ChatEvents, CompletionEvents
from gac_core.server.generation.translate import Generation, chat_generation, completion_generation, prompt_text
from gac_core.server.protocol.chat import ChatBody
from gac_core.server.protocol.common import GenerationBody
from gac_core.server.protocol.completions import CompletionBody
from gac_core.server.record import record_of
from gac_core.server.routes.bodies import beside_loop, documented, read_body
from gac_core.server.settings import ServerSettings

_B = TypeVar("_B", bound=GenerationBody)


def generation_router(catalog: Catalog, settings: ServerSettings) -> APIRouter:
    """Returns the routes that generate text."""
    router = APIRouter()

    @router.post("/v1/chat/completions", **documented(ChatBody, "Chat completion"))
    async def chat_completions(request: Request) -> Response:
        body = await read_body(request, ChatBody)
        generation = await _generation(request, body, chat_generation)
        record, n = record_of(request), generation.params.n
        answers = Answers(generation, record)
        if not body.stream:
            outputs = await while_connected(request, answers.answer())
            whole = Envelope(generation.served, "chat.completion", "chatcmpl")
            choices = (chat_choice(index, output, generation.sources) for index, output in enumerate(outputs))
            return await answer_response(outputs, lambda: answer_body(whole, choices, outputs, n))
        await while_connected(request, answers.submit())
        envelope = Envelope(generation.served, "chat.completion.chunk", "chatcmpl")
        events = ChatEvents(envelope, _wants_usage(body), n, generation.sources)
        return EventStream(answers, events, record, settings)

    @router.post("/v1/completions", **documented(CompletionBody, "Completion"))
    async def completions(request: Request) -> Response:
        body = await read_body(request, CompletionBody)
        generation = await _generation(request, body, completion_generation)
        record, n = record_of(request), generation.params.n
        answers = Answers(generation, record)
        envelope = Envelope(generation.served, "text_completion", "cmpl")
        prompts = await while_connected(request, echoes_of(generation, record.request_id))
        echoes = [echo for echo in prompts for _ in range(n)]
        if not body.stream:
            if body.max_tokens == 0:
                outputs = [scored_output(echo, record.request_id) for echo in echoes]
                for index, output in enumerate(outputs):
                    record.add_output(output, is_first=index % n == 0)
            else:
                outputs = await while_connected(request, answers.answer())
            choices = (completion_choice(index, output, echoes[index]) for index, output in enumerate(outputs))
            return await answer_response(outputs, lambda: answer_body(envelope, choices, outputs, n))
        await while_connected(request, answers.submit())
        return EventStream(answers, CompletionEvents(envelope, _wants_usage(body), n, echoes), record, settings)

    async def _generation(
        request: Request, body: _B, translate: Callable[[_B, ServedModel, ServerSettings], Generation]
    ) -> Generation:
        record = record_of(request)
        record.model, record.stream = body.model, bool(body.stream)
        served = catalog.find(body.model)
        record.model = served.id
        generation = await beside_loop(request, lambda: translate(body, served, settings))
        record.documents = len(generation.documents)
        record.prompt = prompt_text(generation.prompts) if settings.log_prompts else None
        return generation

    return router


def _wants_usage(body: GenerationBody) -> bool:
    return body.stream_options is not None and bool(body.stream_options.include_usage)
