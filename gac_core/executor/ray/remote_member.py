"""`RemoteMember`: what this process knows of a member whose model runs in an actor."""

from __future__ import annotations

import copy
from typing import Any, Self, cast

import torch

from gac_core.errors import ModelLoadError
from gac_core.executor.ray.actor import MemberFacts
from gac_core.executor.ray.supervisor import MemberSupervisor
from gac_core.model.checkpoint_checks import member_tokenizer
from gac_core.model.costs import ForwardTimes, prior_slope
from gac_core.tokenization.vision import VisionProcessor


class RemoteMember:
    """A member that runs in an actor; see `ExecutorMember` for its attributes.

    Args:
        name: The member's name.
        member_id: Its id.
        supervisor: Keeps its actor running; the member is loaded.
        tokenizer: Its tokenizer, of transformers, loaded in this process.
        deterministic: Whether its logits do not depend on other requests.
        processor: Its processor, of transformers, loaded in this process. Default: it has none.

    Attributes:
        facts: What its actor reported of it.
        vision: Encodes prompts with images, in this process; None if its model reads text alone.

    Raises:
        ModelLoadError: The tokenizer of this process is not that of the actor.
    """

    def __init__(
        self,
        name: str,
        member_id: str,
        supervisor: MemberSupervisor,
        tokenizer: Any,
        deterministic: bool,
        processor: Any = None,
    ) -> None:
        facts = supervisor.wait_started()
        self.name = name
        self.member_id = member_id
        self.supervisor = supervisor
        self.facts = facts
        self.tokenizer = member_tokenizer(name, tokenizer, facts.end_ids, facts.rows)
        _check_same(name, self.tokenizer.fingerprint, facts)
        self.context = facts.context
        # Where its distributions arrive.
        self.device = torch.device("cpu")
        self.size = facts.size
        self.times = ForwardTimes(self.device, prior_slope(torch.device(facts.device), getattr(torch, facts.dtype)))
        reads_images = processor is not None and facts.image_token_id is not None
        self.vision = VisionProcessor(processor, cast(int, facts.image_token_id)) if reads_images else None
        self._deterministic = deterministic

    @property
    def runs_on(self) -> str:
        """Its actor when it was loaded, which computes beside all others."""
        return self.facts.place

    @property
    def devices(self) -> tuple[str, ...]:
        """Its actor when it was loaded."""
        return (self.facts.place,)

    @property
    def keeps_documents(self) -> bool:
        """Whether its KV cache keeps documents beside those of requests."""
        return self.facts.keeps_documents

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights."""
        return self.facts.weight_bytes

    @property
    def weights_id(self) -> str:
        """Its own id: every actor has its weights."""
        return self.member_id

    @property
    def deterministic(self) -> bool:
        """Whether its logits do not depend on other requests, bit for bit."""
        return self._deterministic

    def renamed(self, name: str) -> Self:
        """Returns this member under another name: the same actor, KV cache and ``member_id``."""
        if name == self.name:
            return self
        member = copy.copy(self)
        member.name, member.tokenizer = name, self.tokenizer.renamed(name)
        return member


def _check_same(name: str, fingerprint: str, facts: MemberFacts) -> None:
    if fingerprint != facts.fingerprint:
        raise ModelLoadError(
            name,
            f"its tokenizer on node {facts.node} ({facts.fingerprint[:12]}) differs from the one here "
            f"({fingerprint[:12]}); copy the same files to this machine and to all nodes, or give a revision",
        )
