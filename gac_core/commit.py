"""How committed bytes enter a member's text: as they come, or cut anew as its own tokenizer would cut them.

Knows one member's tokenizer and one request's sequence; knows nothing of models, votes or caches. A replaced tail is
only a smaller ``num_cached``: the next chunk starts earlier.
"""

from __future__ import annotations

from typing import Protocol

from gac_core.request import Sequence
from gac_core.tokenizer import MemberTokenizer


class Commit(Protocol):
    """Writes committed bytes into a member's sequence."""

    def __call__(self, sequence: Sequence, data: bytes, own: bool) -> None:
        """Appends bytes.

        Args:
            sequence: The member's ids; changed in place.
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

    def __call__(self, sequence: Sequence, data: bytes, own: bool) -> None:
        """Appends the ids of ``data``."""
        sequence.ids.extend(self._tokenizer.write(data))


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

    def __call__(self, sequence: Sequence, data: bytes, own: bool) -> None:
        """Appends ``data``, and cuts the tail anew unless the member chose the bytes itself."""
        sequence.tail += data
        ids = self._tokenizer.write(data) if own else ()
        if len(ids) == 1:
            sequence.ids.extend(ids)
        else:
            self._replace(sequence, data)
        if len(sequence.tail) > self.LONG:
            self._advance(sequence)

    def _replace(self, sequence: Sequence, data: bytes) -> None:
        ids = self._encode(sequence.tail)
        if ids is None:
            sequence.ids.extend(self._tokenizer.write(data))
            return
        held = sequence.ids[sequence.tail_start :]
        same = next((i for i, (a, b) in enumerate(zip(held, ids, strict=False)) if a != b), min(len(held), len(ids)))
        kept = sequence.tail_start + same
        sequence.ids[kept:] = ids[same:]
        sequence.num_cached = min(sequence.num_cached, kept)

    def _encode(self, tail: bytes) -> tuple[int, ...] | None:
        """The ids of a tail; a character that is not complete yet is written as bytes. None where that is no text."""
        for missing in range(min(4, len(tail) + 1)):
            whole, part = (tail[:-missing], tail[-missing:]) if missing else (tail, b"")
            try:
                text = whole.decode()
            except UnicodeDecodeError:
                continue
            ids = self._tokenizer.cut(text) if text else ()
            return None if ids is None else ids + (self._tokenizer.write(part) if part else ())
        return None

    def _advance(self, sequence: Sequence) -> None:
        left = 0
        for index in range(len(sequence.ids) - 1, sequence.tail_start, -1):
            data = self._tokenizer.decode((sequence.ids[index],))
            left += len(data)
            before = self._tokenizer.decode((sequence.ids[index - 1],))
            if left >= self.SHORT and data[:1].isspace() and not before[-1:].isspace():
                sequence.tail_start, sequence.tail = index, sequence.tail[-left:]
                return
        if len(sequence.tail) > self.LIMIT:
            sequence.tail_start, sequence.tail = len(sequence.ids), b""


def make_commit(rule: str, tokenizer: MemberTokenizer) -> Commit:
    """Returns the commit rule of that name for a member."""
    return CanonicalCommit(tokenizer) if rule == "canonical" else ContextFreeCommit(tokenizer)
