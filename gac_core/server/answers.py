"""The answers of one request while the engine generates them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress

from gac_core.errors import GaCError, RequestError
from gac_core.output import OutputChunk, RequestOutput
from gac_core.server.errors import ApiError, as_api_error
from gac_core.server.record import OpenRecord
from gac_core.server.translate import Generation

Indexed = tuple[int, OutputChunk]


class Answers:
    """All answers of one request; index = prompt * n + answer.

    Args:
        generation: What is generated.
        record: The record of the request, in which tokens and finished answers are noted.
    """

    def __init__(self, generation: Generation, record: OpenRecord) -> None:
        self._generation = generation
        self._record = record
        self._streams: list[AsyncIterator[OutputChunk]] = []
        self._first: list[OutputChunk] = []
        self.outputs: dict[int, RequestOutput] = {}

    async def submit(self) -> None:
        """Queues the request; raises everything that can be refused before a forward as an `ApiError`."""
        generation = self._generation
        for prompt in generation.prompts:
            try:
                stream = generation.served.ensemble.astream(
                    prompt, generation.params, request_id=self._record.request_id
                )
                self._streams.append(stream)
                self._first.append(await anext(stream))
            except BaseException as error:
                await self.aclose()
                raise located(error, generation) from error

    async def chunks(self) -> AsyncIterator[list[Indexed]]:
        """Yields what has arrived, at least one chunk at a time."""
        for index, stream in enumerate(self._streams):
            yield [self._read(index, self._first[index])]
            async for chunk in stream:
                yield [self._read(index, chunk)]

    def _read(self, index: int, chunk: OutputChunk) -> Indexed:
        self._record.add_tokens(len(chunk.tokens))
        if chunk.output is not None:
            self.outputs[index] = chunk.output
            self._record.outputs.append(chunk.output)
        return index, chunk

    async def collect(self) -> Sequence[RequestOutput]:
        """Returns the finished answers in order of their index."""
        async for _ in self.chunks():
            pass
        return self.finished()

    async def answer(self) -> Sequence[RequestOutput]:
        """Queues the request and returns the finished answers; aborts them where it is cancelled."""
        try:
            await self.submit()
            return await self.collect()
        except GaCError as error:
            raise located(error, self._generation) from error
        finally:
            await self.aclose()

    def finished(self) -> list[RequestOutput]:
        """Returns the answers that are finished, in order of their index."""
        return [self.outputs[index] for index in sorted(self.outputs)]

    async def aclose(self) -> None:
        """Aborts what still runs."""
        for stream in self._streams:
            with suppress(asyncio.CancelledError):
                await stream.aclose()  # type: ignore[attr-defined]


def located(error: BaseException, generation: Generation) -> BaseException:
    """Returns an error of the engine as the client sees it, with the field that it is about."""
    if isinstance(error, ApiError) or not isinstance(error, Exception):
        return error
    return as_api_error(error, generation.field_of(error) if isinstance(error, RequestError) else None)
