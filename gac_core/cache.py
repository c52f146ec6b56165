"""A KV cache of slots: each row of a batch reads and writes its own slot at its own positions.

A slot is the place of one request's keys and values. Rows of a batch may be of different lengths and start at different
positions; cutting a text back is only a smaller start. Knows nothing of requests, tokens or masks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


@dataclass(frozen=True)
class Rows:
    """Where the rows of one forward lie.

    Attributes:
        slots: One slot per row, ascending.
        starts: The position of each row's first new token.
        width: New tokens per row, short rows padded on the right.
        length: Positions that attention reads: the largest ``start + width``.
    """

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    width: int
    length: int

    @property
    def contiguous(self) -> bool:
        """Whether the slots are neighbours, so that they can be read without a copy."""
        return self.slots[-1] - self.slots[0] + 1 == len(self.slots)


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one decoder layer, each of shape ``[slots, kv_heads, capacity, head_dim]``."""

    is_croppable = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: Rows | None = None
        self.slots = 1
        self.capacity = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Sets up empty storage for states of shape ``[rows, kv_heads, width, head_dim]``."""
        self.keys = key_states.new_zeros((0, key_states.shape[1], 0, key_states.shape[3]))
        self.values = value_states.new_zeros((0, value_states.shape[1], 0, value_states.shape[3]))
        self.is_initialized = True

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the new states and returns those that attention reads, ``[rows, kv_heads, length, head_dim]``."""
        assert self.rows is not None, "reserve() comes before the forward"
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = self._write(self.keys, key_states)
        self.values = self._write(self.values, value_states)
        return self._read(self.keys), self._read(self.values)

    def _write(self, store: Tensor | None, new: Tensor) -> Tensor:
        assert self.rows is not None
        assert store is not None
        rows = self.rows
        if store.shape[0] < self.slots or store.shape[2] < self.capacity:
            # Zeros, not garbage: a masked NaN would still poison the weighted sum of attention.
            grown = new.new_zeros((self.slots, new.shape[1], self.capacity, new.shape[3]))
            grown[: store.shape[0], :, : store.shape[2]] = store
            store = grown
        if len(set(rows.starts)) == 1 and rows.contiguous:
            start = rows.starts[0]
            store[rows.slots[0] : rows.slots[-1] + 1, :, start : start + rows.width] = new
        else:
            slots = torch.tensor(rows.slots, device=new.device)[:, None]
            positions = torch.tensor(rows.starts, device=new.device)[:, None] + torch.arange(
                rows.width, device=new.device
            )
            store[slots, :, positions] = new.transpose(1, 2)
        return store

    def _read(self, store: Tensor) -> Tensor:
        assert self.rows is not None
        rows = self.rows
        if rows.contiguous:
            return store[rows.slots[0] : rows.slots[-1] + 1, :, : rows.length]
        return store[:, :, : rows.length].index_select(0, torch.tensor(rows.slots, device=store.device))

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what attention reads."""
        return (query_length if self.rows is None else self.rows.length), 0

    def get_seq_length(self) -> int:
        """Position of the first new token; the largest where rows differ (positions are always given explicitly)."""
        return 0 if self.rows is None else max(self.rows.starts)

    def get_max_length(self) -> int:
        """No limit: storage grows."""
        return -1


class SlotCache(Cache):
    """A transformers cache whose layers are `SlotLayer`.

    Args:
        num_layers: Decoder layers of the model.
    """

    def __init__(self, num_layers: int) -> None:
        self._slot_layers = [SlotLayer() for _ in range(num_layers)]
        super().__init__(layers=list(self._slot_layers))

    def reserve(self, rows: Rows) -> None:
        """Announces the rows of the next forward and makes room for them, by doubling."""
        for layer in self._slot_layers:
            layer.rows = rows
            while layer.slots <= rows.slots[-1]:
                layer.slots *= 2
            if layer.capacity < rows.length:
                layer.capacity = max(rows.length, 2 * layer.capacity, 64)

    def clear(self, slot: int) -> None:
        """Overwrites a slot with zeros, so that nothing of a failed request can reach the next one in its place."""
        for layer in self._slot_layers:
            for store in (layer.keys, layer.values):
                if store is not None and slot < store.shape[0]:
                    store[slot].zero_()
