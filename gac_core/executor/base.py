"""The `Executor` protocol: how the engine reaches its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, Self

import torch
from torch import Tensor

from gac_core.executor.messages import Answer, Ask, Failure, Fetch
from gac_core.health import MemberHealth
from gac_core.model.costs import ForwardTimes
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vision import VisionProcessor


class ExecutorMember(Protocol):
    """What the engine needs to know of a member, wherever its model runs; `gac_core.model.member.Member` has it.

    Attributes:
        name: Its name.
        member_id: Identifies its KV cache; the same under every name.
        tokenizer: Its tokenizer.
        context: The longest sequence that it can read, in tokens; None without a limit.
        device: Where its logits are computed, or the CPU if that is in another process.
        size: Number of parameters of its model.
        times: Durations of its forwards.
        vision: Encodes prompts with images; None if it reads text alone.
    """

    name: str
    member_id: str
    tokenizer: MemberTokenizer
    context: int | None
    device: torch.device
    size: int
    times: ForwardTimes
    vision: VisionProcessor | None

    @property
    def runs_on(self) -> str:
        """Where it computes: members with the same value compute one after another, others at the same time."""
        ...

    @property
    def devices(self) -> Sequence[str]:
        """Where its weights are."""
        ...

    @property
    def weight_bytes(self) -> int:
        """Bytes of its weights."""
        ...

    @property
    def weights_id(self) -> str:
        """Equal for members whose weights are the same memory."""
        ...

    @property
    def deterministic(self) -> bool:
        """Whether its logits do not depend on other requests, bit for bit."""
        ...

    @property
    def keeps_documents(self) -> bool:
        """Whether its KV cache keeps documents beside those of requests."""
        ...

    def renamed(self, name: str) -> Self:
        """Returns this member under another name: the same model, KV cache and ``member_id``."""
        ...


class Executor(Protocol):
    """Runs members, which are addressed by their ``member_id``.

    Unless a method says otherwise, all are called from one thread at a time.
    """

    def add_member(self, member: ExecutorMember) -> None:
        """Adds a member. One that is added several times stays until it is removed as often."""
        ...

    def remove_member(self, member_id: str) -> None:
        """Removes a member, which stays open; its requests must be released before.

        Raises:
            KeyError: There is no such member.
        """
        ...

    def forward(
        self, asks: Mapping[str, Sequence[Ask]], prefill_seconds: float | None = None
    ) -> dict[str, list[Answer]]:
        """Computes distributions; what a member raises is the result of its answers.

        Args:
            asks: By member id, at most one per `Chunk.request_id` and member.
            prefill_seconds: Seconds that each member may spend on long chunks, because other requests wait for this
                call; None (default): no limit.

        Returns:
            The answers by member id, in the order of the asks. An executor that answers an ask in the form ``"top"``
            with `TopDistributions` does so for all of them.

        Raises:
            KeyError: There is no such member.
        """
        ...

    def fetch(self, wanted: Mapping[str, Sequence[Fetch]]) -> dict[str, list[Tensor | Failure]]:
        """Returns probabilities that answers in the form ``"top"`` left out.

        Args:
            wanted: By member id.

        Returns:
            By member id, in the order of the fetches: float32, shape ``[len(ids)]`` or ``[union]``, on the CPU or the
            member's device; or why they cannot be had.

        Raises:
            KeyError: There is no such member.
        """
        ...

    def release(self, request_id: str, clear: bool = False, member_id: str | None = None) -> None:
        """Frees what members hold of a request, such as its KV cache slot; never raises.

        Args:
            request_id: The request.
            clear: Erase the slots instead of keeping them for prefix caching.
            member_id: Only on this member. None (default): on all.
        """
        ...

    def refresh(self) -> None:
        """Lets members that were restarted take the place of lost ones; called before each step, and nowhere else."""
        ...

    def generation(self, member_id: str) -> int:
        """Returns how often a member lost its KV cache."""
        ...

    def alive(self, member_id: str) -> bool:
        """Returns whether a member can compute now: neither hung nor lost nor being restarted."""
        ...

    def health(self, member_id: str) -> MemberHealth:
        """Returns the state of a member, as far as the executor knows it; from any thread, without waiting.

        Raises:
            KeyError: There is no such member.
        """
        ...

    def running(self) -> list[tuple[str, float]]:
        """Returns the id of each member whose forward the engine waits for, and the seconds since it began.

        May be called from any thread.
        """
        ...

    def close(self) -> None:
        """Stops the executor; no other method may be called afterwards."""
        ...
