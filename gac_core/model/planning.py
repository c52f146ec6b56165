"""`ForwardPlanner`: what one call of a member computes of its chunks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from gac_core.model.chunk import Chunk, ChunkResult
from gac_core.model.entries import common_prefix_length
from gac_core.model.options import MemberOptions
from gac_core.model.prefill import share, share_parts
from gac_core.model.runner import Row, Runner
from gac_core.model.slots import MIN_PREFIX_TOKENS, Slot, SlotTable
from gac_core.model.vision_runner import VisionRowRunner, VisionRunner

MAX_SHORT_ROW = 8
"""Rows of up to this many tokens share one forward: padding them costs less than reading the weights once more."""


@dataclass
class Job:
    """What one call computes of a chunk.

    Attributes:
        chunk: The chunk.
        slot: The slot of its request.
        row: What remains to be computed; its ids may be empty.
    """

    chunk: Chunk
    slot: Slot
    row: Row

    @property
    def cache_keys(self) -> tuple[int, ...]:
        """What identifies the positions of its row in the KV cache."""
        first = self.row.start - self.chunk.start
        return self.chunk.cache_keys[first : first + len(self.row.token_ids)]


class ForwardPlanner:
    """Finds what of chunks is in the KV cache already, and divides what is long.

    Args:
        slots: The slots of the KV cache.
        runner: Runs the rows.
        options: The member's limits and modes.
    """

    def __init__(self, slots: SlotTable, runner: Runner, options: MemberOptions) -> None:
        self._slots = slots
        self._runner = runner
        self._options = options

    def plan(self, chunks: Sequence[Chunk], budget: int) -> list[Job | ChunkResult]:
        """Returns what to compute of each chunk; its result instead if nothing of it can be computed now.

        Args:
            chunks: At most one per request.
            budget: Tokens of long chunks to compute in this call. Images, and the text before them, do not count.
        """
        planned = [self._job(chunk, chunks[:index]) for index, chunk in enumerate(chunks)]
        long = [
            job
            for job in planned
            if isinstance(job, Job) and job.row.images is None and len(job.row.token_ids) > MAX_SHORT_ROW
        ]
        lengths = [len(job.row.token_ids) for job in long]
        if self._options.deterministic:
            shares = share_parts([job.row.start for job in long], lengths, budget)
        else:
            shares = share(lengths, budget)
        for job, tokens in zip(long, shares, strict=True):
            # The ids from the first one on whose logits are wanted are never divided.
            head = len(job.row.token_ids) - job.row.num_logits
            if tokens < len(job.row.token_ids) and head > 0:
                job.row = replace(job.row, token_ids=job.row.token_ids[: min(tokens, head)], num_logits=0)
        return planned

    def _job(self, chunk: Chunk, earlier: Sequence[Chunk]) -> Job | ChunkResult:
        keys = chunk.cache_keys
        slot = self._slots.find(chunk.request_id)
        if slot is None:
            if not self._options.deterministic and self._shares_prefix(chunk, earlier):
                # Waits until that prefix is in the cache, to copy it.
                return ChunkResult(None)
            try:
                slot = self._slots.claim(chunk.request_id, keys)
            except BaseException as error:
                # No memory for one more slot; the other chunks have theirs.
                return ChunkResult(error)
        if chunk.start > len(slot.token_ids):
            return ChunkResult(RuntimeError(f"its KV cache lacks tokens before position {chunk.start}"))
        cached = common_prefix_length(slot.token_ids[chunk.start :], keys)
        cached = min(cached, len(chunk.token_ids) - chunk.num_logits)
        try:
            return Job(chunk, slot, self._row(chunk, slot, cached))
        except Exception as error:
            return ChunkResult(error)

    def _row(self, chunk: Chunk, slot: Slot, cached: int) -> Row:
        """What remains of a chunk of which the slot holds ``cached`` ids."""
        images = chunk.images
        if images is not None:
            if not isinstance(self._runner, (VisionRunner, VisionRowRunner)):
                raise TypeError("its runner reads no images")
            slot.offset = self._runner.position_offset(images, chunk.token_ids)
            if cached < images.end:
                # Images are read whole, with all that precedes them; the rest follows in the next call.
                return Row(slot.index, 0, chunk.token_ids[: images.end], 0, images)
        start = chunk.start + cached
        return Row(slot.index, start, chunk.token_ids[cached:], chunk.num_logits, offset=slot.offset)

    def _shares_prefix(self, chunk: Chunk, earlier: Sequence[Chunk]) -> bool:
        """Whether an earlier chunk of this call is about to compute a prefix of this one."""
        keys = chunk.cache_keys
        for other in earlier:
            slot = self._slots.find(other.request_id)
            if slot is not None and self._runner.supports_truncation:
                common = common_prefix_length([*slot.token_ids[: other.start], *other.cache_keys], keys)
                if common >= common_prefix_length(slot.token_ids, keys) + MIN_PREFIX_TOKENS:
                    return True
        return False
