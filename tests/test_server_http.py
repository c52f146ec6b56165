"""Broken and oversized bodies, unknown routes and methods, old versions of HTTP, and keys."""

from __future__ import annotations

import gzip
import hashlib
import json
import time

import httpx
import pytest
from rawhttp import RawConnection, check_refused, encoded, events, head
from server_fixture import SHORT, served

from gac_core.server.catalog import Catalog
from gac_core.server.settings import ServerSettings

KEY = "sk-right"
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()
LIMIT = 64 * 1024
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"

pytestmark = pytest.mark.usefixtures("works_afterwards")


@pytest.fixture(scope="module")
def url(ensemble):
    settings = ServerSettings(max_body_bytes=LIMIT)
    with served(Catalog({"gac": ensemble}), settings) as base:
        yield base


@pytest.fixture(scope="module")
def locked(ensemble):
    with served(Catalog({"gac": ensemble}), ServerSettings(api_keys=(DIGEST,))) as base:
        yield base


# ---- bodies


BROKEN = {
    "empty": b"",
    "cut": b'{"model": "gac", "prompt": "a"',
    "no JSON": b"model=gac",
    "a list": b"[]",
    "a string": b'"gac"',
    "null": b"null",
    "not UTF-8": b'{"model": "gac", "prompt": "\xff\xfe"}',
    "UTF-16": json.dumps(SHORT).encode("utf-16"),
    "deep": b"[" * 30000,
    "deep in a field": b'{"model": "gac", "prompt": "a", "metadata": ' + b'{"a":' * 9000 + b"1" + b"}" * 9001,
    "NaN": b'{"model": "gac", "prompt": "a", "temperature": NaN}',
    "Infinity": b'{"model": "gac", "prompt": "a", "top_p": Infinity}',
    "a huge number": b'{"model": "gac", "prompt": "a", "max_tokens": 1' + b"0" * 5000 + b"}",
    "a huge exponent": b'{"model": "gac", "prompt": "a", "temperature": 1e999}',
    "a long fraction": b'{"model": "gac", "prompt": "a", "temperature": 0.' + b"1" * 2000 + b"}",
    "a number as text": b'{"model": "gac", "prompt": "a", "max_tokens": "4"}',
    "a fraction": b'{"model": "gac", "prompt": "a", "max_tokens": 4.5}',
    "true as a number": b'{"model": "gac", "prompt": "a", "max_tokens": true}',
    "a lone surrogate": b'{"model": "gac", "prompt": "\\ud800"}',
    "no prompt": b'{"model": "gac"}',
    "two models": b'{"model": "gac", "model": "nope", "prompt": "a", "max_tokens": 1}',
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_bodies(url, name):
    response = httpx.post(url + TEXT, content=BROKEN[name], headers={"content-type": "application/json"}, timeout=10)
    check_refused(response, 404 if name == "two models" else 400)


def test_objects_with_very_many_keys(ensemble):
    body = {**SHORT, "metadata": {str(place): 0 for place in range(20_000)}}
    with served(Catalog({"gac": ensemble}), ServerSettings()) as base:
        error = check_refused(httpx.post(base + TEXT, json=body, timeout=10), 400)
    assert "20000 keys" in error["message"]


def test_gzip_is_claimed(url):
    content = gzip.compress(json.dumps(SHORT).encode())
    headers = {"content-type": "application/json", "content-encoding": "gzip"}
    response = httpx.post(url + TEXT, content=content, headers=headers, timeout=10)
    assert response.status_code in (400, 415)
    check_refused(response, response.status_code)


def test_a_zero_byte_and_other_characters_are_text(url):
    for prompt in ("\x00", "a\x00b", "\u202e\ufeff", "\U0001f468\u200d\U0001f469", "e\u0301" * 50, "\x1b[31m"):
        response = httpx.post(url + TEXT, json={**SHORT, "prompt": prompt}, timeout=10)
        assert response.status_code == 200, response.text


def test_oversized_bodies(url):
    large = {**SHORT, "prompt": "x" * LIMIT}
    with RawConnection(url) as raw:
        # Refused by its length, before the body is sent.
        raw.send(head("POST", TEXT, large))
        check_refused(raw.response(), 413)
    with RawConnection(url) as raw:
        raw.send(head("POST", TEXT, transfer_encoding="chunked"))
        part = b"1000\r\n" + b"x" * 0x1000 + b"\r\n"
        try:
            for _ in range(LIMIT // 0x1000 + 1):
                raw.send(part)
        except ConnectionError:
            pass
        check_refused(raw.response(), 413)


def test_a_chunked_body_and_one_that_comes_byte_by_byte(url, short_text):
    body = encoded(SHORT)
    with RawConnection(url) as raw:
        raw.send(head("POST", TEXT, transfer_encoding="chunked"))
        for place in range(0, len(body), 7):
            part = body[place : place + 7]
            raw.send(b"%x\r\n%s\r\n" % (len(part), part))
        raw.send(b"0\r\n\r\n")
        assert raw.response().json()["choices"][0]["text"] == short_text
        for byte in head("POST", TEXT, body) + body:
            raw.send(bytes([byte]))
            time.sleep(0.001)
        assert raw.response().json()["choices"][0]["text"] == short_text


def test_a_body_that_takes_too_long(ensemble):
    with served(Catalog({"gac": ensemble}), ServerSettings(body_timeout=0.3)) as base, RawConnection(base) as raw:
        raw.send(head("POST", TEXT, SHORT) + encoded(SHORT)[:9])
        check_refused(raw.response(), 408)
        assert raw.ended()


def test_a_body_that_never_comes_harms_no_one(url, short_text):
    silent = [RawConnection(url) for _ in range(50)]
    for raw in silent:
        raw.send(head("POST", TEXT, SHORT)[: -2 if raw is silent[0] else None])
    answer = httpx.post(url + TEXT, json=SHORT, timeout=10)
    assert answer.json()["choices"][0]["text"] == short_text
    for raw in silent:
        raw.close()


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET / HTTP/9.9\r\n\r\n",
        b"nonsense\r\n\r\n",
        head("POST", TEXT, content_length="-1"),
        head("POST", TEXT, content_length="many"),
        head("POST", TEXT, transfer_encoding="chunked") + b"zz\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 50_000 + b"\r\n",
    ],
)
def test_what_is_not_http(url, data):
    with RawConnection(url) as raw:
        try:
            raw.send(data)
            status = raw.line().split()[1:2]
        except ConnectionError:
            status = []
        assert status in ([], [b"400"], [b"404"], [b"413"], [b"414"], [b"431"])


