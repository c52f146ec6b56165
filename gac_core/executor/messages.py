"""The messages between decoding and an executor: `Ask` and `Answer`, and `Fetch` for what an answer left out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gac_core.combination import Gate
from gac_core.model.chunk import Chunk
from gac_core.tokenization.vocabulary import Alignment

TOP_K = 20
"""How many of the most probable tokens an answer in the form ``"top"`` holds per position."""

Form = Literal["full", "top"]


@dataclass(frozen=True)
class Targets:
    """Tokens of a text whose log-probabilities are wanted, in place of distributions.

    Attributes:
        ids: Ids of the member's own vocabulary: the tokens that follow each of the last positions of a chunk.
        temperatures: The logits are divided by each of these (see `MemberConfig.temperature`); at least one.
    """

    ids: tuple[int, ...]
    temperatures: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class LogitOffsets:
    """What is added to the logarithms of union tokens' probabilities at one position; 0 for all other tokens.

    Attributes:
        ids: Union ids, each once, int64, shape ``[n]``, on the CPU.
        values: What is added, float64, shape ``[n]``, on the CPU.
    """

    ids: Tensor
    values: Tensor


@dataclass(frozen=True, eq=False)
class Ask:
    """Which next-token distributions are wanted of one member for one request.

    Attributes:
        chunk: The token ids to read; its ``num_logits`` reaches back to the first of ``ends``.
        ends: Lengths of the text, in tokens, at whose ends distributions are wanted; ascending, the last one is the end
            of the chunk.
        alignment: Maps the member's logits onto the union vocabulary.
        form: ``"full"``: all probabilities. ``"top"``: the most probable ones suffice, where the executor can leave the
            others out (see `TopDistributions`).
        repetition_penalty: As in `SamplingParams`. Default 1: none.
        text_before: The ids before ``chunk.start``; given only with a repetition penalty.
        mask: Returns which union tokens a grammar allows at each end, bool, shape ``[len(ends), union]``; called once.
            None: all of them.
        offsets: What is added to the logarithms of the probabilities, one for each end. Default: nothing.
        gate_rule: Measures how sure the member is at each end, beside the model. None: not wanted.
        share: The member's normalised weight, for ``gate_rule``.
        fetch_from: Distributions of this request at smaller lengths of the text are not fetched any more.
        timeout: Seconds after which a member that has not returned counts as hung; the smallest of its asks in one
            call applies. None: no limit.
        temperature: The logits are divided by this, after the repetition penalty. Default 1: unchanged.
        targets: What is wanted instead, by the model's own distribution over its own vocabulary: ``num_logits`` of the
            chunk is the number of their ids, and of the other fields only ``timeout`` has an effect. None: nothing.
    """

    chunk: Chunk
    ends: tuple[int, ...]
    alignment: Alignment
    form: Form = "full"
    repetition_penalty: float = 1.0
    text_before: tuple[int, ...] = ()
    mask: Callable[[], Tensor] | None = None
    offsets: tuple[LogitOffsets, ...] = ()
    gate_rule: Gate | None = None
    share: float = 1.0
    fetch_from: int = 0
    timeout: float | None = None
    temperature: float = 1.0
    targets: Targets | None = None

    @property
    def removes_mass(self) -> bool:
        """Whether its distributions may sum to less than 1."""
        return self.mask is not None or bool(self.offsets)


@dataclass(frozen=True, eq=False)
class TopDistributions:
    """The most probable union tokens at several positions, and a bound for all others.

    Attributes:
        ids: Union ids, int64, shape ``[positions, k]``; by falling probability, and equal ones by rising id.
        probs: Their probabilities, float32, shape ``[positions, k]``.
        totals: The sum of all probabilities, float32, shape ``[positions]``: below 1 where mass was removed
            (`Ask.removes_mass`).
        rest: No token outside ``ids`` has a larger probability than this, float32, shape ``[positions]``: that of the
            next one, 0 where no other token has mass.
    """

    ids: Tensor
    probs: Tensor
    totals: Tensor
    rest: Tensor

    def rows(self, positions: slice) -> TopDistributions:
        """Returns those at some positions."""
        return TopDistributions(
            self.ids[positions], self.probs[positions], self.totals[positions], self.rest[positions]
        )

    def joined(self, later: TopDistributions) -> TopDistributions:
        """Returns these followed by others over the same union."""
        return TopDistributions(
            torch.cat([self.ids, later.ids]),
            torch.cat([self.probs, later.probs]),
            torch.cat([self.totals, later.totals]),
            torch.cat([self.rest, later.rest]),
        )


@dataclass(frozen=True)
class TargetLogprobs:
    """The log-probabilities of `Targets`.

    Attributes:
        values: Natural logarithms: for each temperature one for each id.
    """

    values: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Failure:
    """Why an ask has no distributions.

    Attributes:
        error: The exception.
        stage: What failed, for messages; empty: a forward.
        of_member: Whether the member failed; otherwise what the request asked for, such as its grammar.
    """

    error: BaseException
    stage: str = ""
    of_member: bool = True


@dataclass(frozen=True, eq=False)
class Answer:
    """The answer to one ask.

    Attributes:
        result: Distributions over the union, float32, shape ``[len(ends), union]``, tokens that a grammar does not
            allow having no mass; or the most probable ones; or the log-probabilities of targets; or a failure; or None
            if a part of the chunk remains to be read, which is asked for in the next step.
        seconds: The chunk's share of the forward's duration.
        read: Ids of the chunk that the KV cache holds now.
        computed: Ids computed in this call.
        certainty: What ``gate_rule`` measured, float32, shape ``[len(ends)]``; None if it was not wanted.
        kept_bytes: Size of what `Chunk.keep` asked for; None if it is not kept.
    """

    result: Tensor | TopDistributions | TargetLogprobs | Failure | None
    seconds: float = 0.0
    read: int = 0
    computed: int = 0
    certainty: Tensor | None = None
    kept_bytes: int | None = None


@dataclass(frozen=True, eq=False)
class Fetch:
    """Which probabilities are wanted that an answer in the form ``"top"`` left out.

    An executor keeps a request's latest distribution at each length of its text, from `Ask.fetch_from` on and up to the
    last of the latest ask's ``ends``, until the request is released.

    Attributes:
        request_id: The request.
        end: The length of the text at whose end the distribution is wanted: one of `Ask.ends`.
        ids: Union ids, int64, shape ``[n]``; None: the whole distribution.
    """

    request_id: str
    end: int
    ids: Tensor | None = None
