"""A KV cache of slots: each row of a batch reads and writes its own slot at its own positions.

A slot is the place of one request's keys and values. Rows of a batch may be of different lengths and start at different
positions; cutting a text back is only a smaller start. Knows nothing of requests, tokens or masks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


def send(numbers: Sequence[int], device: torch.device) -> Tensor:
    """Returns whole numbers as a tensor on a device, int64, shape ``[n]``, without waiting for what runs there."""
    tensor = torch.tensor(numbers, dtype=torch.long)
    # From ordinary memory a GPU's copy makes this thread wait until all that was launched before is done.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


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
    _sent: dict[torch.device, tuple[Tensor, Tensor]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def contiguous(self) -> bool:
        """Whether the slots are neighbours, so that they can be read without a copy."""
        return self.slots[-1] - self.slots[0] + 1 == len(self.slots)

    @property
    def first(self) -> int:
        """Position of the first new token; the largest where rows differ."""
        return max(self.starts)

    def write(self, store: Tensor, new: Tensor) -> None:
        """Writes new states, ``[rows, kv_heads, width, head_dim]``, to their places in a store."""
        if len(set(self.starts)) == 1 and self.contiguous:
            start = self.starts[0]
            store[self.slots[0] : self.slots[-1] + 1, :, start : start + self.width] = new
        else:
            slots, starts = self._on(new.device)
            positions = starts[:, None] + torch.arange(self.width, device=new.device)
            store[slots[:, None], :, positions] = new.transpose(1, 2)

    def read(self, store: Tensor) -> Tensor:
        """Returns what attention reads of a store, ``[rows, kv_heads, length, head_dim]``."""
        if self.contiguous:
            return store[self.slots[0] : self.slots[-1] + 1, :, : self.length]
        return store[:, :, : self.length].index_select(0, self._on(store.device)[0])

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Slots and starts on a device; sent once for all layers there."""
        if device not in self._sent:
            slots, starts = send([*self.slots, *self.starts], device).view(2, -1)
            self._sent[device] = slots, starts
        return self._sent[device]


@dataclass(frozen=True)
class StaticRows:
    """Where the rows of a compiled forward lie: row i is slot i, and no number in it changes from step to step.

    Attributes:
        slots: The slots, shape ``[rows, 1]``.
        places: Where each token is written, shape ``[rows, width]``; padding goes to a place that nothing reads.
        length: Positions that attention reads.
    """

    slots: Tensor
    places: Tensor
    length: int

    # Positions are always given, so that nothing is counted from it.
    first = 0

    def write(self, store: Tensor, new: Tensor) -> None:
        """Writes new states, ``[rows, kv_heads, width, head_dim]``, to their places in a store."""
        store[self.slots, :, self.places] = new.transpose(1, 2)

    def read(self, store: Tensor) -> Tensor:
        """Returns what attention reads of a store, ``[rows, kv_heads, length, head_dim]``."""
        return store[: self.slots.shape[0], :, : self.length]


class SlotLayer(CacheLayerMixin):  # type: ignore[no-untyped-call]
    """Keys and values of one decoder layer, each of shape ``[slots, kv_heads, capacity, head_dim]``."""

    is_croppable = True

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rows: Rows | StaticRows | None = None
        self.slots = 0
        self.capacity = 0

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Sets up storage for states of shape ``[rows, kv_heads, width, head_dim]``."""
        self.keys = self._sized(key_states[:0, :, :0], self.slots, self.capacity)
        self.values = self._sized(value_states[:0, :, :0], self.slots, self.capacity)
        self.is_initialized = True

    def resize(self, slots: int, capacity: int) -> None:
        """Gives the storage this many slots and positions; what lies within both sizes stays."""
        if (slots, capacity) == (self.slots, self.capacity):
            return
        if self.is_initialized:
            assert self.keys is not None
            assert self.values is not None
            # Both or neither: where there is no memory for one, all stays as it was.
            keys, values = self._sized(self.keys, slots, capacity), self._sized(self.values, slots, capacity)
            self.keys, self.values = keys, values
        self.slots, self.capacity = slots, capacity

    @staticmethod
    def _sized(store: Tensor, slots: int, capacity: int) -> Tensor:
        # Zeros, not garbage: a masked NaN would still poison the weighted sum of attention.
        sized = store.new_zeros((slots, store.shape[1], capacity, store.shape[3]))
        slots, capacity = min(slots, store.shape[0]), min(capacity, store.shape[2])
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
        self.rows.write(self.keys, key_states)
        self.rows.write(self.values, value_states)
        return self.rows.read(self.keys), self.rows.read(self.values)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what attention reads."""
        return (query_length if self.rows is None else self.rows.length), 0

    def get_seq_length(self) -> int:
        """Position of the first new token; the largest where rows differ (positions are always given explicitly)."""
        return 0 if self.rows is None else self.rows.first

    def get_max_length(self) -> int:
        """No limit: storage grows."""
        return -1


