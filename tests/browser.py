"""Chromium for tests of pages: without a network, with or without scripts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ARGUMENTS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
WIDE, PHONE = (1360, 900), (390, 844)


def chromium_path() -> str | None:
    """The browser: ``GAC_CHROMIUM``, or one on the path."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("GAC_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def chromium() -> Iterator:
    """A running browser; skips the test where there is none."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = chromium_path()
    if path is None:
        pytest.skip("no Chromium here: set GAC_CHROMIUM to its path")
    with api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        try:
            yield running
        finally:
            running.close()


@contextmanager
def opened(browser, path: Path, size: tuple[int, int] = WIDE, scripts: bool = True, scheme: str = "light") -> Iterator:
    """A page without a network. It must request nothing but itself, and write nothing to the console."""
    context = browser.new_context(
        viewport=dict(zip(("width", "height"), size, strict=True)),
        java_script_enabled=scripts,
        color_scheme=scheme,
        offline=True,
    )
    try:
        page = context.new_page()
        page.set_default_timeout(10_000)
        requests, messages = [], []
        page.on("request", lambda request: requests.append(request.url))
        page.on("console", lambda message: messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
        page.goto(path.as_uri())
        yield page
        assert requests == [path.as_uri()]
        assert messages == []
    finally:
        context.close()
