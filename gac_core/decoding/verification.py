"""SAFE's verification of tokenizations: would the voices cut the text before the gate's token as they read it?"""

from __future__ import annotations

from collections.abc import Mapping

from gac_core.combination import Verification
from gac_core.decoding.place import Place
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.tokenized_text import TokenizedText
from gac_core.errors import GaCError


def verify(place: Place, texts: Mapping[Sequence, TokenizedText]) -> Verification:
    """Returns the verification of the gate's most probable token; one device synchronisation.

    A voice whose vocabulary cannot represent the token counts as one that would cut it differently. The end of the text
    is no token.

    Args:
        place: The place.
        texts: By voice its text at the place, which may be changed.
    """
    gate = place.voices.index(place.request.gate)
    data = place.request.union.data(int(place.probs[gate].argmax()))
    others = [voice for voice in place.voices if voice is not place.request.gate]
    return Verification(gate, data is None or all(_extends(voice, texts[voice], data) for voice in others))


def _extends(voice: Sequence, text: TokenizedText, data: bytes) -> bool:
    """Whether a voice's ids of a text with further bytes begin with its ids of the text."""
    text.num_cached = before = len(text.token_ids)
    try:
        voice.member.commit(text, data, own=False)
    except GaCError:
        return False
    return text.num_cached == before
