"""How one token is picked from one distribution: pure functions on probabilities, and a request's `Sampler`.

Every function takes and returns probabilities, a float tensor of shape ``[vocabulary]`` that sums to one.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from gac_core.sampling import SamplingParams


def apply_temperature(probs: Tensor, temperature: float) -> Tensor:
    """Returns ``p ** (1 / temperature)``, normalised; shape ``[vocabulary]``."""
    logs = probs.log()
    # The largest becomes 0, which no small temperature makes infinite.
    return torch.softmax((logs - logs.max()) / temperature, dim=-1)


def keep_top_k(probs: Tensor, k: int) -> Tensor:
    """Keeps the k most probable tokens (and those equal to the last of them), renormalised."""
    if k >= probs.numel():
        return probs
    least = torch.topk(probs, k).values[-1]
    return _renormalise(probs, probs >= least)


def keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Keeps the fewest most probable tokens with a mass of top_p or more (Holtzman et al. 2020), renormalised."""
    if top_p >= 1:
        return probs
    ordered, order = torch.sort(probs, descending=True, stable=True)
    before = torch.cat([ordered.new_zeros(1), ordered.cumsum(-1)[:-1]])
    keep = torch.zeros_like(probs, dtype=torch.bool)
    keep[order] = before < top_p
    return _renormalise(probs, keep)


def keep_min_p(probs: Tensor, min_p: float) -> Tensor:
    """Keeps tokens with at least min_p of the largest probability (Nguyen et al. 2024), renormalised."""
    return _renormalise(probs, probs >= min_p * probs.max())


def penalise_repetition(logits: Tensor, seen: Tensor, penalty: float) -> Tensor:
    """Divides positive and multiplies negative logits of seen tokens by the penalty (CTRL, section 4.1).

    Args:
        logits: A member's logits, shape ``[rows of its head]``.
        seen: Ids of the tokens in its text so far, int64, shape ``[n]``.
        penalty: Above 0; 1 changes nothing.

    Returns:
        New logits of the same shape.
    """
    scores = logits[seen]
    out = logits.clone()
    out[seen] = torch.where(scores < 0, scores * penalty, scores / penalty)
    return out


def _renormalise(probs: Tensor, keep: Tensor) -> Tensor:
    kept = torch.where(keep, probs, torch.zeros_like(probs))
    return kept / kept.sum()


class Sampler:
    """Picks tokens for one request; holds the seed of its random numbers and which token is next, and nothing else.

    Args:
        params: The request's parameters.
        seed: Seed of the random numbers, any whole number.
    """

    def __init__(self, params: SamplingParams, seed: int) -> None:
        self._params = params
        self._seed = seed
        self._place = 0

    @property
    def greedy(self) -> bool:
        """Whether the most probable token is picked, the smallest id among equals, without a random number."""
        return self._params.temperature == 0

    def pick(self, probs: Tensor, keys: Tensor, ahead: int = 0) -> Tensor:
        """Returns the picked index of a distribution, int64, shape ``[1]``, on its device.

        Greedy ties go to the smallest index. A draw is decided by random numbers that depend on the seed, the place of
        the token in the text and the token's key alone (see `race`).

        Args:
            probs: The distribution, shape ``[vocabulary]``. Where it holds NaN, any index is returned.
            keys: A number per token, int64, shape ``[vocabulary]``: `UnionVocabulary.keys`.
            ahead: Which token after those that `advance` has passed is picked: 0 is the next one.
        """
        params = self._params
        if self.greedy:
            return probs.argmax(keepdim=True)
        probs = probs.double()
        if params.temperature != 1:
            probs = apply_temperature(probs, params.temperature)
        if params.top_k is not None:
            probs = keep_top_k(probs, params.top_k)
        probs = keep_top_p(probs, params.top_p)
        if params.min_p > 0:
            probs = keep_min_p(probs, params.min_p)
        return race(probs, keys, self._seed, self._place + ahead)

    def advance(self) -> None:
        """Goes on to the next token's random numbers."""
        self._place += 1


def race(probs: Tensor, keys: Tensor, seed: int, place: int) -> Tensor:
    """Draws an index, int64, shape ``[1]``: the first arrival, where index i arrives at rate ``probs[i]``.

    This is the Gumbel-max trick. Two distributions that differ by a total variation of d give different indices with
    a chance of 2d at most, where inverting a cumulative distribution moves every later boundary by each difference
    before it. So rounding (batching, drafts) hardly ever changes a draw.

    Args:
        probs: Shape ``[vocabulary]``, float64; need not sum to one.
        keys: A number per index, int64, shape ``[vocabulary]``.
        seed: Any whole number.
        place: Which token of a text is drawn, 0 or more.
    """
    return (probs / exponentials(keys, seed, place)).argmax(keepdim=True)


def exponentials(keys: Tensor, seed: int, place: int) -> Tensor:
    """Returns exponentially distributed numbers, float64, shape ``[vocabulary]``, alike on every device up to rounding.

    Number i is a function of (seed, place, keys[i]) alone: the mixing function of SplitMix64 (Steele et al. 2014) over
    the key and a digest of the first two.

    Args:
        keys: Different numbers, int64, shape ``[vocabulary]``.
        seed: Any whole number.
        place: Which token of a text is drawn, 0 or more.
    """
    start = int.from_bytes(hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8).digest(), "little", signed=True)
    bits = keys + start
    spare = torch.empty_like(bits)
    bits.bitwise_xor_(_shifted(bits, 30, spare)).mul_(_signed(0xBF58476D1CE4E5B9))
    bits.bitwise_xor_(_shifted(bits, 27, spare)).mul_(_signed(0x94D049BB133111EB))
    bits.bitwise_xor_(_shifted(bits, 31, spare))
    # 52 bits and a half, so that neither 0 nor 1 comes out.
    return _shifted(bits, 12, spare).double().add_(0.5).mul_(2.0**-52).log_().neg_()


def _signed(bits: int) -> int:
    """64 bits as PyTorch's integers have them."""
    return bits - 2**64 if bits >= 2**63 else bits


def _shifted(bits: Tensor, places: int, out: Tensor) -> Tensor:
    """The bits shifted to the right, filled up with zeros."""
    return torch.bitwise_right_shift(bits, places, out=out).bitwise_and_(2 ** (64 - places) - 1)
