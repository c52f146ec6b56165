"""The route `/warm`: documents are kept, found by later requests, and unpinned; refusals name the field."""

from __future__ import annotations

import pytest
from app_client import AppClient, assert_error
from conftest import EMBEDDED, shared_ensemble
from test_server_documents import ASKED, BODY, CHAT, MESSAGES, TEXTS


@pytest.fixture
async def client(ensemble):
    async with AppClient(ensemble) as opened:
        yield opened


async def test_warm_documents_are_found_in_the_cache(client, ensemble):
    texts = ["The Marn Gate was built in 1611 by the town of Orlen.", "The Ferry of Nim has carried salt since 1702."]
    body = {"messages": MESSAGES, "documents": texts}
    report = (await client.post("/warm", json=body)).json()
    assert report["documents"] == ["1", "2"]
    assert {name: member["documents"] for name, member in report["members"].items()} == dict.fromkeys(ensemble.names, 2)
    again = (await client.post("/warm", json=body)).json()["members"]
    for name, member in report["members"].items():
        assert member["tokens"] > again[name]["tokens"]
        assert again[name]["reused_tokens"] >= member["tokens"] - 2
        assert again[name]["nbytes"] == member["nbytes"] > 0
    asked = [MESSAGES[0], {"role": "user", "content": "{document}\n\nQuestion: How old is the gate?"}]
    answer = (
        await client.post(CHAT, json={**BODY, "messages": asked, "documents": texts[::-1], "prior": False})
    ).json()
    unpinned = await client.post("/warm", json={**body, "pin": False})
    assert unpinned.status_code == 200
    least = min(member["reused_tokens"] for member in again.values())
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] >= min(least, answer["usage"]["prompt_tokens"])
    assert [record.documents for record in client.records] == [2, 2, 2, 2]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"documents": []}, "documents"),
        ({"documents": ["a", {"text": "b", "id": "1"}]}, "documents"),
        ({"documents": ["b", "a " * 3000]}, "documents[1]"),
        ({"prompt": "no place"}, "prompt"),
        ({"messages": [{"role": "user", "content": "no place"}], "prompt": None}, "messages"),
        ({"place": "<passage>"}, "prompt"),
        ({"pin": 1}, "pin"),
        ({"model": "gac/ash"}, "model"),
    ],
)
async def test_refusals_of_warm_documents_name_the_field(client, fields, param):
    given = {"prompt": ASKED, "documents": ["a"], **fields}
    response = await client.post("/warm", json={name: value for name, value in given.items() if value is not None})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


async def test_more_pinned_documents_than_the_cache_holds_are_refused():
    with shared_ensemble(EMBEDDED[:1], document_cache_gib=1e-5) as small:
        async with AppClient(small) as client:
            response = await client.post("/warm", json={"prompt": ASKED, "documents": [text * 9 for text in TEXTS]})
    assert_error(response, 400, "invalid_value")
    assert "document_cache_gib" in response.json()["error"]["message"]
