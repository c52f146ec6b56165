"""`SharedTable`: values that are created once per key, counted, and closed with their last reference."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Entry(Generic[K, V]):
    """A value in a `SharedTable`.

    Attributes:
        key: Its key.
        references: How often it is acquired, including by threads that wait for its value.
        creating: Held while its value is created.
    """

    def __init__(self, key: K) -> None:
        self.key = key
        self.references = 0
        self.creating = threading.Lock()
        self.values: list[V] = []

    @property
    def value(self) -> V:
        """The value, from `SharedTable.acquire` to `SharedTable.release`."""
        (value,) = self.values
        return value


class SharedTable(Generic[K, V]):
    """Creates a value per key, once however many threads ask for it. Safe to use from many threads.

    Args:
        close: Called with a value after its last reference was released. Default: nothing.
    """

    def __init__(self, close: Callable[[V], None] = lambda value: None) -> None:
        self._close = close
        self._lock = threading.Lock()
        self._entries: dict[K, Entry[K, V]] = {}

    def acquire(self, key: K, create: Callable[[], V]) -> Entry[K, V]:
        """Returns the entry of a key; `release` gives it back.

        Threads that ask for the same key wait for the first one; if ``create`` raises there, the next one tries.

        Args:
            key: The key.
            create: Makes the value. What it raises goes to this caller alone, and nothing is kept.
        """
        with self._lock:
            entry = self._entries.setdefault(key, Entry(key))
            entry.references += 1
        try:
            with entry.creating:
                if not entry.values:
                    entry.values.append(create())
        except BaseException:
            self.release(entry)
            raise
        return entry

    def release(self, entry: Entry[K, V]) -> None:
        """Gives an entry back; the last reference closes its value."""
        with self._lock:
            entry.references -= 1
            if entry.references:
                return
            del self._entries[entry.key]
            values, entry.values = entry.values, []
        for value in values:
            self._close(value)

    def items(self) -> list[tuple[K, V, int]]:
        """Returns the keys, values and numbers of references of all values, in the order of their keys' first use."""
        with self._lock:
            return [(entry.key, entry.value, entry.references) for entry in self._entries.values() if entry.values]
