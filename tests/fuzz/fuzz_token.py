#!/usr/bin/env python3
"""Fuzz target: tokens, whole and signed, and the strict readers. `python tests/fuzz/fuzz_token.py -max_total_time=60`

Whatever comes in, the verifier accepts or raises TokenError; what it accepts, json reads in the same way.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import math
import random
import sys

from fastpath.strict import decode_base64url, decode_object
from fastpath.token import Key, TokenError, Verifier

SECRET = bytes(range(32))
NOW = 1_700_000_000
HEADER = b'{"alg":"HS256","kid":"k"}'
VERIFIER = Verifier([Key("k", "HS256", SECRET, issuer="i", audiences={"a"}, max_lifetime_s=3600)], cache_size=32)
SEEDS = (
    b'{"iss":"i","aud":"a","sub":"s","exp":1700000060}',
    b'{"iss":"i","aud":["x","a"],"sub":"\\u0073\\ud83d\\ude00","exp":1.7000001e9,"iat":1699999999,"jti":"j"}',
    b'{"iss":"i","aud":"a","sub":"s","exp":1700000060,"x":{"a":[{"b":1},{"b":1}],"b":-1E-9},"s\\u0075b":"t"}',
)
DAMAGE = [
    b"",
    b'"',
    b"{",
    b"}",
    b"[",
    b",",
    b":",
    b"\\",
    b"\\u0",
    b"\x00",
    b"\xff",
    b"\xc3",
    b"9",
    b"e",
    b"-",
    b"null",
    b"=",
]


def _b64(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _seal(header: bytes, payload: bytes) -> bytes:
    data = _b64(header) + b"." + _b64(payload)
    return data + b"." + _b64(hmac.digest(SECRET, data, hashlib.sha256))


def _verify(token: bytes | str) -> None:
    try:
        verified = VERIFIER.verify(token, NOW)
    except TokenError:
        return
    claims = json.loads(decode_base64url(verified_part(token)))
    assert verified.claims == claims
    assert claims["iss"] == "i"
    assert claims["aud"] == "a" or claims["aud"].count("a") == 1
    assert claims["sub"]
    assert math.isfinite(claims["exp"])
    assert claims["exp"] > NOW
    assert VERIFIER.verify(token, NOW) is verified


def verified_part(token: bytes | str) -> bytes:
    raw = token.encode() if isinstance(token, str) else token
    return raw.split(b".")[1]


def _read(data: bytes) -> None:
    try:
        value = decode_object(data)
    except ValueError:
        return
    assert value == json.loads(data.decode())


def _decode(data: bytes) -> None:
    try:
        raw = decode_base64url(data)
    except ValueError:
        return
    assert _b64(raw) == data


def one_input(data: bytes) -> None:
    """The first byte says what the rest is."""
    kind, rest = data[:1], data[1:]
    match (kind[0] if kind else 0) % 6:
        case 0:
            _verify(rest)
        case 1:
            _verify(rest.decode("utf-8", "surrogatepass") if rest.isascii() else rest.decode("latin-1"))
        case 2:
            _verify(_seal(HEADER, rest))
        case 3:
            header, _, payload = rest.partition(b"\n")
            _verify(_seal(header, payload))
        case 4:
            _read(rest)
        case 5:
            _decode(rest)


def damaged(chance: random.Random) -> bytes:
    """An input made of a seed, of any kind, with up to four places of it changed."""
    kind = chance.randrange(6)
    data = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randrange(5)):
        place = chance.randrange(len(data))
        data[place : place + chance.randrange(3)] = chance.choice(DAMAGE)
    body = _seal(HEADER, bytes(data)) if kind < 2 else bytes(data)
    return bytes([kind]) + (HEADER + b"\n" if kind == 3 else b"") + body


def main() -> None:
    import atheris

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        # NOTE: the kernels are compiled without coverage, so libFuzzer alone would never get past the first byte.
        chance = random.Random(seed)
        return damaged(chance) if chance.random() < 0.7 else atheris.Mutate(data, max_size)

    atheris.Setup(sys.argv, one_input, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
