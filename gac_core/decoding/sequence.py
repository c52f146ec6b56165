"""A voice: one member that reads one prompt, and the text in that member's token ids."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gac_core.decoding.ensemble_member import EnsembleMember
from gac_core.decoding.tokenized_text import TokenizedText
from gac_core.decoding.voice_distributions import VoiceDistributions
from gac_core.model.chunk import KeptPrefix


@dataclass(eq=False)
class Sequence:
    """One voice of a request.

    Attributes:
        member: The member that reads it.
        weight: Its weight in the combination, above 0; relative to the request's other voices.
        text: Prompt and answer in the member's ids.
        pending_probs: Its next-token distribution, computed in an earlier step while other voices still read their
            prompts. None if there is none.
        generation: How often the member had lost its KV cache when the voice was last evaluated
            (`Executor.generation`).
        document: Id of the document that it reads; None without one.
        prior: Whether it reads no document, does not vote, and is what documents are compared with.
        keep: How many leading ids of the prompt do not depend on what follows its document; 0 without a document.
        cache_id: Its id in the member's KV cache: that of its request, unless members read several prompts. Set by
            the request.
        prompt_tokens: Length of its prompt in ids. Set by the request.
        has_begun: Whether the member has read some of it.
        has_kept: Whether the member has kept its beginning, for the statistics.
    """

    member: EnsembleMember
    weight: float
    text: TokenizedText
    pending_probs: VoiceDistributions | None = None
    generation: int = 0
    document: str | None = None
    prior: bool = False
    keep: int = 0
    cache_id: str = ""
    prompt_tokens: int = 0
    has_begun: bool = False
    has_kept: bool = False

    @property
    def name(self) -> str:
        """Name of the member."""
        return self.member.name

    @property
    def num_uncached(self) -> int:
        """How many ids the member has not read yet."""
        return len(self.text.token_ids) - self.text.num_cached

    @property
    def is_full(self) -> bool:
        """Whether the text is longer than the member can read."""
        return self.member.context is not None and len(self.text.token_ids) > self.member.context

    def kept_from(self, start: int) -> KeptPrefix | None:
        """Returns what of the text is kept once a chunk that begins at ``start`` is read; None if that was before."""
        return KeptPrefix(self.keep) if start < self.keep else None

    def reread(self, generation: int) -> None:
        """Lets the next chunk contain the whole text if the member lost its KV cache since the last call.

        Args:
            generation: How often the member has lost its KV cache.
        """
        if self.generation != generation:
            self.generation = generation
            self.text.num_cached = 0
            self.pending_probs = None

    def recompute_last(self) -> None:
        """Lets the next chunk contain the last id again, so that its logits are computed."""
        self.text.num_cached = min(self.text.num_cached, len(self.text.token_ids) - 1)


def read_documents(voices: Iterable[Sequence]) -> bool:
    """Whether the voices of a request read documents, or the prompt without any in comparison."""
    return any(voice.document is not None or voice.prior for voice in voices)
