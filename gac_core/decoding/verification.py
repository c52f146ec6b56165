"""SAFE's verification of tokenizations: would the voices cut the text before the gate's token as they read it?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch

from gac_core.combination import Verification
from gac_core.decoding.place import Group, Place
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.tokenized_text import TokenizedText
from gac_core.errors import GaCError
from gac_core.model.transfer import to_host


def verified(place: Place, texts: Mapping[Sequence, TokenizedText]) -> Place:
    """Returns a place with the verification of the most probable token of each group's gate.

    The gate of a group is the voice of the request's gate, else the one with the largest weight. A voice whose
    vocabulary cannot represent the token counts as one that would cut it differently. The end of the text is no token.
    One device synchronisation.

    Args:
        place: The place.
        texts: By voice its text at the place, which may be changed.
    """
    groups = [*place.groups, *([place.prior] if place.prior is not None else [])]
    gates = [_gate(group, place.request.gate.name) for group in groups]
    best = [group.probs[gate].argmax() for group, gate in zip(groups, gates, strict=True)]
    tokens = to_host(torch.stack([each.to(best[0].device) for each in best]))[0].tolist()
    done = []
    for group, gate, token in zip(groups, gates, tokens, strict=True):
        data = place.request.union.data(token)
        others = [voice for index, voice in enumerate(group.voices) if index != gate]
        aligned = data is None or all(_extends(voice, texts[voice], data) for voice in others)
        done.append(replace(group, verification=Verification(gate, aligned)))
    count = len(place.groups)
    return replace(place, groups=tuple(done[:count]), prior=done[count] if place.prior is not None else None)


def _gate(group: Group, name: str) -> int:
    """Returns the index of a group's gate in it."""
    return max(range(len(group.voices)), key=lambda index: (group.voices[index].name == name, group.shares[index]))


def _extends(voice: Sequence, text: TokenizedText, data: bytes) -> bool:
    """Whether a voice's ids of a text with further bytes begin with its ids of the text."""
    text.num_cached = before = len(text.token_ids)
    try:
        voice.member.commit(text, data, own=False)
    except GaCError:
        return False
    return text.num_cached == before
