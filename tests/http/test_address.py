"""Whose address counts: X-Forwarded-For, Forwarded, both, and junk."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from gateway.http.address import client_address

PROXIES = (ip_network("10.0.0.0/8"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "trusted", "expected"),
    [
        pytest.param("198.51.100.1", "203.0.113.9", (), "198.51.100.1", id="nobody is trusted"),
        pytest.param("198.51.100.1", "203.0.113.9", PROXIES, "198.51.100.1", id="peer is no proxy of ours"),
        pytest.param("10.0.0.1", None, PROXIES, "10.0.0.1", id="proxy says nothing"),
        pytest.param("10.0.0.1", "203.0.113.9", PROXIES, "203.0.113.9", id="proxy is believed"),
        pytest.param("10.0.0.1", "1.1.1.1, 203.0.113.9", PROXIES, "203.0.113.9", id="only the last is ours to believe"),
        pytest.param("10.0.0.1", "203.0.113.9, 10.0.0.2", PROXIES, "203.0.113.9", id="two proxies of ours"),
        pytest.param("10.0.0.1", "10.0.0.3, 10.0.0.2", PROXIES, "10.0.0.3", id="all are proxies"),
        pytest.param("10.0.0.1", "203.0.113.9, junk", PROXIES, "10.0.0.1", id="junk is not believed"),
        pytest.param("fd00::1", "2001:db8::7", PROXIES, "2001:db8::7", id="version 6"),
    ],
)
def test_client_address(peer, forwarded, trusted, expected):
    assert client_address(peer, forwarded, trusted) == expected


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        pytest.param("for=203.0.113.9", "203.0.113.9", id="plain"),
        pytest.param("For=203.0.113.9;proto=https;by=10.0.0.1", "203.0.113.9", id="other parameters"),
        pytest.param("proto=https; for=203.0.113.9", "203.0.113.9", id="blank after the semicolon"),
        pytest.param('for="203.0.113.9:4711"', "203.0.113.9", id="port"),
        pytest.param('for="[2001:db8::7]:4711"', "2001:db8::7", id="version 6"),
        pytest.param("for=1.1.1.1, for=203.0.113.9", "203.0.113.9", id="only the last is ours to believe"),
        pytest.param("for=203.0.113.9, for=10.0.0.2", "203.0.113.9", id="two proxies of ours"),
        pytest.param('for=1.1.1.1;host="a,b", for=203.0.113.9', "203.0.113.9", id="a comma in quotes"),
        pytest.param('for=203.0.113.9;host="for=1.1.1.1;x"', "203.0.113.9", id="a for in quotes"),
        pytest.param("for=203.0.113.9, for=unknown", "10.0.0.1", id="unknown"),
        pytest.param("for=203.0.113.9, for=_hidden", "10.0.0.1", id="obfuscated"),
        pytest.param("for=203.0.113.9, proto=https", "10.0.0.1", id="an element without for"),
        pytest.param("for=203.0.113.9;for=1.1.1.1", "10.0.0.1", id="two in an element"),
        pytest.param("for=[2001:db8::7]", "10.0.0.1", id="version 6 without quotes"),
        pytest.param('for="2001:db8::7"', "10.0.0.1", id="version 6 without brackets"),
        pytest.param("for = 203.0.113.9", "10.0.0.1", id="blanks"),
        pytest.param('for="x, for=203.0.113.9', "10.0.0.1", id="a quote left open by the client"),
        pytest.param("for=203.0.113.999", "10.0.0.1", id="no address"),
        pytest.param("203.0.113.9", "10.0.0.1", id="a list for the other field"),
        pytest.param("for=203.0.113.9,", "10.0.0.1", id="empty element"),
    ],
)
def test_forwarded(forwarded, expected):
    assert client_address("10.0.0.1", None, PROXIES, forwarded) == expected
    assert client_address("198.51.100.1", None, PROXIES, forwarded) == "198.51.100.1"
    assert client_address("10.0.0.1", None, (), forwarded) == "10.0.0.1"


@pytest.mark.parametrize(
    ("forwarded_for", "forwarded", "expected"),
    [
        pytest.param("203.0.113.9", "for=203.0.113.9", "203.0.113.9", id="they agree"),
        pytest.param("1.1.1.1, 203.0.113.9", "for=203.0.113.9", "203.0.113.9", id="they agree where it counts"),
        pytest.param("203.0.113.9", "for=1.1.1.1", "10.0.0.1", id="one was passed on unread"),
        pytest.param("203.0.113.9", "junk", "10.0.0.1", id="junk beside an address"),
        pytest.param("junk", "for=203.0.113.9", "10.0.0.1", id="an address beside junk"),
    ],
)
def test_both_fields_must_agree(forwarded_for, forwarded, expected):
    assert client_address("10.0.0.1", forwarded_for, PROXIES, forwarded) == expected
