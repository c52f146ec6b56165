"""SAFE: the gate drafts, the others verify, and the members are ensembled where their tokenizations agree.

    p = p_gate                      where a verifier would cut the text before the gate's token differently
    p = c * prod_i p_i ^ w_i        elsewhere, where no token has half of the mean's mass and the verifiers disagree
    p = sum_i w_i p_i               elsewhere

Yun et al. 2025, "When to Ensemble: Identifying Token-Level Points for Stable and Fast LLM Ensembling" (arXiv
2510.15346), sections 3.2 and 3.3. The gate's token is its most probable one. The first line is the verification against
tokens like out-of-vocabulary ones: a member that reads a text which its tokenizer would not have cut so gives poor
distributions. The second is the sharpening by the geometric mean, one of the two that the paper compares; "disagree"
means that the gate's token is not the most probable one of every verifier. Where this departs from the paper:

- There, the gate's token stands, and nothing is ensembled, where every verifier finds it most probable, or where its
  mean probability is above one half. It then is the mean's most probable token, too (its appendix C), so that the mean
  gives the same greedy text.
- There, the gate drafts several tokens, and a boundary counts if a verifier has it within the text of all of them.
  Here that text ends with the gate's next token, so that drafts change nothing; fewer boundaries are found to be wrong.
- The configured weights apply, where the paper has equal ones.
- Verifiers are evaluated at every position, so that nothing is saved; a threshold saves steps.

Where the gate's distribution stands, it does so whatever the weights. It does not where the gate gives no token that a
grammar allows any probability, since it then has no token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.combination.arithmetic import arithmetic_mean
from gac_core.combination.geometric import geometric_mean


@dataclass(frozen=True)
class Verification:
    """What `selective_mean` needs to know beside the distributions.

    Attributes:
        gate: Index of the gate's distribution.
        aligned: Whether every other member's ids of the text with the gate's token begin with its ids of the text.
    """

    gate: int = 0
    aligned: bool = True


def selective_mean(
    distributions: Sequence[Tensor], weights: Sequence[float], verification: Verification = Verification()
) -> Tensor:
    """Returns the distribution of SAFE.

    Args:
        distributions: As in `Combiner`.
        weights: As in `Combiner`.
        verification: The gate, and the outcome of the verification of the tokenizations at these positions. Default:
            the first member is the gate, and the tokenizations agree.
    """
    device = distributions[0].device
    gate = distributions[verification.gate].to(device)
    mean = arithmetic_mean(distributions, weights)
    if not verification.aligned:
        return torch.where(gate.sum(-1, keepdim=True) == 0, mean, gate)
    token = gate.argmax(-1, keepdim=True)
    parts = torch.stack([part.to(device) for part in distributions])
    own = parts.gather(-1, token.expand(*parts.shape[:-1], 1))
    unanimous = (own == parts.amax(-1, keepdim=True)).all(0)
    smooth = mean.amax(-1, keepdim=True) < mean.sum(-1, keepdim=True) / 2
    return torch.where(smooth & ~unanimous, geometric_mean(distributions, weights), mean)
