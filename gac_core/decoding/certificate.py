"""Proves the greedy token of combined distributions of which only the most probable tokens are known.

Outside its most probable tokens a distribution has no probability above a known one, `TopDistribution.rest`. So every
token's combined probability has bounds, and one whose lower bound exceeds all other upper bounds is selected whatever
the rest of the distributions looks like. What the proof, and the token's own probability, lack is fetched; where that
does not suffice, the whole distributions are.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from gac_core.decoding.agreement import agreement
from gac_core.decoding.collector import DistributionCollector, Missing
from gac_core.decoding.place import Place, TopPlace
from gac_core.decoding.selection import Selection
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.voice_distributions import TopDistribution
from gac_core.errors import GaCError
from gac_core.tokenization.vocabulary import Alignment

# Complete distributions are combined in float32, whose rounding may reverse the order of probabilities that are closer
# than a few of these, relatively; this much for each distribution and operation.
_ROUNDING = 2.0**-22
# Combined probabilities below are not compared: float32 has fewer digits near its smallest numbers.
_SMALLEST = 1e-30

Key = tuple[int, int]
"""A row of the batch, and a position in it."""


@dataclass(frozen=True)
class Evidence:
    """What is known of one distribution.

    Attributes:
        probs: Probabilities by union id.
        rest: No other token has a larger probability.
        alignment: Says which tokens its member has; the others have no probability. None: maybe all.
    """

    probs: Mapping[int, float]
    rest: float
    alignment: Alignment | None = None

    @classmethod
    def of(cls, top: TopDistribution, alignment: Alignment) -> Evidence:
        """Returns what the most probable tokens say."""
        return cls(dict(zip(top.ids, top.probs, strict=True)), top.rest, alignment)

    def probability(self, token: int) -> float | None:
        """Returns a token's probability; None where it is not known."""
        known = self.probs.get(token)
        if known is None and (self.rest == 0 or (self.alignment is not None and not self.alignment.has(token))):
            return 0.0
        return known


@dataclass(frozen=True)
class Proven:
    """The greedy token, all of whose probabilities are known."""

    token: int


@dataclass(frozen=True)
class Incomplete:
    """Tokens that may be the greedy one, of which probabilities are missing: union ids, by distribution."""

    ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True)
class Unprovable:
    """Ties, distributions that are too flat, and what is no distribution: nothing less than all of it decides."""


Verdict = Proven | Incomplete | Unprovable


def judge(known: Rows[Evidence], weights: Rows[float]) -> Verdict:
    """Returns which token has the largest weighted mean of probabilities, as far as the evidence says.

    Args:
        known: What is known of each distribution.
        weights: One per distribution; they sum to one.
    """
    bounds = {token: _bounds(token, known, weights) for each in known for token in each.probs}
    outside = sum(weight * each.rest for each, weight in zip(known, weights, strict=True))
    best = max(low for low, _ in bounds.values())
    slack = 1 + _ROUNDING * (len(known) + 1)
    if not (all(math.isfinite(low) for low, _ in bounds.values()) and best > _SMALLEST):
        return Unprovable()
    if max(high for _, high in bounds.values()) <= outside * slack:
        return Unprovable()
    contenders = [token for token, (_, high) in bounds.items() if high * slack >= best]
    missing = tuple(tuple(token for token in contenders if each.probability(token) is None) for each in known)
    if any(missing):
        return Incomplete(missing)
    winner = max(contenders, key=lambda token: bounds[token][0])
    second = max([bounds[token][0] for token in contenders if token != winner], default=0.0)
    return Proven(winner) if bounds[winner][0] > max(second, outside) * slack else Unprovable()


def _bounds(token: int, known: Rows[Evidence], weights: Rows[float]) -> tuple[float, float]:
    """Returns the least and the largest weighted mean that a token can have."""
    low = open_mass = 0.0
    for each, weight in zip(known, weights, strict=True):
        prob = each.probability(token)
        if prob is None:
            open_mass += weight * each.rest
        else:
            low += weight * prob
    return low, low + open_mass


@dataclass(frozen=True)
class Certified:
    """What came of some places.

    Attributes:
        selections: The tokens that were proven.
        complete: Places whose distributions were fetched; a token is selected there as anywhere else.
        errors: Voices whose probabilities could not be fetched, by row.
    """

    selections: Mapping[Key, Selection]
    complete: Mapping[Key, Place]
    errors: Rows[tuple[int, Sequence, GaCError]]


@dataclass(frozen=True)
class _Case:
    """A place, what is known of its distributions, and what follows."""

    place: TopPlace
    known: tuple[Evidence, ...]
    verdict: Verdict

    @classmethod
    def of(cls, place: TopPlace, known: tuple[Evidence, ...]) -> _Case:
        best = place.tops[0].probs[0]
        if len(known) == 1 and not place.request.removes_mass and 0 < best <= 1:
            return cls(place, known, Proven(place.tops[0].ids[0]))
        return cls(place, known, judge(known, place.shares))

    @property
    def missing(self) -> list[Missing]:
        """The probabilities that a verdict lacks."""
        if not isinstance(self.verdict, Incomplete):
            return self.distributions
        wholes = zip(self.distributions, self.verdict.ids, strict=True)
        return [replace(each, ids=ids) for each, ids in wholes if ids]

    @property
    def distributions(self) -> list[Missing]:
        """The complete distributions."""
        pairs = zip(self.place.voices, self.place.tops, strict=True)
        return [Missing(self.place.request, voice, top.end) for voice, top in pairs]

    def extended(self, fetched: Rows[Tensor]) -> _Case:
        """Returns this case with the probabilities that it lacked."""
        known = dict(zip(self.place.voices, self.known, strict=True))
        for each, probs in zip(self.missing, fetched, strict=True):
            found = dict(zip(each.ids or (), probs.tolist(), strict=True))
            known[each.voice] = replace(known[each.voice], probs={**known[each.voice].probs, **found})
        return _Case.of(self.place, tuple(known.values()))


