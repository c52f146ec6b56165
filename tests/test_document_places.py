"""A prompt has room for a document at a place that no text of users contains."""

from __future__ import annotations

import pytest

from gac_core import free_place


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("Where is it?", "{document}"),
        ("What does {document} mean?", "{document-1}"),
        ("{document} {document-1} {document-2}", "{document-3}"),
        ("{document-1}", "{document}"),
    ],
)
def test_the_place_is_not_in_the_text(text, place):
    assert free_place(text) == place
    assert f"{text}{place}{text}".count(place) == 1
