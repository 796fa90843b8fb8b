#!/usr/bin/env python3
"""Fuzz target: what the token service reads of strangers: forms, DPoP proofs, scopes, logins.

`python tests/fuzz/fuzz_login.py [corpus] [-runs=N]` needs atheris. Whatever comes in is read in one way or refused with
the error that its sender may see.
"""

from __future__ import annotations

import base64
import inspect
import json
import random
import sys
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, quote_plus, urlencode

from cryptography.hazmat.primitives.asymmetric import ed25519

from gateway.auth import pkce, totp
from gateway.auth.accounts import LOGIN, spelled
from gateway.auth.dpop import MAX_AGE_S, read_proof
from gateway.auth.form import MEDIA_TYPE, parse_form
from gateway.auth.page import login_page
from gateway.auth.scope import granted_scope, is_scope
from gateway.auth.vault import Unsealable, Vault
from gateway.errors import TokenRequestRefused
from gateway.rbac.scopes import read_ceiling, read_scope

NOW = 1_700_000_000
URL = "https://api.test/auth/v1/token"
KEY = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
X = base64.urlsafe_b64encode(KEY.public_key().public_bytes_raw()).rstrip(b"=").decode()
HEADER = {"typ": "dpop+jwt", "alg": "EdDSA", "jwk": {"kty": "OKP", "crv": "Ed25519", "x": X}}
CLAIMS = {"htm": "POST", "htu": URL, "iat": NOW, "jti": "one"}
MOST = ("user/Observation.rs", "user/*.r")
VAULT = Vault(bytes(32))
accepted = {"forms": 0, "proofs": 0, "scopes": 0}

# NOTE: signed here, damaged claims get past the signature, which a fuzzer does not guess.
PIECES = (
    '"htm":"POST"', '"htm":"GET"', f'"htu":"{URL}"', f'"htu":"{URL}?a#b"', '"htu":"https://[::1"', '"htu":"//x"',
    '"htu":"https://api.test:99999/"', f'"iat":{NOW}', '"iat":1e400', '"iat":true', '"iat":"1"', f'"iat":{NOW + 61}',
    f'"iat":{"9" * 400}', '"jti":"a"', '"jti":""', '"jti":7', r'"jti":"\ud800"', '"jti":null', '"x":{"y":[1,{}]}',
)  # fmt: skip


def part(text: str | bytes) -> str:
    raw = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def signed(header: str | bytes, claims: str | bytes) -> str:
    text = f"{part(header)}.{part(claims)}"
    return f"{text}.{part(KEY.sign(text.encode()))}"


def one_input(data: bytes) -> None:
    """Check the input as each thing that is read."""
    check_form(data)
    text = data.decode("latin-1")
    check_proof(text)
    check_proof(signed(json.dumps(HEADER), data))
    check_proof(signed(data, json.dumps(CLAIMS)))
    check_proof(signed(json.dumps(HEADER), "{" + ",".join(PIECES[byte % len(PIECES)] for byte in data[:12]) + "}"))
    check_scope(text)
    check_texts(data.decode("utf-8", "replace"))


def attempt(error: str, read: Callable[..., Any], *arguments: Any) -> Any:
    """What is read, or None where it is refused with this error."""
    try:
        return read(*arguments)
    except TokenRequestRefused as refused:
        told = refused.members["error"]
    assert told == error
    return None


def check_form(data: bytes) -> None:
    found = attempt("invalid_request", parse_form, data, MEDIA_TYPE)
    if found is None:
        return
    accepted["forms"] += 1
    assert data.isascii()
    assert all(found.values())
    assert len(found) <= 32
    assert parse_form(urlencode(found).encode(), MEDIA_TYPE) == found, "one meaning"
    known = parse_qs(data.decode("ascii"), keep_blank_values=True)
    assert {name: value for name, (value, *rest) in known.items() if value and not rest} == found


def check_proof(text: str) -> None:
    proof = attempt("invalid_dpop_proof", read_proof, text, "POST", URL, NOW)
    if proof is None:
        return
    accepted["proofs"] += 1
    claims = json.loads(base64.urlsafe_b64decode(text.split(".")[1] + "=="))
    assert claims["htm"] == "POST"
    assert claims["htu"].partition("?")[0].partition("#")[0].lower() == URL
    assert abs(claims["iat"] - NOW) <= MAX_AGE_S
    assert isinstance(claims["jti"], str)
    assert claims["jti"]
    assert len(proof.thumbprint) == 43


def check_scope(text: str) -> None:
    found = attempt("invalid_scope", granted_scope, MOST, text)
    if found is None:
        return
    accepted["scopes"] += 1
    assert is_scope(text)
    ceiling = read_ceiling(MOST)
    for scope in found.split(" "):
        assert scope in text.split(" ")
        context, mask = read_scope(scope) or ("", 0)
        assert mask & getattr(ceiling, context) == mask


def check_texts(text: str) -> None:
    login = spelled(text)
    assert not login or (LOGIN.match(login) and login == spelled(login))
    assert not pkce.proves(text, pkce.challenge_of("v" * 43)) or text == "v" * 43
    assert totp.step_of(bytes(20), text, float(NOW)) in (0, *range(NOW // 30 - 1, NOW // 30 + 2))
    page = login_page(text, "/auth/v1/authorize", quote_plus(text), text)
    assert page.count(b"<form") == page.count(b"<h1>") == 1
    assert page.count(b"<script") == 0
    try:
        VAULT.forms.open(text.encode("utf-8", "surrogatepass"), b"")
    except Unsealable:
        return
    raise AssertionError("opened what nobody sealed")


SEEDS = (
    b"grant_type=password&username=a%40b&password=p+q",
    b"client_id=x&scope=user%2FPatient.r",
    b"user/Patient.r user/Observation.rs openid",
    json.dumps(CLAIMS).encode(),
    json.dumps(HEADER).encode(),
    signed(json.dumps(HEADER), json.dumps(CLAIMS)).encode(),
    b"<script>&\"'</title>",
)


def damaged(chance: random.Random) -> bytes:
    """A seed with up to three bytes changed, or the recipe of claims."""
    if chance.random() < 0.3:
        return chance.randbytes(chance.randrange(1, 9))
    data = bytearray(chance.choice(SEEDS))
    for _ in range(chance.randrange(4)):
        data[chance.randrange(len(data))] = chance.choice(b'&=%+;.{}":,[]/ aA0_-\x00\xff')
    return bytes(data)


def main() -> None:
    import atheris

    # NOTE: what is fuzzed here is Python, which gives coverage only so.
    for module in (parse_form.__module__, read_proof.__module__, granted_scope.__module__, spelled.__module__):
        for function in vars(sys.modules[module]).values():
            if inspect.isfunction(function):
                atheris.instrument_func(function)
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
