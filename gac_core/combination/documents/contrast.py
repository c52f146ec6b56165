"""Contrast: for each token the document that speaks for it most, compared with the prior.

    p(t) = c * max_k r_k p_k(t) (p_k(t) / p_0(t)) ^ beta_k

``p_0`` is the prior, the distribution without any document, and ``r_k`` the weight of document k. ``beta_k`` is the
Jensen-Shannon divergence of ``p_k`` and ``p_0`` in bits, 0 to 1, or a given number. ``c`` scales the result to the
mean's mass. Tokens that a document makes more probable than the prior gain, and one document that contains the answer
is not outvoted by many that do not.

Corallo and Papotti 2026, "Parallel Context-of-Experts Decoding for Retrieval Augmented Generation" (PCED, arXiv
2601.08670): the maximum over documents of ``(1 + beta) s_k - beta s_0 + gamma log r_k`` on logits s. Where this departs
from it:

- Logarithms of probabilities take the place of logits, which are not comparable between members.
- ``beta_k`` is computed at every position, as in AdaCAD (Wang et al. 2024, arXiv 2409.07394); there, it is that of the
  first token for the whole answer. So the rule has no state, and drafts and restarts do not change the text.
- gamma is 1, there 2.5: ``r_k`` is a share of the weights, which scores were already turned into; there, it is a score.
- A token with less than a tenth of the probability of a document's most probable one gains nothing by the contrast,
  it can only lose: the plausibility constraint of contrastive decoding (Li et al. 2023, arXiv 2210.15097), which bans
  such tokens. Else a token that is improbable in ``p_k`` and much more so in ``p_0`` would win.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.combination.documents.interface import Votes
from gac_core.combination.entropy import log_moment

PLAUSIBLE = 0.1
"""The least probability of a token that gains by the contrast, relative to the document's most probable token."""

TINY = torch.finfo(torch.float32).tiny
"""Smaller probabilities count as this one in the ratio."""


@dataclass(frozen=True)
class _Expert:
    """One document beside the prior.

    Attributes:
        probs: Its distribution, shape ``[union]``.
        log_weight: The logarithm of its weight.
        beta: The exponent of the ratio, a scalar.
        log_mass: The logarithm of the sum of ``probs`` over that of the prior, a scalar.
        plausible: The least probability of a token that gains, a scalar.
    """

    probs: Tensor
    log_weight: float
    beta: Tensor
    log_mass: Tensor
    plausible: Tensor

    def scores(self, probs: Tensor, log_probs: Tensor, log_prior: Tensor) -> Tensor:
        """Returns the logarithm of what it contributes to some tokens, given what the two distributions say there."""
        gain = (log_probs - log_prior).sub_(self.log_mass).mul_(self.beta)
        gain = torch.where(probs < self.plausible, gain.clamp_max(0), gain)
        return gain.add_(log_probs).add_(self.log_weight)


@dataclass(frozen=True)
class Contrast:
    """The maximum over documents, contrasted with the prior.

    Attributes:
        beta: The exponent of the ratio, 0 or more. None (default): the Jensen-Shannon divergence.
    """

    beta: float | None = None

    def __call__(self, distributions: Sequence[Tensor], weights: Sequence[float], prior: Tensor | None) -> Votes:
        """Returns the contrasted maximum; arguments as in `DocumentRule`.

        Without a prior, as while all members that read it have failed, nothing is contrasted.
        """
        device = distributions[0].device
        base = torch.zeros_like(distributions[0]) if prior is None else prior.to(device)
        log_prior = base.clamp_min(TINY).log_()
        mass, prior_mass = base.new_zeros(()), base.sum()
        experts: list[_Expert] = []
        best = torch.full_like(base, -math.inf)
        for distribution, weight in zip(distributions, weights, strict=True):
            probs = distribution.to(device)
            own_mass, log_probs = probs.sum(), probs.clamp_min(TINY).log_()
            mass = mass + weight * own_mass
            beta = self._beta(probs, own_mass, base, prior_mass)
            log_mass = (own_mass / prior_mass.clamp_min(TINY)).clamp_min(TINY).log()
            expert = _Expert(probs, math.log(max(weight, TINY)), beta, log_mass, probs.amax() * PLAUSIBLE)
            scores = expert.scores(probs, log_probs, log_prior).masked_fill_(probs == 0, -math.inf)
            best = torch.maximum(best, scores)
            experts.append(expert)
        top = best.amax()
        # Without any mass, there is no largest score.
        top = torch.where(top == -math.inf, 0.0, top)
        combined = best.sub_(top).exp_()
        total = combined.sum()
        combined *= mass / total.masked_fill(total == 0, 1.0)

        def parts(tokens: Tensor) -> Tensor:
            rows = []
            for expert in experts:
                probs = expert.probs[tokens]
                scores = expert.scores(probs, probs.clamp_min(TINY).log(), log_prior[tokens])
                rows.append(torch.where(probs == 0, 0.0, (scores - top).exp()))
            return torch.stack(rows)

        return Votes(combined, parts)

    def _beta(self, probs: Tensor, mass: Tensor, prior: Tensor, prior_mass: Tensor) -> Tensor:
        """Returns the exponent of one document, a scalar; 0 where the document or the prior has no mass."""
        given = prior.new_tensor(self.beta) if self.beta is not None else divergence(probs / mass, prior / prior_mass)
        return torch.where((mass == 0) | (prior_mass == 0), 0.0, given)


def divergence(first: Tensor, second: Tensor) -> Tensor:
    """Returns the Jensen-Shannon divergence of two distributions in bits, a scalar from 0 to 1."""
    inner = (log_moment(first) + log_moment(second)) / 2
    return ((inner - log_moment((first + second) / 2)) / math.log(2)).clamp(0, 1)
