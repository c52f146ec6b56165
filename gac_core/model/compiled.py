"""Decode forwards of static shapes, compiled: CUDA graphs on a GPU, plain inductor code on a CPU.

Row i of such a forward is slot i. Rows, widths and the length that attention reads are rounded up to buckets; what is
padding writes to the last position of the capacity, which no text takes. Prompts, and whatever fits no bucket, run as
`SlotRunner` runs them. Knows nothing of tokenizers, requests or the union.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Callable, Sequence
from types import CodeType, FunctionType
from typing import Any

import torch
from torch import Tensor

from gac_core.model.cache import SlotCache, StaticRows, send
from gac_core.model.runner import Row, SlotRunner, same_logits

logger = logging.getLogger(__name__)

ROWS = (1, 2, 4, 8, 16)
WIDTHS = (1, 2, 4, 8)
STEP = 256
# A CUDA graph's first calls warm up, record and replay: each of them is another way to compute.
TRIALS = 3


class CompiledRunner(SlotRunner):
    """A `SlotRunner` whose short rows run through compiled static shapes.

    The first forward of every shape compiles it, which takes seconds to minutes; the first three are compared with
    eager ones. Growing the cache starts anew. Where compiling fails, or the logits differ, the runner logs a warning
    and runs eagerly from then on.

    Args:
        model: A causal LM of transformers, in eval mode.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model)
        self._cache = SlotCache(len(self._layers), step=STEP, spare=1)
        self._forwards: dict[tuple[int, int, int], Callable[..., Tensor]] = {}
        self._made_for: weakref.ref[Tensor] | None = None
        self._calls: dict[tuple[int, int, int], int] = {}
        self._on_trial = False
        self._works = True

    @property
    def shapes(self) -> list[tuple[int, int, int]]:
        """The shapes compiled for the cache as it is: rows, width and length."""
        return sorted(self._forwards)

    def bytes_for(self, slots: int, length: int) -> int:
        """Returns the bytes of so many slots, rounded up to a bucket, once each can hold a text of this length."""
        return super().bytes_for(_bucket(slots, ROWS) or slots, length)

    def make_room(self, slots: int, length: int) -> None:
        """Makes at least so many slots, rounded up to a bucket, each for texts of this length or more."""
        super().make_room(_bucket(slots, ROWS) or slots, length)

    def keep(self, slots: int, length: int) -> None:
        """Gives back the slots after the bucket of this one, and most of what no text of this length needs."""
        super().keep((_bucket(slots, ROWS) or slots) if slots else 0, length)

    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """Returns per row the logits, shape ``[num_logits, vocabulary rows]``."""
        count = _bucket(max(row.slot for row in rows) + 1, ROWS)
        width = _bucket(max(len(row.token_ids) for row in rows), WIDTHS)
        if not self._works or count is None or width is None or not self._cache.stores():
            return super().forward(rows)
        parts: list[Tensor] | None = None
        reason = "their logits differ from those of eager ones"
        try:
            parts = self._static(rows, count, width)
            if not self._on_trial:
                return parts
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
        # Writes the same places once more. What fails here too is not the compiler's fault, and goes to the caller.
        plain = super().forward(rows)
        if parts is None or not all(same_logits(self._model, *each) for each in zip(parts, plain, strict=True)):
            self._works = False
            self._forwards.clear()
            logger.warning("a member goes on without compiled forwards: %s", reason)
        return plain

    @torch.inference_mode()
    def _static(self, rows: Sequence[Row], count: int, width: int) -> list[Tensor]:
        """The logits of a forward of a compiled shape."""
        longest = max(row.start + len(row.token_ids) for row in rows)
        self.make_room(count, longest)
        capacity = self._cache.shape[1]
        length = STEP
        while length < longest:
            length *= 2
        length = min(length, capacity)
        ids = [[0] * width for _ in range(count)]
        places = [[capacity - 1] * width for _ in range(count)]
        starts = [0] * count
        for row in rows:
            new = len(row.token_ids)
            ids[row.slot][:new] = row.token_ids
            places[row.slot][:new] = range(row.start, row.start + new)
            starts[row.slot] = row.start
        device = self._model.get_input_embeddings().weight.device
        numbers = [number for part in (*ids, *places, starts) for number in part]
        sent = send(numbers, device)
        read, written, begun = torch.split(sent, [count * width, count * width, count])
        positions = begun[:, None] + torch.arange(width, device=device)
        mask = self._mask(positions, length)
        if self._context is not None:
            positions = positions.clamp(max=self._context - 1)
        slots = torch.arange(count, device=device)[:, None]
        self._cache.announce(StaticRows(slots, written.view(count, width).clone(), length))
        logits = self._compiled(count, width, length)(self, read.view(count, width).clone(), positions, mask)
        # Copies: the next replay of the same graph overwrites what this one gave.
        return [logits[row.slot, len(row.token_ids) - row.num_logits : len(row.token_ids)].clone() for row in rows]

    def _compiled(self, count: int, width: int, length: int) -> Callable[..., Tensor]:
        """The forward of a shape, made anew after the storage has moved."""
        stores = self._cache.stores()
        if self._made_for is None or self._made_for() is not stores[0]:
            self._forwards.clear()
            self._calls.clear()
            self._made_for = weakref.ref(stores[0])
            for store in stores:
                # A graph may then write to it where it is; other inputs are copied to a fixed place first.
                torch._dynamo.mark_static_address(store)
        key = (count, width, length)
        self._calls[key] = self._calls.get(key, 0) + 1
        self._on_trial = self._calls[key] <= TRIALS
        if key not in self._forwards:
            # Code of its own per shape: the compiler counts and looks through what it made for one code object.
            code: CodeType = _forward.__code__.replace(co_name=f"_forward_{count}_{width}_{length}_{id(self)}")
            function = FunctionType(code, globals())
            mode = "reduce-overhead" if stores[0].device.type == "cuda" else "default"
            self._forwards[key] = torch.compile(function, mode=mode, dynamic=False)
        if stores[0].device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        return self._forwards[key]


def _forward(runner: CompiledRunner, ids: Tensor, positions: Tensor, mask: Any) -> Tensor:
    """The logits at all places, ``[rows, width, vocabulary rows]``."""
    out = runner._model(
        input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=runner._cache, use_cache=True
    )
    logits: Tensor = out.logits
    return logits


def _bucket(size: int, buckets: Sequence[int]) -> int | None:
    return next((bucket for bucket in buckets if bucket >= size), None)
