"""The engine: schedule, decode, emit. Everything here runs in one thread."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gac_core.decoding.decoder import Decoder
from gac_core.decoding.request import Request
from gac_core.decoding.sequence import Sequence as Voice
from gac_core.decoding.tokens import CommittedToken, TokenResult
from gac_core.engine.scheduler import Scheduler
from gac_core.errors import GaCError, RequestError, quote
from gac_core.events import Listener, StepDone, ignore
from gac_core.executor.base import Executor, ExecutorMember
from gac_core.failures import request_failure
from gac_core.health import MemberHealth
from gac_core.output import FinishReason, OutputChunk, RequestOutput, Usage

RequestEvent = tuple[str, OutputChunk | GaCError]
"""A request's id, and its next chunk or the error that ended it."""


class Engine:
    """Runs requests of one or several ensembles step by step.

    Args:
        executor: Runs the members.
        decoder: Selects and commits tokens.
        listener: Receives an event of each step. Default: does nothing.
    """

    def __init__(self, executor: Executor, decoder: Decoder, listener: Listener = ignore) -> None:
        self._executor = executor
        self._decoder = decoder
        self._listener = listener
        self._scheduler = Scheduler()
        self._members: dict[str, list[str]] = {}

    def add_ensemble(self, ensemble_id: str, members: Sequence[ExecutorMember], max_batch_size: int) -> None:
        """Adds an ensemble. Members that other ensembles use as well are shared with them.

        Args:
            ensemble_id: Its id, which its requests carry.
            members: Its members.
            max_batch_size: How many of its requests run at once at most.
        """
        for member in members:
            self._executor.add_member(member)
        self._members[ensemble_id] = [member.member_id for member in members]
        self._scheduler.set_limit(ensemble_id, max_batch_size)

    def remove_ensemble(self, ensemble_id: str) -> None:
        """Drops an ensemble's requests, and removes the members that no other ensemble uses."""
        for request in self._scheduler.all():
            if request.ensemble_id == ensemble_id:
                self.abort_request(request.request_id)
        self._scheduler.remove_limit(ensemble_id)
        for member_id in self._members.pop(ensemble_id, []):
            self._executor.remove_member(member_id)

    @property
    def busy(self) -> bool:
        """Whether any request is waiting or running."""
        return bool(self._scheduler.all())

    def running(self) -> list[Request]:
        """Returns the requests that run. Thread-safe."""
        return self._scheduler.running()

    def waiting(self) -> list[Request]:
        """Returns the requests that wait. Thread-safe."""
        return self._scheduler.waiting()

    def running_forwards(self) -> list[tuple[str, float]]:
        """Returns the ids of members whose forward is running, with seconds since it began. Thread-safe."""
        return self._executor.running()

    def member_health(self, member_id: str) -> MemberHealth | None:
        """Returns the state of a member; None if there is none of this id. Thread-safe, without waiting."""
        try:
            return self._executor.health(member_id)
        except KeyError:
            return None

    def add_request(self, request: Request) -> None:
        """Queues a request; it joins between two steps."""
        self._scheduler.add(request)

    def abort_request(self, request_id: str) -> None:
        """Drops a request at once and frees its KV cache slots; unknown ids are no error."""
        request = self._scheduler.remove(request_id)
        if request is not None:
            self._release(request)

    def _release(self, request: Request, clear: bool = False) -> None:
        """Frees what members hold of a request; ``clear`` as in `Executor.release`."""
        if request.width == 1:
            self._executor.release(request.request_id, clear)
            return
        for voice in request.participants:
            self._executor.release(voice.cache_id, clear, voice.member.member_id)

    def step(self) -> list[RequestEvent]:
        """Advances every running request by no, one or several tokens; returns the events, by request id."""
        self._executor.refresh()
        batch = self._scheduler.schedule()
        if not batch:
            return []
        now = time.perf_counter()
        for request in batch:
            if not request.started:
                request.started = now
                request.stats.queued_seconds = now - request.arrived
        results = self._decoder.decode(batch)
        tokens = sum(isinstance(each, CommittedToken) for done in results for each in done)
        self._listener(StepDone(time.perf_counter() - now, len(batch), tokens, len(self._scheduler.waiting())))
        return [event for request, done in zip(batch, results, strict=True) for event in self._events(request, done)]

    def close(self) -> None:
        """Drops all requests and stops the executor."""
        for request in self._scheduler.all():
            self.abort_request(request.request_id)
        self._decoder.close()
        self._executor.close()

    def _events(self, request: Request, done: Sequence[TokenResult]) -> Iterator[RequestEvent]:
        """Yields the events of a request's tokens, and its end where it only measures; none after its end."""
        for result in done:
            event = self._fail(request, result) if isinstance(result, GaCError) else self._emit_safely(request, result)
            yield event
            if isinstance(event[1], GaCError) or event[1].output is not None:
                return
        if request.has_read:
            yield self._finish(request, FinishReason.LENGTH, OutputChunk(""))

    def _emit_safely(self, request: Request, committed: CommittedToken) -> RequestEvent:
        """Returns a token's event; if that cannot be made, the request's error."""
        try:
            return self._emit(request, committed)
        except BaseException as error:
            return self._fail(request, request_failure("making the text of a token", error))

    def _emit(self, request: Request, committed: CommittedToken) -> RequestEvent:
        token = committed.sampled
        request.stats.note(token.token_stats)
        if request.stats.steps + request.stats.forced == 1:
            request.stats.first_token_seconds = time.perf_counter() - request.arrived
        data = token.data
        chunk = OutputChunk(
            text="" if data is None else request.detokenizer.push(data),
            tokens=() if data is None else (data,),
            logprobs=None if token.logprob is None else (token.logprob,),
            # For doubt and citations, whether or not the caller asked for them.
            token_stats=(token.token_stats,),
        )
        request.num_tokens += len(chunk.tokens)
        if data is None or request.detokenizer.stopped_by is not None:
            limited = data is None and request.constraint is not None and request.constraint.limited
            return self._finish(request, FinishReason.LENGTH if limited else FinishReason.STOP, chunk)
        full = next((voice for voice in request.voices if voice.is_full), None) if committed.context_full else None
        if request.num_tokens >= request.params.max_tokens or (full is not None and request.continuation is None):
            return self._finish(request, FinishReason.LENGTH, chunk)
        if full is not None:
            return self._fail(request, _too_long(full))
        return request.request_id, chunk

    def _fail(self, request: Request, error: GaCError) -> RequestEvent:
        self._scheduler.remove(request.request_id)
        self._release(request, clear=True)
        return request.request_id, error

    def _finish(self, request: Request, reason: FinishReason, last: OutputChunk) -> RequestEvent:
        self._scheduler.remove(request.request_id)
        self._release(request)
        request.stats.total_seconds = time.perf_counter() - request.arrived
        text = last.text + request.detokenizer.flush()
        stopped_by = request.detokenizer.stopped_by
        gate = request.stats.members[request.gate.name]
        # `OutputProcessor` joins text, tokens, log-probabilities and statistics of all chunks into it, and says which
        # documents carried the text.
        output = RequestOutput(
            request_id=request.label,
            text="",
            tokens=(),
            # Flushing may complete a stop string only if bytes were held back; then that is why it ended.
            finish_reason=FinishReason.STOP if stopped_by is not None else reason,
            stopped_by=stopped_by if stopped_by in request.params.stop else None,
            usage=Usage(gate.prompt_tokens, request.num_tokens),
            stats=request.stats,
            logprobs=None if request.params.logprobs is None else (),
            seed=request.seed if request.params.temperature > 0 else None,
        )
        return request.request_id, replace(last, text=text, output=output)


def _too_long(voice: Voice) -> RequestError:
    """Returns the error of a given continuation that does not fit into a member's context."""
    return RequestError(
        f"the prompt with its continuation is {len(voice.text.token_ids)} tokens long or longer for member "
        f"{quote(voice.name)}, whose context holds {voice.member.context} tokens; shorten the prompt or the "
        "continuation, or leave this member out"
    )
