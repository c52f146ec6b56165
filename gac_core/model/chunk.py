"""The messages between the engine and a member: `Chunk` and `ChunkResult`."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from gac_core.tokenization.vision import ImageInputs


@dataclass(frozen=True)
class KeptPrefix:
    """The beginning of a sequence that is kept as an entry of the KV cache, such as the document in a prompt.

    Attributes:
        length: How many ids it is long, 1 or more.
        pinned: Whether the entry is pinned; False unpins one that is. None: a new one is not, and one that exists stays
            as it is.
    """

    length: int
    pinned: bool | None = None


@dataclass(frozen=True)
class Chunk:
    """Token ids to compute at a position of one request's sequence; the only message to a member.

    Discards what the member holds of the request from position ``start`` on, appends ``token_ids``, and returns the
    logits of the last ``num_logits`` positions. Prefill, decoding, verification of drafts and roll-back are all chunks.
    A chunk may be repeated: ``start`` is absolute.

    Attributes:
        request_id: The sequence: the id of its request, or one for each prompt that the member reads for it.
        start: Absolute position of the first id, 0 or more.
        token_ids: Ids of the member's own vocabulary, at least one.
        num_logits: How many positions' logits to return, counted from the last; 0 or more.
        images: The images of the prompt; required if ``start`` lies before their last token, and then ``start`` is 0.
            None: the ids are text.
        keep: The beginning of the sequence that is kept once the KV cache holds it; the members that read row by row,
            read images in this prompt or cache no prefixes keep nothing. None: nothing.
    """

    request_id: str
    start: int
    token_ids: tuple[int, ...]
    num_logits: int = 1
    images: ImageInputs | None = None
    keep: KeptPrefix | None = None

    @property
    def cache_keys(self) -> tuple[int, ...]:
        """What identifies its positions in the KV cache: its ids, and negative numbers for those of images."""
        return self.token_ids if self.images is None else self.images.cache_keys(self.start, self.token_ids)


@dataclass(frozen=True)
class ChunkResult:
    """The result of one chunk.

    Attributes:
        logits: Shape ``[num_logits, vocab_size]``; the exception that the chunk met; or None if part of the chunk
            remains to be computed by the next call.
        seconds: Its share of the wall time of its forward.
        read: How many of its ids are in the KV cache now, counted from the first.
        computed: How many of these this call computed; the others were cached before.
        kept_bytes: Size of the entry that `Chunk.keep` asked for; None if there is none.
    """

    logits: Tensor | BaseException | None
    seconds: float = 0.0
    read: int = 0
    computed: int = 0
    kept_bytes: int | None = None
