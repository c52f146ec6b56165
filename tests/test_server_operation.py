"""Keys, settings, hosts, ids, draining and CORS of the server."""

from __future__ import annotations

import functools
import hmac
import re

import pytest
from app_client import CHAT, KEYS, AppClient, assert_error

from gac_core.errors import ConfigError
from gac_core.server.access.auth import digest, read_keys
from gac_core.server.settings import ServerSettings


@pytest.fixture
def serving(ensemble):
    """Makes clients of applications with settings."""
    return functools.partial(AppClient, ensemble)


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEYS[0]}", 200),
        (f"bearer  {KEYS[1]} ", 200),
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        (f"Basic {KEYS[0]}", 401),
        (KEYS[0], 401),
        (f"Bearer {KEYS[0]}x", 401),
        (f"Bearer {KEYS[0][:-1]}", 401),
        (f"Bearer {digest(KEYS[0])}", 401),
        (b"Bearer \xff\xfe", 401),
    ],
)
async def test_requests_need_a_key(serving, header, status):
    client = serving(api_keys=tuple(map(digest, KEYS)))
    response = await client.get("/v1/models", headers={} if header is None else {"authorization": header})
    if status == 401:
        assert_error(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert response.status_code == status
    assert client.records[0].error == (None if status == 200 else "invalid_api_key")


async def test_two_authorization_headers_are_refused(serving):
    client = serving(api_keys=tuple(map(digest, KEYS)))
    headers = [("authorization", f"Bearer {KEYS[0]}"), ("authorization", "Bearer other")]
    assert (await client.get("/v1/models", headers=headers)).status_code == 401


async def test_probes_need_no_key_and_everything_else_does(serving):
    client = serving(api_keys=tuple(map(digest, KEYS)))
    for path in ("/health", "/ready"):
        assert (await client.get(path)).status_code == 200
    for path in ("/v1/models", "/openapi.json", "/docs", "/nothing", "/health/", "//health"):
        assert (await client.get(path)).status_code == 401, path
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        assert (await client.post(path, json={})).status_code == 401, path


async def test_a_key_is_compared_with_all_keys(serving, monkeypatch):
    compared = []
    inner = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or inner(a, b))
    client = serving(api_keys=tuple(map(digest, KEYS)))
    for key in KEYS:
        compared.clear()
        assert (await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200
        assert compared == [digest(each).encode() for each in KEYS]


def test_keys_come_from_a_file_and_the_environment(tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text(f"# one per line\n\n  {KEYS[0]}\n{KEYS[0]}\n")
    path.chmod(0o600)
    other = "third-key-of-the-server"
    assert read_keys(path, {}) == (digest(KEYS[0]),)
    assert read_keys(path, {"GAC_API_KEYS": f"{KEYS[1]}, {other},"}) == tuple(map(digest, (*KEYS, other)))
    assert read_keys(None, {}) == ()
    assert not caplog.records
    path.chmod(0o644)
    read_keys(path, {"GAC_API_KEYS": "short"})
    assert "other users can read" in caplog.records[0].message
    assert "fewer than 16 characters" in caplog.records[1].message
    assert "short" not in caplog.text


def test_errors_of_keys_do_not_show_them(tmp_path):
    empty, strange = tmp_path / "empty", tmp_path / "strange"
    empty.write_text("# nothing\n")
    strange.write_text("secret key\n")
    for path, message in ((empty, "has no keys"), (strange, "API key 1"), (tmp_path / "none", "No such file")):
        with pytest.raises(ConfigError, match=message) as caught:
            read_keys(path, {})
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="GAC_API_KEYS"):
        read_keys(None, {"GAC_API_KEYS": " , "})
    with pytest.raises(ConfigError, match="digest") as caught:
        ServerSettings(api_keys=("secret",))
    assert "secret" not in str(caught.value)
    assert digest(KEYS[0]) not in repr(ServerSettings(api_keys=(digest(KEYS[0]),)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"host": "0.0.0.0"}, "--allow-unauthenticated"),
        ({"host": "::"}, "can be reached from other machines"),
        ({"host": "example.org"}, "can be reached from other machines"),
        ({"host": ""}, "host"),
        ({"port": 65536}, "port"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"max_choices": 129}, "max_choices"),
        ({"request_timeout": 0}, "request_timeout"),
        ({"drain_timeout": -1}, "drain_timeout"),
        ({"temperature": float("nan")}, "temperature"),
        ({"log_level": "loud"}, "log_level"),
        ({"cors_origins": ("https://a.example/",)}, "without a path"),
        ({"cors_origins": "https://a.example"}, "cors_origins"),
        ({"cors_origins": ("a.example",)}, "cors_origins"),
        ({"otlp_endpoint": "127.0.0.1:4317"}, "otlp_endpoint"),
    ],
)
def test_settings_are_checked(values, message):
    with pytest.raises(ConfigError, match=message):
        ServerSettings(**values)


