"""Weights of a mixture by maximum likelihood, and members without which it is better."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

NEGLIGIBLE = 0.01
"""A member with a smaller weight hurts: it costs as much as the others and changes nothing."""

_TINY = 1e-30


def em_weights(probs: Values, steps: int = 5000, tolerance: float = 1e-9) -> Values:
    """Returns the weights of a mixture that give tokens the largest likelihood, by expectation-maximisation.

    The log-likelihood ``sum_i log(sum_k w_k p_ik)`` is concave in the weights, so that the optimum is the global one
    (Dempster et al. 1977; the weights of a mixture with fixed components). It is that of the arithmetic mean.

    Args:
        probs: Probability that each member gave each token, float64, shape ``[tokens, members]``.
        steps: Steps at most. Default 5000.
        tolerance: Ends once no weight changes by more. Default 1e-9.

    Returns:
        Float64, shape ``[members]``, 0 or more, with the sum 1.
    """
    table = np.maximum(probs, _TINY)
    weights = np.full(table.shape[1], 1 / table.shape[1])
    for _ in range(steps):
        parts = table * weights
        updated = (parts / parts.sum(axis=1, keepdims=True)).mean(axis=0)
        change = np.abs(updated - weights).max()
        weights = updated
        if change < tolerance:
            break
    return weights


def mean_nll(probs: Values, weights: Sequence[float] | Values) -> float:
    """Returns the mean negative log-likelihood of a mixture, in nats per token; arguments as in `em_weights`."""
    return float(-np.log(np.maximum(probs, _TINY) @ np.asarray(weights)).mean())


@dataclass(frozen=True)
class Mixture:
    """The weights of an ensemble, and what they were chosen and judged by.

    Attributes:
        weights: By member, with the sum 1; 0 for members that hurt.
        hurts: Members without which the tokens to choose on are more likely, or whose weight is negligible.
        equal: Mean negative log-likelihood with equal weights on the other half, in nats per token.
        chosen: The same with ``weights``.
        alone: The same of each member alone.
    """

    weights: Mapping[str, float]
    hurts: tuple[str, ...]
    equal: float
    chosen: float
    alone: Mapping[str, float]


def cross_nll(probs: Values) -> float:
    """Returns the mean negative log-likelihood of tokens by weights that are chosen on others (two folds).

    Args:
        probs: As in `em_weights`; its first and second half are the folds.
    """
    half = len(probs) // 2
    folds = probs[:half], probs[half:]
    if not half:
        return mean_nll(probs, em_weights(probs))
    total = sum(len(fold) * mean_nll(fold, em_weights(other)) for fold, other in (folds, folds[::-1]))
    return total / len(probs)


def fit_mixture(names: Sequence[str], chosen: Values, held_out: Values) -> Mixture:
    """Returns weights that are chosen on some tokens and judged on others.

    As long as there are two members or more, one is left out if its weight is negligible, or if the tokens to choose on
    are more likely without it (`cross_nll`).

    Args:
        names: The members' names.
        chosen: As in `em_weights`: the tokens that weights and members are chosen on.
        held_out: The others, which nothing is chosen on.
    """
    kept = list(range(len(names)))
    weights = em_weights(chosen)
    while len(kept) > 1:
        without = {index: cross_nll(chosen[:, [each for each in kept if each != index]]) for index in kept}
        worst = min(kept, key=lambda index: without[index])
        if without[worst] >= cross_nll(chosen[:, kept]):
            if min(weights) >= NEGLIGIBLE:
                break
            worst = kept[int(np.argmin(weights))]
        kept.remove(worst)
        weights = em_weights(chosen[:, kept])
    found = dict(zip(kept, (float(weight) for weight in weights), strict=True))
    return Mixture(
        weights={name: found.get(index, 0.0) for index, name in enumerate(names)},
        hurts=tuple(name for index, name in enumerate(names) if index not in kept),
        equal=mean_nll(held_out, [1 / len(names)] * len(names)),
        chosen=mean_nll(held_out[:, kept], weights),
        alone={name: mean_nll(held_out[:, [index]], [1.0]) for index, name in enumerate(names)},
    )
