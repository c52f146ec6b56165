"""A request while it runs: its text in every member's ids, and how much of it each member has read.

Knows nothing of models or of how tokens are chosen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from gac_core.detokenizer import Detokenizer
from gac_core.member import Chunk
from gac_core.output import MemberStats, RequestStats, TokenLogprob
from gac_core.sampling import Sampler, SamplingParams


@dataclass
class Sequence:
    """A request's text in one member's ids.

    Attributes:
        ids: The member's ids, prompt first.
        num_cached: How many of them the member has read; the rest goes with the next chunk.
    """

    ids: list[int]
    num_cached: int = 0

    def pending(self, request_id: str) -> Chunk:
        """Everything the member has not read yet: the prompt, one token, or all since the gate went alone."""
        return Chunk(request_id, self.num_cached, tuple(self.ids[self.num_cached :]))


@dataclass
class Request:
    """One request.

    Attributes:
        request_id: Its id.
        params: What was asked for.
        sequences: One per member.
        gate: Index of the gate.
        threshold: None ensembles every step.
        sampler: Picks its tokens.
        seed: Seed of the sampler.
        names: The members' names.
    """

    request_id: str
    params: SamplingParams
    sequences: list[Sequence]
    gate: int
    threshold: float | None
    sampler: Sampler
    seed: int
    names: list[str]
    arrived: float = field(default_factory=time.perf_counter)
    stats: RequestStats = field(init=False)
    detokenizer: Detokenizer = field(init=False)
    num_tokens: int = 0

    def __post_init__(self) -> None:
        self.detokenizer = Detokenizer(self.params.stop)
        self.stats = RequestStats(
            members={
                name: MemberStats(prompt_tokens=len(sequence.ids))
                for name, sequence in zip(self.names, self.sequences, strict=True)
            }
        )

    def note_forward(self, member: int, seconds: float) -> None:
        """Marks a member's pending ids as read."""
        sequence = self.sequences[member]
        stats = self.stats.members[self.names[member]]
        stats.forwards += 1
        stats.tokens += len(sequence.ids) - sequence.num_cached
        stats.seconds += seconds
        sequence.num_cached = len(sequence.ids)


@dataclass(frozen=True)
class Picked:
    """One step's choice for one request.

    Attributes:
        token: The union id.
        logprob: Its log-probability, if asked for.
    """

    token: int
    logprob: TokenLogprob | None = None
