"""The token verifier on the vectors of RFC 7515 to 7520 and RFC 8037: each with its one right outcome."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from fastpath.token import Key, TokenError, Verifier
from gateway.auth.jwk import parse_jwk
from gateway.auth.keys import read_key_set

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "jose.json").read_text())


def vector_verifier(vector: dict[str, Any]) -> Verifier:
    material = read_key_set(json.dumps({"keys": [{"alg": vector["alg"], **vector["key"]}]})).keys[0]
    one = Key(material.kid, material.alg, material.verifying, issuer="joe", audiences={"app"})
    return Verifier([one], require_kid=False, require_sub=False)


@pytest.mark.parametrize("vector", VECTORS["tokens"], ids=lambda vector: vector["id"])
def test_vector(vector: dict[str, Any]) -> None:
    with pytest.raises(TokenError) as caught:
        vector_verifier(vector).verify(vector["token"], vector["now_s"])
    assert str(caught.value) == vector["error"]


SIGNED_VECTORS = [
    v for v in VECTORS["tokens"] if v["error"].startswith(("audience", "bound", "expired", "malformed: the payload"))
]


@pytest.mark.parametrize("vector", SIGNED_VECTORS, ids=lambda vector: vector["id"])
def test_vector_with_one_bit_of_its_signature_changed(vector: dict[str, Any]) -> None:
    head, _, signature = vector["token"].rpartition(".")
    raw = bytearray(base64.urlsafe_b64decode(signature + "=="))
    raw[len(raw) // 2] ^= 1
    changed = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    with pytest.raises(TokenError) as caught:
        vector_verifier(vector).verify(f"{head}.{changed}", vector["now_s"])
    assert caught.value.code == "signature"


def test_rfc_vectors_cover_every_family() -> None:
    assert {vector["alg"] for vector in SIGNED_VECTORS} == {"HS256", "RS256", "PS384", "ES256", "ES512", "EdDSA"}


def test_key_of_another_algorithm_than_its_material() -> None:
    material = parse_jwk(VECTORS["tokens"][3]["key"])
    assert material.alg == "ES256"
    check = read_key_set(json.dumps({"keys": [VECTORS["tokens"][3]["key"]]})).keys[0].verifying
    with pytest.raises(ValueError, match="public key made for it"):
        Key("k", "ES384", check, issuer="joe", audiences={"app"})
