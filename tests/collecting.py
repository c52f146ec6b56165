"""Garbage collection while tests are collected, and afterwards."""

from __future__ import annotations

import gc

import pytest


def pytest_collection(session: pytest.Session) -> None:
    """Imports leave a million objects; searching them for garbage again and again takes seconds."""
    # The process that only distributes tests, with xdist, collects none.
    if not session.config.pluginmanager.hasplugin("dsession"):
        gc.disable()


def pytest_collection_finish(session: pytest.Session) -> None:
    """What was imported is never searched again, although several tests ask for a collection."""
    gc.collect()
    gc.freeze()
    gc.enable()
