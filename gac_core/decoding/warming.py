"""Requests that read beginnings of prompts, such as documents, to keep them in the KV caches, and generate nothing."""

from __future__ import annotations

from collections.abc import Sequence as Rows

from gac_core.decoding.collector import DistributionCollector, PartQuery
from gac_core.decoding.measurement import Part
from gac_core.decoding.request import Request
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.settlement import RowOutcome
from gac_core.errors import GaCError
from gac_core.executor.messages import Targets
from gac_core.model.chunk import KeptPrefix


class Warmer:
    """Reads the texts of requests that keep them.

    Args:
        collector: Runs the members.
    """

    def __init__(self, collector: DistributionCollector) -> None:
        self._collector = collector

    def read(self, batch: Rows[Request], prefill_seconds: float | None) -> list[RowOutcome]:
        """Reads what is not read yet, with one call for each member.

        Args:
            batch: Requests that keep their texts.
            prefill_seconds: Seconds that each member may spend on it; None: no limit.

        Returns:
            For each request the error that ends it, if any.
        """
        queries = [
            PartQuery(request, voice, part)
            for request in batch
            for voice in request.voices
            if (part := _next_part(request, voice)) is not None
        ]
        errors: dict[Request, dict[Sequence, GaCError]] = {}
        for query, result in self._collector.read_parts(queries, prefill_seconds):
            if isinstance(result, GaCError):
                errors.setdefault(query.request, {})[query.voice] = result
        return [_outcome(errors.get(request, {})) for request in batch]


def _next_part(request: Request, voice: Sequence) -> Part | None:
    """Returns what is left to read of a voice's text, whose end is kept with it; None if all is read."""
    start, end = voice.text.num_cached, len(voice.text.token_ids)
    return None if start == end else Part(start, end, Targets((), ()), KeptPrefix(end, request.pins))


def _outcome(errors: dict[Sequence, GaCError]) -> RowOutcome:
    return RowOutcome((next(iter(errors.values())),), failed=errors) if errors else RowOutcome()
