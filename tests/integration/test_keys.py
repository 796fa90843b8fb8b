"""A leaked key of one role mints nothing for another: every pair is tried."""

from __future__ import annotations

import time
import uuid
from pathlib import Path

import jwt
import pytest
import yaml

pytestmark = pytest.mark.integration

TARGETS = {
    "patient": ("/portal/v1/patients/pat-0001/appointments", {"patient": "pat-0001"}),
    "practitioner": ("/staff/v1/units/st-marien-hospital/appointments", {"units": ["st-marien-hospital"]}),
    "partner": ("/partner/v1/units", {"org": "insurer-1"}),
}


@pytest.fixture(scope="module")
def document(platform):
    return yaml.safe_load(Path(platform._env["CAREGATE_CONFIG_PATH"]).read_text())


def material(platform, key):
    reference = key.get("secret") or key.get("private_key")
    data = (platform.directory / reference.removeprefix("file:")).read_bytes()
    return data.strip() if key["alg"].startswith("HS") else data


def forge(document, key, secret, role, claims, **header):
    audience = document["roles"][role]["audience"]
    now = int(time.time())
    payload = {
        "iss": document["audiences"][audience]["issuer"], "aud": audience, "sub": "forged", "role": role,
        "iat": now, "exp": now + 300, "jti": str(uuid.uuid4()), **claims,
    }  # fmt: skip
    return jwt.encode(payload, secret, algorithm=key["alg"], headers={"kid": key["kid"], **header})


@pytest.mark.parametrize("leaked", list(TARGETS))
@pytest.mark.parametrize("wanted", list(TARGETS))
def test_leaked_key(platform, call, document, leaked, wanted):
    key = document["roles"][leaked]["keys"][0]
    wanted_key = document["roles"][wanted]["keys"][0]
    path, claims = TARGETS[wanted]
    secret = material(platform, key)
    own = call("GET", path, forge(document, key, secret, wanted, claims))
    assert own.status == (200 if leaked == wanted else 401)
    if leaked != wanted:
        renamed = call("GET", path, forge(document, key, secret, wanted, claims, kid=wanted_key["kid"]))
        assert renamed.status == 401
        without = forge(document, key, secret, leaked, {**claims, "role": wanted})
        assert call("GET", path, without).status == 401
