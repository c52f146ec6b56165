"""Some hundreds of random bodies for a server; `fuzz_server.py` sends thousands."""

from __future__ import annotations

import pytest
from fuzz_server import fuzz, fuzzed_servers


@pytest.mark.parametrize("number", [0])
def test_random_bodies(number):
    with fuzzed_servers() as urls:
        report = fuzz(urls, 480, number)
    assert not report.wrong, str(report)
    assert report.statuses.total() == 480
    assert any(status.startswith("200") for _, _, status in report.statuses)
