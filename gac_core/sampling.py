"""How one token is picked from one distribution: the parameters of a request, and pure functions on probabilities.

Knows nothing of members or vocabularies. Every function takes and returns probabilities, a float tensor of shape
``[vocabulary]`` that sums to one.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from gac_core.checks import check_flag, check_int, check_list, check_number, check_text
from gac_core.errors import RequestError, UnknownArgumentError, quote
from gac_core.grammar.grammar import Grammar


@dataclass(frozen=True)
class SamplingParams:
    """What one request asks for.

    Attributes:
        max_tokens: Union tokens to generate at most; 1 or more. Default 256.
        temperature: 0 (default) picks the most probable token; above 0 samples from ``p ** (1 / temperature)``.
        top_k: Keep only the k most probable tokens. None (default) keeps all.
        top_p: Keep the smallest set of most probable tokens that holds at least this mass, in (0, 1]. Default 1.
        min_p: Keep tokens with at least this share of the largest probability, in [0, 1]. Default 0.
        repetition_penalty: Above 1 makes tokens seen in prompt or answer less likely (CTRL, Keskar et al. 2019,
            section 4.1), applied to each member's own logits over its own ids, as transformers does. Default 1.
        seed: Makes sampling repeatable, in any process. What else runs, drafts and reused prefixes change a draw with
            a chance of about twice the rounding of the probabilities: hardly ever in float32, now and then in bfloat16
            and float16, never with `EnsembleConfig.deterministic`. None (default) draws a seed; the output names it.
        stop: Strings that end the text; never part of it. One string is taken as a list of one.
        logprobs: Give the log-probability of each chosen token and of this many most probable ones (0 to 100).
            None (default) gives none. They are those of the combined distribution over what a grammar allows, before
            temperature and cuts.
        threshold: ``"default"`` takes the ensemble's own setting. None ensembles every step. A number in [0, 1] lets
            the gate decide alone at each step where its largest probability is at or above it (GaC, section 3.4).
        gate: Name of the gate for this request. None (default) takes the ensemble's (`Ensemble.gate`). Without a
            threshold it chooses no token (it only may not be left out, see `RequestStats.left_out`), and a warning is
            logged.
        grammar: What the text must look like (`gac_core.Grammar`). It restricts the combined distribution (the gate's
            where it decides alone); what it forces is written without asking any member. None (default): anything.
        drafts: Whether tokens may be drafted and checked several at once. Default True: as the ensemble is set up. In
            float32 it changes the cost, not the text. In bfloat16 and float16 a forward of several tokens rounds
            otherwise than one of one token, so that it may change a token whose probability is nearly that of another.
        parse_special: Whether text of the prompt that spells a control token, such as ``<|im_end|>``, becomes that
            token. Default False: it is encoded as ordinary text, so that users cannot forge turns. Set it for strings
            that your own code has put control tokens into, for example by rendering a chat template.
        token_stats: Give for each token how sure and how united the members were (`gac_core.TokenStats`). Default
            False: their means over the answer only.
        timeout: Seconds from the call to the last token at most, waiting for its turn included; after them the call
            raises a `RequestTimeoutError` and the request is given up, also where a member's forward hangs. It changes
            nothing else of the answer. None (default): no limit.

    Raises:
        RequestError: A value is out of its range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    threshold: float | Literal["default"] | None = "default"
    gate: str | None = None
    grammar: Grammar | None = None
    drafts: bool = True
    parse_special: bool = False
    token_stats: bool = False
    timeout: float | None = None

    def __post_init__(self) -> None:
        self._set("max_tokens", check_int(RequestError, "max_tokens", self.max_tokens, 1))
        if self.top_k is not None:
            self._set("top_k", check_int(RequestError, "top_k", self.top_k, 1))
        if self.seed is not None:
            self._set("seed", check_int(RequestError, "seed", self.seed))
        if self.logprobs is not None:
            self._set("logprobs", check_int(RequestError, "logprobs", self.logprobs, 0, 100))
        self._set("temperature", check_number(RequestError, "temperature", self.temperature, 0))
        self._set("top_p", check_number(RequestError, "top_p", self.top_p, 0, 1, low_open=True))
        self._set("min_p", check_number(RequestError, "min_p", self.min_p, 0, 1))
        penalty = check_number(RequestError, "repetition_penalty", self.repetition_penalty, 0, low_open=True)
        self._set("repetition_penalty", penalty)
        if self.threshold is not None and not (isinstance(self.threshold, str) and self.threshold == "default"):
            self._set("threshold", check_number(RequestError, "threshold", self.threshold, 0, 1))
        if self.gate is not None:
            self._set("gate", check_text(RequestError, "gate", self.gate, "give the name of a member, or None"))
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise RequestError(
                f"grammar must be a Grammar, for example Grammar.json_schema(...), not {quote(self.grammar)}"
            )
        check_flag(RequestError, "drafts", self.drafts)
        check_flag(RequestError, "parse_special", self.parse_special)
        check_flag(RequestError, "token_stats", self.token_stats)
        if self.timeout is not None:
            timeout = check_number(RequestError, "timeout", self.timeout, 0, threading.TIMEOUT_MAX, low_open=True)
            self._set("timeout", timeout)
        stop = () if self.stop is None else (self.stop,) if isinstance(self.stop, str) else self.stop
        stop = check_list(RequestError, "stop", stop, "strings")
        self._set("stop", tuple(check_text(RequestError, "each string of stop", each) for each in stop))

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    @classmethod
    def names(cls) -> frozenset[str]:
        """The names of all parameters."""
        return frozenset(field.name for field in fields(cls))

    def with_overrides(self, overrides: Mapping[str, Any]) -> SamplingParams:
        """Returns a copy with some values replaced.

        Raises:
            UnknownArgumentError: A name is not a parameter.
        """
        unknown = set(overrides) - self.names()
        if unknown:
            raise UnknownArgumentError(unknown, self.names())
        return replace(self, **overrides)


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

    def pick(self, probs: Tensor, keys: Tensor, ahead: int = 0) -> int:
        """Returns the picked index of a distribution of shape ``[vocabulary]``.

        Greedy ties go to the smallest index. A draw is decided by random numbers that depend on the seed, the place of
        the token in the text and the token's key alone (see `race`).

        Args:
            probs: The distribution.
            keys: A number per token, int64, shape ``[vocabulary]``: `UnionVocabulary.keys`.
            ahead: Which token after those that `advance` has passed is picked: 0 is the next one.
        """
        params = self._params
        if self.greedy:
            return int(probs.argmax())
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


def race(probs: Tensor, keys: Tensor, seed: int, place: int) -> int:
    """Draws an index: the first arrival where index i arrives at a random time with the rate ``probs[i]``.

    This is the Gumbel-max trick. Two distributions that differ by a total variation of d give different indices with
    a chance of 2d at most, where inverting a cumulative distribution moves every later boundary by each difference
    before it. So rounding (batching, drafts) hardly ever changes a draw.

    Args:
        probs: Shape ``[vocabulary]``, float64; need not sum to one.
        keys: A number per index, int64, shape ``[vocabulary]``.
        seed: Any whole number.
        place: Which token of a text is drawn, 0 or more.
    """
    return int((probs / exponentials(keys, seed, place)).argmax())


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
