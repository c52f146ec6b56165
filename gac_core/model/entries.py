"""Entries of the KV cache: beginnings of prompts, such as documents, kept apart from the slots at their exact size.

All slots are as large as the longest text, and hold what ran last. An entry takes no more memory than its own tokens,
so that thousands of documents can be kept; `SlotTable` copies it into a slot when a prompt begins with it.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from gac_core.errors import RequestError, quote

logger = logging.getLogger(__name__)

SavedStates = tuple[Tensor, ...]
"""Keys and values of the first tokens of a slot, in the form of the store that saved them."""


class StateStore(Protocol):
    """What saves the states of slots and restores them."""

    def save(self, slot: int, length: int) -> SavedStates:
        """Returns copies of the states of a slot's first ``length`` tokens."""
        ...

    def saved_bytes(self, length: int) -> int:
        """Returns the bytes that saved states of ``length`` tokens take."""
        ...

    def restore(self, states: SavedStates, slot: int, length: int) -> None:
        """Writes the first ``length`` tokens of saved states to a slot, for which it makes room."""
        ...


@dataclass(frozen=True)
class DocumentCache:
    """What a member keeps of documents.

    Attributes:
        documents: Number of entries.
        nbytes: Their size.
        pinned_bytes: Size of those that are pinned.
    """

    documents: int = 0
    nbytes: int = 0
    pinned_bytes: int = 0


@dataclass(eq=False)
class Entry:
    """One beginning of a prompt.

    Attributes:
        cache_keys: The ids whose keys and values it holds.
        states: The keys and values.
        nbytes: Their size.
        pinned: Whether it is kept until it is unpinned.
    """

    cache_keys: tuple[int, ...]
    states: SavedStates
    nbytes: int
    pinned: bool = False


class PrefixEntries:
    """The entries of one member's KV cache. The least recently used are evicted first, pinned ones never.

    Args:
        member: Name of the member, for errors.
        store: Saves and restores states.
        max_bytes: Size of all entries at most; 0 keeps none.
    """

    def __init__(self, member: str, store: StateStore, max_bytes: int) -> None:
        self._member = member
        self._store = store
        self._max_bytes = max_bytes
        self._entries: dict[tuple[int, ...], Entry] = {}
        # The keys of all entries in lexicographic order: those that share the longest prefix are neighbours.
        self._sorted: list[tuple[int, ...]] = []
        # The keys of those that are not pinned, least recently used first.
        self._evictable: OrderedDict[tuple[int, ...], None] = OrderedDict()
        self._nbytes = 0
        self._pinned_bytes = 0

    @property
    def contents(self) -> DocumentCache:
        """Number and size of the entries."""
        return DocumentCache(len(self._entries), self._nbytes, self._pinned_bytes)

    def get(self, cache_keys: Sequence[int]) -> Entry | None:
        """Returns the entry of exactly these keys, or None."""
        return self._entries.get(tuple(cache_keys))

    def longest(self, cache_keys: Sequence[int]) -> tuple[Entry, int] | None:
        """Returns an entry with the longest common prefix and the length of that; None if no entry has one.

        Args:
            cache_keys: The keys of a prompt.
        """
        keys = tuple(cache_keys)
        place = bisect_left(self._sorted, keys)
        near = [self._entries[each] for each in self._sorted[max(0, place - 1) : place + 1]]
        found = [(entry, common_prefix_length(entry.cache_keys, keys)) for entry in near]
        best = max(found, key=lambda each: each[1], default=None)
        return best if best is not None and best[1] else None

    def use(self, entry: Entry, slot: int, length: int) -> None:
        """Copies the first ``length`` tokens of an entry into a slot; it counts as used."""
        self._store.restore(entry.states, slot, length)
        self._touch(entry)

    def keep(self, cache_keys: Sequence[int], slot: int, pinned: bool | None = None) -> Entry | None:
        """Keeps the first tokens of a slot as an entry.

        Args:
            cache_keys: Their keys.
            slot: The slot's index.
            pinned: Whether the entry is pinned. None leaves an entry that exists as it is and pins no new one.

        Returns:
            The entry; None if it is larger than what the pinned ones leave, there is no memory for it, or not all of
            its states are finite.

        Raises:
            RequestError: Pinned entries would take more than ``max_bytes``.
            Exception: The entry is to be pinned, and there is no memory for it or its states are not finite.
        """
        keys = tuple(cache_keys)
        entry = self._entries.get(keys)
        if entry is not None:
            self.renew(entry, pinned)
            return entry
        size = self._store.saved_bytes(len(keys))
        if self._pinned_bytes + size > self._max_bytes:
            if pinned:
                raise self._full(size)
            return None
        self._evict(self._max_bytes - size)
        try:
            entry = Entry(keys, _finite(self._store.save(slot, len(keys))), size)
        except Exception:
            if pinned:
                raise
            logger.warning("member %r cannot keep %d bytes of a document", self._member, size, exc_info=True)
            return None
        self._entries[keys] = entry
        self._evictable[keys] = None
        insort(self._sorted, keys)
        self._nbytes += size
        self._pin(entry, bool(pinned))
        return entry

    def renew(self, entry: Entry, pinned: bool | None) -> None:
        """Counts an entry as used; pins it, unpins it or, with None, leaves it as it is."""
        self._pin(entry, entry.pinned if pinned is None else pinned)
        self._touch(entry)

    def clear(self) -> None:
        """Drops all entries."""
        self._entries.clear()
        self._sorted.clear()
        self._evictable.clear()
        self._nbytes = self._pinned_bytes = 0

    def _touch(self, entry: Entry) -> None:
        if not entry.pinned:
            self._evictable.move_to_end(entry.cache_keys)

    def _pin(self, entry: Entry, pinned: bool) -> None:
        if pinned == entry.pinned:
            return
        entry.pinned = pinned
        self._pinned_bytes += entry.nbytes if pinned else -entry.nbytes
        if pinned:
            del self._evictable[entry.cache_keys]
        else:
            self._evictable[entry.cache_keys] = None

    def _evict(self, nbytes: int) -> None:
        """Evicts entries until all together take no more than ``nbytes``, or only pinned ones are left."""
        while self._evictable and self._nbytes > nbytes:
            keys, _ = self._evictable.popitem(last=False)
            self._nbytes -= self._entries.pop(keys).nbytes
            del self._sorted[bisect_left(self._sorted, keys)]

    def _full(self, size: int) -> RequestError:
        return RequestError(
            f"the pinned documents of member {quote(self._member)} would take {self._pinned_bytes + size} bytes, and "
            f"document_cache_gib allows {self._max_bytes}; raise document_cache_gib, or unpin documents with "
            "warm(..., pin=False)"
        )


def _finite(states: SavedStates) -> SavedStates:
    """Returns states; raises a `ValueError` if not all are finite, so that a fault does not outlast its request."""
    if not all(bool(each.isfinite().all()) for each in states):
        raise ValueError("its keys and values of the document are not finite (NaN or infinity)")
    return states


def common_prefix_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns how many leading ids two sequences share."""
    low, high = 0, min(len(one), len(other))
    if list(one[:high]) == list(other[:high]):
        return high
    # Slices compare in C, so bisection beats a loop.
    while high - low > 1:
        middle = (low + high) // 2
        if list(one[low:middle]) == list(other[low:middle]):
            low = middle
        else:
            high = middle
    return low
