"""What decoding needs of one member of an ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gac_core.decoding.tokenized_text import CommitRule
from gac_core.model.costs import ForwardTimes
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vision import VisionProcessor
from gac_core.tokenization.vocabulary import Alignment


@dataclass(frozen=True, eq=False)
class EnsembleMember:
    """One member of an ensemble.

    Attributes:
        name: Its name, unique within the ensemble.
        member_id: Its id in the executor. Ensembles that share a loaded model use the same id.
        tokenizer: Its tokenizer.
        alignment: Maps its logits onto the ensemble's union vocabulary.
        temperature: Its logits are divided by this.
        vision: Encodes prompts with images; None if it reads text alone.
        commit: Appends committed bytes to its text.
        context: The longest text that it can read, in tokens; None without a limit.
        size: Number of parameters of its model.
        times: How long its forwards take.
        keeps_documents: Whether its KV cache keeps documents beside those of requests.
        runs_on: Where it computes; members with the same value compute one after another, others at the same time.
    """

    name: str
    member_id: str
    tokenizer: MemberTokenizer
    alignment: Alignment
    commit: CommitRule
    context: int | None
    size: int
    times: ForwardTimes
    runs_on: str
    temperature: float = 1.0
    vision: VisionProcessor | None = None
    keeps_documents: bool = True

    @property
    def reads_images(self) -> bool:
        """Whether it reads images."""
        return self.vision is not None


def together(seconds: Mapping[EnsembleMember, float]) -> float:
    """Returns how long forwards of several members take that begin at the same time, given the seconds of each."""
    sums: dict[str, float] = {}
    for member, own in seconds.items():
        sums[member.runs_on] = sums.get(member.runs_on, 0.0) + own
    return max(sums.values(), default=0.0)
