"""A KV cache of slots: each row of a batch reads and writes its own slot at its own positions.

A slot holds the keys and values of one request. Rows of a batch may have different lengths and start at different
positions; truncating a request means starting at a smaller position.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin

from gac_core.model.transfer import to_device


@dataclass(frozen=True)
class SlotMapping:
    """Where the rows of one forward are written and read.

    Attributes:
        slots: The slot index of each row, ascending.
        starts: The position of each row's first new token.
        width: New tokens per row; short rows are padded on the right.
        length: Positions that attention reads: the largest ``start + width``.
    """

    slots: tuple[int, ...]
    starts: tuple[int, ...]
    width: int
    length: int
    _on_device: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def contiguous(self) -> bool:
        """Whether the slots are adjacent, so that they can be read without a copy."""
        return self.slots[-1] - self.slots[0] + 1 == len(self.slots)

    @property
    def first(self) -> int:
        """The position of the first new token; the largest one if rows differ."""
        return max(self.starts)

    def write(self, store: Tensor, new: Tensor) -> None:
        """Writes new states, ``[rows, kv_heads, width, head_dim]``, into a store."""
        if len(set(self.starts)) == 1 and self.contiguous:
            start = self.starts[0]
            store[self.slots[0] : self.slots[-1] + 1, :, start : start + self.width] = new
        else:
            slots, starts = self._tensors(new.device)
            positions = starts[:, None] + torch.arange(self.width, device=new.device)
            store[slots[:, None], :, positions] = new.transpose(1, 2)

    def read(self, store: Tensor) -> Tensor:
        """Returns the states that attention reads, ``[rows, kv_heads, length, head_dim]``."""
        if self.contiguous:
            return store[self.slots[0] : self.slots[-1] + 1, :, : self.length]
        return store[:, :, : self.length].index_select(0, self._tensors(store.device)[0])

    def _tensors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slots and starts on a device; copied once for all layers there."""
        if device not in self._on_device:
            slots, starts = to_device([*self.slots, *self.starts], device).view(2, -1)
            self._on_device[device] = slots, starts
        return self._on_device[device]


@dataclass(frozen=True)
class StaticSlotMapping:
    """The mapping of a compiled forward: row i is slot i, and its shapes do not change from step to step.

    Attributes:
        slots: The slot indices, shape ``[rows, 1]``.
        positions: Where each token is written, shape ``[rows, width]``; padding goes to a position that is never read.
        length: Positions that attention reads.
    """

    slots: Tensor
    positions: Tensor
    length: int

    # Position ids are passed explicitly, so that transformers derives nothing from it.
    first = 0

    def write(self, store: Tensor, new: Tensor) -> None:
        """Writes new states, ``[rows, kv_heads, width, head_dim]``, into a store."""
        store[self.slots, :, self.positions] = new.transpose(1, 2)

    def read(self, store: Tensor) -> Tensor:
        """Returns the states that attention reads, ``[rows, kv_heads, length, head_dim]``."""
        return store[: self.slots.shape[0], :, : self.length]


def resized(store: Tensor, num_slots: int, capacity: int, lengths: Sequence[int]) -> Tensor:
    """Returns a store of another size.

    Args:
        store: Shape ``[slots, kv_heads, capacity, head_dim]``.
        num_slots: Slots of the new one.
        capacity: Positions of the new one.
        lengths: Positions of each slot that are kept; the rest is 0.
    """
    # Zeros instead of uninitialised memory: a masked NaN would still spoil the weighted sum of attention.
    new = _zeros((num_slots, store.shape[1], capacity, store.shape[3]), store)
    kept = [min(length, capacity) for length in lengths[:num_slots]]
    if store.device.type == "cpu":
        # Slot by slot: a slot as large as the longest text is mostly empty.
        for slot, length in enumerate(kept):
            new[slot, :, :length] = store[slot, :, :length]
    elif kept:
        new[: len(kept), :, : max(kept)] = store[: len(kept), :, : max(kept)]
    return new


