"""Results of a request: `OutputChunk` while it runs, `RequestOutput` with counts and statistics at its end."""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

from gac_core.attribution import Citation
from gac_core.chat.tools import InvalidToolCall, ToolCall
from gac_core.doubt import Doubt
from gac_core.likelihood import Likelihood
from gac_core.token_stats import TokenLogprob, TokenStats


class FinishReason(str, Enum):
    """Why a text ended.

    ``STOP``: the models ended it, or a stop string occurred. ``LENGTH``: ``max_tokens`` or a member's context was
    reached, or JSON was closed early to end before that (`gac_core.Grammar.json_schema`). ``TOOL_CALLS``: the models
    ended it after tool calls.
    """

    STOP = "stop"
    LENGTH = "length"
    TOOL_CALLS = "tool_calls"


@dataclass(frozen=True)
class EffectiveSettings:
    """The settings that applied to one request, wherever they were set.

    Attributes:
        threshold: None: every step was ensembled.
        gate: Name of the gate. Without a threshold it only determines whose tokens `Usage` counts.
        weights: Weight by name of each participating member; they sum to 1.
        alignment: As in `EnsembleConfig`.
        combine: As in `EnsembleConfig`.
        combine_documents: As in `EnsembleConfig`; None without documents.
        gate_rule: As in `EnsembleConfig`.
        commit: As in `EnsembleConfig`.
        deterministic: As in `EnsembleConfig`.
        temperature: As in `SamplingParams`.
        seed: The seed used; None for greedy decoding.
    """

    threshold: float | None = None
    gate: str = ""
    weights: Mapping[str, float] = field(default_factory=dict)
    alignment: str = "token"
    combine: str = "arithmetic"
    combine_documents: str | None = None
    gate_rule: str = "confidence"
    commit: str = "canonical"
    deterministic: bool = False
    temperature: float = 0.0
    seed: int | None = None


@dataclass(frozen=True)
class Usage:
    """Token counts.

    Attributes:
        prompt_tokens: Length of the prompt in the gate's tokens (in each member's own: `RequestStats.members`).
        completion_tokens: Generated union tokens, without the end of text.
        reasoning_tokens: Those of them that belong to the block of reasoning, its marks included.
    """

    prompt_tokens: int
    completion_tokens: int
    reasoning_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and completion together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass
class MemberStats:
    """The work of one member for one request.

    Attributes:
        prompt_tokens: Length of the prompt in its tokens.
        forwards: Forward passes that included the request.
        tokens: Tokens computed for the request, prompt included.
        reused_tokens: Prompt tokens found in its KV cache (prefix caching).
        seconds: The request's share of the wall time of these forward passes (a batch's time is split evenly over its
            rows). On a GPU the time to launch them, without synchronisation.
        kept_bytes: Memory of the documents of the request whose keys and values its KV cache keeps beside those of
            requests, for the next ones (`EnsembleConfig.document_cache_gib`).
        images: Images of the prompt that it has read; 0 if it reads the text alone, or was not asked for anything.
    """

    prompt_tokens: int = 0
    forwards: int = 0
    tokens: int = 0
    reused_tokens: int = 0
    seconds: float = 0.0
    images: int = 0
    kept_bytes: int = 0


@dataclass(frozen=True)
class DroppedMember:
    """A member that failed while a request ran, which went on without it (``on_member_failure="drop"``).

    Attributes:
        member: Its name.
        reason: What went wrong.
        at_token: Union tokens committed before.
        rejoined_at: Union tokens committed when it took part again; None where it did not.
    """

    member: str
    reason: str
    at_token: int
    rejoined_at: int | None = None


