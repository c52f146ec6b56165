"""What each voice of a request reads: its prompt as its member encodes it."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from gac_core.chat.conversation import Conversation
from gac_core.decoding.ensemble_member import EnsembleMember
from gac_core.engine.prompts import encode_prompt, render_for
from gac_core.errors import PromptTooLongError, RequestError, listed, quote
from gac_core.model.entries import common_prefix_length
from gac_core.tokenization.vision import EncodedPrompt
from gac_core.voices import AnyPrompt, DocumentPrompt, Voice, VoicesPrompt

Weights = Mapping[EnsembleMember, float]
"""The members that take part in a request, in the ensemble's order, and their weights."""

_PROBES = ("\n\n", " ~")
"""Different texts after a document: what its tokens with both have in common does not depend on what follows it."""


@dataclass(frozen=True)
class EncodedVoice:
    """A voice of a request, as its member reads it.

    Attributes:
        member: The member.
        weight: Its weight, above 0.
        text: The prompt.
        document: Id of the document that it contains; None without one.
        prior: As in `Voice`.
        keep: How many leading ids, up to the end of the document, do not depend on what follows; 0 without a document.
    """

    member: EnsembleMember
    weight: float
    text: EncodedPrompt
    document: str | None = None
    prior: bool = False
    keep: int = 0


@dataclass(frozen=True)
class EncodedVoices:
    """All voices of a request.

    Attributes:
        conversation: The conversation that is answered, with the first of the documents; None for a string.
        voices: The voices: by member in the ensemble's order, then by document in the order of the texts.
    """

    conversation: Conversation | None
    voices: tuple[EncodedVoice, ...]


def encode_voices(prompt: AnyPrompt, weights: Weights, parse_special: bool) -> EncodedVoices:
    """Returns the voices that read a request's prompt.

    Args:
        prompt: The prompt, with its documents or voices if it has any.
        weights: The members that take part.
        parse_special: Whether spellings of control tokens become control tokens.

    Raises:
        RequestError: The prompt is wrong, or too long for a member.
    """
    if isinstance(prompt, DocumentPrompt):
        return _document_voices(prompt, weights, parse_special)
    if isinstance(prompt, VoicesPrompt):
        return _given_voices(prompt.voices, weights, parse_special)
    conversation, texts = encode_prompt(prompt, list(weights), parse_special)
    pairs = zip(weights.items(), texts, strict=True)
    return EncodedVoices(conversation, tuple(EncodedVoice(member, weight, text) for (member, weight), text in pairs))


def _document_voices(prompt: DocumentPrompt, weights: Weights, parse_special: bool) -> EncodedVoices:
    members = list(weights)
    conversation: Conversation | None = None
    rows: list[list[EncodedVoice]] = []
    documents, shares = prompt.document_weights(), _relative(weights)
    largest = max(weight for _, weight in documents.values())
    for text, (document, weight) in documents.items():
        name = str(document.id)
        with naming(name):
            conversation, texts = encode_prompt(prompt.with_document(text), members, parse_special)
        keeps = kept_lengths(prompt, text, members, texts, parse_special)
        rows.append(
            [
                EncodedVoice(member, _product(shares[member], weight / largest), encoded, name, keep=keep)
                for member, encoded, keep in zip(members, texts, keeps, strict=True)
            ]
        )
    if prompt.prior is not False:
        prior = "" if prompt.prior is True else prompt.prior
        _, texts = encode_prompt(prompt.with_document(prior), members, parse_special)
        pairs = zip(members, texts, strict=True)
        rows.append([EncodedVoice(member, shares[member], text, prior=True) for member, text in pairs])
    return EncodedVoices(conversation, tuple(voice for own in zip(*rows, strict=True) for voice in own))


def kept_lengths(
    prompt: DocumentPrompt, text: str, members: Sequence[EnsembleMember], texts: Sequence[EncodedPrompt], special: bool
) -> list[int]:
    """Returns for each member how many leading ids of a prompt with a document do not depend on what follows it.

    0 where no member keeps documents.

    Args:
        prompt: The prompt.
        text: The document's text.
        members: The members.
        texts: What they read with this document.
        special: Whether spellings of control tokens become control tokens.
    """
    if not any(member.keeps_documents for member in members):
        return [0] * len(members)
    lengths = [len(each.token_ids) for each in texts]
    for probe in _PROBES:
        _, rendered = render_for(prompt.with_document(text + probe), members, special, bounded=False)
        pairs = zip(texts, rendered, strict=True)
        common = [common_prefix_length(own.token_ids, other.read().token_ids) for own, other in pairs]
        lengths = [min(pair) for pair in zip(lengths, common, strict=True)]
    return [0 if own.images is not None else length for own, length in zip(texts, lengths, strict=True)]


