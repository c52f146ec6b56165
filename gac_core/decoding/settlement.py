"""The end of a step for one request: verify its draft, commit what was selected, go on without voices that failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch

from gac_core.decoding.absence import go_on_without
from gac_core.decoding.certificate import Key
from gac_core.decoding.commit import commit_token
from gac_core.decoding.distributions import RequestDistributions
from gac_core.decoding.place import Place
from gac_core.decoding.request import Request
from gac_core.decoding.selection import Selection
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.step import Step
from gac_core.decoding.tokens import TokenResult
from gac_core.errors import GaCError, GrammarError, InvalidLogitsError, RequestError, listed, quote
from gac_core.failures import request_failure

Selections = Mapping[Key, Selection]


@dataclass(frozen=True)
class RowOutcome:
    """What a step came to for one request.

    Attributes:
        results: Its committed tokens, then the error that ended it, if any.
        accepted: How many drafted tokens were accepted; None where the request was not decided.
        failed: By voice the errors of its members.
    """

    results: tuple[TokenResult, ...] = ()
    accepted: int | None = None
    failed: Mapping[Sequence, GaCError] = field(default_factory=dict)


def settle(step: Step, row: int, selections: Selections) -> RowOutcome:
    """Verifies a row's draft and commits what was selected; whatever raises becomes the request's error."""
    request, found = step.batch[row], step.distributions.rows[row]
    _keep_pending(request, found)
    if found.errors:
        fatal = go_on_without(request, found.errors)
        return RowOutcome(() if fatal is None else (fatal,), failed=found.errors)
    if found.unread:
        return RowOutcome()
    results: list[TokenResult] = []
    failed: dict[Sequence, GaCError] = {}
    accepted = 0
    try:
        for accepted in range(step.positions(row)):
            selection = selections[row, accepted]
            if not selection.usable:
                invalid = _invalid(selection)
                fatal = go_on_without(request, invalid) if invalid else _forbidden(selection)
                failed |= invalid
                results += () if fatal is None else (fatal,)
                break
            commitment = commit_token(request, selection.sampled())
            request.sampler.advance()
            results += commitment.results
            failed |= commitment.failed
            if not commitment.can_continue or not _continues(step, row, accepted + 1):
                break
    except BaseException as error:
        results.append(request_failure("writing its next token", error))
    if row in step.drafts:
        request.stats.drafted += step.drafts[row].sequence.drafted
        request.stats.accepted += accepted
    return RowOutcome(tuple(results), accepted, failed)


def _keep_pending(request: Request, found: RequestDistributions) -> None:
    """Keeps the next token's distributions of voices that are ready where the row is not decided; else drops them."""
    for voice in request.voices:
        ready = None if found.usable else found.voices.get(voice)
        voice.pending_probs = None if ready is None else ready.pending()


def _continues(step: Step, row: int, position: int) -> bool:
    """Whether the committed text is that of the draft at a position, and the next token is to be selected there."""
    request = step.batch[row]
    if row not in step.drafts or position == step.positions(row):
        return False
    return step.drafts[row].sequence.matches(request, position) and not _is_forced(request)


def _is_forced(request: Request) -> bool:
    """Whether the request's grammar forces what comes next; an error of it is raised in the next step."""
    try:
        return request.constraint is not None and bool(request.constraint.forced())
    except BaseException:
        return True


def _invalid(selection: Selection) -> dict[Sequence, GaCError]:
    """Returns the errors of voices whose distribution is not finite, at a place at which nothing can be selected."""
    place = selection.place
    assert isinstance(place, Place), "a proven token has probability"
    pairs = zip(place.readers, place.probs, strict=True)
    return {voice: InvalidLogitsError(voice.name) for voice, probs in pairs if not bool(torch.isfinite(probs).all())}


def _forbidden(selection: Selection) -> RequestError:
    """Returns the error of a place at which grammar, penalties and bias leave no token any probability."""
    request = selection.place.request
    members = listed(dict.fromkeys(voice.name for voice in selection.place.voices))
    if request.adjustment is None:
        return GrammarError(
            f"none of the tokens that the grammar allows here has any probability for members {members}; say in the "
            "prompt what to write"
        )
    given = {name: getattr(request.params, name) for name in ("logit_bias", "presence_penalty", "frequency_penalty")}
    causes = ", ".join(f"{name}={quote(value)}" for name, value in given.items() if value)
    grammar = "" if request.constraint is None else " of those that the grammar allows"
    return RequestError(
        f"no token{grammar} has any probability left for members {members} with {causes}; favour tokens that a member "
        "can give here, ban fewer tokens, or use smaller numbers"
    )
