"""Prompt lookup decoding (Saxena 2023): drafts what followed the same words before, in the prompts or the answer."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from typing import ClassVar
from weakref import WeakKeyDictionary

from gac_core.decoding.acceptance import AcceptanceRates, DraftBudget, lookup_length
from gac_core.decoding.draft_sequence import DraftSequence
from gac_core.decoding.drafting import StepCosts, allows_drafts, max_draft_tokens, record_drafts
from gac_core.decoding.request import Request
from gac_core.decoding.step import Draft, Step, StepOutcome
from gac_core.tokenization.tokenizer import MemberTokenizer

Voter = tuple[MemberTokenizer, float]
"""A tokenizer and its weight."""


class TextLookup:
    """Finds what followed the last occurrence of a text's end, and splits it into tokens.

    The bytes found are split as members would vote who all assign probability 1 to their own first token.
    """

    # Lengths of the end to look for, in bytes, and the bytes to return at most.
    ENDS = (32, 16, 8)
    SPAN = 96
    # Bytes that a first token is looked for in.
    PIECE_BYTES = 32
    # Cached first tokens of each tokenizer.
    MAX_CACHED = 20_000

    def __init__(self) -> None:
        # Weak: tokenizers of closed ensembles are freed while the engine goes on.
        self._pieces: WeakKeyDictionary[MemberTokenizer, dict[bytes, bytes]] = WeakKeyDictionary()

    def find(self, text: bytes | bytearray, fresh: int, others: Rows[bytes] = ()) -> tuple[bytes, int]:
        """Returns what followed the text's end at its last earlier occurrence, and how long that end was.

        Args:
            text: The prompt and the answer so far.
            fresh: How many of its last bytes belong to the answer; without any nothing is looked up.
            others: Further texts in which an end is looked for that does not occur in the first. Default: none.

        Returns:
            The bytes and the length of the end; nothing and 0 if it never occurred.
        """
        for length in self.ENDS if fresh else ():
            end = bytes(text[-length:])
            if len(end) < length:
                continue
            # The end itself is no earlier occurrence.
            for source, stop in ((text, len(text) - 1), *((other, len(other) - 1) for other in others)):
                at = source.rfind(end, 0, stop)
                if at >= 0:
                    return bytes(source[at + length : at + length + self.SPAN]), length
        return b"", 0

    def split(self, found: bytes, limit: int, voters: Rows[Voter]) -> list[bytes]:
        """Returns what was found as drafted tokens, at most ``limit``.

        Args:
            found: Bytes.
            limit: Most tokens.
            voters: The tokenizers whose tokens count, with their weights.
        """
        tokens: list[bytes] = []
        while found and len(tokens) < limit:
            piece = self._vote(found, voters)
            # The end of what was found may be the beginning of a longer token.
            if not piece or len(piece) == len(found):
                break
            tokens.append(piece)
            found = found[len(piece) :]
        return tokens

    def _vote(self, found: bytes, voters: Rows[Voter]) -> bytes:
        """Returns the first token with most weight, the smallest among equals."""
        votes: dict[bytes, float] = {}
        for tokenizer, weight in voters:
            piece = self._first_piece(tokenizer, found[: self.PIECE_BYTES])
            votes[piece] = votes.get(piece, 0.0) + weight
        return min(votes, key=lambda piece: (-votes[piece], piece))

    def _first_piece(self, tokenizer: MemberTokenizer, data: bytes) -> bytes:
        pieces = self._pieces.setdefault(tokenizer, {})
        if data not in pieces:
            if len(pieces) >= self.MAX_CACHED:
                pieces.clear()
            pieces[data] = _first_piece(tokenizer, data)
        return pieces[data]


def _first_piece(tokenizer: MemberTokenizer, data: bytes) -> bytes:
    """Returns the first token of some bytes; nothing where they do not start with a character."""
    text = data.decode(errors="ignore")
    if not text or not data.startswith(text[0].encode()):
        return b""
    ids = tokenizer.encode_continuation(text)
    return tokenizer.decode(ids[:1]) if ids else b""


class PromptLookup:
    """Drafts tokens found in the prompts or the answer: answers quote their documents, and themselves.

    Args:
        costs: What steps cost.
    """

    KIND = "lookup"
    # Tokens assumed accepted and rejected before the first draft, by the length of the end that was found again.
    PRIORS: ClassVar = {8: (1, 1), 16: (2, 1), 32: (4, 1)}

    def __init__(self, costs: StepCosts) -> None:
        self.lookup = TextLookup()
        self._rates = AcceptanceRates()
        self._budget = DraftBudget()
        self._costs = costs

    def draft(self, step: Step) -> Step:
        """Returns the step with drafts for the rows whose text repeats, where they are worth their cost."""
        if not allows_drafts(step, self.KIND):
            return step
        cost = self._costs.step_seconds(step.batch)
        budget = self._budget.available(cost(0))
        drafts: dict[int, Draft] = {}
        for row, request in enumerate(step.batch):
            limit = max_draft_tokens(request, self.KIND)
            if limit < 1:
                continue
            fresh = len(request.written) - request.prompt_bytes
            found, matched = self.lookup.find(request.written, fresh, request.other_prompts)
            if not found:
                continue
            rate = self._rates.of(request, f"{self.KIND} {matched}", self.PRIORS.get(matched, (1, 1)))
            length = lookup_length(rate.value, cost, limit, budget)
            if not length:
                rate.relax()
                continue
            sequence = self._sequence(request, found, length)
            if sequence.tokens:
                drafts[row] = Draft(sequence, self.KIND, rate, cost(len(sequence.tokens)) - cost(0))
        return step.with_drafts(drafts)

    def _sequence(self, request: Request, found: bytes, length: int) -> DraftSequence:
        """Returns what was found as a draft; without tokens where the first cannot follow."""
        voters = [(voice.member.tokenizer, voice.weight) for voice in request.deciding if not voice.prior]
        tokens = self.lookup.split(found, length, voters)
        if request.constraint is not None:
            tokens = tokens[: request.constraint.num_draftable(tokens)]
        sequence = DraftSequence(request)
        for data in tokens:
            if not sequence.extend(data):
                break
        return sequence

    def learn(self, outcome: StepOutcome) -> None:
        """Updates acceptance rates and the budget."""
        if not allows_drafts(outcome.step, self.KIND):
            return
        record_drafts(self.KIND, outcome, self._budget, self._costs)
