"""One step of a batch: plan, forward, align, constrain, combine, select, verify, commit.

The paper's alignment: union tokens compete with one another (GaC, sections 3.2 to 3.4). Drafted tokens are sent to
every voice that is needed in one chunk; tokens are then selected position by position, as they would be without the
draft, and the first one that differs from the draft ends it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch

from gac_core.decoding.certificate import Certifier, Key
from gac_core.decoding.collector import DistributionCollector
from gac_core.decoding.commit import commit_token
from gac_core.decoding.continuation import draft_continuations
from gac_core.decoding.drafting import Drafter, NoDraft, StepCosts, sample_tokens
from gac_core.decoding.measurer import Measurer
from gac_core.decoding.place import Place, TopPlace
from gac_core.decoding.request import Request
from gac_core.decoding.selection import Selection, forced_token, select
from gac_core.decoding.sequence import Sequence as Voice
from gac_core.decoding.settlement import RowOutcome, settle
from gac_core.decoding.step import Step, StepOutcome
from gac_core.decoding.tokens import TokenResult
from gac_core.decoding.warming import Warmer
from gac_core.errors import (
    GaCError,
    MemberError,
    MemberLostError,
    MemberTimeoutError,
)
from gac_core.events import Listener, MemberFailed, ignore
from gac_core.failures import request_failure
from gac_core.grammar.checker import STACK_SIZE
from gac_core.threads import DaemonPool

logger = logging.getLogger(__name__)


class Decoder:
    """Decodes one or more union tokens per request and step.

    Args:
        collector: Runs the members.
        lookup: Drafts from the texts, before anything is computed. Default: no drafts.
        run_ahead: Drafts with a voice, after the gates were evaluated. Default: no drafts.
        costs: Measures what steps cost, for the drafters. Default: new ones, which no drafter reads.
        listener: Receives the failures of members. Default: does nothing.
    """

    # Threads that compute grammar masks while the members compute.
    MASK_THREADS = 4
    # Seconds for which Python's exit waits for masks that are being computed, at most.
    MASK_GRACE = 1.0

    def __init__(
        self,
        collector: DistributionCollector,
        lookup: Drafter | None = None,
        run_ahead: Drafter | None = None,
        costs: StepCosts | None = None,
        listener: Listener = ignore,
    ) -> None:
        self._collector = collector
        self._certifier = Certifier(collector)
        self._measurer = Measurer(collector)
        self._warmer = Warmer(collector)
        self._lookup = lookup or NoDraft()
        self._run_ahead = run_ahead or NoDraft()
        self._costs = costs or StepCosts()
        self._listener = listener
        self._masking = DaemonPool("gac-masks", self.MASK_THREADS, stack_size=STACK_SIZE, grace=self.MASK_GRACE)

    def close(self) -> None:
        """Stops the threads that compute masks; nothing may be decoded afterwards."""
        self._masking.close()

    @torch.inference_mode()
    def decode(self, batch: Sequence[Request]) -> list[list[TokenResult]]:
        """Selects and commits the next tokens of every request.

        Tokens that a grammar forces are committed without a forward; the members read them with the next chunk.

        Returns:
            Per request its committed tokens, then the error that ended it, if any. Nothing where a member is still
            reading the prompt, or measuring or keeping it.
        """
        reading = [row for row, each in enumerate(batch) if each.measurement is not None or each.pins is not None]
        if reading:
            return self._read(batch, reading)
        forced = {row: commit_forced(request) for row, request in enumerate(batch) if request.constraint is not None}
        for row, outcome in forced.items():
            self._report(batch[row], outcome.failed)
        written = {row: list(outcome.results) for row, outcome in forced.items()}
        free = [row for row in range(len(batch)) if not written.get(row)]
        waiting = len(batch) > 1 and any(request.continuation is None for request in batch)
        seconds = min(request.prefill_seconds for request in batch) if waiting else None
        decided = self._decide_safely([batch[row] for row in free], seconds)
        results = {**written, **dict(zip(free, decided, strict=True))}
        return [results[row] for row in range(len(batch))]

    def _read(self, batch: Sequence[Request], reading: Sequence[int]) -> list[list[TokenResult]]:
        """Reads parts of texts that are measured or kept, and decodes the other requests.

        Args:
            batch: All requests.
            reading: The rows of those that read.
        """
        self._collector.notice_recoveries(batch[row] for row in reading)
        others = [row for row in range(len(batch)) if row not in reading]
        seconds = min(request.prefill_seconds for request in batch) if others else None
        measuring = [row for row in reading if batch[row].pins is None]
        keeping = [row for row in reading if batch[row].pins is not None]
        outcomes = {
            **self._read_safely(batch, measuring, partial(self._measurer.read, alone=len(batch) == 1)),
            **self._read_safely(batch, keeping, partial(self._warmer.read, prefill_seconds=seconds)),
        }
        results = dict(zip(others, self.decode([batch[row] for row in others]) if others else [], strict=True))
        for row, outcome in outcomes.items():
            self._report(batch[row], outcome.failed)
            results[row] = list(outcome.results)
        return [results[row] for row in range(len(batch))]

    @staticmethod
    def _read_safely(
        batch: Sequence[Request], rows: Sequence[int], read: Callable[[list[Request]], list[RowOutcome]]
    ) -> dict[int, RowOutcome]:
        """Returns what reading some rows came to, by row."""
        try:
            outcomes = read([batch[row] for row in rows]) if rows else []
        except BaseException as error:
            outcomes = [RowOutcome((request_failure("reading its prompt", error),)) for _ in rows]
        return dict(zip(rows, outcomes, strict=True))

    def _decide_safely(self, batch: Sequence[Request], prefill_seconds: float | None) -> list[list[TokenResult]]:
        """Decides; if that raises, request by request, so that only the failing ones fail.

        Nothing is committed before `settle`, which raises nothing, so that a step may be repeated.
        """
        if not batch:
            return []
        try:
            return self._decide(batch, prefill_seconds)
        except BaseException as error:
            for request in batch:
                for voice in request.voices:
                    voice.recompute_last()
            if len(batch) > 1:
                logger.warning("a step of %d requests failed and is repeated one by one", len(batch), exc_info=True)
                return [results for request in batch for results in self._decide_safely([request], prefill_seconds)]
            return [[request_failure("deciding its next token", error)]]

    def _decide(self, batch: Sequence[Request], prefill_seconds: float | None) -> list[list[TokenResult]]:
        """Runs one step of requests whose next token is not forced."""
        began, forwards = time.perf_counter(), self._collector.forward_seconds
        self._collector.notice_recoveries(batch)
        step = self._lookup.draft(draft_continuations(Step.begin(batch, prefill_seconds)))
        self._prepare_masks(step)
        step = truncate_rejected(self._query_gates(step))
        step = self._run_ahead.draft(step)
        step, selections = self._select(self._query_others(step))
        outcomes = [settle(step, row, selections) for row in range(len(batch))]
        for request, outcome in zip(batch, outcomes, strict=True):
            self._report(request, outcome.failed)
        self._learn(
            StepOutcome(
                step=step,
                accepted={row: done.accepted for row, done in enumerate(outcomes) if done.accepted is not None},
                seconds=time.perf_counter() - began,
                forward_seconds=self._collector.forward_seconds - forwards,
            )
        )
        return [list(outcome.results) for outcome in outcomes]

    def _prepare_masks(self, step: Step) -> None:
        """Starts to compute grammar masks in threads, beside the forwards."""
        for row, request in enumerate(step.batch):
            if request.constraint is not None:
                tokens = step.drafts[row].sequence.tokens if row in step.drafts else ()
                request.constraint.prepare(tokens, self._masking)

    def _query_gates(self, step: Step) -> Step:
        """Evaluates the gates of thresholded requests: where one is sure, the other voices compute nothing."""
        gated = [row for row, request in enumerate(step.batch) if request.threshold is not None]
        queries = [step.query(row, step.batch[row].gate) for row in gated if not step.has(row, step.batch[row].gate)]
        return step.forward(self._collector, queries).with_certainty(gated)

    def _query_others(self, step: Step) -> Step:
        """Evaluates the voices that are still needed, one forward for each member."""
        first = {row: step.first_unsure(row) for row in step.usable_rows}
        return step.forward(
            self._collector,
            [
                step.query(row, voice, position)
                for row, position in first.items()
                if position is not None
                for voice in step.batch[row].voices
                if not step.has(row, voice)
            ],
        )

    def _select(self, step: Step) -> tuple[Step, dict[Key, Selection]]:
        """Combines and selects at every position of every row that can be decided.

        Where only the most probable tokens are known, the selected one is proven, as far as the draft is right; voices
        whose probabilities cannot be fetched for that have errors in the step that is returned.
        """
        keys = [(row, position) for row in step.usable_rows for position in range(step.positions(row))]
        places = {key: step.place(*key) for key in keys}
        complete = {key: place for key, place in places.items() if isinstance(place, Place)}
        tops = {key: place for key, place in places.items() if isinstance(place, TopPlace)}
        if not tops:
            return step, dict(zip(complete, select(list(complete.values())), strict=True))
        certified = self._certifier.certify(tops, step.drafted)
        complete |= certified.complete
        selections = dict(zip(complete, select(list(complete.values())), strict=True))
        return step.with_errors(certified.errors), {**selections, **certified.selections}

    def _report(self, request: Request, failed: Mapping[Voice, GaCError]) -> None:
        """Emits events of members that failed for a request, and erases what they hold of it."""
        reported: set[str] = set()
        for voice, error in failed.items():
            member = voice.member
            self._collector.erase(voice)
            if voice.name in reported:
                continue
            reported.add(voice.name)
            # The executor reports failures of members as a whole.
            if isinstance(error, MemberError) and not isinstance(error, (MemberLostError, MemberTimeoutError)):
                reason, kind = error.reason, type(error).__name__
                self._listener(MemberFailed(voice.name, member.member_id, reason, kind, request.label))

    def _learn(self, outcome: StepOutcome) -> None:
        """Updates the estimates of costs and drafters from the step's outcome."""
        try:
            self._costs.record(outcome)
            self._lookup.learn(outcome)
            self._run_ahead.learn(outcome)
        except Exception:
            # The tokens are committed already; drafts are judged by older numbers.
            logger.exception("the costs of drafts could not be recorded")


def commit_forced(request: Request) -> RowOutcome:
    """Commits the tokens that a request's grammar forces, if there are any."""
    results: list[TokenResult] = []
    failed: dict[Voice, GaCError] = {}
    try:
        assert request.constraint is not None
        for data in request.constraint.forced():
            commitment = commit_token(request, forced_token(request, data))
            results += commitment.results
            failed |= commitment.failed
            if not commitment.can_continue:
                break
    except BaseException as error:
        results.append(request_failure("writing what the grammar forces", error))
    return RowOutcome(tuple(results), failed=failed)


def truncate_rejected(step: Step) -> Step:
    """Ends drafts after the first token at which a sure gate selects another one."""
    sure = dict(step.sure)
    for row in [row for row in step.drafts if row in sure]:
        sequence, alone = step.drafts[row].sequence, step.first_unsure(row)
        decided = range(min(sequence.positions - 1, sequence.positions if alone is None else alone))
        for position in decided:
            place = step.voice_place(row, step.batch[row].gate, position)
            if sample_tokens({row: place})[row] != sequence.tokens[position]:
                sequence.truncate(position)
                sure[row] = sure[row][: position + 1]
                break
    return replace(step, sure=sure)
