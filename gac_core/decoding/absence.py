"""Voices whose member failed while a request runs: when the request goes on without them, and when they return."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from gac_core.decoding.ensemble_member import EnsembleMember
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
    """Lets a request go on without the members that failed, if its policy allows that.

    A member that failed for one of its voices is left out with all of them. The other voices keep their texts, and must
    compute the next token's distribution anew unless it is pending.

    Args:
        request: The request.
        errors: The errors of voices, at least one.

    Returns:
        The error that ends the request instead; None if it goes on.
    """
    policy, failed = request.failures, list(errors.values())
    fatal = next((error for error in failed if not _of_member(error)), None)
    if fatal is not None:
        return fatal
    if not policy.drop:
        return failed[0]
    failing = {voice.member: error for voice, error in errors.items()}
    voting = {voice.member for voice in request.voices if not voice.prior}
    if len(voting - failing.keys()) < policy.min_members:
        return failed[-1]
    if request.gate.member in failing and request.threshold is not None and policy.gate_must_live:
        return failing[request.gate.member]
    for member, error in failing.items():
        _drop(request, [voice for voice in request.voices if voice.member is member], error)
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
        request.absent = [absence for absence in request.absent if absence.voice.member is not voice.member]
    return fatal


def _drop(request: Request, voices: list[Sequence], error: GaCError) -> None:
    """Leaves out all voices of one member."""
    name = voices[0].name
    times = sum(dropped.member == name for dropped in request.stats.dropped)
    until = time.monotonic() + REJOIN_PAUSE * 2**times
    for voice in voices:
        request.voices.remove(voice)
        voice.text.num_cached, voice.pending_probs = 0, None
        if times < MAX_REJOINS:
            request.absent.append(Absence(voice, until))
    request.stats.dropped.append(DroppedMember(name, str(error), request.num_committed))
    logger.warning(
        "request %s goes on without member %r, which failed: %s",
        request.label,
        name,
        type(error.__cause__ or error).__name__,
        extra={"event": "member_dropped", "request_id": request.label, "member": name, "seconds": 0.0},
    )


def rejoin(request: Request, alive: Callable[[str], bool]) -> None:
    """Lets absent voices take part again whose member is alive and whose pause is over; they read their texts anew.

    Args:
        request: The request.
        alive: Whether a member can compute, by its id.
    """
    now = time.monotonic()
    returning: dict[EnsembleMember, list[Absence]] = {}
    for absence in list(request.absent):
        member = absence.voice.member
        if now >= absence.until and alive(member.member_id):
            returning.setdefault(member, []).append(absence)
    for absences in returning.values():
        _return(request, absences)


def _return(request: Request, absences: list[Absence]) -> None:
    """Lets the voices of one member take part again."""
    name = absences[0].voice.name
    present = {*request.voices, *(absence.voice for absence in absences)}
    request.absent = [absence for absence in request.absent if absence not in absences]
    request.voices = [each for each in request.participants if each in present]
    dropped = request.stats.dropped
    last = max(index for index, each in enumerate(dropped) if each.member == name)
    dropped[last] = replace(dropped[last], rejoined_at=request.num_committed)
    logger.info(
        "request %s: member %r takes part again",
        request.label,
        name,
        extra={"event": "member_rejoined", "request_id": request.label, "member": name, "seconds": 0.0},
    )
    _choose_gate(request)


def _choose_gate(request: Request) -> None:
    """Sets the gate: the request's own, or while that is absent the default one among the voices that are left.

    With a threshold, the gate computes the next token's distribution anew: its certainty may depend on its share of the
    weights, and what a new gate computed before has none.
    """
    gate = request.configured_gate
    if gate not in request.voices and request.voices:
        voting = [voice for voice in request.voices if not voice.prior]
        index, _ = default_gate([voice.weight for voice in voting], [voice.member.size for voice in voting])
        gate = voting[index]
    request.gate = gate
    if request.threshold is not None:
        gate.pending_probs = None
        gate.recompute_last()
