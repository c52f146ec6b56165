"""Penalties and bias of a request, as offsets of the logarithms of the union tokens' probabilities.

    offset(t) = bias(t) - presence * [count(t) > 0] - frequency * count(t)

OpenAI's formula (https://platform.openai.com/docs/guides/text-generation, "Frequency and presence penalties"), which
adds the offset to logits: the same, since a softmax follows. ``count`` is taken over the answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from gac_core.executor.messages import LogitOffsets
from gac_core.tokenization.vocabulary import UnionVocabulary


class LogitAdjustment:
    """The offsets of one request, which depend on the tokens of its answer so far.

    Args:
        union: The union vocabulary.
        bias: By union id what is added to the logarithm of the probability.
        presence_penalty: As in `SamplingParams`.
        frequency_penalty: As in `SamplingParams`.
    """

    def __init__(
        self, union: UnionVocabulary, bias: Mapping[int, float], presence_penalty: float, frequency_penalty: float
    ) -> None:
        self._ids = union.ids
        self._presence_penalty = presence_penalty
        self._frequency_penalty = frequency_penalty
        # A bias alone is the same at every token.
        self._penalises = bool(presence_penalty or frequency_penalty)
        # Offsets by union id, where they are not 0, and tokens of the answer.
        self._committed = dict(bias)
        self._seen: set[int] = set()
        # By drafted tokens; voices share them.
        self._offsets: dict[tuple[bytes, ...], LogitOffsets] = {}

    def count(self, data: bytes) -> None:
        """Counts a token that was committed."""
        if self._penalises:
            self._penalise(self._committed, self._seen, data)
            self._offsets = {}

    def offsets(self, drafted: Sequence[bytes] = ()) -> LogitOffsets:
        """Returns the offsets at the next token.

        Args:
            drafted: Tokens that precede it and are not committed. Default none.
        """
        key = tuple(drafted) if self._penalises else ()
        if key not in self._offsets:
            offsets, seen = dict(self._committed), set(self._seen)
            for data in key:
                # What is no token of the union is never the next one.
                if data in self._ids:
                    self._penalise(offsets, seen, data)
            self._offsets[key] = _as_tensors(offsets)
        return self._offsets[key]

    def _penalise(self, offsets: dict[int, float], seen: set[int], data: bytes) -> None:
        """Adds what one more occurrence of a token changes, in place."""
        token = self._ids[data]
        penalty = self._frequency_penalty + (0.0 if token in seen else self._presence_penalty)
        seen.add(token)
        if penalty:
            offsets[token] = offsets.get(token, 0.0) - penalty


def _as_tensors(offsets: Mapping[int, float]) -> LogitOffsets:
    # `fromiter` is several times faster than `torch.tensor` of a list.
    ids = np.fromiter(offsets, np.int64, len(offsets))
    values = np.fromiter(offsets.values(), np.float64, len(offsets))
    return LogitOffsets(torch.from_numpy(ids), torch.from_numpy(values))
