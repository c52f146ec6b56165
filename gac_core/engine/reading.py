"""Requests that read texts and generate nothing: to measure them, or to keep documents in the KV caches."""

from __future__ import annotations

import uuid
from collections.abc import Sequence as Rows
from dataclasses import replace

from gac_core.combination import COMBINERS, GATES
from gac_core.config import EnsembleConfig
from gac_core.decoding.ensemble_member import EnsembleMember
from gac_core.decoding.measurement import Measurement
from gac_core.decoding.request import Request
from gac_core.decoding.sampler import Sampler
from gac_core.decoding.sequence import Sequence
from gac_core.engine.voice_prompts import EncodedVoice, encode_voices
from gac_core.errors import RequestError, listed, quote
from gac_core.output import EffectiveSettings
from gac_core.sampling import SamplingParams
from gac_core.tokenization.vision import EncodedPrompt
from gac_core.tokenization.vocabulary import UnionVocabulary
from gac_core.voices import DocumentPrompt


def reading_request(
    voices: list[Sequence],
    params: SamplingParams,
    config: EnsembleConfig,
    union: UnionVocabulary,
    measurement: Measurement | None = None,
    pins: bool | None = None,
    label: str = "",
    ensemble_id: str = "",
) -> Request:
    """Returns a request that reads texts, generates nothing, and fails if a member does.

    Args:
        voices: What is read.
        params: The caller's parameters.
        config: The ensemble's configuration.
        union: Its union vocabulary.
        measurement: What is measured; None with ``pins``.
        pins: As in `Request`.
        label: The request's id, as callers see it.
        ensemble_id: Id of the ensemble within the engine.
    """
    return Request(
        request_id=uuid.uuid4().hex,
        label=label,
        ensemble_id=ensemble_id,
        params=params,
        voices=voices,
        gate=voices[0],
        threshold=None,
        union=union,
        combiner=COMBINERS["arithmetic"],
        gate_rule=GATES["confidence"],
        sampler=Sampler(params, 0),
        seed=0,
        settings=EffectiveSettings(deterministic=config.deterministic),
        failures=replace(config.failures, drop=False),
        measurement=measurement,
        pins=pins,
        prefill_seconds=config.prefill_seconds / len(voices),
    )


def kept_voices(prompt: DocumentPrompt, members: Rows[EnsembleMember], parse_special: bool) -> list[EncodedVoice]:
    """Returns voices that read a prompt up to the end of its one document, of the members that can keep it.

    Args:
        prompt: The prompt, without a prior.
        members: All members.
        parse_special: Whether spellings of control tokens become control tokens.

    Raises:
        RequestError: The prompt is wrong, or none of the members can keep its document.
    """
    able = [member for member in members if member.keeps_documents]
    read = encode_voices(prompt, dict.fromkeys(able, 1.0), parse_special).voices if able else ()
    voices = [
        EncodedVoice(each.member, 1.0, EncodedPrompt(each.text.token_ids[: each.keep]), each.document)
        for each in read
        if each.keep
    ]
    if voices:
        return voices
    if any(each.text.images is not None for each in read):
        raise RequestError(
            f"the keys and values of a document cannot be kept where the prompt has images, which members "
            f"{listed(member.name for member in able)} read; leave the images out"
        )
    if able:
        raise RequestError(
            f"no member can keep document {quote(read[0].document)}: its first token depends on what follows it; "
            "give a longer document, or text before its place"
        )
    raise RequestError(
        f"members {listed(member.name for member in members)} run row by row, and cannot keep the keys and values of "
        "a document; leave out warm"
    )


def check_keeps_documents(config: EnsembleConfig) -> None:
    """Raises a `RequestError` if an ensemble keeps no documents by its settings."""
    if config.deterministic:
        raise RequestError(
            "deterministic=True reuses no keys and values, so that no documents are kept; leave out warm, or set "
            "deterministic=False"
        )
    if not config.document_cache_gib:
        raise RequestError(
            f"document_cache_gib is {quote(config.document_cache_gib)}, so that no documents are kept; set it above 0"
        )
