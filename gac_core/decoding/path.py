"""A drafted continuation of a request's text: union tokens nobody has picked yet, and each member's ids after each.

Knows texts and commit rules; knows nothing of models, or of where drafts come from.
"""

from __future__ import annotations

from gac_core.decoding.commit import Writer
from gac_core.decoding.drafting import Tally
from gac_core.decoding.request import Request


class Path:
    """Drafted tokens of one request.

    A *stage* is a place between tokens: stage 0 is the text as it stands, stage i the text after i drafted tokens. A
    member can tell its distribution at every stage of a path in one forward, since the ids at each stage begin with
    those at the stage before; a draft that breaks this (its bytes make the member cut earlier ones anew) ends the path.

    Args:
        request: The request; its texts are copied.
        writer: How bytes enter each member's text.
        tally: Where it is noted how far the draft was right.

    Attributes:
        tokens: The drafted tokens.
        tally: Where it is noted how far the draft was right.
    """

    def __init__(self, request: Request, writer: Writer, tally: Tally) -> None:
        self.tokens: list[bytes] = []
        self.tally = tally
        self._disproved = 0
        self._writer = writer
        self._texts = {member: text.copy() for member, text in request.texts.items()}
        # A commit changes nothing before these.
        self._fixed = {member: text.tail_start for member, text in request.texts.items()}
        self._ends = [{member: len(text.ids) for member, text in request.texts.items()}]
        self._open = True

    @property
    def stages(self) -> int:
        """Places at which distributions are wanted: one more than drafted tokens."""
        return len(self._ends)

    @property
    def drafted(self) -> int:
        """How many tokens were guessed, one that was disproved since included."""
        return len(self.tokens) + self._disproved

    def end(self, member: int, stage: int) -> int:
        """Returns the length of a member's text at a stage."""
        return self._ends[stage][member]

    def ids(self, member: int) -> list[int]:
        """Returns a member's ids at the last stage."""
        return self._texts[member].ids[: self._ends[-1][member]]

    def extend(self, data: bytes) -> bool:
        """Drafts one more token.

        Args:
            data: Its bytes.

        Returns:
            Whether the path could go on with it. If not, it ends where it was.
        """
        if not self._open:
            return False
        ends = self._ends[-1]
        for member, text in self._texts.items():
            kept = text.ids[text.tail_start :]
            start, text.num_cached = text.tail_start, len(text.ids)
            context = self._writer.contexts[member]
            try:
                self._writer.commits[member](text, data, own=True)
            except BaseException:
                # Where the token is picked all the same, writing it meets the error again, as the request's own.
                self._open = False
            if text.num_cached < ends[member] or (context is not None and len(text.ids) > context):
                self._open = False
            if not self._open:
                text.ids[start:] = kept
                return False
        self.tokens.append(data)
        self._ends.append({member: len(text.ids) for member, text in self._texts.items()})
        return True

    def disprove(self, stage: int) -> None:
        """Ends the path at a stage, since the token after it will not be the drafted one."""
        del self._ends[stage + 1 :]
        del self.tokens[stage:]
        self._disproved = 1
        self._open = False

    def followed(self, request: Request, stage: int) -> bool:
        """Whether the request's text, in every member's ids, is that of a stage of this path."""
        return tuple(self._texts) == request.members and all(
            len(text.ids) == self._ends[stage][member]
            and text.ids[self._fixed[member] :]
            == self._texts[member].ids[self._fixed[member] : self._ends[stage][member]]
            for member, text in request.texts.items()
        )
