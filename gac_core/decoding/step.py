"""One step of a batch as a value that each stage of decoding returns anew."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch

from gac_core.combination import selective_mean
from gac_core.decoding.acceptance import AcceptanceRate
from gac_core.decoding.collector import DistributionCollector, Query
from gac_core.decoding.distributions import StepDistributions
from gac_core.decoding.draft_sequence import DraftSequence
from gac_core.decoding.place import Place, TopPlace, place_of
from gac_core.decoding.request import Request
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.tokenized_text import TokenizedText
from gac_core.decoding.verification import verified
from gac_core.errors import GaCError


@dataclass(frozen=True, eq=False)
class Draft:
    """A draft, with what is needed to evaluate it after the step.

    Attributes:
        sequence: The drafted tokens.
        kind: Which drafter made it.
        rate: The acceptance rate that it counts for. Default None: none, because its tokens are given.
        extra_seconds: What it makes the step cost more, by measured times. Default 0.
    """

    sequence: DraftSequence
    kind: str
    rate: AcceptanceRate | None = None
    extra_seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Step:
    """A step on its way from the batch to its distributions.

    Attributes:
        batch: The requests; a row is a request's index in it.
        prefill_seconds: Seconds that each member may spend on long prompts, because further requests run; None: no
            limit.
        distributions: What the voices computed so far.
        drafts: The drafts, by row.
        sure: By row of a thresholded request whether the gate decides alone, at each position computed so far.
    """

    batch: tuple[Request, ...]
    prefill_seconds: float | None
    distributions: StepDistributions
    drafts: Mapping[int, Draft] = field(default_factory=dict)
    sure: Mapping[int, tuple[bool, ...]] = field(default_factory=dict)

    @classmethod
    def begin(cls, batch: Iterable[Request], prefill_seconds: float | None) -> Step:
        """Returns a step with the distributions that voices have from earlier steps."""
        requests = tuple(batch)
        return cls(requests, prefill_seconds, StepDistributions.pending(requests))

    @property
    def usable_rows(self) -> list[int]:
        """Rows that can be decided in this step, as far as is known."""
        return [row for row, found in enumerate(self.distributions.rows) if found.usable]

    def usable(self, row: int) -> bool:
        """Whether a row can be decided in this step, as far as is known."""
        return self.distributions.rows[row].usable

    def has(self, row: int, voice: Sequence) -> bool:
        """Whether a voice of a row has distributions."""
        return voice in self.distributions.rows[row].voices

    def positions(self, row: int) -> int:
        """Number of positions at which a row's tokens are selected."""
        return self.drafts[row].sequence.positions if row in self.drafts else 1

    @property
    def drafted(self) -> dict[tuple[int, int], bytes]:
        """The drafted token by row and position."""
        return {
            (row, position): data
            for row, draft in self.drafts.items()
            for position, data in enumerate(draft.sequence.tokens)
        }

    def query(self, row: int, voice: Sequence, first: int = 0) -> Query:
        """Returns the query for a voice at the positions that it lacks, from ``first`` on if it has none."""
        earlier = self.distributions.rows[row].voices.get(voice)
        draft = self.drafts[row].sequence if row in self.drafts else None
        return Query(row, self.batch[row], voice, draft, first if earlier is None else earlier.next_position)

    def forward(self, collector: DistributionCollector, queries: list[Query]) -> Step:
        """Returns the step with the distributions that queries ask for."""
        results = collector.collect(queries, self.prefill_seconds)
        return replace(self, distributions=self.distributions.with_results(results)) if results else self

    def with_errors(self, errors: Iterable[tuple[int, Sequence, GaCError]]) -> Step:
        """Returns the step with further errors of voices, by row."""
        return replace(self, distributions=self.distributions.with_results(errors))

    def with_drafts(self, drafts: Mapping[int, Draft]) -> Step:
        """Returns the step with further drafts."""
        return replace(self, drafts={**self.drafts, **drafts}) if drafts else self

    def with_certainty(self, rows: Iterable[int]) -> Step:
        """Returns the step with `sure` computed for some rows; one device synchronisation for all of them."""
        rows = [row for row in rows if self.usable(row)]
        if not rows:
            return self
        measured = [self._certainty(row) for row in rows]
        device = measured[0].device
        flat = torch.cat([values.to(device) for values in measured]).cpu()
        parts = torch.split(flat, [len(values) for values in measured])
        sure = {
            row: tuple(value >= self.batch[row].threshold for value in part.tolist())
            for row, part in zip(rows, parts, strict=True)
        }
        return replace(self, sure={**self.sure, **sure})

    def _certainty(self, row: int) -> torch.Tensor:
        certainty = self.distributions.rows[row].voices[self.batch[row].gate].certainty
        assert certainty is not None, "a gate's query asks for it"
        return certainty

    def first_unsure(self, row: int) -> int | None:
        """Returns the first position at which all voices are needed; None if the gate decides at all of them."""
        if row not in self.sure:
            return 0
        return next((position for position, sure in enumerate(self.sure[row]) if not sure), None)

    def place(self, row: int, position: int) -> Place | TopPlace:
        """Returns one position of a row, with the voices that decide there."""
        request = self.batch[row]
        alone = row in self.sure and self.sure[row][position]
        voices = (request.gate,) if alone else tuple(voice for voice in request.voices if not voice.prior)
        priors = () if alone else tuple(voice for voice in request.voices if voice.prior)
        found = self.distributions.rows[row].voices
        place = place_of(request, position, voices, priors, [found[voice].at(position) for voice in (*voices, *priors)])
        if request.combiner is not selective_mean or not isinstance(place, Place) or place.single:
            return place
        return verified(place, {voice: self._text(row, voice, position) for voice in place.readers})

    def _text(self, row: int, voice: Sequence, position: int) -> TokenizedText:
        return self.drafts[row].sequence.text(voice, position) if row in self.drafts else voice.text.copy()

    def voice_place(self, row: int, voice: Sequence, position: int) -> Place | TopPlace:
        """Returns one position of a row, decided by one voice alone."""
        found = self.distributions.rows[row].voices[voice]
        return place_of(self.batch[row], position, (voice,), (), [found.at(position)])


@dataclass(frozen=True, eq=False)
class StepOutcome:
    """What a step came to, for drafters.

    Attributes:
        step: The step.
        accepted: By row the number of accepted drafted tokens; rows that were not decided are missing.
        seconds: Wall time of the step.
        forward_seconds: Wall time of the short forwards in it.
    """

    step: Step
    accepted: Mapping[int, int]
    seconds: float
    forward_seconds: float
