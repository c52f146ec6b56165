"""Sampling of one token from one distribution: pure functions on probabilities, and a request's `Sampler`.

Except where a docstring says otherwise, functions take and return probabilities: a float tensor of shape
``[vocabulary]`` that sums to one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from gac_core.sampling import SamplingParams


def apply_temperature(probs: Tensor, temperature: float) -> Tensor:
    """Returns ``p ** (1 / temperature)``, normalised; shape ``[vocabulary]``."""
    logs = probs.log()
    # The largest logarithm becomes 0, so that dividing by a tiny temperature does not overflow.
    return torch.softmax((logs - logs.max()) / temperature, dim=-1)


def keep_top_k(probs: Tensor, k: int) -> Tensor:
    """Keeps the k most probable tokens and those that tie with the last of them, renormalised."""
    if k >= probs.numel():
        return probs
    least = torch.topk(probs, k).values[-1]
    return _renormalise(probs, probs >= least)


def keep_top_p(probs: Tensor, top_p: float) -> Tensor:
    """Keeps the smallest set of most probable tokens with mass top_p or more (Holtzman et al. 2020), renormalised."""
    if top_p >= 1:
        return probs
    ordered, order = torch.sort(probs, descending=True, stable=True)
    before = torch.cat([ordered.new_zeros(1), ordered.cumsum(-1)[:-1]])
    keep = torch.zeros_like(probs, dtype=torch.bool)
    keep[order] = before < top_p
    return _renormalise(probs, keep)


def keep_min_p(probs: Tensor, min_p: float) -> Tensor:
    """Keeps tokens with at least min_p times the largest probability (Nguyen et al. 2024), renormalised."""
    return _renormalise(probs, probs >= min_p * probs.max())


def _renormalise(probs: Tensor, keep: Tensor) -> Tensor:
    kept = torch.where(keep, probs, torch.zeros_like(probs))
    return kept / kept.sum()


class Sampler:
    """Picks the tokens of one request. Its only state is the seed and the position of the next token.

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
        """Whether the most probable token is picked without random numbers; ties go to the smallest index."""
        return self._params.temperature == 0

    def pick(self, probs: Tensor, keys: Tensor, ahead: int = 0) -> Tensor:
        """Returns the index of the picked token, int64, shape ``[1]``, on the device of the distribution.

        Greedy ties go to the smallest index. A draw uses random numbers that depend only on the seed, the position of
        the token in the text and the token's key (see `race`).

        Args:
            probs: The distribution, shape ``[vocabulary]``. If it contains NaN, the index is arbitrary.
            keys: A number per token, int64, shape ``[vocabulary]``: `UnionVocabulary.keys`.
            ahead: Number of tokens between the next token and the one that is picked (for drafts). Default 0: the next.
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
        """Moves on to the random numbers of the next token."""
        self._place += 1


def choice_seed(seed: int, index: int) -> int:
    """Returns the seed of one of several answers to a prompt: the given one for the first, 63 bits for the others.

    Args:
        seed: The request's seed, any whole number.
        index: Index of the answer, 0 or more.
    """
    if index == 0:
        return seed
    digest = hashlib.blake2b(f"{seed} choice {index}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class FixedTokens:
    """Picks given tokens one after another, whatever their probability: the sampler of a request that is scored.

    Args:
        ids: Union ids of the tokens, in order.
    """

    greedy = False
    """Its log-probabilities need complete distributions, as random draws do."""

    def __init__(self, ids: Sequence[int]) -> None:
        self._ids = tuple(ids)
        self._place = 0

    def pick(self, probs: Tensor, keys: Tensor, ahead: int = 0) -> Tensor:
        """Returns the id of the next token, or of one further ahead; arguments and result as in `Sampler.pick`."""
        return torch.tensor([self._ids[self._place + ahead]], device=probs.device)

    def advance(self) -> None:
        """Moves on to the next token."""
        self._place += 1


def race(probs: Tensor, keys: Tensor, seed: int, place: int) -> Tensor:
    """Draws an index, int64, shape ``[1]``: the first arrival, where index i arrives at rate ``probs[i]``.

    This is the Gumbel-max trick. Two distributions with a total variation distance of d give different indices with
    probability 2d at most, so that rounding (batching, drafts) rarely changes a draw. Inverting the cumulative
    distribution would be less stable: each difference shifts all boundaries after it.

    Args:
        probs: Shape ``[vocabulary]``, float64; need not sum to one.
        keys: A number per index, int64, shape ``[vocabulary]``.
        seed: Any whole number.
        place: Position of the token in its text, 0 or more.
    """
    return (probs / exponentials(keys, seed, place)).argmax(keepdim=True)


def exponentials(keys: Tensor, seed: int, place: int) -> Tensor:
    """Returns exponentially distributed numbers, float64, shape ``[vocabulary]``, equal on all devices up to rounding.

    Number i is a function of (seed, place, keys[i]) only: the mixing function of SplitMix64 (Steele et al. 2014),
    applied to the sum of the key and a digest of seed and place.

    Args:
        keys: Different numbers, int64, shape ``[vocabulary]``.
        seed: Any whole number.
        place: Position of the token in its text, 0 or more.
    """
    start = int.from_bytes(hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8).digest(), "little", signed=True)
    bits = keys + start
    spare = torch.empty_like(bits)
    bits.bitwise_xor_(_shifted(bits, 30, spare)).mul_(_signed(0xBF58476D1CE4E5B9))
    bits.bitwise_xor_(_shifted(bits, 27, spare)).mul_(_signed(0x94D049BB133111EB))
    bits.bitwise_xor_(_shifted(bits, 31, spare))
    # 52 random bits plus one half, so the result is never 0 or 1.
    return _shifted(bits, 12, spare).double().add_(0.5).mul_(2.0**-52).log_().neg_()


def _signed(bits: int) -> int:
    """Returns an unsigned 64-bit number as the signed integer with the same bits."""
    return bits - 2**64 if bits >= 2**63 else bits


def _shifted(bits: Tensor, places: int, out: Tensor) -> Tensor:
    """Returns the bits shifted to the right, filled with zeros (a logical shift)."""
    return torch.bitwise_right_shift(bits, places, out=out).bitwise_and_(2 ** (64 - places) - 1)
