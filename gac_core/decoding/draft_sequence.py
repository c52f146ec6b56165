"""A drafted continuation of a request: tokens that are not committed, and each voice's ids after each of them."""

from __future__ import annotations

from dataclasses import dataclass

from gac_core.decoding.request import Request
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.tokenized_text import TokenizedText


@dataclass(frozen=True)
class _End:
    """Where a voice's text ends at a position, with the fields of `TokenizedText` there; its length is in tokens."""

    length: int
    tail_start: int
    tail: bytes

    @classmethod
    def of(cls, text: TokenizedText) -> _End:
        return cls(len(text.token_ids), text.tail_start, text.tail)


class DraftSequence:
    """Drafted tokens of one request.

    A *position* is a place between tokens: position 0 is the end of the committed text, position i the end after i
    drafted tokens. A voice's distributions at all positions come from one forward, since its ids at each position begin
    with those at the position before. A token whose bytes would change earlier ids ends the draft.

    Args:
        request: The request; its texts are copied.

    Attributes:
        tokens: The drafted tokens, as bytes.
    """

    def __init__(self, request: Request) -> None:
        self.tokens: list[bytes] = []
        self._num_rejected = 0
        self._texts: dict[Sequence, TokenizedText] = {voice: voice.text.copy() for voice in request.voices}
        # A commit changes no id before these.
        self._fixed = {voice: voice.text.tail_start for voice in request.voices}
        self._ends = [{voice: _End.of(voice.text) for voice in request.voices}]
        self._open = True

    @property
    def positions(self) -> int:
        """Number of positions: one more than drafted tokens."""
        return len(self._ends)

    @property
    def drafted(self) -> int:
        """How many tokens were drafted, including one that `truncate` removed."""
        return len(self.tokens) + self._num_rejected

    def end(self, voice: Sequence, position: int) -> int:
        """Returns the length of a voice's text at a position, in tokens."""
        return self._ends[position][voice].length

    def text(self, voice: Sequence, position: int) -> TokenizedText:
        """Returns a voice's text at a position, as it is if the tokens before are committed."""
        end = self._ends[position][voice]
        own = self._texts[voice]
        text = TokenizedText(own.token_ids[: end.length], images=own.images)
        text.tail_start, text.tail = end.tail_start, end.tail
        return text

    def token_ids(self, voice: Sequence) -> list[int]:
        """Returns a voice's ids at the last position."""
        return self._texts[voice].token_ids[: self.end(voice, -1)]

    def extend(self, data: bytes) -> bool:
        """Drafts one more token.

        Args:
            data: Its bytes.

        Returns:
            Whether the token was added. If not, the draft is complete as it was.
        """
        if not self._open:
            return False
        for voice, text in self._texts.items():
            kept = text.token_ids[text.tail_start :]
            start, text.num_cached = text.tail_start, len(text.token_ids)
            context = voice.member.context
            try:
                voice.member.commit(text, data, own=True)
            except BaseException:
                # If the token is sampled nevertheless, committing it raises the same error, as the request's own.
                self._open = False
            if text.num_cached < self.end(voice, -1) or (context is not None and len(text.token_ids) > context):
                self._open = False
            if not self._open:
                text.token_ids[start:] = kept
                return False
        self.tokens.append(data)
        self._ends.append({voice: _End.of(text) for voice, text in self._texts.items()})
        return True

    def truncate(self, position: int) -> None:
        """Ends the draft at a position, because the token after it is already known to be wrong."""
        del self._ends[position + 1 :]
        del self.tokens[position:]
        self._num_rejected = 1
        self._open = False

    def matches(self, request: Request, position: int) -> bool:
        """Returns whether the request's texts, in every voice's ids, are those at a position of this draft."""
        return list(self._texts) == request.voices and all(
            len(voice.text.token_ids) == self.end(voice, position)
            and voice.text.token_ids[self._fixed[voice] :]
            == text.token_ids[self._fixed[voice] : self.end(voice, position)]
            for voice, text in self._texts.items()
        )
