"""Committing a token: how its bytes become ids in each voice's text.

A commit that replaces ids at the end of a text only lowers ``num_cached``: the next chunk starts earlier.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field

from gac_core.decoding.absence import drop_for_good
from gac_core.decoding.request import Absence, Request
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.tokenized_text import CommitRule, TokenizedText
from gac_core.decoding.tokens import CommittedToken, SampledToken, TokenResult
from gac_core.errors import GaCError, MemberError, UnwritableTextError
from gac_core.failures import member_failure
from gac_core.tokenization.tokenizer import MemberTokenizer

logger = logging.getLogger(__name__)


class ContextFreeCommit:
    """Encodes the bytes of each commit alone, independent of what precedes them (GaC, section 3.2, step 4)."""

    def __init__(self, tokenizer: MemberTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: TokenizedText, data: bytes, own: bool) -> None:
        """Appends the ids of ``data``."""
        text.token_ids.extend(self._tokenizer.encode_bytes(data))


class CanonicalCommit:
    """Retokenizes the text since the last safe boundary, so that a member reads text tokenized as in its training.

    A token that the member chose itself is appended as it is. Bytes that others chose are appended to the tail; the
    tail is encoded by the member's tokenizer, the common prefix with the present ids is kept, and the rest is replaced.
    The prompt is never changed. A safe boundary is a token that starts with white space and follows one that does not
    end in it.
    """

    # The tail is shortened once it is longer than LONG bytes, at a boundary that leaves SHORT bytes or more; a tail
    # without any boundary is closed at LIMIT bytes.
    SHORT, LONG, LIMIT = 24, 96, 512

    def __init__(self, tokenizer: MemberTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: TokenizedText, data: bytes, own: bool) -> None:
        """Appends ``data``, and retokenizes the tail unless the member chose the bytes itself."""
        text.tail += data
        ids = self._tokenizer.encode_bytes(data) if own else ()
        if len(ids) == 1:
            text.token_ids.extend(ids)
        else:
            self._replace(text, data)
        if len(text.tail) > self.LONG:
            self._advance(text)

    def _replace(self, text: TokenizedText, data: bytes) -> None:
        new = self._encode(text.tail)
        if new is None:
            text.token_ids.extend(self._tokenizer.encode_bytes(data))
            return
        old = text.token_ids[text.tail_start :]
        same = next((i for i, (a, b) in enumerate(zip(old, new, strict=False)) if a != b), min(len(old), len(new)))
        kept = text.tail_start + same
        text.token_ids[kept:] = new[same:]
        text.num_cached = min(text.num_cached, kept)

    def _encode(self, tail: bytes) -> tuple[int, ...] | None:
        """Returns the ids of a tail, an incomplete last character as bytes; None if the tail is not valid UTF-8."""
        for missing in range(min(4, len(tail) + 1)):
            whole, part = (tail[:-missing], tail[-missing:]) if missing else (tail, b"")
            try:
                text = whole.decode()
            except UnicodeDecodeError:
                continue
            ids = self._tokenizer.encode_continuation(text) if text else ()
            return None if ids is None else ids + (self._tokenizer.encode_bytes(part) if part else ())
        return None

    def _advance(self, text: TokenizedText) -> None:
        left = 0
        for index in range(len(text.token_ids) - 1, text.tail_start, -1):
            data = self._tokenizer.decode((text.token_ids[index],))
            left += len(data)
            before = self._tokenizer.decode((text.token_ids[index - 1],))
            if left >= self.SHORT and data[:1].isspace() and not before[-1:].isspace():
                text.tail_start, text.tail = index, text.tail[-left:]
                return
        if len(text.tail) > self.LIMIT:
            text.tail_start, text.tail = len(text.token_ids), b""


COMMIT_RULES: dict[str, type[CanonicalCommit | ContextFreeCommit]] = {
    "canonical": CanonicalCommit,
    "context-free": ContextFreeCommit,
}


def make_commit(rule: str, tokenizer: MemberTokenizer) -> CommitRule:
    """Returns the commit rule of that name (`EnsembleConfig.commit`) for a member."""
    return COMMIT_RULES[rule](tokenizer)


@dataclass(frozen=True)
class Commitment:
    """What committing a token came to.

    Attributes:
        results: The token, then the error that ended the request, if any.
        can_continue: Whether further tokens can follow.
        failed: By voice the errors of its members, which could not write the token.
    """

    results: tuple[TokenResult, ...]
    can_continue: bool
    failed: Mapping[Sequence, GaCError] = field(default_factory=dict)


def commit_token(request: Request, token: SampledToken) -> Commitment:
    """Appends a token to every voice's text.

    A voice other than the gate whose vocabulary cannot represent the bytes is left out of the rest of the request,
    since it would read another text. If the gate cannot represent them, the request fails.
    """
    if token.data is None:
        return Commitment((CommittedToken(token),), can_continue=False)
    request.written += token.data
    request.num_committed += 1
    failed: dict[Sequence, GaCError] = {}
    try:
        if request.constraint is not None:
            request.constraint.accept(token.data)
        if request.adjustment is not None:
            request.adjustment.count(token.data)
        for voice in list(request.voices):
            if voice not in request.voices:
                # Its member failed for another voice.
                continue
            error = _append_or_leave_out(request, voice, token.data, own=voice in token.chosen_by)
            if error is not None:
                failed[voice] = error
                fatal = drop_for_good(request, voice, error)
                if fatal is not None:
                    return Commitment((CommittedToken(token), fatal), can_continue=False, failed=failed)
        for absence in list(request.absent):
            _append_absent(request, absence, token.data)
    except GaCError as reason:
        return Commitment((CommittedToken(token), reason), can_continue=False, failed=failed)
    full = any(voice.is_full for voice in request.voices)
    return Commitment((CommittedToken(token, context_full=full),), can_continue=not full, failed=failed)


def _append_or_leave_out(request: Request, voice: Sequence, data: bytes, own: bool) -> MemberError | None:
    """Commits to one voice, without which the request goes on if its vocabulary lacks bytes; returns other failures."""
    try:
        _append(voice, data, own)
    except UnwritableTextError as error:
        if voice is request.gate:
            raise
        # Its other voices lack the token as well.
        if voice.name not in request.stats.left_out:
            _log_left_out(request, error)
        request.leave_out(voice, error)
    except MemberError as error:
        return error
    return None


def _append_absent(request: Request, absence: Absence, data: bytes) -> None:
    """Commits to an absent voice, which cannot return if that fails or the text becomes too long for it."""
    try:
        _append(absence.voice, data, own=False)
        lost = absence.voice.is_full
    except UnwritableTextError as error:
        request.stats.left_out[absence.voice.name] = str(error)
        lost = True
    except MemberError:
        lost = True
    if lost:
        request.absent.remove(absence)


def _append(voice: Sequence, data: bytes, own: bool) -> None:
    """Commits to one voice; whatever else its tokenizer raises is the member's failure."""
    try:
        voice.member.commit(voice.text, data, own=own)
    except GaCError:
        raise
    except BaseException as error:
        raise member_failure(voice.name, error, "writing a token in its ids") from error


def _log_left_out(request: Request, error: UnwritableTextError) -> None:
    logger.warning(
        "request %s continues without member %r, whose vocabulary cannot represent a token",
        request.label,
        error.member,
        extra={"request_id": request.label, "member": error.member},
    )
