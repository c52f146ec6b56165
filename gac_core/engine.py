"""The engine: schedule, decode, commit, emit. Everything here runs in one thread.

Knows requests, the decoder and the executor; knows nothing of threads, prompts or callers.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from gac_core.commit import Commit
from gac_core.decoder import Decoder
from gac_core.errors import GaCError
from gac_core.executor import Executor
from gac_core.output import FinishReason, OutputChunk, RequestOutput, TokenLogprob, Usage
from gac_core.request import Picked, Request
from gac_core.scheduler import Scheduler

Event = tuple[str, OutputChunk | GaCError]


class Engine:
    """Runs requests step by step.

    Args:
        executor: Runs the members.
        decoder: Picks tokens.
        commits: How committed bytes enter each member's text.
        contexts: Per member the longest text it can read, in tokens, or None.
        max_batch_size: Requests that run at once at most.
    """

    def __init__(
        self,
        executor: Executor,
        decoder: Decoder,
        commits: Sequence[Commit],
        contexts: Sequence[int | None],
        max_batch_size: int,
    ) -> None:
        self._executor = executor
        self._decoder = decoder
        self._commits = list(commits)
        self._contexts = list(contexts)
        self._scheduler = Scheduler(max_batch_size)

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._scheduler.all())

    def add_request(self, request: Request) -> None:
        """Queues a request; it joins between two steps."""
        self._scheduler.add(request)

    def abort_request(self, request_id: str) -> None:
        """Drops a request at once and frees what members hold for it; unknown ids are no error."""
        if self._scheduler.remove(request_id) is not None:
            self._executor.release(request_id)

    def step(self) -> list[Event]:
        """Gives every running request one token and returns what there is to tell, by request id."""
        batch = self._scheduler.schedule()
        if not batch:
            return []
        now = time.perf_counter()
        for request in batch:
            if request.num_tokens == 0 and request.stats.steps == 0:
                request.stats.queued_seconds = now - request.arrived
        picked = self._decoder.decode(batch)
        return [self._commit(request, choice) for request, choice in zip(batch, picked, strict=True)]

    def close(self) -> None:
        """Drops all requests and stops the executor."""
        for request in self._scheduler.all():
            self.abort_request(request.request_id)
        self._executor.close()

    def _commit(self, request: Request, choice: Picked | GaCError) -> Event:
        if isinstance(choice, GaCError):
            return self._fail(request, choice)
        if request.stats.steps == 1:
            request.stats.first_token_seconds = time.perf_counter() - request.arrived
        logprobs = None if choice.logprob is None else (choice.logprob,)
        data = choice.data
        if data is None:
            return self._finish(request, FinishReason.STOP, "", (), logprobs)
        request.num_tokens += 1
        text = request.detokenizer.push(data)
        if request.detokenizer.stopped_by is not None:
            return self._finish(request, FinishReason.STOP, text, (data,), logprobs)
        if request.num_tokens >= request.params.max_tokens:
            return self._finish(request, FinishReason.LENGTH, text, (data,), logprobs)
        try:
            for member, (sequence, commit) in enumerate(zip(request.sequences, self._commits, strict=True)):
                text_so_far = sequence.waiting + data
                ready = len(text_so_far) - choice.waiting.get(member, 0)
                if ready:
                    commit(sequence, text_so_far[:ready], own=member in choice.chosen_by)
                sequence.waiting = text_so_far[ready:]
                sequence.held = choice.held.get(member)
        except GaCError as error:
            return self._fail(request, error)
        if any(
            context is not None and len(sequence.ids) > context
            for sequence, context in zip(request.sequences, self._contexts, strict=True)
        ):
            return self._finish(request, FinishReason.LENGTH, text, (data,), logprobs)
        return request.request_id, OutputChunk(text, (data,), logprobs)

    def _fail(self, request: Request, error: GaCError) -> Event:
        self._scheduler.remove(request.request_id)
        self._executor.release(request.request_id, clear=True)
        return request.request_id, error

    def _finish(
        self,
        request: Request,
        reason: FinishReason,
        text: str,
        tokens: tuple[bytes, ...],
        logprobs: tuple[TokenLogprob, ...] | None,
    ) -> Event:
        self._scheduler.remove(request.request_id)
        self._executor.release(request.request_id)
        request.stats.total_seconds = time.perf_counter() - request.arrived
        text += request.detokenizer.flush()
        stopped_by = request.detokenizer.stopped_by
        gate = request.stats.members[request.names[request.gate]]
        output = RequestOutput(
            request_id=request.request_id,
            text="",
            tokens=(),
            # Flushing may complete a stop string only if bytes were held back; then that is why it ended.
            finish_reason=FinishReason.STOP if stopped_by is not None else reason,
            stopped_by=stopped_by,
            usage=Usage(gate.prompt_tokens, request.num_tokens),
            stats=request.stats,
            logprobs=None if request.params.logprobs is None else (),
            seed=request.seed if request.params.temperature > 0 else None,
        )
        return request.request_id, OutputChunk(text, tokens, logprobs, output)
