"""What a request gives back: chunks of text while it runs, and the whole with its counts at the end.

Plain values; knows nothing of how they came about.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from gac_core.chat.tools import InvalidToolCall, ToolCall


class FinishReason(str, Enum):
    """Why a text ended.

    ``STOP``: the models ended it, or a stop string was met. ``LENGTH``: ``max_tokens`` or a member's context was
    reached, or a JSON text was closed early to end before (`gac_core.Grammar.json_schema`). ``TOOL_CALLS``: the models
    ended it after calling tools.
    """

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True)
class TokenLogprob:
    """One chosen union token and the most probable ones in its place.

    Attributes:
        token: The bytes of the chosen token; empty for the end of text.
        logprob: Natural logarithm of its probability in the combined distribution.
        top: The most probable tokens and their log-probabilities, best first.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class TokenStats:
    """How sure and how united the members were at one token.

    Attributes:
        token: The bytes of the chosen token; empty for the end of text.
        confidence: Its probability in the combined distribution (the gate's where it decided alone), over what a
            grammar allows, before temperature and cuts; 1 for a token that a grammar forced.
        agreement: Share of the members whose own most probable token it was, over what a grammar allows; 0 to 1. None
            unless several members were asked.
        divergence: Jensen-Shannon divergence of the members' distributions, weighted as in the combined one, in nats:
            0 where they are equal, at most the logarithm of the number of members. None unless several were asked.
        ensembled: Whether all members were asked; else the gate decided alone, or a grammar forced the token.
        forced: Whether a grammar left no other token.
    """

    token: bytes
    confidence: float
    agreement: float | None = None
    divergence: float | None = None
    ensembled: bool = True
    forced: bool = False


@dataclass(frozen=True)
class EffectiveSettings:
    """The settings that one request was answered with, whichever way they came.

    Attributes:
        threshold: None: every step was ensembled.
        gate: Name of the gate. Without a threshold it only tells whose tokens `Usage` counts.
        weights: Weight by name of each member that took part; they sum to one.
        alignment: As in `EnsembleConfig`.
        combine: As in `EnsembleConfig`.
        gate_rule: As in `EnsembleConfig`.
        commit: As in `EnsembleConfig`.
        deterministic: As in `EnsembleConfig`.
        temperature: As in `SamplingParams`.
        seed: The seed used; None where nothing was drawn.
    """

    threshold: float | None = None
    gate: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    alignment: str = "token"
    combine: str = "arithmetic"
    gate_rule: str = "confidence"
    commit: str = "canonical"
    deterministic: bool = False
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts.

    Attributes:
        prompt_tokens: Length of the prompt in the gate's tokens (each member's own: `RequestStats.members`).
        completion_tokens: Union tokens generated, without the end of text.
    """

    prompt_tokens: int
    completion_tokens: int

    @property
    def total_tokens(self) -> int:
        """Both together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass
class MemberStats:
    """What one member did for one request.

    Attributes:
        prompt_tokens: Length of the prompt in its tokens.
        forwards: Forwards of the model in which the request took part.
        tokens: Tokens the model read for it, prompt included.
        reused_tokens: Tokens at the prompt's beginning that it did not have to read: its cache held them.
        seconds: Its share of those forwards' wall time (a batch's time is split evenly over its rows); on a GPU the
            time to launch them, since nobody waits for the end of each.
    """

    prompt_tokens: int = 0
    forwards: int = 0
    tokens: int = 0
    reused_tokens: int = 0
    seconds: float = 0.0


@dataclass
class RequestStats:
    """What one request cost, and how it was decided.

    Attributes:
        settings: The threshold, gate, weights, alignment and seed that were in force.
        steps: Union tokens picked, the end of text included.
        forced: Union tokens that a grammar left no choice about, the end of text included; they cost no step.
        steps_ensembled: Steps at which all members were asked; the others the gate decided alone.
        drafted: Tokens that were guessed before they were picked.
        accepted: How many of them were right.
        confidence: Mean of `TokenStats.confidence` over the steps; forced tokens are left out. None before the first.
        agreement: Mean of `TokenStats.agreement` over the steps at which several members were asked. None without any.
        divergence: Mean of `TokenStats.divergence` over the same steps, in nats. None without any.
        members: Per member's name what it did.
        left_out: Per name of a member that was left out of the rest of the request the reason: the text has bytes that
            its vocabulary cannot write.
        queued_seconds: From the request's arrival to its first step.
        first_token_seconds: From arrival to the first picked token.
        total_seconds: From arrival to the end.
    """

    settings: EffectiveSettings = field(default_factory=EffectiveSettings)
    steps: int = 0
    forced: int = 0
    steps_ensembled: int = 0
    drafted: int = 0
    accepted: int = 0
    confidence: float | None = None
    agreement: float | None = None
    divergence: float | None = None
    members: dict[str, MemberStats] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    queued_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0
    _compared: int = field(default=0, repr=False)

    def note(self, token: TokenStats) -> None:
        """Counts a token."""
        self.forced += token.forced
        self.steps += not token.forced
        self.steps_ensembled += token.ensembled
        if not token.forced:
            self.confidence = _mean(self.confidence, token.confidence, self.steps)
        if token.agreement is not None and token.divergence is not None:
            self._compared += 1
            self.agreement = _mean(self.agreement, token.agreement, self._compared)
            self.divergence = _mean(self.divergence, token.divergence, self._compared)

    @property
    def share_ensembled(self) -> float:
        """Share of the steps at which all members were asked, 0 to 1."""
        return self.steps_ensembled / self.steps if self.steps else 0.0


