"""The parameters of one request."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from gac_core.calibration_file import WEIGHT_SOURCES
from gac_core.checks import check_flag, check_int, check_list, check_number, check_option, check_text
from gac_core.config import ALIGNMENTS
from gac_core.errors import RequestError, UnknownArgumentError, quote
from gac_core.grammar.grammar import Grammar
from gac_core.rule_names import check_combine, check_combine_documents, check_gate_rule, check_rules

MAX_CHOICES = 128
"""The most answers to one prompt (`SamplingParams.n`), as in OpenAI's interface."""

MAX_PENALTY = 2.0
"""The largest presence and frequency penalty, and less than 0 the smallest."""

MAX_BIAS = 100.0
"""The largest number of `SamplingParams.logit_bias`, and less than 0 the smallest."""


@dataclass(frozen=True)
class SamplingParams:
    """The parameters of one request.

    Attributes:
        max_tokens: Maximum number of union tokens to generate, 1 or more. Default 256.
        temperature: 0 (default) selects the most probable token; above 0 samples from ``p ** (1 / temperature)``.
        top_k: Keep only the k most probable tokens, 1 or more. None (default) keeps all.
        top_p: Keep the smallest set of most probable tokens whose mass is at least this, in (0, 1]. Default 1.
        min_p: Keep tokens with at least this fraction of the largest probability, in [0, 1]. Default 0.
        repetition_penalty: A value above 1 makes tokens of the prompt and the answer less likely (CTRL, Keskar et al.
            2019, section 4.1). It is applied to each member's own logits over its own ids, as in transformers. Above 0,
            default 1.
        presence_penalty: Subtracted from the log-probability of each union token that the answer contains already,
            -2 to 2: OpenAI's formula. The prompt does not count, tokens that a grammar forces do. Default 0.
        frequency_penalty: Likewise, as many times as the answer contains the token. Default 0.
        logit_bias: Numbers, -100 to 100, that are added to the log-probabilities of single tokens: 100 selects a token,
            -100 bans it, among those that the grammar allows. A key is an id of the gate's tokenizer
            (`Ensemble.encode`), whose end of text stands for that of all members, or a string or bytes that are exactly
            one token of a member. Like a grammar, bias and penalties multiply every member's distribution before the
            gate's certainty is measured and the distributions are combined. None (default): no bias.
        seed: Makes sampling repeatable, in any process. Concurrent requests, drafts and reused prefixes can change a
            draw, with probability about twice the rounding error of the probabilities: rarely in float32, occasionally
            in bfloat16 and float16, never with `EnsembleConfig.deterministic`. None (default) draws a seed, which
            `RequestOutput.seed` reports.
        n: How many answers `Ensemble.generate_choices` and `Ensemble.asubmit` give to one prompt, 1 to 128. The first
            uses the seed, the others seeds that follow from it. Default 1, which all other methods require.
        stop: Strings that end the text and are not part of it. A single string is taken as a list of one.
        logprobs: Return the log-probability of each token and of this many most probable tokens (0 to 100).
            None (default) returns none. They come from the combined distribution, restricted to the tokens the grammar
            allows, before temperature and truncation.
        threshold: ``"default"`` takes the ensemble's own setting. None ensembles every step. A number in [0, 1] lets
            the gate decide alone at each step where its certainty (``gate_rule``) is at or above it (GaC, section 3.4).
        gate: Name of the gate for this request. None (default) takes the ensemble's (`Ensemble.gate`). Without a
            threshold it does not select tokens, and a warning is logged.
        grammar: Constrains the text (`gac_core.Grammar`). It masks the combined distribution, or the gate's where the
            gate decides alone; tokens that it forces need no forward. None (default): no constraint.
        drafts: Whether to use speculative decoding: several tokens are drafted and verified in one forward. Default
            True: the kinds in `EnsembleConfig.drafts`. In float32 it changes the cost, not the text. In bfloat16 and
            float16, a forward over several tokens rounds differently from a forward over one, which can change a token
            whose probability is close to that of another.
        parse_special: Whether text of the prompt that spells a control token, such as ``<|im_end|>``, becomes that
            token. Default False: it is encoded as ordinary text, so that users cannot forge turns. Set it for strings
            that your own code has put control tokens into, for example by rendering a chat template.
        token_stats: Return for each token the confidence and agreement of the members, and what each of them proposed
            (`gac_core.TokenStats`). Default False: only the means over the answer.
        timeout: Maximum time in seconds from the call to the last token, including the time in the queue. When it has
            passed, the call raises a `RequestTimeoutError` and the request is aborted, even if a member's forward
            hangs. Above 0. None (default): no limit.
        weights: Weights of the members for this request, in place of those of their `MemberConfig`: a mapping from
            names to numbers (members that are not in it keep their weights), or one number per member in the ensemble's
            order. 0 or more, at least one above 0; a member with weight 0 takes no part in the request. ``"auto"``
            takes those of the ensemble's calibration, ``"perplexity"`` those that follow from the prompt, with which
            all members take part (`EnsembleConfig.weights`). None (default): the ensemble's. If no gate is configured,
            these weights determine the default gate. With ``"perplexity"`` that is the largest model, since weights
            are known only once the prompt is read.
        combine: How distributions are combined, as `EnsembleConfig.combine`. None (default): the ensemble's.
        combine_documents: How the distributions of several documents are combined, as
            `EnsembleConfig.combine_documents`; without effect on requests without documents. None (default): the
            ensemble's.
        alignment: How vocabularies are aligned, as `EnsembleConfig.alignment`. None (default): the ensemble's.
        gate_rule: How the gate's certainty is measured, as `EnsembleConfig.gate_rule`. None (default): the ensemble's.

    Raises:
        RequestError: A value is out of its range.
    """

    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    # Mappings cannot be hashed; equal parameters still have equal hashes.
    logit_bias: Mapping[int | str | bytes, float] | None = field(default=None, hash=False)
    seed: int | None = None
    n: int = 1
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    threshold: float | Literal["default"] | None = "default"
    gate: str | None = None
    grammar: Grammar | None = None
    drafts: bool = True
    parse_special: bool = False
    token_stats: bool = False
    timeout: float | None = None
    weights: Mapping[str, float] | tuple[float, ...] | str | None = field(default=None, hash=False)
    combine: str | None = None
    combine_documents: str | None = None
    alignment: str | None = None
    gate_rule: str | None = None

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
        self._check_logits()
        self._set("n", check_int(RequestError, "n", self.n, 1, MAX_CHOICES))
        if self.threshold is not None and not (isinstance(self.threshold, str) and self.threshold == "default"):
            self._set("threshold", check_number(RequestError, "threshold", self.threshold, 0, 1))
        if self.gate is not None:
            self._set("gate", check_text(RequestError, "gate", self.gate, "give the name of a member, or None"))
        self._check_view()
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

    def _check_logits(self) -> None:
        """Checks the parameters that are added to log-probabilities."""
        for name in ("presence_penalty", "frequency_penalty"):
            self._set(name, check_number(RequestError, name, getattr(self, name), -MAX_PENALTY, MAX_PENALTY))
        if self.logit_bias is not None:
            self._set("logit_bias", _checked_bias(self.logit_bias))

    def _check_view(self) -> None:
        """Checks the parameters that override settings of the ensemble."""
        if self.weights is not None:
            self._set("weights", _checked_weights(self.weights))
        if self.combine is not None:
            self._set("combine", check_combine(RequestError, self.combine))
        if self.combine_documents is not None:
            self._set("combine_documents", check_combine_documents(RequestError, self.combine_documents))
        if self.alignment is not None:
            self._set("alignment", check_option(RequestError, "alignment", self.alignment, ALIGNMENTS))
        if self.gate_rule is not None:
            self._set("gate_rule", check_gate_rule(RequestError, self.gate_rule))
        check_rules(RequestError, self.combine, self.gate_rule, self.combine_documents)

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)

    @classmethod
    def names(cls) -> frozenset[str]:
        """The names of all parameters."""
        return frozenset(each.name for each in fields(cls))

    def with_overrides(self, overrides: Mapping[str, Any]) -> SamplingParams:
        """Returns a copy with some values replaced.

        Raises:
            UnknownArgumentError: A name is not a parameter.
        """
        unknown = set(overrides) - self.names()
        if unknown:
            raise UnknownArgumentError(unknown, self.names())
        return replace(self, **overrides)


