"""A hundred random bodies for a server; `fuzz_server.py` sends thousands."""

from __future__ import annotations

import httpx
import pytest
from fuzz_server import fuzz, fuzzed_servers
from mutations import TOOL, USER
from twins import CHAT, difference


@pytest.fixture(scope="module")
def urls():
    with fuzzed_servers() as both:
        yield both


def test_random_bodies(urls):
    report = fuzz(urls, 80)
    assert not report.wrong, str(report)
    assert report.statuses.total() >= 100
    assert any(status.startswith("200") for _, _, status in report.statuses)


def test_a_call_that_is_cut_after_a_space_is_streamed_once(urls):
    choice = {"type": "function", "function": {"name": "get_weather"}}
    body = {"model": "gac/birch", "messages": [USER], "tools": [TOOL], "tool_choice": choice, "seed": 3}
    with httpx.Client(base_url=urls[1], timeout=30) as client:
        assert difference(client, CHAT, {**body, "max_tokens": 60}) == (200, "")