@dataclass(frozen=True)
class _Read:
    """A voice that was given, and the conversation that it reads; None for a string."""

    conversation: Conversation | None
    voice: EncodedVoice


def _given_voices(voices: Sequence[Voice], weights: Weights, parse_special: bool) -> EncodedVoices:
    shares, largest = _relative(weights), max(voice.weight for voice in voices)
    found: dict[tuple[object, ...], _Read] = {}
    for index, voice in enumerate(voices):
        member = _named(voice.member, weights, index)
        with naming(voice.document):
            conversation, (text,) = encode_prompt(voice.prompt, [member], parse_special)
        for earlier in list(found.values())[:1]:
            _check_same_form(earlier.conversation, conversation)
        key = member, text.cache_keys, voice.document, voice.prior
        weight = _product(shares[member], voice.weight / largest)
        weight += found[key].voice.weight if key in found else 0.0
        found[key] = _Read(conversation, EncodedVoice(member, weight, text, voice.document, voice.prior))
    order = {member: place for place, member in enumerate(weights)}
    read = sorted(found.values(), key=lambda each: (order[each.voice.member], *_place(each.voice)))
    return EncodedVoices(read[0].conversation, tuple(each.voice for each in read))


def _place(voice: EncodedVoice) -> tuple[bool, tuple[int, ...], str]:
    """Returns what the order of one member's voices follows."""
    return voice.prior, voice.text.cache_keys, voice.document or ""


def _named(name: str, weights: Weights, index: int) -> EnsembleMember:
    """Returns the member that a voice names; raises a `RequestError` if none that takes part has this name."""
    by_name = {member.name: member for member in weights}
    if name not in by_name:
        raise RequestError(
            f"voices[{index}] names {quote(name)}, which takes no part in the request; members that do: "
            f"{listed(by_name)}; name one of these, or give this member a weight above 0"
        )
    return by_name[name]


def _check_same_form(one: Conversation | None, other: Conversation | None) -> None:
    """Raises a `RequestError` if two voices' prompts ask for different forms of the answer."""
    if one is None or other is None:
        if one is not other:
            raise RequestError("some voices have a string as their prompt, others a conversation; give all the same")
        return
    for field in ("tools", "tool_choice", "parallel_tool_calls", "enable_thinking"):
        if getattr(one, field) != getattr(other, field):
            raise RequestError(f"the conversations of two voices differ in {field}; give all voices the same")


def _relative(weights: Weights) -> dict[EnsembleMember, float]:
    """Returns weights divided by the largest, so that products of them are finite."""
    largest = max(weights.values())
    return {member: _product(weight / largest, 1.0) for member, weight in weights.items()}


def _product(one: float, other: float) -> float:
    """Returns the product of two weights; above 0, however small it is."""
    return max(one * other, sys.float_info.min)


@contextmanager
def naming(document: str | None) -> Iterator[None]:
    """Lets the error of a prompt that is too long name the document that it contains; None: it contains none."""
    try:
        yield
    except PromptTooLongError as error:
        raise error if document is None else error.with_document(document) from None


def no_voice(gate: str) -> RequestError:
    """Returns the error of a request whose gate has no voice that votes."""
    return RequestError(f"the gate {quote(gate)} has no voice; give it one, or set gate to another member")


def voices_of_gate(prompt: VoicesPrompt, names: Sequence[str], gate: str) -> VoicesPrompt:
    """Returns what takes part in a request whose gate decides every step: voices of other members do not.

    Args:
        prompt: All voices.
        names: The names of all members.
        gate: The name of the gate.

    Raises:
        RequestError: The gate has no voice that votes.
    """
    own = [voice for voice in prompt.voices if voice.member == gate or voice.member not in names]
    if not any(voice.member == gate and not voice.prior for voice in own):
        raise no_voice(gate)
    return VoicesPrompt(own)
