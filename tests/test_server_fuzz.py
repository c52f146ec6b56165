"""Two hundred random bodies for a server; `fuzz_server.py` sends thousands."""

from __future__ import annotations

from fuzz_server import fuzz, fuzzed_servers


def test_random_bodies():
    with fuzzed_servers() as urls:
        report = fuzz(urls, 160)
    assert not report.wrong, str(report)
    assert report.statuses.total() >= 200
    assert any(status.startswith("200") for _, _, status in report.statuses)
