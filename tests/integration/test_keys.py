"""A leaked key of one role, issuer, client or unit mints nothing for another: every pair is tried."""

from __future__ import annotations

import http.client
import time
import uuid

import jwt
import pytest
from cryptography.hazmat.primitives import serialization

pytestmark = pytest.mark.integration

ROLES = ("patient", "practitioner", "hcu_clerk", "hcu_admin", "partner", "auditor", "platform_admin")
OTHERS = ("own", "client-insurer", "st-marien-hospital")
"""An identity provider, a client of the token service, a unit."""
CLINIC = "clinic"
"""An identity provider whose private key is its own process's: everybody else tries to speak for it."""


@pytest.fixture(scope="module")
def document(provider_site):
    return provider_site.document()


@pytest.fixture(scope="module")
def leaked(provider_site, document):
    """Signer -> (kid, algorithm, key)."""

    def read(reference, alg):
        data = (provider_site.directory / reference.removeprefix("file:")).read_bytes()
        return data.strip() if alg.startswith("HS") else data

    keys = {}
    for role in ROLES:
        key = document["roles"][role]["keys"][0]
        keys[role] = key["kid"], key["alg"], read(key.get("secret") or key["private_key"], key["alg"])
    own = provider_site.own.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    keys["own"] = "own-1", "ES256", own
    keys["client-insurer"] = "client-insurer-1", "EdDSA", read("keys/client-insurer.key", "EdDSA")
    keys["st-marien-hospital"] = "st-marien-hospital", "EdDSA", read("keys/st-marien-hospital.key", "EdDSA")
    return keys


@pytest.fixture(scope="module")
def claims_of(provider_site, document):
    """What a token must say to be one of a role's, an issuer's, a unit's."""

    def claims_of(wanted):
        now = int(time.time())
        claims = {"sub": "forged", "iat": now, "exp": now + 240, "jti": str(uuid.uuid4())}
        if wanted in ROLES:
            audience = document["roles"][wanted]["audience"]
            issuer = document["audiences"][audience]["issuer"]
            return {**claims, "iss": issuer, "aud": audience, "role": wanted, "patient": "pat-0001"}
        if wanted == "own":
            return {**claims, "iss": provider_site.own.issuer, "aud": "own-api"}
        if wanted == CLINIC:
            groups = {"groups": ["clerks"], "realm_access": {"roles": ["doctor"]}}
            return {**claims, "iss": provider_site.real.issuer, "aud": "caregate-api", **groups}
        audience = "unit-link" if wanted == "st-marien-hospital" else "https://api.caregate.test"
        return {**claims, "iss": wanted, "sub": wanted, "aud": audience}

    return claims_of


@pytest.fixture(scope="module")
def is_taken(provider_site):
    """Does the gateway take the token as what it says to be?"""

    def is_taken(wanted, token):
        if wanted == "st-marien-hospital":
            fields = {
                "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
                "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==", "Sec-WebSocket-Protocol": "caregate.relay.v1",
            }  # fmt: skip
            return (
                _status(provider_site, "GET", "/relay/v1/connect", {**fields, "Authorization": f"Bearer {token}"})
                == 101
            )
        if wanted == "client-insurer":
            form = (
                "grant_type=client_credentials&client_assertion="
                f"{token}&client_assertion_type=urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
            )
            fields = {"Content-Type": "application/x-www-form-urlencoded"}
            return _status(provider_site, "POST", "/auth/v1/token", fields, form) == 200
        return _status(provider_site, "GET", "/auth/v1/none", {"Authorization": f"Bearer {token}"}) == 404

    return is_taken


def _status(site, method, path, fields, body=None):
    connection = http.client.HTTPConnection("127.0.0.1", site.ports.gateway, timeout=10)
    try:
        connection.request(method, path, body, fields)
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.mark.parametrize("wanted", [*ROLES, *OTHERS, CLINIC])
@pytest.mark.parametrize("signer", [*ROLES, *OTHERS])
def test_a_leaked_key(leaked, claims_of, is_taken, signer, wanted):
    kid, alg, key = leaked[signer]
    forged = jwt.encode(claims_of(wanted), key, alg, {"kid": kid})
    assert is_taken(wanted, forged) is (signer == wanted)
    if signer == wanted:
        return
    its_kid = leaked[wanted][0] if wanted in leaked else "rsa-1"
    assert not is_taken(wanted, jwt.encode(claims_of(wanted), key, alg, {"kid": its_kid})), "under the other's kid"
    assert not is_taken(wanted, jwt.encode(claims_of(wanted), key, alg)), "without kid"
    if signer in (*ROLES, "own"):
        mixed = {**claims_of(wanted), "iss": claims_of(signer)["iss"], "aud": claims_of(signer)["aud"]}
        promoted = jwt.encode({**mixed, "role": wanted}, key, alg, {"kid": kid})
        # An issuer's word for a role counts for nothing; what its mapping gives it has.
        assert is_taken(signer, promoted) is (signer == "own")


def test_a_public_key_is_no_secret(leaked, claims_of, is_taken, document, provider_site):
    """Whoever knows a public key signs HS256 with its text, under its kid."""
    for role in ROLES:
        key = document["roles"][role]["keys"][0]
        if "public_key" not in key:
            continue
        text = (provider_site.directory / key["public_key"].removeprefix("file:")).read_bytes()
        forged = _hs256(claims_of(role), text, key["kid"])
        assert not is_taken(role, forged), role


def _hs256(claims, secret, kid):
    """PyJWT would refuse to."""
    import base64
    import hashlib
    import hmac
    import json

    def part(value):
        return base64.urlsafe_b64encode(value).rstrip(b"=")

    signed = part(json.dumps({"alg": "HS256", "kid": kid}).encode()) + b"." + part(json.dumps(claims).encode())
    return (signed + b"." + part(hmac.digest(secret, signed, hashlib.sha256))).decode()
