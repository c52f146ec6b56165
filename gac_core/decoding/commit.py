"""How committed bytes enter a member's text: as they come, or cut anew as its own tokenizer would cut them.

Knows one member's tokenizer and one request's text; knows nothing of models, votes or caches. A replaced tail is
only a smaller ``num_cached``: the next chunk starts earlier.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from gac_core.decoding.request import MemberText, Picked, Request
from gac_core.errors import GaCError, UnwritableTextError
from gac_core.failures import member_failure
from gac_core.tokenization.tokenizer import MemberTokenizer

logger = logging.getLogger(__name__)


class Commit(Protocol):
    """Writes committed bytes into a member's text."""

    def __call__(self, text: MemberText, data: bytes, own: bool) -> None:
        """Appends bytes.

        Args:
            text: The member's ids; changed in place.
            data: The bytes, one or more.
            own: Whether the member chose these bytes itself, as one token.

        Raises:
            UnwritableTextError: The member cannot spell these bytes.
        """
        ...


class ContextFreeCommit:
    """Encodes the bytes of each commit alone, whatever stands before them (GaC, section 3.2, step 4)."""

    def __init__(self, tokenizer: MemberTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: MemberText, data: bytes, own: bool) -> None:
        """Appends the ids of ``data``."""
        text.ids.extend(self._tokenizer.encode_bytes(data))


class CanonicalCommit:
    """Cuts the text since the last safe boundary anew, so that a member only sees text tokenized as in its training.

    A token that the member chose itself is appended as it is. Bytes that others chose are joined to the tail; the tail
    is encoded by the member's tokenizer, the common prefix with what it holds is kept, and the rest is replaced. The
    prompt is never touched. A safe boundary is a token that starts with white space after one that does not end in it.
    """

    # The tail is cut off once it is longer than LONG bytes, at a boundary that leaves SHORT bytes or more; a tail
    # without any boundary is closed at LIMIT bytes.
    SHORT, LONG, LIMIT = 24, 96, 512

    def __init__(self, tokenizer: MemberTokenizer) -> None:
        self._tokenizer = tokenizer

    def __call__(self, text: MemberText, data: bytes, own: bool) -> None:
        """Appends ``data``, and cuts the tail anew unless the member chose the bytes itself."""
        text.tail += data
        ids = self._tokenizer.encode_bytes(data) if own else ()
        if len(ids) == 1:
            text.ids.extend(ids)
        else:
            self._replace(text, data)
        if len(text.tail) > self.LONG:
            self._advance(text)

    def _replace(self, text: MemberText, data: bytes) -> None:
        ids = self._encode(text.tail)
        if ids is None:
            text.ids.extend(self._tokenizer.encode_bytes(data))
            return
        held = text.ids[text.tail_start :]
        same = next((i for i, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b), min(len(held), len(ids)))
        kept = text.tail_start + same
        text.ids[kept:] = ids[same:]
        text.num_cached = min(text.num_cached, kept)

    def _encode(self, tail: bytes) -> tuple[int, ...] | None:
        """The ids of a tail; a character that is not complete yet is written as bytes. None where that is no text."""
        for missing in range(min(4, len(tail) + 1)):
            whole, part = (tail[:-missing], tail[-missing:]) if missing else (tail, b"")
            try:
                text = whole.decode()
            except UnicodeDecodeError:
                continue
            ids = self._tokenizer.encode_continuation(text) if text else ()
            return None if ids is None else ids + (self._tokenizer.encode_bytes(part) if part else ())
        return None

    def _advance(self, text: MemberText) -> None:
        left = 0
        for index in range(len(text.ids) - 1, text.tail_start, -1):
            data = self._tokenizer.decode((text.ids[index],))
            left += len(data)
            before = self._tokenizer.decode((text.ids[index - 1],))
            if left >= self.SHORT and data[:1].isspace() and not before[-1:].isspace():
                text.tail_start, text.tail = index, text.tail[-left:]
                return
        if len(text.tail) > self.LIMIT:
            text.tail_start, text.tail = len(text.ids), b""


class Writer:
    """Commits what was picked to every member's text.

    Args:
        commits: One per member.
        contexts: Per member the longest text it can read, in tokens, or None.
    """

    def __init__(self, commits: Sequence[Commit], contexts: Sequence[int | None]) -> None:
        self.commits = list(commits)
        self.contexts = list(contexts)

    def write(self, request: Request, picked: Picked, done: list[Picked | GaCError]) -> bool:
        """Commits one choice and files it, and the error if the gate cannot write it.

        Any other member that cannot write it is left out of the rest of the request: what it would read is another
        text.

        Args:
            request: The request; its texts grow.
            picked: The choice.
            done: Where it is filed.

        Returns:
            Whether the text can go on.
        """
        if picked.data is None:
            done.append(picked)
            return False
        request.written += picked.data
        full = False
        try:
            if request.constraint is not None:
                request.constraint.accept(picked.data)
            for member, text in list(request.texts.items()):
                try:
                    self._commit(request, member, text, picked)
                except UnwritableTextError as error:
                    if member == request.gate:
                        raise
                    request.leave_out(member, error)
                    logger.warning(
                        "request %s goes on without member %r, whose vocabulary cannot write a token",
                        request.label,
                        error.member,
                        extra={"request_id": request.label, "member": error.member},
                    )
                    continue
                context = self.contexts[member]
                full = full or (context is not None and len(text.ids) > context)
        except GaCError as error:
            done.extend([picked, error])
            return False
        done.append(replace(picked, full=True) if full else picked)
        return not full

    def _commit(self, request: Request, member: int, text: MemberText, picked: Picked) -> None:
        """Commits to one member; whatever else its tokenizer raises is its failure."""
        assert picked.data is not None
        try:
            self.commits[member](text, picked.data, own=member in picked.chosen_by)
        except GaCError:
            raise
        except BaseException as error:
            raise member_failure(request.names[member], error, "writing a token in its ids") from error


def make_commit(rule: str, tokenizer: MemberTokenizer) -> Commit:
    """Returns the commit rule of that name for a member."""
    return CanonicalCommit(tokenizer) if rule == "canonical" else ContextFreeCommit(tokenizer)
