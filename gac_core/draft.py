"""Where drafted tokens come from, and how many of them are worth drafting.

A draft is a guess at what will be picked; a wrong one costs time, never another text. Knows bytes, tokenizers and
weights; knows nothing of models or caches.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from gac_core.tokenizer import MemberTokenizer

# How much dearer a forward gets with each further token in it, as a share of what it costs with one: measured on two
# CPU cores (docs/performance.md), and what reading the weights once leaves room for on a GPU.
SLOPE_CPU = 0.1
SLOPE_GPU = 0.01


class Tally:
    """How often drafts of one kind were right lately, for one request.

    Args:
        right: Drafted tokens taken to have been right before the first one is seen.
        wrong: Drafted tokens taken to have been wrong.
    """

    FORGET = 0.9

    def __init__(self, right: float, wrong: float) -> None:
        self._right, self._wrong = right, wrong

    @property
    def rate(self) -> float:
        """The chance that a drafted token is right, below 1."""
        return min(self._right / (self._right + self._wrong), 0.98)

    def note(self, drafted: int, accepted: int) -> None:
        """Takes in how far a draft was right; what comes after the first wrong token tells nothing."""
        for hit in [True] * accepted + [False] * (accepted < drafted):
            self._right = self.FORGET * self._right + hit
            self._wrong = self.FORGET * self._wrong + (not hit)

    def rest(self) -> None:
        """Forgets a little: after a while without drafts one is tried again."""
        self._right += 0.05


def expected(rate: float, drafted: int) -> float:
    """Returns how many tokens a step gives with so many drafted ones (Leviathan et al. 2023, section 3.1)."""
    return (1 - rate ** (drafted + 1)) / (1 - rate)


def lookup_length(rate: float, rows: int, slope: float, limit: int) -> int:
    """Returns how many tokens to draft that cost nothing to find.

    Args:
        rate: The chance that one is right.
        rows: Requests that run at once; a forward carries the drafts of all.
        slope: How much dearer a forward gets with each further token in it.
        limit: Most tokens to draft.
    """
    return max(range(limit + 1), key=lambda k: (expected(rate, k) / (1 + slope * rows * k), -k))


def run_ahead_length(rate: float, own: float, others: float, need: float, rows: int, slope: float, limit: int) -> int:
    """Returns how many forwards a member shall make before the others check what it wrote; 1 is no draft.

    Args:
        rate: The chance that one of its tokens is right.
        own: What a forward of it costs.
        others: What a forward of all the others costs.
        need: The share of steps that need the others.
        rows: Requests that run at once.
        slope: How much dearer a forward gets with each further token in it.
        limit: Most forwards.
    """

    def cost(k: int) -> float:
        ahead = k * own + others * (1 + slope * rows * (k - 1))
        # What the same tokens would have cost without drafts, after the first.
        return ahead - (expected(rate, k - 1) - 1) * (own + need * others)

    return min(range(1, limit + 1), key=cost)


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

    def propose(self, text: bytes | bytearray, fresh: int, limit: int, voters: Sequence[int]) -> list[bytes]:
        """Returns drafted tokens, at most ``limit``; none where nothing is found.

        Args:
            text: The prompt and what was written so far.
            fresh: How many of its last bytes were written by the ensemble.
            limit: Most tokens.
            voters: Indices of the members whose cuts count: the gate alone where there is one.
        """
        found = self._found(text) if fresh else b""
        tokens: list[bytes] = []
        while found and len(tokens) < limit:
            piece = self._vote(found, voters)
            # The end of what was found may be the beginning of a longer piece.
            if not piece or len(piece) == len(found):
                break
            tokens.append(piece)
            found = found[len(piece) :]
        return tokens

    def _found(self, text: bytes | bytearray) -> bytes:
        for length in self.ENDS:
            end = text[-length:]
            at = text.rfind(end, 0, len(text) - 1) if len(end) == length else -1
            if at >= 0:
                return bytes(text[at + length : at + length + self.SPAN])
        return b""

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
        ids = tokenizer.cut(text)
        return tokenizer.decode(ids[:1]) if ids else b""
