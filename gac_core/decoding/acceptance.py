"""How often drafted tokens are accepted, and how many tokens are worth drafting.

A wrong draft costs time, never another text.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from weakref import WeakKeyDictionary

from gac_core.decoding.request import Request


class AcceptanceRate:
    """Estimates the chance that a drafted token is accepted, from recent drafts of one kind.

    Args:
        accepted: Drafted tokens assumed accepted before the first one is seen.
        rejected: Drafted tokens assumed rejected.
        parent: The rate over all requests, which is updated as well. Default None.
    """

    # Decay per token: a request's own rate adapts fast, that of all requests slowly.
    DECAY, DECAY_PARENT = 0.9, 0.98
    # Weight, in tokens, of the rate of all requests in that of a new one.
    PRIOR_TOKENS = 2
    # What `relax` adds, in accepted tokens.
    RELAXATION = 0.05

    def __init__(self, accepted: float, rejected: float, parent: AcceptanceRate | None = None) -> None:
        self._accepted, self._rejected = accepted, rejected
        self._parent = parent

    def child(self) -> AcceptanceRate:
        """Returns the rate of one request, which starts at this one's value."""
        return AcceptanceRate(self.PRIOR_TOKENS * self.value, self.PRIOR_TOKENS * (1 - self.value), self)

    @property
    def value(self) -> float:
        """The estimated chance, at most 0.98."""
        return min(self._accepted / (self._accepted + self._rejected), 0.98)

    def record(self, drafted: int, accepted: int) -> None:
        """Records a draft; tokens after the first rejected one carry no information."""
        if self._parent is not None:
            self._parent.record(drafted, accepted)
        decay = self.DECAY_PARENT if self._parent is None else self.DECAY
        for hit in [True] * accepted + [False] * (accepted < drafted):
            self._accepted = decay * self._accepted + hit
            self._rejected = decay * self._rejected + (not hit)

    def relax(self) -> None:
        """Raises the estimate a little, so that after a while without drafts one is tried again."""
        self._accepted += self.RELAXATION


class AcceptanceRates:
    """The acceptance rates of one drafter, by kind of draft and request."""

    def __init__(self) -> None:
        self._all: dict[str, AcceptanceRate] = {}
        self._requests: WeakKeyDictionary[Request, dict[str, AcceptanceRate]] = WeakKeyDictionary()

    def of(self, request: Request, kind: str, prior: tuple[float, float]) -> AcceptanceRate:
        """Returns a request's rate for one kind of draft, which starts at that of all requests.

        Args:
            request: The request.
            kind: The kind of draft.
            prior: Tokens assumed accepted and rejected before the first draft of this kind.
        """
        own = self._requests.setdefault(request, {})
        if kind not in own:
            own[kind] = self._all.setdefault(kind, AcceptanceRate(*prior)).child()
        return own[kind]


class DraftBudget:
    """Limits what drafts of one kind may lose, in seconds: what they gained less what they lost.

    The sum of all losses stays below ``START`` steps plus ``SHARE`` of the time without drafts.
    """

    SHARE = 0.02
    # Both in plain steps.
    START, MAX = 1.0, 4.0

    def __init__(self) -> None:
        self._seconds: float | None = None

    def available(self, step: float) -> float:
        """Returns what a draft may lose now, in seconds.

        Args:
            step: Seconds of a plain step.
        """
        return self.START * step if self._seconds is None else self._seconds

    def record(self, step: float, gain: float) -> None:
        """Records one step.

        Args:
            step: Seconds that it would have taken without drafts; 0 while nothing was measured yet.
            gain: Seconds that drafts saved in it; below 0 where they cost time.
        """
        if step <= 0:
            return
        self._seconds = min(self.available(step) + self.SHARE * step + gain, self.MAX * step)


def expected_tokens(rate: float, drafted: int) -> float:
    """Returns the expected tokens of a step with so many drafted ones (Leviathan et al. 2023, section 3.1)."""
    return (1 - rate ** (drafted + 1)) / (1 - rate)


# A draft must promise at least this share of a step; smaller gains are within the error of the measured times.
MARGIN = 0.03


def lookup_length(rate: float, cost: Callable[[int], float], limit: int, budget: float = math.inf) -> int:
    """Returns how many tokens to draft that cost nothing to find.

    Args:
        rate: The chance that one is accepted.
        cost: Seconds of a step with so many drafted tokens.
        limit: Most tokens to draft.
        budget: Seconds that the draft may lose at most.
    """
    plain = cost(0)
    lengths = [k for k in range(1, limit + 1) if cost(k) - plain <= budget]
    best = max(lengths, key=lambda k: (expected_tokens(rate, k) / cost(k), -k), default=0) if plain > 0 else 0
    return best if best and expected_tokens(rate, best) * plain > (1 + MARGIN) * cost(best) else 0


def run_ahead_length(
    rate: float, cost: Callable[[int], float], token: float, limit: int, budget: float = math.inf
) -> int:
    """Returns how many forwards a member makes before the others verify its tokens; 1 is no draft.

    Args:
        rate: The chance that one of its tokens is accepted.
        cost: Seconds of a step with so many forwards of the member, 1 or more.
        token: Seconds that a token takes without drafts.
        limit: Most forwards.
        budget: Seconds that the draft may lose at most.
    """
    plain = cost(1)
    gains = {
        k: (expected_tokens(rate, k - 1) - 1) * token - (cost(k) - plain)
        for k in range(2, limit + 1)
        if cost(k) - plain <= budget
    }
    best = max(gains, key=lambda k: gains[k], default=1)
    return best if best > 1 and gains[best] > MARGIN * plain else 1
