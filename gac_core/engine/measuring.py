"""Requests that measure how likely members find a text."""

from __future__ import annotations

from collections.abc import Sequence as Rows

from gac_core.config import EnsembleConfig
from gac_core.decoding.ensemble_member import EnsembleMember
from gac_core.decoding.measurement import Measurement, VoiceMeasurement
from gac_core.decoding.request import Request
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.tokenized_text import TokenizedText
from gac_core.engine.reading import reading_request
from gac_core.errors import PromptTooLongError, RequestError, quote
from gac_core.sampling import SamplingParams
from gac_core.tokenization.vision import EncodedPrompt
from gac_core.tokenization.vocabulary import UnionVocabulary


def tokenized(member: EnsembleMember, prompt: EncodedPrompt) -> TokenizedText:
    """Returns a text that a member can read; it begins with a prompt, whose ids are copied.

    Raises:
        PromptTooLongError: It is longer than the member's context.
    """
    _check_length(member, prompt.token_ids)
    return TokenizedText(list(prompt.token_ids), images=prompt.images)


def _check_length(member: EnsembleMember, ids: Rows[int]) -> None:
    if member.context is not None and len(ids) > member.context:
        raise PromptTooLongError(member.name, len(ids), member.context)


def measurement(
    voices: Rows[Sequence],
    config: EnsembleConfig,
    sets_weights: bool,
    starts: Rows[int] | None = None,
    temperatures: tuple[float, ...] = (),
) -> Measurement:
    """Returns what is measured of some voices' texts.

    Args:
        voices: The voices.
        config: The ensemble's configuration.
        sets_weights: Whether the voices' weights follow from it.
        starts: Position of the first token that counts, by voice. Default 1: all but the first one.
        temperatures: Temperatures at which it is measured. Default: each member's own.

    Raises:
        RequestError: There is nothing to measure.
    """
    first = dict(zip(voices, starts or [1] * len(voices), strict=True))
    for voice, start in first.items():
        if voice.text.images is not None and start < voice.text.images.end:
            remedy = "give weights as numbers" if sets_weights else "measure a continuation of it"
            raise RequestError(f"the likelihood of a prompt with images cannot be measured; {remedy}")
        if not voice.member.tokenizer.decode(voice.text.token_ids[start:]):
            remedy = ", or weights as numbers" if sets_weights else ""
            raise RequestError(
                f"the likelihood of the prompt cannot be measured: for member {quote(voice.name)} no text follows its "
                f"first token; give a longer prompt{remedy}"
            )
    measured = {
        voice: VoiceMeasurement(start, temperatures or (voice.member.temperature,)) for voice, start in first.items()
    }
    return Measurement(measured, part_tokens=config.prefill_tokens, sets_weights=sets_weights)


def likelihood_request(
    voices: list[Sequence],
    params: SamplingParams,
    config: EnsembleConfig,
    union: UnionVocabulary,
    continuation: bytes = b"",
    temperatures: tuple[float, ...] = (),
    label: str = "",
    ensemble_id: str = "",
) -> Request:
    """Returns a request that measures a text, generates nothing, and fails if a member does.

    Args:
        voices: All members' voices, which contain the prompt.
        params: The caller's parameters.
        config: The ensemble's configuration.
        union: Its union vocabulary.
        continuation: What follows the prompt, in UTF-8: committed to every voice as in decoding, and measured instead
            of the prompt. Default: nothing.
        temperatures: Temperatures at which it is measured. Default: each member's own.
        label: The request's id, as callers see it.
        ensemble_id: Id of the ensemble within the engine.

    Raises:
        RequestError: There is nothing to measure, or a text is too long for its member.
        UnwritableTextError: A member has no tokens for the continuation.
    """
    starts = [len(voice.text.token_ids) if continuation else 1 for voice in voices]
    for voice in voices if continuation else ():
        voice.member.commit(voice.text, continuation, own=False)
        _check_length(voice.member, voice.text.token_ids)
    measured = measurement(voices, config, sets_weights=False, starts=starts, temperatures=temperatures)
    return reading_request(voices, params, config, union, measured, label=label, ensemble_id=ensemble_id)