def _zeros(shape: tuple[int, ...], like: Tensor) -> Tensor:
    """Returns zeros of a store's dtype on its device."""
    size = math.prod(shape) * like.element_size()
    if like.device.type != "cpu" or not size:
        return like.new_zeros(shape)
    # NumPy takes large memory that is zero already, so that only what is written to is ever touched.
    return torch.from_numpy(np.zeros(size, np.uint8)).view(like.dtype).view(shape)


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one decoder layer, each of shape ``[slots, kv_heads, capacity, head_dim]``."""

    is_croppable = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.mapping: SlotMapping | StaticSlotMapping | None = None
        self.num_slots = 0
        self.capacity = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocates the storage for states of shape ``[rows, kv_heads, width, head_dim]``."""
        self.keys = resized(key_states[:0, :, :0], self.num_slots, self.capacity, ())
        self.values = resized(value_states[:0, :, :0], self.num_slots, self.capacity, ())
        self.is_initialized = True

    def resize(self, num_slots: int, capacity: int, lengths: Sequence[int]) -> None:
        """Resizes the storage.

        Args:
            num_slots: Slots.
            capacity: Positions of each.
            lengths: How many positions of each slot so far are kept, as far as they lie within the new size.
        """
        if (num_slots, capacity) == (self.num_slots, self.capacity):
            return
        if self.is_initialized:
            assert self.keys is not None
            assert self.values is not None
            # Both or neither: if memory for one is lacking, nothing changes.
            keys, values = (resized(store, num_slots, capacity, lengths) for store in (self.keys, self.values))
            self.keys, self.values = keys, values
        self.num_slots, self.capacity = num_slots, capacity

    def stores(self) -> list[Tensor]:
        """The keys and the values; empty before the first forward."""
        return [store for store in (self.keys, self.values) if store is not None]

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Writes the new states and returns those that attention reads, ``[rows, kv_heads, length, head_dim]``."""
        assert self.mapping is not None, "the mapping is set before the forward"
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None
        assert self.values is not None
        self.mapping.write(self.keys, key_states)
        self.mapping.write(self.values, value_states)
        return self.mapping.read(self.keys), self.mapping.read(self.values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Returns the length and offset of what attention reads."""
        return (query_length if self.mapping is None else self.mapping.length), 0

    def get_seq_length(self) -> int:
        """Returns the position of the first new token; position ids are passed explicitly, so that it has no effect."""
        return 0 if self.mapping is None else self.mapping.first

    def get_max_length(self) -> int:
        """Returns -1: the storage grows without a limit."""
        return -1


