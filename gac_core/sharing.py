"""One loaded ensemble for all who ask for the same settings, as long as anybody holds it.

Knows configurations as text; knows nothing of what is loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary


class Closable(Protocol):
    """What can be shared."""

    @property
    def closed(self) -> bool:
        """Whether it can be used no more."""
        ...


T = TypeVar("T", bound=Closable)


class Shelf:
    """Holds what was loaded, by its settings, without keeping it alive."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._loaded: WeakValueDictionary[str, Closable] = WeakValueDictionary()

    def get(self, key: str, load: Callable[[], T]) -> T:
        """Returns what was loaded under a key; loads it if nobody holds it, once however many ask at a time."""
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            found = self._loaded.get(key)
            if found is None or found.closed:
                found = load()
                self._loaded[key] = found
            return found  # type: ignore[return-value]