class SlotCache(Cache):
    """A transformers cache whose layers are `SlotLayer`.

    Args:
        num_layers: Decoder layers of the model.
        step: The capacity is a multiple of this.
        spare: Positions at the end of the capacity that no text takes.
    """

    def __init__(self, num_layers: int, step: int = 1, spare: int = 0) -> None:
        self._step = step
        self._spare = spare
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
            layer.resize(max(slots, layer.slots), self.capacity_for(length))

    def capacity_for(self, length: int) -> int:
        """Returns the capacity that texts of this length make the storage have."""
        have = self._slot_layers[0].capacity
        return have if have >= length + self._spare else self._whole(max(length + self._spare, 2 * have, 64))

    def _whole(self, capacity: int) -> int:
        return -(-capacity // self._step) * self._step

    def keep(self, slots: int, length: int) -> None:
        """Gives back the slots from this one on, and most of a capacity that is far above a length."""
        for layer in self._slot_layers:
            large = layer.capacity > max(4 * length, 256)
            capacity = self._whole(max(2 * length, 64)) if large else layer.capacity
            layer.resize(min(slots, layer.slots), capacity)

    @property
    def shape(self) -> tuple[int, int]:
        """Slots and capacity."""
        return self._slot_layers[0].slots, self._slot_layers[0].capacity

    def announce(self, rows: StaticRows) -> None:
        """Announces the rows of a compiled forward; `make_room` comes before."""
        for layer in self._slot_layers:
            layer.rows = rows

    def stores(self) -> list[Tensor]:
        """Keys and values of all layers; none before the first forward."""
        return [store for layer in self._slot_layers for store in layer.stores()]

    @property
    def position_bytes(self) -> int:
        """Bytes that one position of one slot takes in all layers; 0 before the first forward."""
        return sum(store.shape[1] * store.shape[3] * store.element_size() for store in self.stores())

    @property
    def nbytes(self) -> int:
        """Bytes of the storage: slots times capacity times `position_bytes`."""
        return sum(store.nbytes for store in self.stores())

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first positions of a slot over those of another."""
        for store in self.stores():
            store[target, :, :length] = store[source, :, :length]

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchanges the first positions of two slots; where there is no memory to do so, none are exchanged."""
        kinds = {_kind(store): store for store in self.stores()}
        spare = {kind: torch.empty_like(store[one, :, :length]) for kind, store in kinds.items()}
        for store in self.stores():
            held = spare[_kind(store)].copy_(store[one, :, :length])
            store[one, :, :length] = store[other, :, :length]
            store[other, :, :length] = held

    def clear(self, slot: int) -> None:
        """Overwrites a slot with zeros, so that nothing of a failed request can reach the next one in its place."""
        for store in self.stores():
            if slot < store.shape[0]:
                store[slot].zero_()


def _kind(store: Tensor) -> tuple[Any, ...]:
    """What stores have in common whose slots fit into one another."""
    return store.device, store.dtype, store.shape[1], store.shape[3]