class SlotCache(Cache):
    """A transformers cache whose layers are `SlotLayer`.

    Args:
        num_layers: Decoder layers of the model.
        multiple: The capacity is a multiple of this.
        padding: Positions at the end of the capacity that no request uses.
    """

    def __init__(self, num_layers: int, multiple: int = 1, padding: int = 0) -> None:
        self._multiple = multiple
        self._padding = padding
        self._slot_layers = [SlotLayer() for _ in range(num_layers)]
        # Positions of each slot that were written and may be read again.
        self._lengths: list[int] = []
        super().__init__(layers=list(self._slot_layers))

    def set_mapping(self, mapping: SlotMapping | StaticSlotMapping) -> None:
        """Sets where the next forward writes and reads; `reserve` has made room for it."""
        for layer in self._slot_layers:
            layer.mapping = mapping
        if isinstance(mapping, StaticSlotMapping):
            self._lengths = [self.shape[1]] * self.shape[0]
            return
        for slot, start in zip(mapping.slots, mapping.starts, strict=True):
            self._lengths[slot] = max(start + mapping.width, self._lengths[slot] if start else 0)

    def reserve(self, num_slots: int, length: int) -> None:
        """Grows the storage to at least ``num_slots`` slots of ``length`` positions, the capacity by doubling."""
        self._resize(max(num_slots, self.shape[0]), self.capacity_for(length))

    def _resize(self, num_slots: int, capacity: int) -> None:
        for layer in self._slot_layers:
            layer.resize(num_slots, capacity, self._lengths)
        kept = [min(length, capacity) for length in self._lengths[:num_slots]]
        self._lengths = kept + [0] * (num_slots - len(kept))

    def capacity_for(self, length: int) -> int:
        """Returns the capacity of the storage after `reserve` for this length."""
        capacity, needed = self._slot_layers[0].capacity, length + self._padding
        return capacity if capacity >= needed else self._rounded(max(needed, 2 * capacity, 64))

    def _rounded(self, capacity: int) -> int:
        return -(-capacity // self._multiple) * self._multiple

    def shrink(self, num_slots: int, length: int) -> None:
        """Frees all but the first ``num_slots`` slots, and most of a capacity that is far above ``length``."""
        slots, capacity = self.shape
        if capacity > max(4 * length, 256):
            capacity = self._rounded(max(2 * length, 64))
        self._resize(min(num_slots, slots), capacity)

    @property
    def shape(self) -> tuple[int, int]:
        """Number of slots and capacity."""
        return self._slot_layers[0].num_slots, self._slot_layers[0].capacity

    def stores(self) -> list[Tensor]:
        """Keys and values of all layers; empty before the first forward."""
        return [store for layer in self._slot_layers for store in layer.stores()]

    @property
    def position_bytes(self) -> int:
        """Bytes of one position of one slot in all layers; 0 before the first forward."""
        return sum(store.shape[1] * store.shape[3] * store.element_size() for store in self.stores())

    @property
    def nbytes(self) -> int:
        """Bytes of the storage: slots times capacity times `position_bytes`."""
        return sum(store.nbytes for store in self.stores())

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` positions of one slot to another."""
        for store in self.stores():
            store[target, :, :length] = store[source, :, :length]
        self._lengths[target] = length

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchanges the first ``length`` positions of two slots; changes nothing if memory for that is lacking."""
        buffers = {kind: torch.empty_like(group[0][one, :, :length]) for kind, group in self._kinds().items()}
        for store in self.stores():
            saved = buffers[_slot_kind(store)].copy_(store[one, :, :length])
            store[one, :, :length] = store[other, :, :length]
            store[other, :, :length] = saved
        self._lengths[one], self._lengths[other] = self._lengths[other], self._lengths[one]

    def save(self, slot: int, length: int) -> tuple[Tensor, ...]:
        """Returns copies of the first ``length`` positions of a slot.

        Returns:
            By kind of store, in the order of the first of each kind: ``[stores, kv_heads, length, head_dim]``.
        """
        return tuple(torch.stack([store[slot, :, :length] for store in group]) for group in self._kinds().values())

    def restore(self, states: tuple[Tensor, ...], slot: int, length: int) -> None:
        """Writes the first ``length`` positions of what `save` returned to a slot."""
        for group, saved in zip(self._kinds().values(), states, strict=True):
            for store, own in zip(group, saved, strict=True):
                store[slot, :, :length] = own[:, :length]
        self._lengths[slot] = length

    def _kinds(self) -> dict[tuple[Any, ...], list[Tensor]]:
        kinds: dict[tuple[Any, ...], list[Tensor]] = {}
        for store in self.stores():
            kinds.setdefault(_slot_kind(store), []).append(store)
        return kinds

    def clear(self, slot: int) -> None:
        """Overwrites a slot with zeros, so that no state of a failed request reaches the next one in its place."""
        for store in self.stores():
            if slot < store.shape[0]:
                store[slot].zero_()


def _slot_kind(store: Tensor) -> tuple[Any, ...]:
    """What determines the size and place of a slot: stores that agree in it can share a buffer."""
    return store.device, store.dtype, store.shape[1], store.shape[3]
