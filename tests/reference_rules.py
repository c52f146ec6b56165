"""The rules of `gac_core.combination` written as plainly as possible, in float64, sharing no code with it."""

from __future__ import annotations

import math

import torch

# Smallest positive normal float32: in a geometric mean it replaces probabilities that are 0.
TINY = 2.0**-126


def arithmetic(parts, weights) -> torch.Tensor:
    """Weighted mean."""
    return sum(weight * part for weight, part in zip(weights, parts, strict=True)) / sum(weights)


def geometric(parts, weights) -> torch.Tensor:
    """Weighted geometric mean over the tokens that some member can write, scaled to the mass of the weighted mean."""
    mean = arithmetic(parts, weights)
    logs = sum(weight * part.clamp_min(TINY).log() for weight, part in zip(weights, parts, strict=True)) / sum(weights)
    product = (logs - logs.max()).exp() * (mean > 0)
    return product / product.sum() * mean.sum()


def scaled(total, mean) -> torch.Tensor:
    """A rule's result with the mass of the weighted mean, for the tokens that some member can write."""
    total = torch.where(mean > 0, total, 0.0)
    return total / total.sum() * mean.sum()


def harmonic(parts, weights) -> torch.Tensor:
    """Weighted harmonic mean; a member counts with a thousandth of the weighted mean at least."""
    mean = arithmetic(parts, weights)
    total = sum(weight / torch.maximum(part, mean / 1000) for weight, part in zip(weights, parts, strict=True))
    return scaled(1 / total, mean)


def smallest(parts, weights) -> torch.Tensor:
    """The smallest probability over weight; a member counts with a thousandth of the weighted mean at least."""
    mean = arithmetic(parts, weights)
    rows = [torch.maximum(part, mean / 1000) / weight for weight, part in zip(weights, parts, strict=True)]
    return scaled(torch.stack(rows).min(0).values, mean)


def largest(parts, weights) -> torch.Tensor:
    """The largest probability times weight."""
    rows = [part * weight for weight, part in zip(weights, parts, strict=True)]
    return scaled(torch.stack(rows).max(0).values, arithmetic(parts, weights))


def core(parts, weights) -> torch.Tensor:
    """CoRE: weights fall with the distance from the mean, token by token, and with the entropy."""
    mean = arithmetic(parts, weights)
    total = torch.zeros_like(mean)
    for weight, part in zip(weights, parts, strict=True):
        near = (torch.exp(-2 * (part - mean).abs()) - math.exp(-2)) / (1 - math.exp(-2))
        entropy = -sum(p * math.log(p) for p in (part / part.sum()).tolist() if p > 0)
        total += weight * float((mean * near).sum()) / (entropy + 0.1) * near * part
    return scaled(total, mean)


def safe(parts, weights, gate=0, aligned=True) -> torch.Tensor:
    """SAFE: the gate alone where the others cut the text differently; else the mean, the geometric one where smooth."""
    if not aligned:
        return parts[gate]
    mean, token = arithmetic(parts, weights), int(parts[gate].argmax())
    agreed = all(part[token] == part.max() for part in parts)
    return geometric(parts, weights) if mean.max() < mean.sum() / 2 and not agreed else mean


def confidence(part, share) -> float:
    """The largest probability."""
    return float(part.max() / part.sum())


def margin(part, share) -> float:
    """How far the largest probability is above the second largest."""
    first, second = (part / part.sum()).sort(descending=True).values[:2].tolist()
    return first - second


def entropy(part, share) -> float:
    """One over the perplexity of the distribution."""
    return math.exp(sum(p * math.log(p) for p in (part / part.sum()).tolist() if p > 0))


def consensus(part, share) -> float:
    """The lead of the gate's token in the mean over the most that others could add to another, up to 1."""
    mass = float(part.sum())
    own, others = share * mass / (share * mass + 1 - share), (1 - share) / (share * mass + 1 - share)
    return 1.0 if share == 1 else min(1.0, own * margin(part, share) / (others + 1e-4))


# The rules by the names that they have in `gac_core.combination`.
COMBINERS = {
    **{"arithmetic": arithmetic, "geometric": geometric, "harmonic": harmonic},
    **{"min": smallest, "max": largest, "core": core, "safe": safe},
}
GATES = {"confidence": confidence, "margin": margin, "entropy": entropy, "consensus": consensus}


def find_rule(table, name):
    """The plain twin of a rule."""
    assert name in table, (
        f"{name!r} has no plain twin: add one in float64 to COMBINERS or GATES of tests/reference_rules.py"
    )
    return table[name]
