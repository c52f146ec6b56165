"""Shares loaded objects within a process, and loads models safely in forked processes."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

import torch


class Closable(Protocol):
    """An object that can be closed."""

    @property
    def closed(self) -> bool:
        """Whether it has been closed."""
        ...


T = TypeVar("T", bound=Closable)


R = TypeVar("R")
_process = os.getpid()


def fork_safe(load: Callable[[], R]) -> R:
    """Calls ``load``, in a new thread if this process was forked.

    After a fork, the remaining thread refers to OpenMP workers of the parent process, for which torch would wait
    forever. A new thread starts its own workers.
    """
    if os.getpid() == _process:
        return load()
    # The first use of torch's thread pool after a fork recreates it, which is not thread-safe.
    with ThreadPoolExecutor(1, initializer=torch.get_num_threads) as pool:
        return pool.submit(load).result()


class Shelf:
    """A table of loaded objects by key that holds weak references; empty in a forked process."""

    def __init__(self) -> None:
        self._clear()
        if hasattr(os, "register_at_fork"):
            # The engine threads of the parent's ensembles do not exist in the child, and its locks may be held.
            os.register_at_fork(after_in_child=self._clear)

    def _clear(self) -> None:
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        self._loaded: WeakValueDictionary[str, Closable] = WeakValueDictionary()

    def get(self, key: str, load: Callable[[], T]) -> T:
        """Returns the object of a key, which is loaded if no reference to it exists; concurrent calls load it once."""
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        with loading:
            found = self._loaded.get(key)
            if found is None or found.closed:
                found = load()
                self._loaded[key] = found
            return found  # type: ignore[return-value]
