"""A request while it runs: its text in every member's ids, and how much of it each member has read.

Knows nothing of models or of how tokens are chosen.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace

from torch import Tensor

from gac_core.decoding.drafting import Tally
from gac_core.decoding.sampler import Sampler
from gac_core.errors import GaCError
from gac_core.grammar.constraint import Constraint
from gac_core.output import EffectiveSettings, MemberStats, RequestStats, TokenLogprob, TokenStats
from gac_core.sampling import SamplingParams
from gac_core.tokenization.detokenizer import Detokenizer


@dataclass
class MemberText:
    """A request's text in one member's ids.

    Attributes:
        ids: The member's ids, prompt first.
        num_cached: How many of them the member has read; the rest goes with the next chunk.
        tail_start: Index of the first id that may still be cut anew; at first the prompt's length.
        tail: The bytes that the ids from there on write.
    """

    ids: list[int]
    num_cached: int = 0
    tail_start: int = field(init=False)
    tail: bytes = b""

    def __post_init__(self) -> None:
        self.tail_start = len(self.ids)

    def copy(self) -> MemberText:
        """Returns a copy that can be changed without changing this one."""
        twin = replace(self, ids=list(self.ids))
        twin.tail_start = self.tail_start
        return twin


@dataclass
class Request:
    """One request.

    Attributes:
        request_id: Its id within the engine, different for each request.
        params: What was asked for.
        texts: Per participating member's index its text in that member's ids. Other members take no part: their
            context, chat template and tokenizer do not matter to this request.
        gate: Index of the gate.
        threshold: None ensembles every step.
        sampler: Picks its tokens.
        seed: Seed of the sampler.
        names: The members' names.
        settings: What it is answered with, for its statistics.
        written: What the prompt says and what was written since, as bytes: where drafts may be found.
        constraint: Where it stands in its grammar; None without one.
        turn_ends: Strings that end the text besides the caller's stop strings, since a member's chat template begins
            its turns so; they are not reported as stop strings.
        label: Its id as callers and logs see it, which they may choose themselves; default the one within the engine.
        told: Per member index what it said of the next token already, while others are still reading; float32, shape
            ``[stages, union]``.
    """

    request_id: str
    params: SamplingParams
    texts: dict[int, MemberText]
    gate: int
    threshold: float | None
    sampler: Sampler
    seed: int
    names: list[str]
    settings: EffectiveSettings = field(default_factory=EffectiveSettings)
    written: bytearray = field(default_factory=bytearray)
    constraint: Constraint | None = None
    turn_ends: tuple[str, ...] = ()
    label: str = ""
    told: dict[int, Tensor] = field(default_factory=dict)
    arrived: float = field(default_factory=time.perf_counter)
    stats: RequestStats = field(init=False)
    detokenizer: Detokenizer = field(init=False)
    tallies: dict[str, Tally] = field(default_factory=dict)
    prompt_bytes: int = field(init=False)
    num_tokens: int = 0
    started: float = 0.0

    def __post_init__(self) -> None:
        self.label = self.label or self.request_id
        self.detokenizer = Detokenizer((*self.params.stop, *self.turn_ends))
        self.prompt_bytes = len(self.written)
        self.stats = RequestStats(
            settings=self.settings,
            members={
                self.names[member]: MemberStats(prompt_tokens=len(text.ids)) for member, text in self.texts.items()
            },
        )

    @property
    def members(self) -> tuple[int, ...]:
        """Indices of the participating members, in the ensemble's order."""
        return tuple(self.texts)

    def leave_out(self, member: int, reason: GaCError) -> None:
        """Goes on without a member: it is asked no more, and its share goes to the others."""
        del self.texts[member]
        self.told.pop(member, None)
        self.stats.left_out[self.names[member]] = str(reason)

    def note_forward(self, member: int, tokens: int, seconds: float) -> None:
        """Counts a forward of a member over so many tokens, if there were any."""
        if not tokens:
            return
        stats = self.stats.members[self.names[member]]
        stats.forwards += 1
        stats.tokens += tokens
        stats.seconds += seconds


@dataclass(frozen=True)
class Picked:
    """One choice for one request.

    Attributes:
        data: The bytes, or None for the end of text.
        ensembled: Whether all members were asked; else the gate decided alone.
        logprob: Their log-probability, if asked for.
        chosen_by: The members that chose what becomes ids now themselves, as one token.
        forced: Whether a grammar left nothing else, so that nobody was asked.
        full: Whether a member's text is longer than it can read now, so that nothing can follow.
        confidence: As in `TokenStats`, as are ``agreement`` and ``divergence``.
    """

    data: bytes | None
    ensembled: bool
    logprob: TokenLogprob | None = None
    chosen_by: frozenset[int] = frozenset()
    forced: bool = False
    full: bool = False
    confidence: float = 1.0
    agreement: float | None = None
    divergence: float | None = None

    @property
    def token_stats(self) -> TokenStats:
        """Its statistics as callers read them."""
        return TokenStats(
            token=self.data or b"",
            confidence=self.confidence,
            agreement=self.agreement,
            divergence=self.divergence,
            ensembled=self.ensembled,
            forced=self.forced,
        )
