"""A token's header is read once for all tokens that have the same; what it is judged by is looked at each time."""

from __future__ import annotations

import json

import pytest

from fastpath.token import TokenError
from tests.fastpath.test_token import NOW, key, refusal, token, verifier


def test_the_keys_of_now_judge_a_header_that_was_read_before() -> None:
    verify = verifier()
    verify.verify(token(), NOW)
    verify.retire("patient-1")
    verify.add(key(alg="HS384", material=b"n" * 48))
    assert refusal(verify, token(jti="new")) == "algorithm"
    verify.retire("patient-1")
    assert refusal(verify, token(jti="newer")) == "unknown-key"


def test_a_good_header_helps_no_other() -> None:
    verify = verifier()
    for number in range(70):  # more than are kept
        assert verify.verify(token({"cty": f"kind-{number}"}, jti=f"a{number}"), NOW).jti == f"a{number}"
    for header, why in (({"jku": "https://evil.test"}, "header"), ({"kid": "another"}, "unknown-key"),
                        ({"alg": "none"}, "algorithm"), ({"typ": "logout+jwt"}, "header")):  # fmt: skip
        assert refusal(verify, token(header)) == why, json.dumps(header)
        assert verify.verify(token(), NOW).jti == "a1"


def test_a_header_with_a_second_spelling_is_refused_after_the_first_too() -> None:
    verify = verifier()
    good = token()
    verify.verify(good, NOW)
    opening, rest = good.split(".", 1)
    for other in (opening + "=", opening[:-1] + chr(ord(opening[-1]) + 1), opening + "\n"):
        with pytest.raises(TokenError):
            verify.verify(f"{other}.{rest}", NOW)
