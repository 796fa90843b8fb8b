"""Where the token is looked for, and whose address counts."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from gateway.errors import TokenAmbiguous, TokenInvalid
from gateway.http.identity import bearer_token, client_address


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        pytest.param({}, None, id="none"),
        pytest.param({"HTTP_AUTHORIZATION": "Bearer abc"}, "abc", id="plain"),
        pytest.param({"HTTP_AUTHORIZATION": "bearer abc"}, "abc", id="scheme in any case"),
        pytest.param({"HTTP_AUTHORIZATION": "Basic abc"}, None, id="another scheme is no token"),
        pytest.param({"QUERY_STRING": "my_access_token=1"}, None, id="another parameter"),
        pytest.param({"HTTP_AUTHORIZATION": "Bearer"}, TokenInvalid, id="empty"),
        pytest.param({"HTTP_AUTHORIZATION": "Bearer a b"}, TokenInvalid, id="two words"),
        pytest.param({"HTTP_AUTHORIZATION": "Bearer a, Bearer b"}, TokenAmbiguous, id="joined by a proxy"),
        pytest.param(
            {"HTTP_AUTHORIZATION": "Bearer a", "caregate.duplicate": frozenset({"authorization"})},
            TokenAmbiguous,
            id="doubled",
        ),
        pytest.param({"QUERY_STRING": "access_token=a"}, TokenAmbiguous, id="in the query"),
        pytest.param({"QUERY_STRING": "a=1&%61ccess_token=a"}, TokenAmbiguous, id="in the query, escaped"),
        pytest.param({"QUERY_STRING": "access_token"}, TokenAmbiguous, id="in the query without value"),
    ],
)
def test_bearer_token(env, expected):
    if isinstance(expected, type):
        with pytest.raises(expected):
            bearer_token(env)
    else:
        assert bearer_token(env) == expected


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
