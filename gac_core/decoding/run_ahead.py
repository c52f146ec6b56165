"""Speculative decoding with a member as the draft model: it writes several tokens, and the others verify them.

The draft is coupled to the request's random numbers, so that the text is that of plain decoding, greedy or sampled
(Leviathan et al. 2023).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache

from gac_core.decoding.acceptance import AcceptanceRates, DraftBudget, run_ahead_length
from gac_core.decoding.collector import DistributionCollector
from gac_core.decoding.draft_sequence import DraftSequence
from gac_core.decoding.drafting import (
    Participation,
    StepCosts,
    allows_drafts,
    max_draft_tokens,
    record_drafts,
    sample_tokens,
)
from gac_core.decoding.ensemble_member import together
from gac_core.decoding.request import Request
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.step import Draft, Step, StepOutcome


class RunAhead:
    """Lets one voice of a request draft: the gate where there is a threshold, else the fastest.

    Args:
        collector: Runs the members.
        costs: What steps cost.
    """

    KIND = "ahead"
    # Tokens assumed accepted and rejected before the first draft.
    PRIOR = (1, 1)
    # Another voice drafts in the gate's place if its forwards take less than this share of the gate's.
    FASTER = 0.9

    def __init__(self, collector: DistributionCollector, costs: StepCosts) -> None:
        self._collector = collector
        self._rates = AcceptanceRates()
        self._budget = DraftBudget()
        self._costs = costs

    def draft(self, step: Step) -> Step:
        """Returns the step with drafts for the rows where they are worth their cost, and the drafters' distributions.

        The gates' distributions at position 0 are in the step already; rows whose gate decides there get no draft.
        """
        if not allows_drafts(step, self.KIND):
            return step
        plans = self._plans(step)
        lengths = {row: length for row, (length, _) in plans.items()}
        drafters = {row: self._drafter(step.batch[row]) for row in plans}
        step = step.with_drafts({row: draft for row, (_, draft) in plans.items()})
        step = self._forward(step, [row for row in lengths if not step.has(row, drafters[row])], drafters)
        running = list(lengths)
        for position in range(1, max(lengths.values(), default=1)):
            running = [row for row in running if lengths[row] > position and step.usable(row)]
            places = {row: step.voice_place(row, drafters[row], position - 1) for row in running}
            running = [row for row, data in sample_tokens(places).items() if data and _extend(step, row, data)]
            step = self._forward(step, running, drafters)
        return step.with_certainty(row for row in lengths if row in step.sure)

    def _forward(self, step: Step, rows: Iterable[int], drafters: dict[int, Sequence]) -> Step:
        return step.forward(self._collector, [step.query(row, drafters[row]) for row in rows])

    def _plans(self, step: Step) -> dict[int, tuple[int, Draft]]:
        """Returns for each row that is drafted for how many forwards the drafter makes, and its empty draft."""
        plans: dict[int, tuple[int, Draft]] = {}
        for row in step.usable_rows:
            request = step.batch[row]
            limit = max_draft_tokens(request, self.KIND) if row not in step.drafts else 0
            if limit < 1 or len(request.voices) == 1 or step.first_unsure(row) != 0:
                continue
            rate = self._rates.of(request, self.KIND, self.PRIOR)
            cost, token = self._cost(request, len(step.batch))
            length = run_ahead_length(rate.value, cost, token, limit + 1, self._budget.available(token))
            if length > 1:
                plans[row] = length, Draft(DraftSequence(request), self.KIND, rate, cost(length) - cost(1))
            else:
                rate.relax()
        return plans

    def _cost(self, request: Request, rows: int) -> tuple[Callable[[int], float], float]:
        """Returns seconds of a step as a function of the drafter's forwards, and seconds of a token without drafts."""
        drafter, overhead = self._drafter(request), self._costs.overhead * rows
        own = drafter.member.times.seconds(rows)
        verifying = Counter(voice.member for voice in request.voices if voice is not drafter)

        def seconds(forwards: int) -> float:
            verified = {member: member.times.seconds(rows * forwards * count) for member, count in verifying.items()}
            return forwards * (own + overhead) + together(verified)

        plain = overhead + self._costs.forward_seconds(Participation.of([request]), rows)
        # Without a draft, all members compute at once where there is no gate.
        first = plain if request.threshold is None else seconds(1)
        return cache(lambda forwards: first if forwards == 1 else seconds(forwards)), plain

    def _drafter(self, request: Request) -> Sequence:
        """Returns the gate where there is a threshold, else the fastest voice, or the gate if it is hardly slower.

        Of a member's voices that vote, the one with the largest weight drafts.
        """
        if request.threshold is not None:
            return request.gate
        voting = [voice for voice in request.voices if not voice.prior]
        seconds = {voice: voice.member.times.seconds(1) for voice in voting}
        fastest = min(voting, key=lambda voice: (seconds[voice], -voice.weight))
        faster = request.gate not in seconds or seconds[fastest] < self.FASTER * seconds[request.gate]
        return fastest if faster else request.gate

    def learn(self, outcome: StepOutcome) -> None:
        """Updates acceptance rates and the budget."""
        if not allows_drafts(outcome.step, self.KIND):
            return
        record_drafts(self.KIND, outcome, self._budget, self._costs)


def _extend(step: Step, row: int, data: bytes) -> bool:
    """Adds a token to a row's draft; False where a grammar forces or forbids what comes there, or it cannot follow."""
    request, sequence = step.batch[row], step.drafts[row].sequence
    if request.constraint is not None:
        drafted = [*sequence.tokens, data]
        if request.constraint.num_draftable(drafted) != len(drafted):
            return False
    return sequence.extend(data)
