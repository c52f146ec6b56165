"""A KV cache of slots: each row of a batch reads and writes its own slot at its own positions.

A slot is the place of one request's keys and values. Rows of a batch may be of different lengths and start at different
positions; cutting a text back is only a smaller start. Knows nothing of requests, tokens or masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


def on_device(numbers: Sequence[int] | Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Returns whole numbers as int64 on a device, without waiting for what the device has to do before."""
    return torch.tensor(numbers, dtype=torch.long).to(device, non_blocking=True)


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
        self.slots = 0
        self.capacity = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Sets up storage for states of shape ``[rows, kv_heads, width, head_dim]``."""
        self.keys = self._sized(key_states[:0, :, :0])
        self.values = self._sized(value_states[:0, :, :0])
        self.is_initialized = True

    def resize(self, slots: int, capacity: int) -> None:
        """Gives the storage this many slots and positions; what lies within both sizes stays."""
        if (slots, capacity) == (self.slots, self.capacity):
            return
        self.slots, self.capacity = slots, capacity
        if self.is_initialized:
            assert self.keys is not None
            assert self.values is not None
            self.keys = self._sized(self.keys)
            self.values = self._sized(self.values)

    def _sized(self, store: Tensor) -> Tensor:
        # Zeros, not garbage: a masked NaN would still poison the weighted sum of attention.
        sized = store.new_zeros((self.slots, store.shape[1], self.capacity, store.shape[3]))
        slots, capacity = min(self.slots, store.shape[0]), min(self.capacity, store.shape[2])
        sized[:slots, :, :capacity] = store[:slots, :, :capacity]
        return sized

    def stores(self) -> list[Tensor]:
        """The keys and the values; none before the first forward."""
        return [store for store in (self.keys, self.values) if store is not None]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the new states and returns those that attention reads, ``[rows, kv_heads, length, head_dim]``."""
        assert self.rows is not None, "reserve() comes before the forward"
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self._write(self.keys, key_states)
        self._write(self.values, value_states)
        return self._read(self.keys), self._read(self.values)

    def _write(self, store: Tensor, new: Tensor) -> None:
        assert self.rows is not None
        rows = self.rows
        if len(set(rows.starts)) == 1 and rows.contiguous:
            start = rows.starts[0]
            store[rows.slots[0] : rows.slots[-1] + 1, :, start : start + rows.width] = new
        else:
            slots = on_device(rows.slots, new.device)[:, None]
            positions = on_device(rows.starts, new.device)[:, None] + torch.arange(rows.width, device=new.device)
            store[slots, :, positions] = new.transpose(1, 2)

    def _read(self, store: Tensor) -> Tensor:
        assert self.rows is not None
        rows = self.rows
        if rows.contiguous:
            return store[rows.slots[0] : rows.slots[-1] + 1, :, : rows.length]
        return store[:, :, : rows.length].index_select(0, on_device(rows.slots, store.device))

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
        """Announces the rows of the next forward and makes room for them, capacity by doubling."""
        for layer in self._slot_layers:
            layer.rows = rows
        self.make_room(rows.slots[-1] + 1, rows.length)

    def make_room(self, slots: int, length: int) -> None:
        """Makes storage large enough for so many slots, and for texts of this length in each."""
        for layer in self._slot_layers:
            fits = layer.capacity >= length
            layer.resize(max(slots, layer.slots), layer.capacity if fits else self.capacity_for(length))

    def capacity_for(self, length: int) -> int:
        """Returns the capacity that texts of this length make the storage have."""
        have = self._slot_layers[0].capacity
        return have if have >= length else max(length, 2 * have, 64)

    def keep(self, slots: int, length: int) -> None:
        """Gives back the slots from this one on, and most of a capacity that is far above a length."""
        for layer in self._slot_layers:
            capacity = layer.capacity if layer.capacity <= max(4 * length, 256) else max(2 * length, 64)
            layer.resize(min(slots, layer.slots), capacity)

    @property
    def position_bytes(self) -> int:
        """Bytes that one position of one slot takes in all layers; 0 before the first forward."""
        return sum(store.shape[1] * store.shape[3] * store.element_size() for store in self._all())

    @property
    def nbytes(self) -> int:
        """Bytes of the storage: slots times capacity times `position_bytes`."""
        return sum(store.nbytes for store in self._all())

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first positions of a slot over those of another."""
        for store in self._all():
            store[target, :, :length] = store[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchanges the first positions of two slots."""
        for store in self._all():
            held = store[one, :, :length].clone()
            store[one, :, :length] = store[other, :, :length]
            store[other, :, :length] = held

    def clear(self, slot: int) -> None:
        """Overwrites a slot with zeros, so that nothing of a failed request can reach the next one in its place."""
        for store in self._all():
            if slot < store.shape[0]:
                store[slot].zero_()

    def _all(self) -> list[Tensor]:
        return [store for layer in self._slot_layers for store in layer.stores()]