# ---- routes, methods, versions


def test_routes_and_methods_that_are_not_there(url):
    for method, path, status in [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/nope", 404),
        ("POST", "/v1/embeddings", 404),
        ("GET", CHAT, 405),
        ("DELETE", "/v1/models/gac", 405),
        ("PUT", TEXT, 405),
        ("OPTIONS", CHAT, 405),
        ("TRACE", CHAT, 405),
        ("GET", "/v1/models/%2e%2e%2f%00", 404),
        ("GET", "/v1/models/" + "a" * 5000, 404),
    ]:
        response = httpx.request(method, url + path, timeout=10)
        assert response.status_code == status, (method, path)
        check_refused(response, status)
        if status == 405:
            assert response.headers["allow"]
    for path in ("/nope", CHAT):
        response = httpx.head(url + path)
        assert response.status_code in (404, 405)
        assert response.headers["x-request-id"]
        assert response.content == b""


def test_keep_alive_and_pipelined_requests(url, short_text):
    with RawConnection(url) as raw:
        raw.send((head("POST", TEXT, SHORT) + encoded(SHORT)) * 3)
        for _ in range(3):
            assert raw.response().json()["choices"][0]["text"] == short_text
        raw.post(TEXT, b"{")
        check_refused(raw.response(), 400)
        raw.post(TEXT, {**SHORT, "stream": True})
        assert events(raw.response().content)[-1] == "[DONE]"
        raw.post(TEXT, SHORT)
        assert raw.response().json()["choices"][0]["text"] == short_text


def test_http_1_0(url, short_text):
    with RawConnection(url) as raw:
        raw.send(head("POST", TEXT, SHORT, version="HTTP/1.0") + encoded(SHORT))
        assert raw.response().json()["choices"][0]["text"] == short_text
        assert raw.ended()
    with RawConnection(url) as raw:
        body = {**SHORT, "stream": True}
        raw.send(head("POST", TEXT, body, version="HTTP/1.0") + encoded(body))
        assert events(raw.response().content)[-1] == "[DONE]"


def test_request_ids_are_kept_or_made(url):
    for given, kept in [("mine", True), ("a" * 128, True), ("a" * 129, False), ("é".encode(), False)]:
        response = httpx.get(url + "/v1/models", headers={"x-request-id": given})
        own = response.headers["x-request-id"]
        assert own
        assert (own == given) is kept


# ---- keys


def test_keys_in_all_forms(locked):
    wrong = ("", "Bearer", "Bearer ", f"Basic {KEY}", f"Bearer {KEY}x", f"Bearer {KEY[:-1]}", KEY, "Bearer \x80")
    with RawConnection(locked) as raw:
        for headers in ({}, *({"authorization": value} for value in wrong)):
            for method, path in [("GET", "/v1/models"), ("POST", CHAT), ("POST", "/tokenize"), ("GET", "/v1/nope")]:
                raw.send(head(method, path, **headers))
                error = check_refused(raw.response(method), 401)
                assert error["code"] == "invalid_api_key"
    assert httpx.get(f"{locked}/v1/models?api_key={KEY}").status_code == 401
    for scheme in ("Bearer", "bearer"):
        assert httpx.get(f"{locked}/v1/models", headers={"authorization": f"{scheme} {KEY}"}).status_code == 200
    for path in ("/health", "/ready", "/metrics"):
        assert httpx.get(locked + path).status_code == 200
    # Without a key nothing is learnt about a body, however large.
    with RawConnection(locked) as raw:
        raw.send(head("POST", TEXT, content_length=str(2**40)))
        check_refused(raw.response(), 401)
