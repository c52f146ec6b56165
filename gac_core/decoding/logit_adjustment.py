"""Penalties and bias of a request, as factors of the union tokens' probabilities.

    p'(t) = c * p(t) * exp(bias(t) - presence * [count(t) > 0] - frequency * count(t))

OpenAI's formula (https://platform.openai.com/docs/guides/text-generation, "Frequency and presence penalties"), which
adds the exponent to logits: the same, since a softmax follows. ``count`` is taken over the answer. The factors are
divided by the largest of them, so that none is above 1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from gac_core.executor.messages import Factors
from gac_core.tokenization.vocabulary import UnionVocabulary

LEAST_EXPONENT = -80.0
"""A token whose exponent is further below the largest one has the factor 0: float32 holds no such probabilities."""


class LogitAdjustment:
    """The factors of one request, which depend on the tokens of its answer so far.

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
        # Exponents by union id, where they are not 0, and tokens of the answer.
        self._exponents = dict(bias)
        self._seen: set[int] = set()
        # By drafted tokens; voices share them.
        self._factors: dict[tuple[bytes, ...], Factors] = {}

    def count(self, data: bytes) -> None:
        """Counts a token that was committed."""
        self._penalise(self._exponents, self._seen, data)
        self._factors = {}

    def factors(self, drafted: Sequence[bytes] = ()) -> Factors:
        """Returns the factors of the next token.

        Args:
            drafted: Tokens that precede it and are not committed. Default none.
        """
        key = tuple(drafted)
        if key not in self._factors:
            exponents, seen = dict(self._exponents), set(self._seen)
            for data in key:
                # What is no token of the union is never the next one.
                if data in self._ids:
                    self._penalise(exponents, seen, data)
            self._factors[key] = _factors(exponents)
        return self._factors[key]

    def _penalise(self, exponents: dict[int, float], seen: set[int], data: bytes) -> None:
        """Adds what one more occurrence of a token changes, in place."""
        token = self._ids[data]
        penalty = self._frequency_penalty + (0.0 if token in seen else self._presence_penalty)
        seen.add(token)
        if penalty:
            exponents[token] = exponents.get(token, 0.0) - penalty


def _factors(exponents: Mapping[int, float]) -> Factors:
    # `fromiter` is several times faster than `torch.tensor` of a list; the last exponent is that of all other tokens.
    ids = np.fromiter(exponents, np.int64, len(exponents))
    relative = np.append(np.fromiter(exponents.values(), np.float64, len(exponents)), 0.0)
    relative -= relative.max()
    factors = torch.from_numpy(np.where(relative < LEAST_EXPONENT, 0.0, np.exp(relative))).float()
    return Factors(torch.from_numpy(ids), factors[:-1], float(factors[-1]))