def _checked_bias(value: object) -> Mapping[int | str | bytes, float]:
    """Returns biases as plain numbers; the ensemble checks that their keys are tokens."""
    if not isinstance(value, Mapping):
        raise RequestError(f"logit_bias must be a mapping of tokens to numbers, not {quote(value)}")
    biases: dict[int | str | bytes, float] = {}
    for key, number in value.items():
        if isinstance(key, bool) or not isinstance(key, (int, str, bytes)):
            raise RequestError(f"each key of logit_bias must be a token id, a string or bytes, not {quote(key)}")
        plain = check_text(RequestError, "each string of logit_bias", key) if isinstance(key, str) else key
        biases[plain] = check_number(RequestError, f"logit_bias[{quote(key)}]", number, -MAX_BIAS, MAX_BIAS)
    return biases


def _checked_weights(value: object) -> Mapping[str, float] | tuple[float, ...] | str:
    """Returns the weights of a request as plain numbers; the ensemble checks that they fit its members."""
    if isinstance(value, str) and value in WEIGHT_SOURCES:
        return str.__str__(value)
    if isinstance(value, Mapping):
        names = [check_text(RequestError, "each name of weights", name) for name in value]
        numbers = [check_number(RequestError, f"weights[{quote(name)}]", value[name], 0) for name in names]
        return dict(zip(names, numbers, strict=True))
    if isinstance(value, (Set, str)):
        raise RequestError(
            f"weights must be a mapping of names to numbers, a list of numbers, or one of "
            f"{', '.join(map(quote, WEIGHT_SOURCES))}, not {quote(value)}"
        )
    given = check_list(RequestError, "weights", value, "numbers, or a mapping of names to numbers")
    numbers = [check_number(RequestError, "each of weights", number, 0) for number in given]
    if not any(numbers):
        raise RequestError(f"weights must have a number above 0, not {quote(value)}")
    return tuple(numbers)


def resolved(params: SamplingParams | None, overrides: Mapping[str, Any]) -> SamplingParams:
    """Returns a request's parameters.

    Raises:
        RequestError: An argument is wrong.
    """
    if params is not None and not isinstance(params, SamplingParams):
        raise RequestError(f"params must be a SamplingParams or None, not {quote(params)}")
    return (params or SamplingParams()).with_overrides(overrides)
