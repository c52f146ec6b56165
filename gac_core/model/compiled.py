"""Compiled decode forwards with static shapes: CUDA graphs on a GPU, inductor code on a CPU.

Row i of a compiled forward is slot i. The number of rows, the width and the length that attention reads are rounded up
to buckets; padding is written to the last position of the capacity, which no request uses. Prompts, and whatever fits
no bucket, run eagerly as in `SlotRunner`.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gac_core.model.cache import SlotCache, StaticSlotMapping
from gac_core.model.runner import Row, SlotRunner, same_logits
from gac_core.model.transfer import to_device

logger = logging.getLogger(__name__)

ROW_BUCKETS = (1, 2, 4, 8, 16)
WIDTH_BUCKETS = (1, 2, 4, 8)
LENGTH_MULTIPLE = 256
VERIFIED_CALLS = 3
"""Calls of each shape that are compared with eager ones: the first of a CUDA graph warm up, record and replay."""


class Shape(NamedTuple):
    """The static shape of a compiled forward.

    Attributes:
        rows: Rows, and slots from the first on.
        width: New tokens per row, padding included.
        length: Positions that attention reads.
    """

    rows: int
    width: int
    length: int


@dataclass
class _CompiledForward:
    """A compiled function and how often it was called."""

    function: Callable[..., Tensor]
    calls: int = 0


class CompiledRunner(SlotRunner):
    """A `SlotRunner` that runs short rows through compiled forwards of static shape.

    The first forward of every shape compiles it, which takes seconds to minutes; its first `VERIFIED_CALLS` are
    compared with eager ones. Growing the cache discards all compiled forwards. If compiling fails or the logits differ,
    the runner logs a warning and runs eagerly from then on.

    Args:
        model: A causal LM of transformers, in eval mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._cache = SlotCache(len(self._layers), multiple=LENGTH_MULTIPLE, padding=1)
        self._forwards: dict[Shape, _CompiledForward] = {}
        # The first store at the time of compiling: compiled forwards are valid for the storage they were made for.
        self._compiled_store: weakref.ref[Tensor] | None = None
        self._enabled = True

    @property
    def shapes(self) -> list[Shape]:
        """The shapes that are compiled for the present storage."""
        return sorted(self._forwards)

    def bytes_for(self, num_slots: int, length: int) -> int:
        """Returns the bytes of ``num_slots`` slots, rounded up to a bucket, of at least ``length`` tokens each."""
        return super().bytes_for(_bucket(num_slots, ROW_BUCKETS) or num_slots, length)

    def reserve(self, num_slots: int, length: int) -> None:
        """Grows the storage to ``num_slots`` slots, rounded up to a bucket, of at least ``length`` tokens each."""
        super().reserve(_bucket(num_slots, ROW_BUCKETS) or num_slots, length)

    def shrink(self, num_slots: int, length: int) -> None:
        """Frees the slots beyond the bucket of ``num_slots``, and capacity far above ``length`` tokens."""
        super().shrink((_bucket(num_slots, ROW_BUCKETS) or num_slots) if num_slots else 0, length)

    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """Returns the logits of each row, shape ``[num_logits, vocab_size]``."""
        count = _bucket(max(row.slot for row in rows) + 1, ROW_BUCKETS)
        width = _bucket(max(len(row.token_ids) for row in rows), WIDTH_BUCKETS)
        if not self._enabled or count is None or width is None or not self._cache.stores():
            return super().forward(rows)
        compiled: list[Tensor] | None = None
        reason = "their logits differ from those of eager ones"
        try:
            shape = self._shape(rows, count, width)
            compiled = self._forward_static(rows, shape)
            if self._forwards[shape].calls > VERIFIED_CALLS:
                return compiled
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        # Overwrites the same positions. An error here has another cause than compiling and goes to the caller.
        eager = super().forward(rows)
        if compiled is None or not all(same_logits(self._model, *pair) for pair in zip(compiled, eager, strict=True)):
            self._enabled = False
            self._forwards.clear()
            logger.warning("a member goes on without compiled forwards: %s", reason)
        return eager

    def close(self) -> None:
        """Frees all slots and compiled forwards and drops the model."""
        self._forwards.clear()
        super().close()

    def _shape(self, rows: Sequence[Row], count: int, width: int) -> Shape:
        """The static shape for some rows; makes room for it."""
        longest = max(row.start + len(row.token_ids) for row in rows)
        self.reserve(count, longest)
        length = LENGTH_MULTIPLE
        while length < longest:
            length *= 2
        return Shape(count, width, min(length, self._cache.shape[1]))

    @torch.inference_mode()
    def _forward_static(self, rows: Sequence[Row], shape: Shape) -> list[Tensor]:
        """The logits of each row from the compiled forward of a shape."""
        count, width, length = shape
        padding = self._cache.shape[1] - 1
        ids = [[0] * width for _ in range(count)]
        targets = [[padding] * width for _ in range(count)]
        starts = [0] * count
        for row in rows:
            new = len(row.token_ids)
            ids[row.slot][:new] = row.token_ids
            targets[row.slot][:new] = range(row.start, row.start + new)
            starts[row.slot] = row.start
        device = self._model.get_input_embeddings().weight.device
        packed = to_device([number for part in (*ids, *targets, starts) for number in part], device)
        input_ids, written, begun = torch.split(packed, [count * width, count * width, count])
        positions = begun[:, None] + torch.arange(width, device=device)
        mask = self._mask(positions, length)
        if self._max_positions is not None:
            positions = positions.clamp(max=self._max_positions - 1)
        slots = torch.arange(count, device=device)[:, None]
        self._cache.set_mapping(StaticSlotMapping(slots, written.view(count, width).clone(), length))
        forward = self._compiled(shape)
        forward.calls += 1
        logits = forward.function(self, input_ids.view(count, width).clone(), positions, mask)
        # Copies: the next replay of the graph overwrites its output.
        return [logits[row.slot, len(row.token_ids) - row.num_logits : len(row.token_ids)].clone() for row in rows]

    def _compiled(self, shape: Shape) -> _CompiledForward:
        """The compiled forward of a shape; all are discarded after the storage has moved."""
        stores = self._cache.stores()
        if self._compiled_store is None or self._compiled_store() is not stores[0]:
            self._forwards.clear()
            self._compiled_store = weakref.ref(stores[0])
            for store in stores:
                # Lets a CUDA graph write to the store itself; other inputs are first copied to a fixed address.
                torch._dynamo.mark_static_address(store)
        on_gpu = stores[0].device.type == "cuda"
        if shape not in self._forwards:
            # A code object per shape: the compiler limits how many graphs it keeps for one, and searches them in turn.
            name = f"_forward_{shape.rows}_{shape.width}_{shape.length}_{id(self)}"
            code: CodeType = _forward.__code__.replace(co_name=name)
            mode = "reduce-overhead" if on_gpu else "default"
            function = torch.compile(FunctionType(code, globals()), mode=mode, dynamic=False)
            self._forwards[shape] = _CompiledForward(function)
        if on_gpu:
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._forwards[shape]


def _forward(runner: CompiledRunner, ids: Tensor, positions: Tensor, mask: Any) -> Tensor:
    """The logits of all positions, ``[rows, width, vocab_size]``."""
    out = runner._model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=runner._cache, use_cache=True
    )
    logits: Tensor = out.logits
    return logits


def _bucket(size: int, buckets: Sequence[int]) -> int | None:
    """The smallest bucket that holds a size; None if none does."""
    return next((bucket for bucket in buckets if bucket >= size), None)
