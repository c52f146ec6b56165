"""How a member runs its model: `MemberOptions`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from gac_core.config import EnsembleConfig
from gac_core.member_config import MemberConfig

MIN_PART_TOKENS = 16
"""Tokens of long chunks that one call computes at least, however long that takes."""


@dataclass(frozen=True)
class MemberOptions:
    """How a member runs its model.

    Attributes:
        context: The longest sequence that it may read, in tokens. Default: what the model's configuration says.
        compile: Compile forwards of a few tokens. Default False.
        cache_bytes: Bytes of the KV cache above which prefixes of finished requests are evicted. Default 1 GiB.
        prefill_tokens: Tokens of long chunks to compute in one call at most, 2 or more. Default 512.
        deterministic: Run one request per forward, split long chunks at fixed positions and reuse no prefixes, so that
            logits do not depend on other requests, bit for bit. Default False.
        document_cache_bytes: Bytes of beginnings of prompts that are kept apart from the slots. Default 0.5 GiB.
    """

    context: int | None = None
    compile: bool = False
    cache_bytes: int = 2**30
    prefill_tokens: int = 512
    deterministic: bool = False
    document_cache_bytes: int = 2**29

    @classmethod
    def of(cls, member: MemberConfig, config: EnsembleConfig) -> Self:
        """Returns the options of one member of an ensemble."""
        return cls(
            context=member.context,
            compile=member.compile,
            cache_bytes=int(config.cache_gib * 2**30),
            prefill_tokens=config.prefill_tokens,
            deterministic=config.deterministic,
            document_cache_bytes=int(config.document_cache_gib * 2**30),
        )
