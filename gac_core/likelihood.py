"""How likely members find a text, and what follows from it for their weights."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

TAU = 1.0
"""The temperature of `perplexity_weights`, as in the authors' code."""

MIN_WEIGHT = 1e-9
"""The smallest weight of `perplexity_weights`: a member that takes part has a weight above 0."""


@dataclass(frozen=True)
class Likelihood:
    """How likely a member finds a text that it reads.

    Attributes:
        logprob: Sum of the natural logarithms of the probabilities that the member gave the text's tokens, each after
            those before it.
        tokens: How many tokens that are, of its own vocabulary, control tokens included; above 0.
        bytes: How many bytes of text they write; control tokens write none.
    """

    logprob: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float:
        """Perplexity per token; members with different tokenizers cannot be compared by it."""
        try:
            return math.exp(-self.logprob / self.tokens)
        except OverflowError:
            return math.inf

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte of text, which compares members with different tokenizers; infinite without bytes."""
        return -self.logprob / math.log(2) / self.bytes if self.bytes else math.inf


def perplexity_weights(likelihoods: Mapping[str, Likelihood], tau: float = TAU) -> dict[str, float]:
    """Returns weights by the likelihood of the prompt (PackLLM-sim, arXiv 2404.11531, section 3.1).

    The paper's weights are ``softmax(-log(PPL_k) / tau)``, with the perplexity ``PPL_k`` per token. Members with
    different tokenizers divide a text into different numbers of tokens, so here the logarithm is taken per byte and
    multiplied by one length for all of them, the mean bytes per token: for members of one tokenizer that is the paper's
    formula.

    Args:
        likelihoods: By member; at least one, each over one byte or more.
        tau: Above 0: a smaller one prefers the most likely member more. Default `TAU`.

    Returns:
        Weights by member, which sum to 1 up to `MIN_WEIGHT`, the least of each.
    """
    length = sum(each.bytes for each in likelihoods.values()) / sum(each.tokens for each in likelihoods.values())
    scores = {name: each.logprob / each.bytes * length / tau for name, each in likelihoods.items()}
    best = max(scores.values())
    if math.isinf(best):
        return {name: 1 / len(scores) for name in scores}
    parts = {name: math.exp(score - best) for name, score in scores.items()}
    total = sum(parts.values())
    return {name: max(MIN_WEIGHT, part / total) for name, part in parts.items()}
