"""A text in one member's token ids, and the interface of the rules that append bytes to it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol

from gac_core.tokenization.vision import ImageInputs


@dataclass
class TokenizedText:
    """A text in one member's token ids.

    Attributes:
        token_ids: The ids, prompt first.
        num_cached: How many of them are in the member's KV cache; the rest is sent with the next chunk.
        tail_start: Index of the first id that a commit may still replace; at first the prompt's length.
        tail: The bytes that the ids from ``tail_start`` on stand for.
        images: The images of the prompt; None without any.
    """

    token_ids: list[int]
    num_cached: int = 0
    tail_start: int = field(init=False)
    tail: bytes = b""
    images: ImageInputs | None = None

    def __post_init__(self) -> None:
        self.tail_start = len(self.token_ids)

    @property
    def chunk_start(self) -> int:
        """Where the next chunk starts: after what is cached, or at 0 if that does not contain all images."""
        return self.num_cached if self.images is None or self.num_cached >= self.images.end else 0

    @property
    def cache_keys(self) -> tuple[int, ...]:
        """What identifies it in a KV cache: its ids, and negative numbers for those of images."""
        return tuple(self.token_ids) if self.images is None else self.images.cache_keys(0, self.token_ids)

    def images_from(self, start: int) -> ImageInputs | None:
        """Returns the images for a chunk that starts at `chunk_start`; None if they lie before it."""
        return self.images if start == 0 else None

    def copy(self) -> TokenizedText:
        """Returns an independent copy."""
        twin = replace(self, token_ids=list(self.token_ids))
        twin.tail_start = self.tail_start
        return twin


class CommitRule(Protocol):
    """Appends bytes to a member's text."""

    def __call__(self, text: TokenizedText, data: bytes, own: bool) -> None:
        """Appends bytes.

        Args:
            text: The text; changed in place. Where ids before its end are replaced, ``num_cached`` falls to the first
                of them.
            data: The bytes, one or more.
            own: Whether the member chose these bytes itself, as one token.

        Raises:
            UnwritableTextError: The member's vocabulary cannot represent these bytes.
        """
        ...
