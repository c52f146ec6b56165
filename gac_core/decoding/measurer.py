"""`Measurer`: reads the texts of requests in parts and adds up how likely their members find them."""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import replace

from gac_core.decoding.absence import go_on_without
from gac_core.decoding.collector import DistributionCollector, PartQuery
from gac_core.decoding.distributions import Unread
from gac_core.decoding.measurement import MIN_PART, Measurement, part_size
from gac_core.decoding.request import Request
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.settlement import RowOutcome
from gac_core.errors import GaCError
from gac_core.failures import request_failure
from gac_core.likelihood import perplexity_weights
from gac_core.shares import normalise


class Measurer:
    """Measures the texts of requests before anything is generated.

    What is read stays in the KV caches, so that generating begins behind it.

    Args:
        collector: Runs the members.
    """

    def __init__(self, collector: DistributionCollector) -> None:
        self._collector = collector

    def read(self, batch: Rows[Request], alone: bool) -> list[RowOutcome]:
        """Reads the next parts, with one call for each member.

        Logits of all positions are computed beside the model, at most `MAX_LOGIT_BYTES` of them per member and step:
        requests that do not fit wait for the next step, oldest first.

        Args:
            batch: Requests with a measurement.
            alone: Whether no other request runs. Else ``prefill_seconds`` bounds the parts, unless deterministic.

        Returns:
            For each request the error that ends it, if any. A request that is measured has no measurement any more,
            unless it ends with it.
        """
        queries = _next_parts(batch, None if alone else min(request.prefill_seconds for request in batch))
        errors: dict[Request, dict[Sequence, GaCError]] = {}
        for query, result in self._collector.read_parts(queries):
            if isinstance(result, GaCError):
                errors.setdefault(query.request, {})[query.voice] = result
            elif not isinstance(result, Unread):
                _measurement(query.request).voices[query.voice].add(query.part, result.values)
        return [_settle(request, errors.get(request, {})) for request in batch]


def _measurement(request: Request) -> Measurement:
    assert request.measurement is not None
    return request.measurement


def _next_parts(batch: Rows[Request], seconds: float | None) -> list[PartQuery]:
    """Returns what is read next: one part of each text, as far as its member has room for logits."""
    queries: list[PartQuery] = []
    used: dict[str, int] = {}
    for request in batch:
        measurement = _measurement(request)
        for voice in request.voices:
            if measurement.voices[voice].is_done(voice):
                continue
            key, most = voice.member.member_id, part_size(voice, measurement.part_tokens)
            size = most
            if seconds is not None and not request.settings.deterministic:
                size = min(most, max(MIN_PART, voice.member.times.tokens_within(seconds)))
            part = measurement.voices[voice].next_part(voice, size)
            if not used.get(key) or used[key] + len(part.targets.ids) <= most:
                used[key] = used.get(key, 0) + len(part.targets.ids)
                queries.append(PartQuery(request, voice, part))
    return queries


def _settle(request: Request, errors: Mapping[Sequence, GaCError]) -> RowOutcome:
    """Lets a request go on without voices that failed, and ends its measurement once all others are done."""
    measurement = _measurement(request)
    if errors:
        fatal = go_on_without(request, errors)
        if fatal is not None:
            return RowOutcome((fatal,), failed=errors)
        # A voice that was not measured has no weight, so that it cannot return.
        request.absent = [absence for absence in request.absent if absence.voice not in errors]
    if measurement.is_done(request.voices):
        try:
            _finish(request, measurement)
        except BaseException as error:
            return RowOutcome((request_failure("weighing its members", error),), failed=errors)
    return RowOutcome(failed=errors)


def _finish(request: Request, measurement: Measurement) -> None:
    """Records what was measured, and sets the weights that follow from it."""
    found = measurement.likelihoods(request.voices)
    request.stats.likelihoods = {name: own[0] for name, own in found.items()}
    request.stats.scaled_likelihoods = found
    if not measurement.sets_weights:
        return
    weights = perplexity_weights(request.stats.likelihoods)
    for voice in request.voices:
        voice.weight = weights[voice.name]
    shares = normalise([voice.weight for voice in request.voices])
    named = {voice.name: share for voice, share in zip(request.voices, shares, strict=True)}
    request.settings = request.stats.settings = replace(request.settings, weights=named)
    request.measurement = None
