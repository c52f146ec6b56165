"""Which voices carried a token, in a request with documents."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.combination.entropy import log_moment
from gac_core.decoding.combined import Combined
from gac_core.decoding.place import Place
from gac_core.token_stats import Vote


@dataclass(frozen=True)
class TokenVotes:
    """What a request with documents reports of a token.

    Attributes:
        votes: As in `TokenStats`.
        prior: As in `TokenStats`.
        entropy: As in `TokenStats`.
    """

    votes: tuple[Vote, ...] = ()
    prior: float | None = None
    entropy: float | None = None


def measure_votes(place: Place, combined: Combined, own: Rows[Tensor], token: Tensor) -> Tensor:
    """Returns the numbers that `token_votes` reads, without a device synchronisation.

    Args:
        place: The place.
        combined: The combined distribution.
        own: What each of the place's readers gives the token, shape ``[1]``, on the device of ``combined``.
        token: The selected token's union id, int64, shape ``[1]``, on the same device.

    Returns:
        Float64, on the device of ``combined``: what each group contributes to the token; each reader's probability of
        it, as a share of the mass that a grammar left it; the prior's, 0 without one; and the entropy.
    """
    device, masked = combined.probs.device, combined.total is not None
    parts = torch.ones(1, device=device) if combined.votes is None else combined.votes.parts(token)[:, 0]
    voices = torch.cat(list(own))
    if masked:
        masses = torch.stack([probs.sum().to(device) for probs in place.probs])
        voices = voices / masses.masked_fill(masses == 0, 1.0)
    prior = parts.new_zeros(1)
    if combined.prior is not None:
        prior = combined.prior[token.to(combined.prior.device)].to(device)
        mass = combined.prior.sum().to(device)
        prior = prior / mass.masked_fill(mass == 0, 1.0) if masked else prior
    entropy = -log_moment(combined.probs).reshape(1)
    return torch.cat([part.double() for part in (parts, voices, prior, entropy)])


def token_votes(place: Place, numbers: Rows[float]) -> TokenVotes:
    """Returns what is reported of a token.

    Args:
        place: The place.
        numbers: What `measure_votes` returned.
    """
    count = len(place.groups)
    parts, voices, (prior, entropy) = numbers[:count], numbers[count:-2], numbers[-2:]
    votes = []
    for group, share in zip(place.groups, _shares(parts, [group.weight for group in place.groups]), strict=True):
        own = [voices[index] for index in group.indices]
        products = [weight * prob for weight, prob in zip(group.shares, own, strict=True)]
        if group.document is not None:
            votes += [
                Vote(group.document, voice.name, share * within, prob)
                for voice, within, prob in zip(group.voices, _shares(products, group.shares), own, strict=True)
            ]
    return TokenVotes(tuple(votes), None if place.prior is None else prior, entropy)


def _shares(parts: Rows[float], weights: Rows[float]) -> list[float]:
    """Returns parts as shares of their sum; the weights where all are 0."""
    total = sum(parts)
    return [part / total for part in parts] if total > 0 else list(weights)
