"""Arguments: what they become, and how the wrong ones are refused."""

from __future__ import annotations

import pytest

from gateway.agent.settings import BadSettings, Endpoint, parse_gateway, parse_settings, parse_target


@pytest.fixture
def arguments(key_file, tmp_path):
    (tmp_path / "context").write_bytes(b"k" * 32 + b"\n")
    (tmp_path / "short").write_bytes(b"k" * 31)
    return {
        "gateway": "wss://gw.example",
        "unit": "linden-clinic",
        "key": str(key_file),
        "target": "http://127.0.0.1:9102",
        "allow": ["GET /fhir/*"],
    }


@pytest.mark.parametrize(
    ("url", "endpoint", "authority"),
    [
        ("ws://h", Endpoint(False, "h", 80, "/relay/v1/connect"), "h"),
        ("wss://h", Endpoint(True, "h", 443, "/relay/v1/connect"), "h"),
        ("http://h:8080/", Endpoint(False, "h", 8080, "/relay/v1/connect"), "h:8080"),
        ("https://H.example/edge/", Endpoint(True, "h.example", 443, "/edge/relay/v1/connect"), "h.example"),
        ("wss://h/relay/v1/connect", Endpoint(True, "h", 443, "/relay/v1/connect"), "h"),
        ("wss://[::1]:443", Endpoint(True, "::1", 443, "/relay/v1/connect"), "[::1]"),
    ],
)
def test_gateway(url, endpoint, authority):
    assert parse_gateway(url) == endpoint
    assert endpoint.authority == authority


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://127.0.0.1:9102", Endpoint(False, "127.0.0.1", 9102, "")),
        ("http://localhost/base/", Endpoint(False, "localhost", 80, "/base")),
        ("https://pacs.local/x", Endpoint(True, "pacs.local", 443, "/x")),
    ],
)
def test_target(url, endpoint):
    assert parse_target(url) == endpoint


@pytest.mark.parametrize(
    "url",
    [
        "",
        "h",
        "ftp://h",
        "ws://h",
        "http://",
        "http://:80",
        "http://u:p@h",
        "http://h:0x1",
        "http://h:99999",
        "http://h?x",
        "http://h?",
        "http://h#x",
        "http://h/a/../b",
        "http://h//a",
        "http://h/%2f",
        "http://[::g]",
        "http://a b",
        "http://h\r\n",
        "http://-h",
        "http://h/\u00e4",
    ],
)
def test_targets_that_are_refused(url):
    with pytest.raises(BadSettings, match=r"^--target"):
        parse_target(url)


def test_complete(arguments, tmp_path):
    settings = parse_settings(**arguments, context_key=str(tmp_path / "context"), kid="k-7", connections=4)
    assert settings.identity.kid == "k-7"
    assert settings.services[0].allow.admits("GET", "/fhir/x")
    assert not settings.services[0].allow.admits("GET", "/x")
    assert settings.context is not None
    assert settings.warnings == ()


def test_the_unit_is_the_default_key_id(arguments):
    assert parse_settings(**arguments).identity.kid == "linden-clinic"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        pytest.param({"allow": None}, "no --allow", id="no allow-list"),
        pytest.param({"gateway": "ws://gw.example"}, "not encrypted", id="plain"),
    ],
)
def test_warnings(arguments, change, text):
    assert text in " ".join(parse_settings(**{**arguments, **change}).warnings)


@pytest.mark.parametrize("gateway", ["ws://127.0.0.1:8080", "ws://localhost", "ws://[::1]"])
def test_plain_on_loopback_is_no_warning(arguments, gateway):
    assert parse_settings(**{**arguments, "gateway": gateway}).warnings == ()


def test_key_that_others_can_read_is_a_warning(arguments, key_file):
    key_file.chmod(0o644)
    assert "chmod 600" in parse_settings(**arguments).warnings[0]


@pytest.mark.parametrize(
    ("change", "option"),
    [
        pytest.param({"gateway": "gw.example"}, "--gateway", id="gateway"),
        pytest.param({"target": "/fhir"}, "--target", id="target"),
        pytest.param({"unit": "Linden"}, "--unit", id="unit"),
        pytest.param({"unit": ""}, "--unit", id="empty unit"),
        pytest.param({"kid": "a b"}, "--kid", id="kid"),
        pytest.param({"key": "/nonexistent/key"}, "--key", id="key file"),
        pytest.param({"key": "/"}, "--key", id="key directory"),
        pytest.param({"key": "CONTEXT"}, "--key", id="not a key"),
        pytest.param({"allow": ["GET"]}, "--allow", id="allow"),
        pytest.param({"connections": 0}, "--connections", id="no connections"),
        pytest.param({"connections": 5}, "--connections", id="too many connections"),
        pytest.param({"context_key": "/nonexistent/key"}, "--context-key", id="context key file"),
        pytest.param({"context_key": "SHORT"}, "--context-key", id="short context key"),
        pytest.param({"ca": "/nonexistent/ca"}, "--ca", id="ca"),
        pytest.param({"grace_s": -1.0}, "--grace", id="grace"),
    ],
)
def test_refused(arguments, tmp_path, change, option):
    files = {"CONTEXT": str(tmp_path / "context"), "SHORT": str(tmp_path / "short")}
    change = {name: files.get(value, value) if isinstance(value, str) else value for name, value in change.items()}
    with pytest.raises(BadSettings, match=f"^{option}") as caught:
        parse_settings(**{**arguments, **change})
    assert "k" * 31 not in str(caught.value)