@dataclass
class RequestStats:
    """Cost and decisions of one request.

    Attributes:
        settings: The settings that applied.
        steps: Selected union tokens, the end of text included.
        forced: Union tokens that a grammar forced, the end of text included; they are not steps.
        steps_ensembled: Steps that combined all members that took part then; the gate decided the others alone.
        drafted: Draft tokens.
        accepted: Draft tokens that were accepted.
        confidence: Mean of `TokenStats.confidence` over the steps, without forced tokens. None before the first step.
        agreement: Mean of `TokenStats.agreement` over the steps that combined several members. None without such steps.
        divergence: Mean of `TokenStats.divergence` over the same steps, in nats. None without such steps, and where one
            of them had no value.
        members: Work of each member, by name.
        likelihoods: By name, how likely each member found the prompt, where that was measured: for weights by
            perplexity, and by `Ensemble.prompt_likelihoods`.
        scaled_likelihoods: The same at each of the temperatures at which it was measured.
        left_out: By name, why a member was left out of the rest of the request: its vocabulary cannot encode some bytes
            of the text.
        dropped: Members that failed and without which the request went on, in the order of their failures.
        queued_seconds: From the request's arrival to its first step.
        first_token_seconds: From arrival to the first selected token.
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
    likelihoods: dict[str, Likelihood] = field(default_factory=dict)
    scaled_likelihoods: dict[str, tuple[Likelihood, ...]] = field(default_factory=dict, repr=False)
    left_out: dict[str, str] = field(default_factory=dict)
    dropped: list[DroppedMember] = field(default_factory=list)
    queued_seconds: float = 0.0
    first_token_seconds: float = 0.0
    total_seconds: float = 0.0
    _compared: int = field(default=0, repr=False)

    def note(self, token: TokenStats) -> None:
        """Adds one token to the statistics."""
        self.forced += token.forced
        self.steps += not token.forced
        self.steps_ensembled += token.ensembled
        if not token.forced:
            self.confidence = _mean(self.confidence, token.confidence, self.steps)
        if token.agreement is not None:
            self._compared += 1
            self.agreement = _mean(self.agreement, token.agreement, self._compared)
            if token.divergence is not None and (self.divergence is not None or self._compared == 1):
                self.divergence = _mean(self.divergence, token.divergence, self._compared)
            else:
                self.divergence = None

    @property
    def share_ensembled(self) -> float:
        """Share of the steps that combined all members, 0 to 1."""
        return self.steps_ensembled / self.steps if self.steps else 0.0


def _mean(before: float | None, value: float, count: int) -> float:
    """Returns the mean of ``count`` values from the last one and the mean of the others."""
    return value if before is None else before + (value - before) / count


@dataclass(frozen=True)
class ToolCallChunk:
    """A piece of a tool call.

    Attributes:
        index: Number of the call within the answer, from 0.
        id: The call's id, on its first piece; else None.
        name: The tool's name, on the first piece; else None.
        arguments: The next part of the arguments' JSON.
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
        text: The generated text, without the stop string; in a conversation also without reasoning and tool calls.
        tokens: The union tokens as bytes; unlike ``text`` they keep bytes that are not valid UTF-8.
        finish_reason: Why it ended.
        stopped_by: The stop string that ended it, if any.
        usage: Token counts.
        stats: Cost and decisions.
        logprobs: One entry per token (and the end of text, if reached); None unless requested.
        seed: The seed used; None for greedy decoding.
        reasoning: Contents of a ``<think>`` block at the beginning of the answer.
        tool_calls: The valid tool calls, in order.
        invalid_tool_calls: The malformed ones.
        token_stats: One entry per token (and the end of text, if reached); None unless requested.
        citations: In a request with documents, the spans of ``text`` with the documents that carried them, in order.
        document_shares: In a request with documents, the posterior share of each over the whole answer, by its id; they
            sum to 1.
        doubt: How sure the answer is; of ``text``, or of all tokens where that is empty. None where no step combined
            several distributions and there are no documents.
        call_doubts: How sure name and arguments of each of ``tool_calls`` are, by its id; without those for which
            ``doubt`` would be None.
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
    citations: tuple[Citation, ...] = ()
    document_shares: Mapping[str, float] = field(default_factory=dict)
    doubt: Doubt | None = None
    call_doubts: Mapping[str, Doubt] = field(default_factory=dict)


@dataclass(frozen=True)
class OutputChunk:
    """One piece of a stream.

    Attributes:
        text: New text; may be empty, since incomplete characters and possible beginnings of stop strings are buffered.
        tokens: Union tokens selected since the last chunk.
        logprobs: Their log-probabilities; None unless requested.
        output: On the last chunk the finished request, complete; else None.
        reasoning: New text of the reasoning.
        tool_calls: New pieces of tool calls.
        token_stats: Confidence and agreement at each of the tokens; None unless requested.
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
        """Whether the chunk has nothing to show: its text is buffered, or is markup of a tool call."""
        content = self.text or self.reasoning or self.tool_calls or self.logprobs or self.token_stats
        return not content and self.output is None


def fold(chunks: Iterable[OutputChunk]) -> RequestOutput:
    """Reads a stream to its end and returns the output of its last chunk.

    Raises:
        ValueError: The last chunk has no output, or there is no chunk.
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
        raise ValueError("the stream is incomplete: its last chunk has no output")
    return last.output