def test_other_addresses_need_keys_or_consent():
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        ServerSettings(host=host)
    ServerSettings(host="0.0.0.0", api_keys=(digest(KEYS[0]),))
    ServerSettings(host="0.0.0.0", allow_unauthenticated=True)


# ---- hosts


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("localhost", True),
        ("LocalHost:8000", True),
        ("127.0.0.1:8000", True),
        ("127.0.0.9", True),
        ("[::1]:8000", True),
        ("proxy.example:443", True),
        ("localhost.:8000", True),
        ("ported.example", True),
        ("evil.example.", False),
        ("evil.example", False),
        ("evil.example:8000", False),
        ("127.0.0.1.evil.example", False),
        ("192.0.2.1:8000", False),
        ("localhost@evil.example", False),
        ("[::1", False),
        ("", False),
    ],
)
async def test_pages_cannot_give_their_name_to_this_machine(serving, host, allowed):
    client = serving(allowed_hosts=("proxy.example", "Ported.example:443"))
    for path in ("/v1/models", "/metrics", "/health"):
        response = await client.get(path, headers={"host": host})
        if allowed:
            assert response.status_code == 200, path
        else:
            assert_error(response, 403, "host_not_allowed")


async def test_hosts_are_not_checked_where_keys_or_other_addresses_are(serving):
    given = {"host": "gac.example", "authorization": f"Bearer {KEYS[0]}"}
    for settings in (
        {"api_keys": (digest(KEYS[0]),)},
        {"host": "0.0.0.0", "allow_unauthenticated": True},
        {"allowed_hosts": ("*",)},
    ):
        assert (await serving(**settings).get("/v1/models", headers=given)).status_code == 200
    assert (await serving().get("/v1/models", headers=given)).status_code == 403


# ---- ids and draining


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("abc-1", True),
        ("two words", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("\u00e9".encode("latin-1"), False),
        ("a\tb", False),
    ],
)
async def test_ids_of_clients_are_taken_if_they_are_printable(serving, given, taken):
    client = serving()
    response = await client.get("/v1/models/unknown", headers={"x-request-id": given})
    assert_error(response, 404, "model_not_found")
    found = response.headers["x-request-id"]
    assert found == given if taken else re.fullmatch("req-[0-9a-f]{32}", found)
    assert client.records[0].request_id == found


async def test_requests_are_refused_while_the_server_drains(serving):
    client = serving()
    assert (await client.get("/ready")).status_code == 200
    client.app.state.drain.draining = True
    response = await client.post("/v1/chat/completions", json=CHAT)
    assert_error(response, 503, "server_draining")
    assert response.headers["connection"] == "close"
    assert int(response.headers["retry-after"]) > 0
    assert (await client.get("/ready")).status_code == 503
    assert (await client.get("/health")).status_code == 200


# ---- CORS


async def test_there_are_no_cors_headers_by_default(serving):
    client = serving()
    for method in ("GET", "OPTIONS"):
        headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
        response = await client.request(method, "/v1/models", headers=headers)
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_only_given_origins_may_call(serving):
    client = serving(cors_origins=("https://a.example",), api_keys=(digest(KEYS[0]),))
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    preflight = await client.options("/v1/chat/completions", headers={"origin": "https://a.example", **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    refused = await client.get("/v1/models", headers={"origin": "https://a.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.example"
    other = await client.get("/v1/models", headers={"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    every = [*preflight.headers, *refused.headers, *other.headers]
    assert "access-control-allow-credentials" not in every
