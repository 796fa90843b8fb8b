"""Where the token is looked for."""

from __future__ import annotations

import pytest

from gateway.errors import TokenAmbiguous, TokenInvalid
from gateway.http.identity import bearer_token


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
