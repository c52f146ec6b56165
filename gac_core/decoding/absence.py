"""Voices whose member failed while a request runs: when the request goes on without them, and when they return."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from gac_core.decoding.request import Absence, Request
from gac_core.decoding.sequence import Sequence
from gac_core.effective import default_gate
from gac_core.errors import GaCError, MemberError, UnwritableTextError
from gac_core.output import DroppedMember

logger = logging.getLogger(__name__)

REJOIN_PAUSE = 1.0
"""Seconds from a voice's first failure in a request until it may return; doubled by each further one."""

MAX_REJOINS = 3
"""How often a voice may return to one request."""


def go_on_without(request: Request, errors: Mapping[Sequence, GaCError]) -> GaCError | None:
    """Lets a request go on without the voices that failed, if its policy allows that.

    The other voices keep their texts, and must compute the next token's distribution anew unless it is pending.

    Args:
        request: The request.
        errors: The error of each of them, at least one.

    Returns:
        The error that ends the request instead; None if it goes on.
    """
    policy, failed = request.failures, list(errors.values())
    fatal = next((error for error in failed if not _of_member(error)), None)
    if fatal is not None:
        return fatal
    if not policy.drop:
        return failed[0]
    if len(request.voices) - len(errors) < policy.min_members:
        return failed[-1]
    if request.gate in errors and request.threshold is not None and policy.gate_must_live:
        return errors[request.gate]
    for voice, error in errors.items():
        _drop(request, voice, error)
    _choose_gate(request)
    for voice in request.voices:
        if voice.pending_probs is None:
            voice.recompute_last()
    return None


def _of_member(error: GaCError) -> bool:
    """Whether a request can go on without the member: not where the member cannot write the text."""
    return isinstance(error, MemberError) and not isinstance(error, UnwritableTextError)


def drop_for_good(request: Request, voice: Sequence, error: GaCError) -> GaCError | None:
    """`go_on_without` for a voice whose text is damaged, so that it cannot return."""
    fatal = go_on_without(request, {voice: error})
    if fatal is None:
        request.absent = [absence for absence in request.absent if absence.voice is not voice]
    return fatal


def _drop(request: Request, voice: Sequence, error: GaCError) -> None:
    request.voices.remove(voice)
    voice.text.num_cached, voice.pending_probs = 0, None
    times = sum(dropped.member == voice.name for dropped in request.stats.dropped)
    if times < MAX_REJOINS:
        request.absent.append(Absence(voice, time.monotonic() + REJOIN_PAUSE * 2**times))
    request.stats.dropped.append(DroppedMember(voice.name, str(error), request.num_committed))
    logger.warning(
        "request %s goes on without member %r, which failed: %s",
        request.label,
        voice.name,
        type(error.__cause__ or error).__name__,
        extra={"event": "member_dropped", "request_id": request.label, "member": voice.name, "seconds": 0.0},
    )


def rejoin(request: Request, alive: Callable[[str], bool]) -> None:
    """Lets absent voices take part again whose member is alive and whose pause is over; they read their texts anew.

    Args:
        request: The request.
        alive: Whether a member can compute, by its id.
    """
    now = time.monotonic()
    for absence in list(request.absent):
        if now >= absence.until and alive(absence.voice.member.member_id):
            _return(request, absence)


def _return(request: Request, absence: Absence) -> None:
    voice = absence.voice
    request.absent.remove(absence)
    present = {*request.voices, voice}
    request.voices = [each for each in request.participants if each in present]
    dropped = request.stats.dropped
    last = max(index for index, each in enumerate(dropped) if each.member == voice.name)
    dropped[last] = replace(dropped[last], rejoined_at=request.num_committed)
    logger.info(
        "request %s: member %r takes part again",
        request.label,
        voice.name,
        extra={"event": "member_rejoined", "request_id": request.label, "member": voice.name, "seconds": 0.0},
    )
    _choose_gate(request)


def _choose_gate(request: Request) -> None:
    """Sets the gate: the request's own, or while that is absent the default one among the voices that are left.

    With a threshold, the gate computes the next token's distribution anew: its certainty may depend on its share of the
    weights, and what a new gate computed before has none.
    """
    gate = request.configured_gate
    if gate not in request.voices and request.voices:
        index, _ = default_gate(
            [voice.weight for voice in request.voices], [voice.member.size for voice in request.voices]
        )
        gate = request.voices[index]
    request.gate = gate
    if request.threshold is not None:
        gate.pending_probs = None
        gate.recompute_last()