def _mean(before: float | None, value: float, count: int) -> float:
    """The mean of ``count`` values of which ``value`` is the last and ``before`` the mean of the others."""
    return value if before is None else before + (value - before) / count


@dataclass(frozen=True)
class ToolCallChunk:
    """A piece of a tool call.

    Attributes:
        index: Which call of the answer it belongs to, from 0.
        id: The call's id, on its first piece.
        name: The tool's name, on the first piece.
        arguments: A piece of the arguments' JSON, as the models write it.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True)
class RequestOutput:
    """A finished request.

    Attributes:
        request_id: Its id: the caller's, or a new one.
        text: What the models wrote, without any stop string; of an answer in a conversation without its reasoning and
            tool calls.
        tokens: The union tokens as bytes; unlike ``text`` they keep bytes that are not valid UTF-8.
        finish_reason: Why it ended.
        stopped_by: The stop string that ended it, if one did.
        usage: Token counts.
        stats: What it cost.
        logprobs: One entry per token (and the end of text, if reached); None unless asked for.
        seed: The seed used; None where nothing was drawn.
        reasoning: What stood in a ``<think>`` block at the answer's beginning.
        tool_calls: The tools that the answer calls, in order.
        invalid_tool_calls: What began as a call and is none.
        token_stats: One entry per token (and the end of text, if reached); None unless asked for.
    """

    request_id: str
    text: str
    tokens: tuple[bytes, ...]
    finish_reason: FinishReason
    stopped_by: str | None
    usage: Usage
    stats: RequestStats
    logprobs: tuple[TokenLogprob, ...] | None
    seed: int | None
    reasoning: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    invalid_tool_calls: tuple[InvalidToolCall, ...] = ()
    token_stats: tuple[TokenStats, ...] | None = None


@dataclass(frozen=True)
class OutputChunk:
    """One piece of a stream.

    Attributes:
        text: New text, perhaps empty (half a character, or what may become a stop string, is held back).
        tokens: Union tokens picked since the last chunk.
        logprobs: Their log-probabilities; None unless asked for.
        output: On the last chunk the finished request, complete; else None.
        reasoning: New text of the reasoning.
        tool_calls: New pieces of tool calls.
        token_stats: How sure and united the members were at each of the tokens; None unless asked for.
    """

    text: str
    tokens: tuple[bytes, ...] = ()
    logprobs: tuple[TokenLogprob, ...] | None = None
    output: RequestOutput | None = None
    reasoning: str = ""
    tool_calls: tuple[ToolCallChunk, ...] = ()
    token_stats: tuple[TokenStats, ...] | None = None

    @property
    def is_silent(self) -> bool:
        """Whether there is nothing in it to show: something is held back, or belongs to a call's frame."""
        shown = self.text or self.reasoning or self.tool_calls or self.logprobs or self.token_stats
        return not shown and self.output is None


def fold(chunks: Iterable[OutputChunk]) -> RequestOutput:
    """Reads a stream to its end and returns the finished request, which its last chunk carries.

    Raises:
        ValueError: The stream has no chunk, or its last chunk carries no output.
    """
    last = deque(chunks, maxlen=1)
    return _output(last[0] if last else None)


async def afold(chunks: AsyncIterable[OutputChunk]) -> RequestOutput:
    """`fold` for event loops."""
    last = None
    async for chunk in chunks:
        last = chunk
    return _output(last)


def _output(last: OutputChunk | None) -> RequestOutput:
    if last is None or last.output is None:
        raise ValueError("not a whole stream: its last chunk carries no output")
    return last.output
