"""A few seconds of the soak run of the server."""

from __future__ import annotations

from conftest import EMBEDDED, shared_ensemble
from soak_server import Asked, run
from soak_server_jobs import KINDS


def test_many_clients_of_which_some_leave():
    with shared_ensemble(EMBEDDED, max_queue=8) as ensemble:
        report = run(ensemble, Asked(4.0, clients=40), count=1)
    assert report.wrong == []
    assert report.left_over == {}
    assert {*KINDS, "text"} >= set(report.answered)
    assert sum(report.answered.values()) > 5
    assert report.left > 0
    # 24 places for 40 clients.
    assert 0 < report.refused <= report.statuses[429]
    assert report.statuses[499] > 0
