"""Drafts of a given continuation: a text that is scored is read in one chunk instead of token by token."""

from __future__ import annotations

from gac_core.decoding.draft_sequence import DraftSequence
from gac_core.decoding.request import Request
from gac_core.decoding.step import Draft, Step

KIND = "continuation"
"""The kind of these drafts, as in `Request.drafts`."""

MAX_PROBABILITIES = 2**25
"""Probabilities, over all positions and requests of a step, that one member computes for continuations at most."""


def draft_continuations(step: Step) -> Step:
    """Returns the step with drafts of the tokens that are to be scored, for the rows whose requests allow them.

    A draft ends where a voice would tokenize earlier text anew, as every draft does; the next step goes on from there.
    A row of which some voices have computed the next token already, while others still read, gets no draft.
    """
    rows = {
        row: request
        for row, request in enumerate(step.batch)
        if KIND in request.drafts and not request.has_pending_probs
    }
    return step.with_drafts(
        {
            row: Draft(_sequence(request, _max_positions(step, request, len(rows))), KIND)
            for row, request in rows.items()
        }
    )


def _max_positions(step: Step, request: Request, rows: int) -> int:
    """Returns at how many positions of a row tokens are selected in one step at most.

    Args:
        step: The step.
        request: The row's request.
        rows: How many rows share the step's positions.
    """
    most = MAX_PROBABILITIES // len(request.union)
    if step.prefill_seconds is not None:
        # Requests that generate text wait for this step.
        most = min(most, *(voice.member.times.tokens_within(step.prefill_seconds) for voice in request.voices))
    return max(1, most // rows)


def _sequence(request: Request, positions: int) -> DraftSequence:
    """Returns the next given tokens as a draft; the last token of the continuation is not read."""
    assert request.continuation is not None, "only given tokens are drafted here"
    sequence = DraftSequence(request)
    for data in request.continuation[request.num_committed : -1][: positions - 1]:
        if not sequence.extend(data):
            break
    return sequence
