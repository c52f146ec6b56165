"""A voice: one member that reads one prompt, and the text in that member's token ids."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gac_core.decoding.ensemble_member import EnsembleMember
from gac_core.decoding.tokenized_text import TokenizedText


@dataclass(eq=False)
class Sequence:
    """One voice of a request.

    Attributes:
        member: The member that reads it.
        weight: Its weight in the combination, above 0; relative to the request's other voices.
        text: Prompt and answer in the member's ids.
        pending_probs: Its next-token distribution, computed in an earlier step while other voices still read their
            prompts; float32, shape ``[1, union]``. None if there is none.
    """

    member: EnsembleMember
    weight: float
    text: TokenizedText
    pending_probs: Tensor | None = None

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

    def recompute_last(self) -> None:
        """Lets the next chunk contain the last id again, so that its logits are computed."""
        self.text.num_cached = min(self.text.num_cached, len(self.text.token_ids) - 1)
