"""The combined distribution at a place: members within each document first, then the documents."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gac_core.combination import selective_mean
from gac_core.combination.documents import Votes
from gac_core.decoding.place import Group, Place


@dataclass(frozen=True, eq=False)
class Combined:
    """The combined distribution at a place, and what it was made of.

    Attributes:
        probs: Float32, shape ``[union]``, normalised.
        total: What it was divided by, where mass was removed; else None.
        documents: The distribution of each group of voices (`Place.groups`).
        prior: That of the prior; None without one.
        votes: What each group contributes; None where there is only one distribution to begin with.
    """

    probs: Tensor
    total: Tensor | None
    documents: tuple[Tensor, ...]
    prior: Tensor | None = None
    votes: Votes | None = None


def combine(place: Place) -> Combined:
    """Returns the combined distribution at a place."""
    documents = tuple(_mixed(place, group) for group in place.groups)
    prior = None if place.prior is None else _mixed(place, place.prior)
    votes = None
    mixed = documents[0]
    if place.request.has_documents and not place.single:
        votes = place.request.document_rule(documents, [group.weight for group in place.groups], prior)
        mixed = votes.combined
    if not place.request.removes_mass:
        return Combined(mixed, None, documents, prior, votes)
    total = mixed.sum()
    return Combined(mixed / total, total, documents, prior, votes)


def _mixed(place: Place, group: Group) -> Tensor:
    """Returns the distribution of the voices of one group."""
    if len(group.voices) == 1:
        return group.probs[0]
    if group.verification is not None:
        return selective_mean(group.probs, group.shares, group.verification)
    return place.request.combiner(group.probs, group.shares)
