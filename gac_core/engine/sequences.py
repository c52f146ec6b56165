"""The sequences of a request's voices, and which of them is the gate."""

from __future__ import annotations

from collections.abc import Sequence as Rows

from gac_core.decoding.ensemble_member import EnsembleMember
from gac_core.decoding.sequence import Sequence
from gac_core.effective import RequestSettings
from gac_core.engine.measuring import tokenized
from gac_core.engine.voice_prompts import EncodedVoice, naming, no_voice
from gac_core.errors import RequestError, quote
from gac_core.rule_names import needs_prior
from gac_core.sampling import SamplingParams


def sequences(read: Rows[EncodedVoice]) -> list[Sequence]:
    """Returns the sequences of a request's voices.

    Raises:
        PromptTooLongError: A prompt is longer than its member's context.
    """
    return [_sequence(voice) for voice in read]


def _sequence(voice: EncodedVoice) -> Sequence:
    with naming(voice.document):
        text = tokenized(voice.member, voice.text)
    return Sequence(voice.member, voice.weight, text, document=voice.document, prior=voice.prior, keep=voice.keep)


def check_prior(voices: Rows[Sequence], settings: RequestSettings) -> None:
    """Raises a `RequestError` where documents are compared with a prior by the settings, and no voice is one."""
    reads = any(voice.document is not None for voice in voices)
    if reads and needs_prior(settings.combine_documents) and not any(voice.prior for voice in voices):
        raise RequestError(
            f"combine_documents={quote(settings.combine_documents)} compares documents with the prompt without any; "
            "give DocumentPrompt.prior or a voice with prior=True, or set combine_documents to 'mean' or 'confidence'"
        )


def choose_gate(voices: Rows[Sequence], gate: EnsembleMember, named: bool, settings: RequestSettings) -> Sequence:
    """Returns the voice that is the gate: of the gate's voices that vote the one with the largest weight.

    Of equal weights the first counts. If the gate has no voice, and neither the request names it nor a threshold is in
    force, it is the voice with the largest weight of all.

    Args:
        voices: The request's voices.
        gate: The member that is the gate by the settings.
        named: Whether the request names it.
        settings: The request's settings.

    Raises:
        RequestError: The gate has no voice.
    """
    voting = [voice for voice in voices if not voice.prior]
    own = [voice for voice in voting if voice.member is gate]
    if not own and (named or settings.threshold is not None):
        raise no_voice(gate.name)
    return max(own or voting, key=lambda voice: voice.weight)


def budget(params: SamplingParams, voices: Rows[Sequence]) -> int:
    """Returns how many tokens may be generated: ``max_tokens``, or fewer where a member's context ends before."""
    rooms = [voice.member.context - len(voice.text.token_ids) for voice in voices if voice.member.context is not None]
    return min([params.max_tokens, *rooms])


def prompt_bytes(voice: Sequence) -> bytes:
    """Returns the prompt of a voice as bytes."""
    return voice.member.tokenizer.decode(voice.text.token_ids)


def other_prompts(voices: Rows[Sequence], gate: Sequence) -> tuple[bytes, ...]:
    """Returns the prompts that the gate's member reads in other voices that vote, by falling weight."""
    own = [voice for voice in voices if voice.member is gate.member and voice is not gate and not voice.prior]
    return tuple(prompt_bytes(voice) for voice in sorted(own, key=lambda voice: -voice.weight))
