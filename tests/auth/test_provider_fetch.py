"""Fetching an identity provider's keys from one that misbehaves: each is told apart, bounded, and gives nothing."""

from __future__ import annotations

import json
import time
from ipaddress import ip_network

import gevent
import pytest

from gateway.auth import provider_fetch
from gateway.auth.provider_fetch import Fetcher, FetchFailed, is_allowed
from tests.auth.scripted_provider import ok

LOOPBACK = (ip_network("127.0.0.0/8"),)


def fetcher(**more):
    options = {"networks": LOOPBACK, "max_bytes": 4_096, "timeout_s": 5.0, "allow_http": True, **more}
    return Fetcher(**options)


def reason(made, issuer, url=None):
    with pytest.raises(FetchFailed) as caught:
        made.key_set(issuer, url)
    return caught.value.reason


def test_discovered_or_named(idp):
    assert json.loads(fetcher().key_set(idp.url, None))["keys"][0]["kid"] == "k1"
    assert idp.asked == ["/.well-known/openid-configuration", "/jwks"]
    assert fetcher().key_set("https://whoever", f"{idp.url}/jwks")


def sends(*pieces, pause_s=0.0):
    def script(sock):
        for piece in pieces:
            sock.sendall(piece)
            gevent.sleep(pause_s)

    return script


def drips(sock):
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    while True:
        sock.sendall(b" ")
        gevent.sleep(0.02)


def floods(sock):
    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        sock.sendall(b"1000\r\n" + b" " * 4_096 + b"\r\n")


