"""The answers of one request while the engine generates them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from gac_core.engine.answer_stream import AnswerStream
from gac_core.errors import GaCError
from gac_core.output import OutputChunk, RequestOutput
from gac_core.server.generation.translate import Generation
from gac_core.server.record import OpenRecord

Indexed = tuple[int, OutputChunk]


class Answers:
    """All answers of one request. Their index is that of the prompt times the answers to a prompt, plus the answer's.

    Args:
        generation: What is generated.
        record: The record of the request, in which tokens and finished answers are noted.

    Attributes:
        generation: As given.
    """

    def __init__(self, generation: Generation, record: OpenRecord) -> None:
        self.generation = generation
        self._record = record
        self._streams: list[AnswerStream] = []
        self._outputs: dict[int, RequestOutput] = {}
        self._reads: dict[asyncio.Task[list[Indexed]], int] = {}

    async def submit(self) -> None:
        """Queues the request.

        Raises:
            ApiError: It is refused.
        """
        try:
            for prompt in self.generation.prompts:
                ensemble, params = self.generation.served.ensemble, self.generation.params
                self._streams.append(await ensemble.asubmit(prompt, params, request_id=self._record.request_id))
        except BaseException as error:
            await self.aclose()
            if isinstance(error, GaCError):
                raise self.generation.as_api_error(error) from error
            raise

    async def answer(self) -> list[RequestOutput]:
        """Queues the request and returns the finished answers in order of their index; cancelling it aborts them.

        Raises:
            ApiError: It is refused, or an answer failed.
        """
        await self.submit()
        try:
            async for _ in self.chunks():
                pass
        except GaCError as error:
            raise self.generation.as_api_error(error) from error
        finally:
            await self.aclose()
        return self.finished()

    async def chunks(self) -> AsyncIterator[list[Indexed]]:
        """Yields the chunks that have arrived since the last time, at least one."""
        if len(self._streams) > 1:
            async for arrived in self._of_all():
                yield arrived
            return
        [stream] = self._streams
        async for first in stream:
            yield self._noted([first, *stream.pending()], 0)

    async def _of_all(self) -> AsyncIterator[list[Indexed]]:
        """`chunks` of several prompts."""
        n = self.generation.params.n
        for place, stream in enumerate(self._streams):
            self._reads[asyncio.ensure_future(_arrived(stream))] = place
        while self._reads:
            done, _ = await asyncio.wait(self._reads, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                place = self._reads.pop(task)
                if arrived := task.result():
                    self._reads[asyncio.ensure_future(_arrived(self._streams[place]))] = place
                    yield self._noted(arrived, place * n)

    def _noted(self, arrived: Sequence[Indexed], first: int) -> list[Indexed]:
        """Returns chunks with their index among all answers, given that of their prompt's first, and records them."""
        for index, chunk in arrived:
            self._record.add_tokens(len(chunk.tokens))
            if chunk.output is not None:
                self._outputs[first + index] = chunk.output
                self._record.add_output(chunk.output, is_first=index == 0)
        return [(first + index, chunk) for index, chunk in arrived]

    def finished(self) -> list[RequestOutput]:
        """Returns the answers that are finished, in order of their index."""
        return [self._outputs[index] for index in sorted(self._outputs)]

    async def aclose(self) -> None:
        """Aborts what still runs; may be called again."""
        for stream in self._streams:
            await stream.aclose()
        for task in self._reads:
            task.cancel()
        await asyncio.gather(*self._reads, return_exceptions=True)
        self._reads.clear()


async def _arrived(stream: AnswerStream) -> list[Indexed]:
    """Returns the next chunks of a stream; none at its end."""
    try:
        return [await anext(stream), *stream.pending()]
    except StopAsyncIteration:
        return []
