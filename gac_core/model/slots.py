"""Which slot of a member's cache holds whose tokens, and what a new text can take over from an earlier one.

Running requests always hold the first slots, so that a batch reads its keys and values without a copy; the slots after
them keep what finished requests have read, the least recently used of them making room first. Knows token ids and
slots; knows nothing of models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class SlotStore(Protocol):
    """The storage behind the slots. ``can_cut``: whether a text may go on from a beginning of what a slot holds."""

    can_cut: bool

    def bytes_for(self, slots: int, length: int) -> int:
        """Returns the bytes of so many slots once each can hold a text of this length."""
        ...

    def make_room(self, slots: int, length: int) -> None:
        """Makes at least so many slots, each for texts of this length or more."""
        ...

    def keep(self, slots: int, length: int) -> None:
        """Gives back the slots from this one on, and most of what no text of this length needs."""
        ...

    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the beginning of a slot over that of another."""
        ...

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchanges the beginnings of two slots."""
        ...

    def clear(self, slot: int) -> None:
        """Forgets all that a slot holds."""
        ...


class SlotTable:
    """Gives slots to requests and remembers what each slot holds.

    Args:
        store: The storage.
        limit: Bytes that the storage may take before slots of finished requests are given up. Running requests are
            never touched, so that they alone may take more. 0 keeps nothing.
        reuse: Whether a new text may take over the beginning of another one. Without it nothing is kept.
    """

    # A common beginning shorter than this is read anew; that costs no more than one token does.
    LEAST = 16
    # Finished requests kept at most.
    KEPT = 64

    def __init__(self, store: SlotStore, limit: int, reuse: bool = True) -> None:
        self._store = store
        self._reuse = reuse
        self._limit = limit
        self._busy: list[str] = []
        self._held: list[list[int]] = []
        self._used: list[int] = []
        self._clock = 0
        self._made = 0

    def slot(self, request_id: str) -> int | None:
        """Returns a request's slot, if it has one."""
        return self._busy.index(request_id) if request_id in self._busy else None

    def held(self, slot: int) -> list[int]:
        """Returns the ids whose keys and values a slot holds; to be changed in place as the slot is."""
        return self._held[slot]

    @property
    def busy(self) -> int:
        """How many requests have a slot."""
        return len(self._busy)

    @property
    def kept(self) -> int:
        """How many slots hold texts of finished requests."""
        return len(self._held) - len(self._busy)

    def claim(self, request_id: str, ids: Sequence[int]) -> int:
        """Gives a request a slot, which may hold the beginning of its text already.

        The slot of a finished request is taken over where its text is mostly the same; a shorter common beginning, and
        one with a running request, is copied.

        Args:
            request_id: The request.
            ids: The first ids of its text.
        """
        if not self._busy:
            # One long text made every slot as large; as long as nobody runs that can be undone.
            self._store.keep(self._made, self._longest(len(ids)))
        target = len(self._busy)
        source, length = self._best(ids)
        mostly = source is not None and (2 * length >= len(self._held[source]) or not self._store.can_cut)
        if source is not None and source >= target and mostly:
            self._swap(source, target)
        else:
            source = self._empty(target, source)
            if source is not None and source != target:
                self._store.copy(source, target, length)
                self._held[target] = self._held[source][:length]
        self._busy.append(request_id)
        return target

    def release(self, request_id: str, clear: bool = False) -> None:
        """Takes a request's slot away; its text is kept for others unless ``clear``."""
        slot = self.slot(request_id)
        if slot is None:
            return
        if clear:
            self._store.clear(slot)
        if clear or not self._reuse:
            self._held[slot] = []
        last = len(self._busy) - 1
        self._swap(slot, last)
        self._busy[slot] = self._busy[last]
        self._busy.pop()
        self._clock += 1
        self._used[last] = self._clock if self._held[last] else 0
        self.fit(0)

    def fit(self, length: int) -> None:
        """Gives up slots of finished requests as far as texts of a length need the room."""
        before = len(self._held)
        while self.kept and (self.kept > self.KEPT or self._store.bytes_for(len(self._held), length) > self._limit):
            self._swap(self._oldest(), len(self._held) - 1)
            self._held.pop()
            self._used.pop()
        if len(self._held) < before and self._store.bytes_for(self._made, length) > self._limit:
            self._made = len(self._held)
            self._store.keep(self._made, self._longest(length))

    # ---- within

    def _best(self, ids: Sequence[int]) -> tuple[int | None, int]:
        """The slot with the longest common beginning, and its length; none where that is not worth it."""
        best, length = None, self.LEAST - 1
        for slot, held in enumerate(self._held if self._reuse else ()):
            common = common_beginning(held, ids)
            if not self._store.can_cut and (slot < len(self._busy) or common < len(held)):
                continue
            # Among equals a finished one, which can be taken over.
            if common > length or (common == length and best is not None):
                best, length = slot, common
        return best, length

    def _empty(self, target: int, source: int | None) -> int | None:
        """Makes an empty slot of ``target``, the first after the busy ones; returns where ``source`` then is."""
        count = len(self._held)
        kept = [slot for slot in range(target, count) if slot != source]
        victim = min(kept, key=lambda slot: self._used[slot], default=None)
        full = count - target >= self.KEPT or self._store.bytes_for(count + 1, self._longest(0)) > self._limit
        if victim is not None and (full or not self._held[victim]):
            self._held[victim] = []
        elif source is not None and source >= target and full:
            victim = source
        else:
            self._add()
            victim = count
        self._swap(victim, target)
        return target if source == victim else victim if source == target else source

    def _add(self) -> None:
        count = len(self._held) + 1
        if count > self._made:
            more = count + count // 2
            made = more if self._store.bytes_for(more, self._longest(0)) <= self._limit else count
            self._store.make_room(made, 0)
            self._made = made
        self._held.append([])
        self._used.append(0)

    def _swap(self, one: int, other: int) -> None:
        if one == other:
            return
        length = max(len(self._held[one]), len(self._held[other]))
        if length:
            self._store.swap(one, other, length)
        self._held[one], self._held[other] = self._held[other], self._held[one]
        self._used[one], self._used[other] = self._used[other], self._used[one]

    def _oldest(self) -> int:
        return min(range(len(self._busy), len(self._held)), key=lambda slot: self._used[slot])

    def _longest(self, least: int) -> int:
        return max([least, *(len(held) for held in self._held)])


def common_beginning(one: Sequence[int], other: Sequence[int]) -> int:
    """Returns how many ids two texts have in common from their first on."""
    low, high = 0, min(len(one), len(other))
    if list(one[:high]) == list(other[:high]):
        return high
    # Slices compare in C, so halving beats walking.
    while high - low > 1:
        middle = (low + high) // 2
        if list(one[low:middle]) == list(other[low:middle]):
            low = middle
        else:
            high = middle
    return low
