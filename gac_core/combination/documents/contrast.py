"""Contrast: for each token the document that speaks for it most, compared with the prior.

    p(t) = c * max_k r_k p_k(t) (p_k(t) / p_0(t)) ^ beta_k

``p_0`` is the prior, the distribution without any document, and ``r_k`` the weight of document k. ``beta_k`` is a given
number, or the Jensen-Shannon divergence of ``p_k`` and ``p_0`` in bits, 0 to 1. ``c`` scales the result to the mean's
mass. Tokens that a document makes more probable than the prior gain, and one document that contains the answer is not
outvoted by many that do not.

Corallo and Papotti 2026, "Parallel Context-of-Experts Decoding for Retrieval Augmented Generation" (PCED, arXiv
2601.08670): the maximum over documents of ``(1 + beta) s_k - beta s_0 + gamma log r_k`` on logits s. Where this departs
from it:

- Logarithms of probabilities take the place of logits, which are not comparable between members.
- ``beta_k`` is 0.25 by default. There, it is the divergence at the first token for the whole answer; here, the
  divergence is computed at every position, as in AdaCAD (Wang et al. 2024, arXiv 2409.07394), so that the rule has no
  state and drafts and restarts do not change the text. It is often near 1, with which a document that merely differs
  from the prior outvotes one that the prior agrees with once a word has begun, and words break.
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

BETA = 0.25
"""The default exponent."""

PLAUSIBLE = 0.1
"""The least probability of a token that gains by the contrast, relative to the document's most probable token."""

TINY = torch.finfo(torch.float32).tiny
"""Smaller probabilities of the prior count as this one."""


@dataclass(frozen=True, eq=False)
class _Base:
    """The prior, normalised.

    Attributes:
        probs: Its distribution, shape ``[union]``.
        logs: The logarithms of ``probs``.
        moment: The sum of ``p * log(p)``, a scalar.
        present: Whether it has any mass, a scalar.
    """

    probs: Tensor
    logs: Tensor
    moment: Tensor
    present: Tensor

    @classmethod
    def of(cls, prior: Tensor) -> _Base:
        """Returns what a prior is, which may lack mass."""
        mass = prior.sum()
        probs = prior / mass.masked_fill(mass == 0, 1.0)
        logs = probs.clamp_min(TINY).log_()
        return cls(probs, logs, torch.dot(probs, logs), mass > 0)


@dataclass(frozen=True, eq=False)
class _Expert:
    """One document beside the prior.

    Attributes:
        probs: Its distribution, shape ``[union]``.
        mass: The sum of ``probs``, a scalar.
        beta: The exponent of the ratio, a scalar.
        weight: Its weight.
    """

    probs: Tensor
    mass: Tensor
    beta: Tensor
    weight: float

    def scores(self, tokens: Tensor | slice, log_prior: Tensor) -> Tensor:
        """Returns the logarithm of what it contributes to some tokens, given those of the normalised prior."""
        probs = self.probs[tokens]
        plain = probs.log()
        # The ratio is one of normalised probabilities.
        gained = (
            (plain * (1 + self.beta)).addcmul_(log_prior, -self.beta).sub_(self.beta * self.mass.clamp_min(TINY).log())
        )
        capped = torch.minimum(gained, plain)
        return torch.where(probs < self.probs.amax() * PLAUSIBLE, capped, gained).add_(math.log(max(self.weight, TINY)))


@dataclass(frozen=True)
class Contrast:
    """The maximum over documents, contrasted with the prior.

    Attributes:
        beta: The exponent of the ratio, 0 or more. None: the Jensen-Shannon divergence.
    """

    beta: float | None = BETA

    def __call__(self, distributions: Sequence[Tensor], weights: Sequence[float], prior: Tensor | None) -> Votes:
        """Returns the contrasted maximum; arguments as in `DocumentRule`.

        Without a prior, as while all members that read it have failed, nothing is contrasted.
        """
        device = distributions[0].device
        base = _Base.of(torch.zeros_like(distributions[0]) if prior is None else prior.to(device))
        experts = [
            self._expert(probs.to(device), weight, base) for probs, weight in zip(distributions, weights, strict=True)
        ]
        best = experts[0].scores(slice(None), base.logs)
        for expert in experts[1:]:
            best = torch.maximum(best, expert.scores(slice(None), base.logs), out=best)
        top = best.amax()
        # Without any mass, there is no largest score.
        top = torch.where(top == -math.inf, 0.0, top)
        combined = best.sub_(top).exp_()
        total = combined.sum()
        mass = torch.stack([expert.mass * expert.weight for expert in experts]).sum()
        combined *= mass / total.masked_fill(total == 0, 1.0)

        def parts(tokens: Tensor) -> Tensor:
            return torch.stack([(expert.scores(tokens, base.logs[tokens]) - top).exp() for expert in experts])

        return Votes(combined, parts)

    def _expert(self, probs: Tensor, weight: float, base: _Base) -> _Expert:
        mass = probs.sum()
        beta = divergence(probs, mass, base) if self.beta is None else probs.new_tensor(self.beta)
        return _Expert(probs, mass, torch.where((mass == 0) | ~base.present, 0.0, beta), weight)


def divergence(probs: Tensor, mass: Tensor, base: _Base) -> Tensor:
    """Returns the Jensen-Shannon divergence of a distribution and the prior, a scalar from 0 to 1: in bits."""
    own = log_moment(probs) / mass - mass.log()
    # Of the sum of both, which is twice their mean.
    mixed = log_moment(torch.addcdiv(base.probs, probs, mass)) / 2 - math.log(2)
    return (((own + base.moment) / 2 - mixed) / math.log(2)).clamp(0, 1)
