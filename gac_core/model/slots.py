"""Allocation of KV cache slots to requests, with prefix caching.

Running requests occupy the first slots, so that a batch reads its keys and values without a copy. The slots behind them
keep the prefixes of finished requests until memory is needed; the least recently used is evicted first. Entries of
exact size (`PrefixEntries`) keep beginnings of prompts apart from them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from gac_core.model.chunk import Chunk
from gac_core.model.entries import Entry, PrefixEntries, StateStore, common_prefix_length

MIN_PREFIX_TOKENS = 16
"""Shorter common prefixes are recomputed, which costs no more than one token does."""

MAX_CACHED_SLOTS = 64
"""Slots of finished requests that are kept at most."""


class SlotStore(StateStore, Protocol):
    """The storage behind the slots, addressed by slot index.

    Attributes:
        supports_truncation: Whether a request may continue from a prefix of what a slot holds, instead of all of it.
    """

    supports_truncation: bool

    def bytes_for(self, num_slots: int, length: int) -> int:
        """Returns the bytes of ``num_slots`` slots of at least ``length`` tokens each."""
        ...

    def reserve(self, num_slots: int, length: int) -> None:
        """Grows the storage to at least ``num_slots`` slots of ``length`` tokens each."""
        ...

    def shrink(self, num_slots: int, length: int) -> None:
        """Frees all but the first ``num_slots`` slots, and capacity far above ``length`` tokens."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` tokens of one slot to another."""
        ...

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchanges the first ``length`` tokens of two slots."""
        ...

    def clear(self, slot: int) -> None:
        """Erases a slot."""
        ...


@dataclass(eq=False)
class Slot:
    """One slot of a KV cache.

    Attributes:
        index: Its place in the store; changes when slots are swapped.
        request_id: The running request that owns it; None while it is free or keeps a finished request's prefix.
        token_ids: The ids whose keys and values it holds; for images, negative numbers that identify them. Whoever
            writes to the store updates this list in place.
        offset: What the rotary positions of text after the images of its request differ by from its index.
        last_used: Logical time at which its last request finished; 0 for an empty slot.
    """

    index: int
    request_id: str | None = None
    token_ids: list[int] = field(default_factory=list)
    offset: int = 0
    last_used: int = 0


class SlotTable:
    """Assigns slots to requests and records which token ids each slot holds.

    Args:
        store: The storage.
        max_bytes: Size of the storage above which cached prefixes are evicted. Slots of running requests are never
            evicted, so that these alone may take more. 0 caches nothing.
        prefix_caching: Whether a request may start from the tokens of an earlier one.
        entries: Beginnings of prompts that are kept apart from the slots. Default: none.
    """

    def __init__(
        self, store: SlotStore, max_bytes: int, prefix_caching: bool = True, entries: PrefixEntries | None = None
    ) -> None:
        self._store = store
        self._entries = entries
        self._prefix_caching = prefix_caching
        self._max_bytes = max_bytes
        # Running slots first, each at its index.
        self._slots: list[Slot] = []
        self._num_running = 0
        # Slots that the store has room for.
        self._num_reserved = 0
        self._clock = 0

    @property
    def num_running(self) -> int:
        """Slots of running requests."""
        return self._num_running

    @property
    def num_cached(self) -> int:
        """Slots that are free or keep a finished request's prefix."""
        return len(self._slots) - self._num_running

    def find(self, request_id: str) -> Slot | None:
        """Returns the slot of a running request, or None."""
        running = self._slots[: self._num_running]
        return next((slot for slot in running if slot.request_id == request_id), None)

    def claim(self, request_id: str, token_ids: Sequence[int]) -> Slot:
        """Assigns a slot to a request; the slot may already hold a prefix of its tokens.

        A cached slot is taken over if it consists mostly of the common prefix. A shorter common prefix, one of a
        running request, and that of an entry, if no slot has one as long, is copied.

        Args:
            request_id: The request.
            token_ids: Its first token ids, as in `Slot`.
        """
        if not self._num_running:
            # One long request made every slot as large; that can be undone while nothing runs.
            self._store.shrink(self._num_reserved, self._longest(len(token_ids)))
        source, length = self._longest_prefix(token_ids)
        kept = None if self._entries is None else self._entries.longest(token_ids)
        if self._entries is not None and kept is not None and kept[1] > length:
            entry, length = kept
            slot = self._empty_slot(None)
            self._entries.use(entry, slot.index, length)
            slot.token_ids = list(entry.cache_keys[:length])
        elif source is not None and source.request_id is None and self._is_mostly(source, length):
            slot = source
            self._swap(slot, self._num_running)
        else:
            slot = self._empty_slot(source)
            if source is not None and source is not slot:
                self._store.copy(source.index, slot.index, length)
                slot.token_ids = source.token_ids[:length]
        slot.request_id, slot.offset = request_id, 0
        self._num_running += 1
        return slot

    def find_kept(self, chunk: Chunk) -> Entry | None:
        """Returns the entry that a chunk asks for, if the chunk asks for nothing else; None if that is not kept yet."""
        keep = chunk.keep
        if self._entries is None or keep is None or chunk.num_logits or chunk.images is not None:
            return None
        whole = chunk.start == 0 and keep.length == len(chunk.token_ids) and self.find(chunk.request_id) is None
        entry = self._entries.get(chunk.token_ids) if whole else None
        if entry is not None:
            self._entries.renew(entry, keep.pinned)
        return entry

    def keep(self, slot: Slot, length: int, pinned: bool | None) -> Entry | None:
        """Keeps the first ``length`` tokens of a slot as an entry; see `PrefixEntries.keep`. None without entries."""
        if self._entries is None:
            return None
        return self._entries.keep(slot.token_ids[:length], slot.index, pinned)

    def release(self, request_id: str, clear: bool = False) -> None:
        """Frees a request's slot; unknown requests are ignored.

        Args:
            request_id: The request.
            clear: Erase the slot instead of keeping its tokens for prefix caching. They are not kept either where an
                entry has all of them.
        """
        slot = self.find(request_id)
        if slot is None:
            return
        if clear:
            self._store.clear(slot.index)
        kept = self._entries is not None and self._entries.get(slot.token_ids) is not None
        if clear or kept or not self._prefix_caching:
            slot.token_ids = []
        self._swap(slot, self._num_running - 1)
        slot.request_id = None
        self._num_running -= 1
        self._clock += 1
        slot.last_used = self._clock if slot.token_ids else 0
        self.evict(0)

    def evict(self, length: int) -> None:
        """Evicts cached prefixes, oldest first, until slots of ``length`` tokens fit into ``max_bytes``."""
        before = len(self._slots)
        while self.num_cached and (
            self.num_cached > MAX_CACHED_SLOTS or self._store.bytes_for(len(self._slots), length) > self._max_bytes
        ):
            victim = self._least_recently_used()
            assert victim is not None
            self._swap(victim, len(self._slots) - 1)
            self._slots.pop()
        if len(self._slots) < before and self._store.bytes_for(self._num_reserved, length) > self._max_bytes:
            self._num_reserved = len(self._slots)
            self._store.shrink(self._num_reserved, self._longest(length))

    # ---- internal

    def _longest_prefix(self, token_ids: Sequence[int]) -> tuple[Slot | None, int]:
        """The slot with the longest usable common prefix, and the length of that prefix."""
        best, length = None, MIN_PREFIX_TOKENS - 1
        for slot in self._slots if self._prefix_caching else ():
            common = common_prefix_length(slot.token_ids, token_ids)
            whole = slot.request_id is None and common == len(slot.token_ids)
            if not whole and not self._store.supports_truncation:
                continue
            # Among equals a cached one, which can be taken over: these come last.
            if common > length or (common == length and best is not None):
                best, length = slot, common
        return best, length

    def _is_mostly(self, slot: Slot, length: int) -> bool:
        return 2 * length >= len(slot.token_ids) or not self._store.supports_truncation

    def _empty_slot(self, source: Slot | None) -> Slot:
        """Returns a slot behind the running ones: a new one, an evicted one, or ``source`` if there is no other."""
        victim = self._least_recently_used(source)
        full = self.num_cached >= MAX_CACHED_SLOTS or (
            self._store.bytes_for(len(self._slots) + 1, self._longest(0)) > self._max_bytes
        )
        if victim is not None and (full or not victim.token_ids):
            victim.token_ids = []
        elif source is not None and source.request_id is None and full:
            victim = source
        else:
            victim = self._new_slot()
        self._swap(victim, self._num_running)
        return victim

    def _new_slot(self) -> Slot:
        count = len(self._slots) + 1
        if count > self._num_reserved:
            more = count + count // 2
            fits = self._store.bytes_for(more, self._longest(0)) <= self._max_bytes
            self._store.reserve(more if fits else count, 0)
            self._num_reserved = more if fits else count
        self._slots.append(Slot(count - 1))
        return self._slots[-1]

    def _swap(self, slot: Slot, index: int) -> None:
        """Moves a slot to an index and the slot that is there to its place."""
        other = self._slots[index]
        if slot is other:
            return
        length = max(len(slot.token_ids), len(other.token_ids))
        if length:
            self._store.swap(slot.index, other.index, length)
        slot.index, other.index = other.index, slot.index
        self._slots[slot.index], self._slots[other.index] = slot, other

    def _least_recently_used(self, excluded: Slot | None = None) -> Slot | None:
        cached = [slot for slot in self._slots[self._num_running :] if slot is not excluded]
        return min(cached, key=lambda slot: slot.last_used, default=None)

    def _longest(self, length: int) -> int:
        return max([length, *(len(slot.token_ids) for slot in self._slots)])
