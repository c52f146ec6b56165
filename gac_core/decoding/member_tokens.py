"""What each member's own distribution says at a place: its most probable token, and the selected one's probability."""

from __future__ import annotations

from collections.abc import Sequence as Rows

import torch
from torch import Tensor

from gac_core.decoding.sequence import Sequence
from gac_core.token_stats import MemberToken
from gac_core.tokenization.vocabulary import UnionVocabulary


def measure_members(distributions: Rows[Tensor], token: Tensor) -> Tensor:
    """Returns the numbers that `member_tokens` reads, without a device synchronisation.

    Args:
        distributions: One per member, float32, shape ``[union]``, on any devices; a grammar may have removed mass.
        token: The selected token's union id, int64, shape ``[1]``.

    Returns:
        Float64, shape ``[4 * members]``, on the device of ``token``: for each member the union id of its most probable
        token (of several the lowest), the probabilities of this and of the selected token, and the sum of all.
    """
    return torch.cat([_numbers(probs, token).to(token.device) for probs in distributions])


def _numbers(probs: Tensor, token: Tensor) -> Tensor:
    best = probs.argmax(keepdim=True)
    values = probs.index_select(0, torch.cat([best, token.to(probs.device)]))
    return torch.cat([part.double() for part in (best, values, probs.sum(0, keepdim=True))])


def member_tokens(voices: Rows[Sequence], numbers: Rows[float], union: UnionVocabulary) -> tuple[MemberToken, ...]:
    """Returns the entries of `TokenStats.members`, in the order of the voices.

    Args:
        voices: The voices.
        numbers: What `measure_members` returned, four numbers for each of them.
        union: The union vocabulary.
    """
    entries = []
    for index, voice in enumerate(voices):
        best, largest, selected, total = numbers[4 * index : 4 * index + 4]
        if total > 0:
            data = union.data(int(best)) or b""
            entries.append(MemberToken(voice.name, data, largest / total, selected / total, voice.document))
    return tuple(entries)