REDIRECT = b"HTTP/1.1 302 Found\r\nLocation: /jwks\r\nContent-Length: 0\r\n\r\n"
HOSTILE = {
    "huge": (ok(b" " * 4_097), "too-large"),
    "huge-said": (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 99999999\r\n\r\n{}",
        "cut-off",
    ),
    "endless": (floods, "too-large"),
    "silent": (lambda sock: gevent.sleep(30), "timeout"),
    "drips": (drips, "timeout"),
    "wrong-type": (ok(b"{}", "text/html"), "media-type"),
    "no-type": (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", "media-type"),
    "encoded": (ok(b"{}", Content_Encoding="gzip"), "encoded"),
    "redirect": (REDIRECT, "redirect"),
    "error": (b"HTTP/1.1 500 Oops\r\nContent-Length: 0\r\n\r\n", "status"),
    "cut-off": (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 20\r\n\r\n{}", "cut-off"),
    "not-http": (b"SSH-2.0-OpenSSH_9.7\r\n", "unreachable"),
    "long-head": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 200_000, "unreachable"),
    "many-fields": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n", "unreachable"),
    "nothing": (b"", "unreachable"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile(idp, case):
    script, expected = HOSTILE[case]
    idp.answers["/jwks"] = script if callable(script) else sends(script)
    begun_s = time.monotonic()
    timeout_s = 0.3 if expected == "timeout" else 5.0
    assert reason(fetcher(timeout_s=timeout_s), "x", f"{idp.url}/jwks") == expected
    assert time.monotonic() - begun_s < 4.0


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ({"issuer": "https://another", "jwks_uri": "URL/jwks"}, "discovery-issuer"),
        ({"issuer": "URL/", "jwks_uri": "URL/jwks"}, "discovery-issuer"),
        ({"jwks_uri": "URL/jwks"}, "discovery-issuer"),
        ({"issuer": "URL"}, "discovery-malformed"),
        ({"issuer": "URL", "jwks_uri": 7}, "discovery-malformed"),
        (["URL"], "discovery-issuer"),
        ("no json", "discovery-malformed"),
        ({"issuer": "URL", "jwks_uri": "file:///etc/passwd"}, "bad-url"),
        ({"issuer": "URL", "jwks_uri": "http://user@127.0.0.1/jwks"}, "bad-url"),
        ({"issuer": "URL", "jwks_uri": "http://127.0.0.1:99999/jwks"}, "bad-url"),
        ({"issuer": "URL", "jwks_uri": "http://127.0.0.1/a b"}, "bad-url"),
        ({"issuer": "URL", "jwks_uri": "http://10.0.0.1/jwks"}, "address-refused"),
        ({"issuer": "URL", "jwks_uri": "http://169.254.169.254/latest/meta-data"}, "address-refused"),
        ({"issuer": "URL", "jwks_uri": "https://[::1]/jwks"}, "address-refused"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_discovery(idp, document, expected):
    text = document if isinstance(document, str) else json.dumps(document).replace("URL", idp.url)
    idp.answers["/.well-known/openid-configuration"] = text.encode()
    assert reason(fetcher(), idp.url) == expected
    assert idp.fetches() == 0


def test_a_name_is_resolved_once_and_the_connection_goes_where_that_was_judged(idp):
    """DNS rebinding: the second answer of the name server would be loopback."""
    asked = []

    def rebinding(host, port):
        asked.append(host)
        return ["203.0.113.9"] if len(asked) == 1 else ["127.0.0.1"]

    made = fetcher(networks=(ip_network("203.0.113.0/24"),), resolve=rebinding, timeout_s=0.3)
    # 203.0.113.9 answers nobody; what is asked there never reaches loopback.
    assert reason(made, "x", f"http://idp.test:{idp.port}/jwks") in ("timeout", "unreachable", "not-https")
    assert (asked, idp.asked) == (["idp.test"], [])


@pytest.mark.parametrize("addresses", [["127.0.0.1", "93.184.216.34"], ["93.184.216.34", "127.0.0.1"]], ids=str)
def test_a_name_with_one_private_address_is_not_gone_to_at_all(idp, addresses):
    made = fetcher(networks=(), resolve=lambda host, port: addresses)
    assert reason(made, "x", f"https://idp.test:{idp.port}/jwks") == "address-refused"
    assert idp.asked == []


def test_where_it_went_counts(idp, monkeypatch):
    """The look at the address passes, and the connection goes elsewhere all the same."""
    connect = provider_fetch.socket.create_connection
    monkeypatch.setattr(
        provider_fetch.socket, "create_connection", lambda address, timeout: connect(("127.0.0.1", idp.port), timeout)
    )
    made = fetcher(networks=(), resolve=lambda host, port: ["93.184.216.34"])
    assert reason(made, "x", "https://idp.test/jwks") == "address-refused"
    assert idp.asked == []


def test_http_is_for_loopback_alone(idp):
    assert reason(fetcher(allow_http=False), "x", f"{idp.url}/jwks") == "not-https"
    made = fetcher(networks=(ip_network("192.0.2.0/24"),), resolve=lambda host, port: ["192.0.2.1"])
    assert reason(made, "x", "http://idp.test/jwks") == "not-https"
    assert idp.asked == []


def test_tls(tls_idp, certificate):
    trusted = certificate[0].read_text()
    url = f"{tls_idp.url}/jwks"
    assert fetcher(certificates=trusted).key_set("x", url)
    assert reason(fetcher(), "x", url) == "tls", "the system's authorities do not vouch for it"
    named = fetcher(certificates=trusted, resolve=lambda host, port: ["127.0.0.1"])
    assert named.key_set("x", f"https://idp.test:{tls_idp.port}/jwks")
    assert reason(named, "x", f"https://another.test:{tls_idp.port}/jwks") == "tls", "the name counts, not the address"


@pytest.mark.parametrize(
    ("address", "allowed"),
    [
        ("8.8.8.8", True), ("2606:4700::1111", True), ("127.0.0.1", False), ("10.1.2.3", False), ("192.168.1.1", False),
        ("169.254.169.254", False), ("100.64.0.1", False), ("0.0.0.0", False), ("224.0.0.1", False), ("::1", False),
        ("::", False), ("fe80::1", False), ("fd00::1", False), ("ff02::1", False), ("::ffff:127.0.0.1", False),
        ("::ffff:8.8.8.8", True), ("64:ff9b::7f00:1", False), ("64:ff9b::808:808", True), ("2002:7f00:1::", False),
        ("2002:a00:1::1", False), ("255.255.255.255", False), ("198.18.0.1", False),
    ],
)  # fmt: skip
def test_addresses(address, allowed):
    assert is_allowed(address, ()) is allowed


def test_allowed_networks():
    assert is_allowed("10.1.2.3", (ip_network("10.1.0.0/16"),))
    assert not is_allowed("10.2.2.3", (ip_network("10.1.0.0/16"),))
    assert is_allowed("::ffff:10.1.2.3", (ip_network("10.1.0.0/16"),))
