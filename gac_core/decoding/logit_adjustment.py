"""Penalties and bias of a request, as factors of the union tokens' probabilities.

    p'(t) = c * p(t) * exp(bias(t) - presence * [count(t) > 0] - frequency * count(t))

OpenAI's formula (https://platform.openai.com/docs/guides/text-generation, "Frequency and presence penalties"), which
adds the exponent to logits: the same, since a softmax follows. ``count`` is taken over the answer. The factors are
divided by the largest of them, so that none is above 1.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence

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
        self._bias = bias
        self._presence_penalty = presence_penalty
        self._frequency_penalty = frequency_penalty
        self._counts: Counter[int] = Counter()
        # By drafted tokens; voices share them.
        self._factors: dict[tuple[bytes, ...], Factors] = {}

    def count(self, data: bytes) -> None:
        """Counts a token that was committed."""
        self._counts[self._ids[data]] += 1
        self._factors = {}

    def factors(self, drafted: Sequence[bytes] = ()) -> Factors:
        """Returns the factors of the next token.

        Args:
            drafted: Tokens that precede it and are not committed. Default none.
        """
        key = tuple(drafted)
        if key not in self._factors:
            self._factors[key] = _factors(self._exponents(key))
        return self._factors[key]

    def _exponents(self, drafted: Sequence[bytes]) -> dict[int, float]:
        """Returns by union id the exponents that are not 0."""
        exponents = dict(self._bias)
        if self._presence_penalty or self._frequency_penalty:
            # What is no token of the union is never the next one.
            counts = self._counts + Counter(self._ids[data] for data in drafted if data in self._ids)
            for token, count in counts.items():
                penalty = self._presence_penalty + self._frequency_penalty * count
                exponents[token] = exponents.get(token, 0.0) - penalty
        return exponents


def _factors(exponents: Mapping[int, float]) -> Factors:
    largest = max(0.0, *exponents.values()) if exponents else 0.0
    return Factors(
        ids=torch.tensor(list(exponents), dtype=torch.long),
        values=torch.tensor([_factor(each - largest) for each in exponents.values()], dtype=torch.float32),
        common=_factor(-largest),
    )


def _factor(exponent: float) -> float:
    return math.exp(exponent) if exponent >= LEAST_EXPONENT else 0.0