class Certifier:
    """Selects greedy tokens at places of which only the most probable tokens are known.

    Args:
        collector: Fetches what is missing.

    Attributes:
        counts: How many tokens were proven ``"at once"``, by fetched ``"values"``, or needed ``"whole"`` distributions.
    """

    def __init__(self, collector: DistributionCollector) -> None:
        self._collector = collector
        self.counts: Counter[str] = Counter()

    def certify(self, places: Mapping[Key, TopPlace], drafted: Mapping[Key, bytes]) -> Certified:
        """Returns the tokens at some places, with one fetch per member for all places together, and one more if needed.

        Args:
            places: By row and position, positions ascending.
            drafted: The drafted token at each position that has one. Positions after one at which another token is
                proven are left out of the result.
        """
        cases = {key: _Case.of(place, _evidence(place)) for key, place in places.items()}
        at_once = _proven(cases)
        cases = _undecided(cases, at_once, drafted)
        first = self._fetch(cases)
        partial = [key for key in first.probs if isinstance(cases[key].verdict, Incomplete)]
        extended = {key: cases[key].extended(first.probs[key]) for key in partial}
        by_values = _proven(extended)
        second = self._fetch(_undecided(extended, {**at_once, **by_values}, drafted), whole=True)
        complete = {key: places[key].completed(probs) for key, probs in first.probs.items() if key not in extended}
        complete |= {key: places[key].completed(probs) for key, probs in second.probs.items()}
        self.counts.update({"at once": len(at_once), "values": len(by_values), "whole": len(complete)})
        return Certified({**at_once, **by_values}, complete, [*first.errors, *second.errors])

    def _fetch(self, cases: Mapping[Key, _Case], whole: bool = False) -> _Fetched:
        """Fetches what cases lack; whole distributions in any case if ``whole`` is set."""
        missing = {key: case.missing if not whole else case.distributions for key, case in cases.items()}
        if not missing:
            return _Fetched({}, [])
        results = iter(self._collector.fetch([each for own in missing.values() for each in own]))
        probs: dict[Key, list[Tensor]] = {}
        errors: list[tuple[int, Sequence, GaCError]] = []
        for key, own in missing.items():
            found = [(each.voice, next(results)) for each in own]
            failed = [(key[0], voice, got) for voice, got in found if isinstance(got, GaCError)]
            errors += failed
            if not failed:
                probs[key] = [got for _, got in found if isinstance(got, Tensor)]
        return _Fetched(probs, errors)


@dataclass(frozen=True)
class _Fetched:
    """The probabilities that cases lacked, and the errors of voices by row."""

    probs: Mapping[Key, Rows[Tensor]]
    errors: Rows[tuple[int, Sequence, GaCError]]


def _evidence(place: TopPlace) -> tuple[Evidence, ...]:
    return tuple(Evidence.of(top, voice.member.alignment) for top, voice in zip(place.tops, place.voices, strict=True))


def _proven(cases: Mapping[Key, _Case]) -> dict[Key, Selection]:
    """Returns the selections of the cases whose token is proven."""
    return {
        key: _selection(case, case.verdict.token) for key, case in cases.items() if isinstance(case.verdict, Proven)
    }


def _undecided(
    cases: Mapping[Key, _Case], proven: Mapping[Key, Selection], drafted: Mapping[Key, bytes]
) -> dict[Key, _Case]:
    """Returns the cases without a token; of each row those before the first proven one that differs from the draft."""
    ends: dict[int, int] = {}
    for (row, position), selection in proven.items():
        data = selection.place.request.union.data(selection.token)
        if data != drafted.get((row, position)):
            ends[row] = min(position, ends.get(row, position))
    return {
        (row, position): case
        for (row, position), case in cases.items()
        if (row, position) not in proven and position < ends.get(row, position + 1)
    }


def _selection(case: _Case, token: int) -> Selection:
    """Returns a proven token with the numbers that complete distributions give, as far as they are known."""
    place, several = case.place, len(case.known) > 1
    combiner, shares = place.request.combiner, place.shares
    own = [_float32(each.probability(token)) for each in case.known]
    mixed = combiner(own, shares) if several else own[0]
    agreed = agreement([_float32(top.probs[0]) for top in place.tops], own) if several else None
    if place.request.removes_mass:
        totals = [_float32(top.total) for top in place.tops]
        total = combiner(totals, shares) if several else totals[0]
        mixed, own = mixed / total, [each / total for each in own]
    return Selection(
        place=place,
        combined=None,
        token=token,
        confidence=float(mixed),
        own=tuple(float(each) for each in own),
        agreement=None if agreed is None else float(agreed),
        divergence=None,
    )


def _float32(number: float | None) -> Tensor:
    """Returns a number as complete distributions hold it, shape ``[1]``."""
    assert number is not None, "the probabilities of a proven token are known"
    return torch.tensor([number], dtype=torch.float32)
