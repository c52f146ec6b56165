"""Drafters: where drafted tokens come from, and what drafts cost."""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from gac_core.decoding.acceptance import DraftBudget
from gac_core.decoding.combined import combine
from gac_core.decoding.continuation import MAX_PROBABILITIES
from gac_core.decoding.ensemble_member import EnsembleMember, together
from gac_core.decoding.place import Place, TopPlace
from gac_core.decoding.request import Request
from gac_core.decoding.selection import select_token
from gac_core.decoding.step import Step, StepOutcome
from gac_core.model.transfer import to_host

# Tokens drafted for one request in one step at most; rows of up to eight tokens share a forward.
MAX_DRAFT_TOKENS = 7
# A request is not drafted for while one of its deciding voices has more than this many tokens to read.
MAX_UNREAD_TOKENS = 64


class Drafter(Protocol):
    """Adds drafts to a step, and updates its estimates from their outcome."""

    def draft(self, step: Step) -> Step:
        """Returns the step with drafts for some rows that have none, and what was computed for them."""
        ...

    def learn(self, outcome: StepOutcome) -> None:
        """Updates estimates from a finished step."""
        ...


class NoDraft:
    """Drafts nothing: one token per request and step."""

    def draft(self, step: Step) -> Step:
        """Returns the step unchanged."""
        return step

    def learn(self, outcome: StepOutcome) -> None:
        """Does nothing: there are no estimates to update."""


@dataclass(frozen=True)
class Load:
    """What one member computes in a step.

    Attributes:
        rows: Of how many texts it computes the next token: one for each of its voices.
        share: In which share of the steps it does.
    """

    rows: int = 0
    share: float = 0.0

    def with_row(self, share: float) -> Load:
        """Returns the load with one more text, computed in a share of the steps."""
        return Load(self.rows + 1, max(self.share, share))


@dataclass(frozen=True)
class Participation:
    """What each member computes in a step.

    Attributes:
        deciding: Members that every step needs: all, or the gates of requests with a threshold.
        others: Members that compute after these, where a gate is not sure.
    """

    deciding: Mapping[EnsembleMember, Load]
    others: Mapping[EnsembleMember, Load]

    @classmethod
    def of(cls, batch: Rows[Request]) -> Participation:
        """Returns what the members of some requests compute, in the share of steps in which they did so far."""
        deciding: dict[EnsembleMember, Load] = {}
        others: dict[EnsembleMember, Load] = {}
        for request in batch:
            share = (request.stats.steps_ensembled + 1) / (request.stats.steps + 1)
            every = set(request.deciding)
            for voice in request.voices:
                stage, own = (deciding, 1.0) if voice in every else (others, share)
                stage[voice.member] = stage.get(voice.member, Load()).with_row(own)
        return cls(deciding, others)


class StepCosts:
    """Estimates what steps cost, from the measured times of forwards and of everything beside them."""

    RECENT_STEPS = 9

    def __init__(self) -> None:
        self._overheads: deque[float] = deque(maxlen=self.RECENT_STEPS)

    @property
    def overhead(self) -> float:
        """Seconds that a position of one row takes beside the forwards."""
        return statistics.median(self._overheads) if self._overheads else 0.0

    def record(self, outcome: StepOutcome) -> None:
        """Measures the overhead of a step, unless long prompts were read in it."""
        batch, drafts = outcome.step.batch, outcome.step.drafts
        if any(_is_reading(request) for request in batch):
            return
        positions = len(batch) + sum(drafts[row].sequence.drafted for row in outcome.accepted if row in drafts)
        self._overheads.append(max(outcome.seconds - outcome.forward_seconds, 0.0) / positions)

    def forward_seconds(self, participation: Participation, positions: int) -> float:
        """Returns seconds of the forwards of a step, with how often each member takes part.

        Args:
            participation: What the members compute.
            positions: How many tokens of each text.
        """
        return sum(
            together(
                {member: load.share * member.times.seconds(load.rows * positions) for member, load in stage.items()}
            )
            for stage in (participation.deciding, participation.others)
        )

    def step_seconds(self, batch: Iterable[Request]) -> Callable[[int], float]:
        """Returns seconds of a step as a function of how many tokens are drafted for each row."""
        requests = list(batch)
        taking_part, overhead = Participation.of(requests), self.overhead * len(requests)

        def seconds(drafted: int) -> float:
            return self.forward_seconds(taking_part, drafted + 1) + overhead * (drafted + 1)

        return cache(seconds)


def allows_drafts(step: Step, kind: str) -> bool:
    """Whether any request of a step may have drafts of this kind; if not, drafters have nothing to do or to learn."""
    return any(kind in request.drafts for request in step.batch)


def max_draft_tokens(request: Request, kind: str) -> int:
    """Returns how many tokens one kind of draft may have; 0 where drafts are not wanted or come too early."""
    if kind not in request.drafts or request.has_pending_probs:
        return 0
    if any(voice.num_uncached > MAX_UNREAD_TOKENS for voice in request.deciding):
        return 0
    # The distributions of all voices at all positions are in memory at the same time.
    room = MAX_PROBABILITIES // (len(request.union) * request.width) - 1
    return min(MAX_DRAFT_TOKENS, request.params.max_tokens - request.num_tokens - 1, room)


def sample_tokens(places: Mapping[int, Place | TopPlace]) -> dict[int, bytes | None]:
    """Returns by row the token that one voice's distribution alone gives; one device synchronisation for all rows."""
    union_ids = {row: place.tops[0].ids[0] for row, place in places.items() if isinstance(place, TopPlace)}
    full = {row: place for row, place in places.items() if isinstance(place, Place)}
    if full:
        picked = [select_token(place, combine(place).probs) for place in full.values()]
        device = picked[0].device
        ids = to_host(*[token.to(device) for token in picked])
        union_ids.update({row: int(token) for row, token in zip(full, ids, strict=True)})
    return {row: place.request.union.data(union_ids[row]) for row, place in places.items()}


def record_drafts(kind: str, outcome: StepOutcome, budget: DraftBudget, costs: StepCosts) -> None:
    """Updates the acceptance rates of one kind of draft, and the budget with what they gained and cost."""
    step = outcome.step
    drafts = {row: draft for row, draft in step.drafts.items() if draft.kind == kind}
    gained = 0
    for row, draft in drafts.items():
        if row in outcome.accepted and draft.rate is not None:
            draft.rate.record(draft.sequence.drafted, outcome.accepted[row])
            gained += outcome.accepted[row]
    plain = costs.step_seconds(step.batch)(0)
    loss = max((draft.extra_seconds for draft in drafts.values()), default=0.0)
    budget.record(plain, gained * plain / len(step.batch) - loss)


def _is_reading(request: Request) -> bool:
    """Whether a step with this request is no measure of the overhead: a member reads more than a few tokens."""
    early = request.num_tokens <= 1 or request.continuation is not None
    return early or any(voice.num_uncached > MAX_DRAFT_TOKENS for voice in request.voices)
