"""A request while it runs: its voices, parameters and statistics."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from gac_core.combination import CERTIFIABLE, Combiner, Gate
from gac_core.combination.documents import DocumentRule, document_mean
from gac_core.config import FailurePolicy
from gac_core.decoding.logit_adjustment import LogitAdjustment
from gac_core.decoding.measurement import Measurement
from gac_core.decoding.sampler import FixedTokens, Sampler
from gac_core.decoding.sequence import Sequence, read_documents
from gac_core.errors import GaCError
from gac_core.grammar.constraint import Constraint
from gac_core.output import EffectiveSettings, MemberStats, RequestStats
from gac_core.sampling import SamplingParams
from gac_core.shares import normalise
from gac_core.tokenization.detokenizer import Detokenizer
from gac_core.tokenization.vocabulary import UnionVocabulary


@dataclass(frozen=True, eq=False)
class Absence:
    """A voice that takes no part for a while because its member failed; its text receives all tokens.

    Attributes:
        voice: The voice.
        until: When it may take part again at the earliest, by `time.monotonic`.
    """

    voice: Sequence
    until: float


@dataclass(eq=False)
class Request:
    """One request.

    Attributes:
        request_id: Its id within the engine, unique.
        params: The caller's parameters.
        voices: The sequences that it consists of, by member in the ensemble's order: one per participating member, or
            one for each prompt that it reads. Members without a voice do not affect the request.
        absent: Voices that take no part for a while.
        gate: The voice that decides alone while it is sure, and whose tokens `Usage` counts.
        threshold: At or above it the gate decides alone; None combines all voices at every step.
        union: The ensemble's union vocabulary.
        combiner: Combines the distributions of the voices that read one document, or none.
        document_rule: Combines those of the documents.
        gate_rule: Measures how sure the gate is.
        sampler: Samples its tokens.
        seed: The sampler's seed.
        continuation: The union tokens of a request that scores a given text; None for one that generates text.
        settings: The effective settings, for its statistics.
        written: Prompt and answer as bytes, for prompt lookup: the prompt of the gate.
        other_prompts: The other prompts that the gate's member reads, likewise.
        constraint: The state of its grammar; None without one.
        adjustment: Its penalties and bias, with the counts that they depend on; None without any.
        drafts: The kinds of drafts that may be used (`EnsembleConfig.drafts`).
        turn_ends: Strings that end the text besides the caller's stop strings, since a member's chat template begins
            turns with them; they are not reported as stop strings.
        failures: What happens when a member fails.
        measurement: What its members measure of its text before anything is generated; None if nothing.
        pins: Whether what the members keep is pinned, for a request that only keeps its texts (`Ensemble.warm`). None:
            it generates or measures.
        prefill_seconds: Seconds that each of its members may spend on long prompts in a step with other requests.
        label: Its id as callers and logs see it, which callers may choose; default ``request_id``.
        ensemble_id: Which of the engine's ensembles it belongs to.
        participants: All voices that it began with, in the same order.
        configured_gate: The gate that it began with; another voice replaces it while it is absent.
        num_committed: Union tokens written so far.
        num_tokens: Those of them that its caller has received.
        width: How many prompts one member reads at most; each takes a slot of the member's KV cache.
    """

    request_id: str
    params: SamplingParams
    voices: list[Sequence]
    gate: Sequence
    threshold: float | None
    union: UnionVocabulary
    combiner: Combiner
    gate_rule: Gate
    sampler: Sampler | FixedTokens
    seed: int
    continuation: tuple[bytes, ...] | None = None
    settings: EffectiveSettings = field(default_factory=EffectiveSettings)
    written: bytearray = field(default_factory=bytearray)
    other_prompts: tuple[bytes, ...] = ()
    constraint: Constraint | None = None
    adjustment: LogitAdjustment | None = None
    drafts: frozenset[str] = frozenset()
    turn_ends: tuple[str, ...] = ()
    failures: FailurePolicy = field(default_factory=FailurePolicy)
    measurement: Measurement | None = None
    pins: bool | None = None
    document_rule: DocumentRule = document_mean
    prefill_seconds: float = 0.25
    label: str = ""
    ensemble_id: str = ""
    arrived: float = field(default_factory=time.perf_counter)
    absent: list[Absence] = field(default_factory=list)
    participants: tuple[Sequence, ...] = field(init=False)
    configured_gate: Sequence = field(init=False)
    stats: RequestStats = field(init=False)
    detokenizer: Detokenizer = field(init=False)
    prompt_bytes: int = field(init=False)
    num_committed: int = 0
    num_tokens: int = 0
    width: int = field(init=False)
    started: float = 0.0

    def __post_init__(self) -> None:
        self.label = self.label or self.request_id
        self.participants, self.configured_gate = tuple(self.voices), self.gate
        self.detokenizer = Detokenizer((*self.params.stop, *self.turn_ends))
        self.prompt_bytes = len(self.written)
        self.stats = RequestStats(settings=self.settings)
        self.width = _width(self.voices)
        for index, voice in enumerate(self.voices):
            voice.cache_id = f"{self.request_id}/{index}" if self.width > 1 else self.request_id
            voice.prompt_tokens = len(voice.text.token_ids)
            self.stats.members.setdefault(voice.name, MemberStats()).prompt_tokens += voice.prompt_tokens

    @property
    def has_read(self) -> bool:
        """Whether all is measured or kept, in a request that generates nothing."""
        if self.pins is not None:
            return not any(voice.num_uncached for voice in self.voices)
        return self.measurement is not None and self.measurement.is_done(self.voices)

    @property
    def has_documents(self) -> bool:
        """Whether its voices read documents."""
        return read_documents(self.participants)

    @property
    def needs_full(self) -> bool:
        """Whether its tokens, or what it reports, depend on complete distributions; the same from begin to end."""
        params = self.params
        reports = bool(params.logprobs) or params.token_stats or self.has_documents
        return reports or not self.sampler.greedy or self.combiner not in CERTIFIABLE

    @property
    def removes_mass(self) -> bool:
        """Whether its voices' distributions may sum to less than 1: a grammar, penalties or a bias remove mass."""
        return self.constraint is not None or self.adjustment is not None

    @property
    def deciding(self) -> list[Sequence]:
        """The voices that every step needs: the gate where there is a threshold, else all."""
        return self.voices if self.threshold is None else [self.gate]

    @property
    def has_pending_probs(self) -> bool:
        """Whether some voices already have the next token's distribution while others still read."""
        return any(voice.pending_probs is not None for voice in self.voices)

    def share(self, voice: Sequence) -> float:
        """Returns the normalised weight of one of its voices that vote."""
        voting = [each for each in self.voices if not each.prior]
        return normalise([each.weight for each in voting])[voting.index(voice)]

    def leave_out(self, voice: Sequence, reason: GaCError) -> None:
        """Continues without a voice; the others' weights are renormalised."""
        self.voices.remove(voice)
        self.stats.left_out[voice.name] = str(reason)

    def record_forward(self, voice: Sequence, tokens: int, seconds: float) -> None:
        """Adds a forward of a voice over so many new tokens to the statistics; none if there were no tokens."""
        if not tokens:
            return
        stats = self.stats.members[voice.name]
        stats.forwards += 1
        stats.tokens += tokens
        stats.seconds += seconds


def _width(voices: list[Sequence]) -> int:
    by_member: dict[str, list[Sequence]] = {}
    for voice in voices:
        by_member.setdefault(voice.member.member_id, []).append(voice)
    return max(len(own) if _differ(own) else 1 for own in by_member.values())


def _differ(voices: list[Sequence]) -> bool:
    """Whether voices of one model need a slot each: not where several names of it read the same prompt."""
    names = {voice.name for voice in voices}
    return len(names) < len(voices) or any(voice.text.cache_keys != voices[0].text.cache_keys for voice in voices)
