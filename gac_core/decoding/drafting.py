"""Where drafted tokens come from, and how many of them are worth drafting.

A draft is a guess at what will be picked; a wrong one costs time, never another text. Knows bytes, tokenizers and
weights; knows nothing of models or caches.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

from gac_core.tokenization.tokenizer import MemberTokenizer


class Tally:
    """How often drafts of one kind were right lately.

    Args:
        right: Drafted tokens taken to have been right before the first one is seen.
        wrong: Drafted tokens taken to have been wrong.
        parent: The tally of all requests, which learns of everything that this one learns of.
    """

    # A request's own tally forgets fast; that of all requests slowly.
    FORGET, FORGET_PARENT = 0.9, 0.98
    # Tokens that a new request's tally counts the rate of all requests for.
    TRUST = 2

    def __init__(self, right: float, wrong: float, parent: Tally | None = None) -> None:
        self._right, self._wrong = right, wrong
        self._parent = parent

    def child(self) -> Tally:
        """Returns the tally of one request, which starts at this one's rate."""
        return Tally(self.TRUST * self.rate, self.TRUST * (1 - self.rate), self)

    @property
    def rate(self) -> float:
        """The chance that a drafted token is right, below 1."""
        return min(self._right / (self._right + self._wrong), 0.98)

    def note(self, drafted: int, accepted: int) -> None:
        """Takes in how far a draft was right; what comes after the first wrong token tells nothing."""
        if self._parent is not None:
            self._parent.note(drafted, accepted)
        forget = self.FORGET_PARENT if self._parent is None else self.FORGET
        for hit in [True] * accepted + [False] * (accepted < drafted):
            self._right = forget * self._right + hit
            self._wrong = forget * self._wrong + (not hit)

    def rest(self) -> None:
        """Forgets a little: after a while without drafts one is tried again."""
        self._right += 0.05


class Balance:
    """What drafts of one kind gained less what they lost, in seconds; it limits what the next one may lose.

    Whatever is drafted, the sum of all losses stays below `START` steps and `SHARE` of the time without drafts.
    """

    SHARE = 0.02
    # Both in plain steps.
    START, MOST = 1.0, 4.0

    def __init__(self) -> None:
        self._seconds: float | None = None

    def spare(self, step: float) -> float:
        """Returns what a draft may lose now, in seconds.

        Args:
            step: Seconds of a plain step.
        """
        return self.START * step if self._seconds is None else self._seconds

    def note(self, step: float, gain: float) -> None:
        """Takes in one step.

        Args:
            step: Seconds that it would have taken without drafts.
            gain: Seconds that drafts saved in it, below 0 where they cost time.
        """
        if step <= 0:
            # Before the first measured forward nothing is known.
            return
        self._seconds = min(self.spare(step) + self.SHARE * step + gain, self.MOST * step)


def expected(rate: float, drafted: int) -> float:
    """Returns how many tokens a step gives with so many drafted ones (Leviathan et al. 2023, section 3.1)."""
    return (1 - rate ** (drafted + 1)) / (1 - rate)


# A draft must promise this share of a step at least: less is within what is known of the times.
MARGIN = 0.03


def lookup_length(rate: float, cost: Callable[[int], float], limit: int, spare: float = math.inf) -> int:
    """Returns how many tokens to draft that cost nothing to find.

    Args:
        rate: The chance that one is right.
        cost: Seconds of a step with so many drafted tokens.
        limit: Most tokens to draft.
        spare: Seconds that the draft may lose at most.
    """
    plain = cost(0)
    lengths = [k for k in range(1, limit + 1) if cost(k) - plain <= spare]
    best = max(lengths, key=lambda k: (expected(rate, k) / cost(k), -k), default=0) if plain > 0 else 0
    return best if best and expected(rate, best) * plain > (1 + MARGIN) * cost(best) else 0


def run_ahead_length(
    rate: float, cost: Callable[[int], float], token: float, limit: int, spare: float = math.inf
) -> int:
    """Returns how many forwards a member shall make before the others check what it wrote; 1 is no draft.

    Args:
        rate: The chance that one of its tokens is right.
        cost: Seconds of a step with so many forwards of the member, 1 or more.
        token: Seconds that a token takes without drafts.
        limit: Most forwards.
        spare: Seconds that the draft may lose at most.
    """
    plain = cost(1)
    gains = {
        k: (expected(rate, k - 1) - 1) * token - (cost(k) - plain)
        for k in range(2, limit + 1)
        if cost(k) - plain <= spare
    }
    best = max(gains, key=lambda k: gains[k], default=1)
    return best if best > 1 and gains[best] > MARGIN * plain else 1


class PromptLookup:
    """Drafts what followed the last occurrence of the text's end: answers quote their documents, and themselves.

    Prompt lookup decoding (Saxena 2023), on bytes. The bytes found are cut into tokens as members would vote who are
    all sure of them.

    Args:
        tokenizers: One per member.
        weights: One per member.
    """

    # Lengths of the end to look for, in bytes, and the bytes to draft at most.
    ENDS = (32, 16, 8)
    SPAN = 96

    def __init__(self, tokenizers: Sequence[MemberTokenizer], weights: Sequence[float]) -> None:
        self._tokenizers = list(tokenizers)
        self._weights = list(weights)
        self._first_piece = lru_cache(maxsize=50_000)(self._cut_first)

    def find(self, text: bytes | bytearray, fresh: int) -> tuple[bytes, int]:
        """Returns what followed the text's end when it occurred last, and how long the end was; nothing and 0 if never.

        Args:
            text: The prompt and what was written so far.
            fresh: How many of its last bytes were written by the ensemble.
        """
        for length in self.ENDS if fresh else ():
            end = text[-length:]
            at = text.rfind(end, 0, len(text) - 1) if len(end) == length else -1
            if at >= 0:
                return bytes(text[at + length : at + length + self.SPAN]), length
        return b"", 0

    def cut(self, found: bytes, limit: int, voters: Sequence[int]) -> list[bytes]:
        """Returns what was found as drafted tokens, at most ``limit``.

        Args:
            found: Bytes.
            limit: Most tokens.
            voters: Indices of the members whose cuts count: the gate alone where there is one.
        """
        tokens: list[bytes] = []
        while found and len(tokens) < limit:
            piece = self._vote(found, voters)
            # The end of what was found may be the beginning of a longer piece.
            if not piece or len(piece) == len(found):
                break
            tokens.append(piece)
            found = found[len(piece) :]
        return tokens

    def _vote(self, found: bytes, voters: Sequence[int]) -> bytes:
        """The token that wins if every member is sure of its first piece: most weight, the smallest among equals."""
        votes: dict[bytes, float] = {}
        for member in voters:
            piece = self._first_piece(member, found[:32])
            votes[piece] = votes.get(piece, 0.0) + self._weights[member]
        return min(votes, key=lambda piece: (-votes[piece], piece))

    def _cut_first(self, member: int, data: bytes) -> bytes:
        """The first piece of a member's cut of some bytes; nothing where they do not start with a character."""
        text = data.decode(errors="ignore")
        if not text or not data.startswith(text[0].encode()):
            return b""
        tokenizer = self._tokenizers[member]
        ids = tokenizer.encode_continuation(text)
        return tokenizer.decode(ids[:1]) if ids else b""
