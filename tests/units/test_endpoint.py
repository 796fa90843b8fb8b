"""Proof of possession, codes as people type them, attempts by address."""

from __future__ import annotations

import hashlib
import io
import json
import mmap
import time
from types import SimpleNamespace

import pytest

from fastpath.bucket import BucketTable, segment_bytes
from gateway.context import RequestContext
from gateway.errors import BadRequest, GatewayError, RateLimited
from gateway.units import code
from gateway.units.endpoint import ENROL_AUDIENCE, EnrolResource, Gate
from gateway.units.proof import prove
from tests.units.conftest import public_pem

NOW_S = time.time()


def proof_of(key, audience=ENROL_AUDIENCE, at_s=None, lifetime_s=300, **claims):
    """Signed when the test runs: that may be minutes after it was collected."""
    return key.identity.sign(audience, time.time() if at_s is None else at_s, lifetime_s, **claims)


def test_who_signs_holds_the_key(site_key):
    key = site_key()
    proved = prove("north", "EdDSA", public_pem(key.private), proof_of(key, code="x"), ENROL_AUDIENCE)
    assert (proved.key.kid, proved.claims["code"]) == (key.kid, "x")


UNPROVED = [
    ("another-key", lambda k, o: (public_pem(o.private), proof_of(k))),
    ("another-units", lambda k, o: (public_pem(k.private), proof_of(k, iss="south", sub="south"))),
    ("another-subject", lambda k, o: (public_pem(k.private), proof_of(k, sub="south"))),
    ("a-unit-token", lambda k, o: (public_pem(k.private), k.identity.token(NOW_S))),
    ("a-rotation", lambda k, o: (public_pem(k.private), proof_of(k, "unit-rotation"))),
    ("old", lambda k, o: (public_pem(k.private), proof_of(k, at_s=NOW_S - 1_000))),
    ("long-lived", lambda k, o: (public_pem(k.private), proof_of(k, lifetime_s=3_600))),
    ("no-jti", lambda k, o: (public_pem(k.private), proof_of(k, jti=""))),
    ("garbage", lambda k, o: (public_pem(k.private), "x.y.z")),
    ("no-key", lambda k, o: ("-----BEGIN PUBLIC KEY-----", proof_of(k))),
    ("endless-key", lambda k, o: (public_pem(k.private) + " " * 5_000, proof_of(k))),
]


@pytest.mark.parametrize("make", [c[1] for c in UNPROVED], ids=[c[0] for c in UNPROVED])
def test_what_proves_nothing(site_key, make):
    public_key, token = make(site_key(), site_key())
    with pytest.raises(BadRequest):
        prove("north", "EdDSA", public_key, token, ENROL_AUDIENCE)


@pytest.mark.parametrize("alg", ["HS256", "none", "RS256", "ES512"])
def test_algorithms_that_do_not_fit(site_key, alg):
    key = site_key()
    with pytest.raises(BadRequest):
        prove("north", alg, public_pem(key.private), proof_of(key), ENROL_AUDIENCE)


def test_a_code_is_what_was_meant():
    text = code.issue()
    assert len(text.replace("-", "")) * 5 == 130
    assert len({code.issue() for _ in range(100)}) == 100
    spellings = [text, text.lower(), text.replace("-", ""), f" {text} ", text.replace("0", "O").replace("1", "l")]
    assert len({code.digest(spelling) for spelling in spellings}) == 1
    assert code.digest(text) == hashlib.sha256(text.replace("-", "").encode()).digest()
    assert code.digest(text) != code.digest(text[:-1])


def test_attempts_from_one_address_are_limited():
    table = BucketTable(mmap.mmap(-1, segment_bytes(64)), 64, b"s" * 16, create=True)
    now_ns = [10**12]
    gate = Gate(table, 3, lambda: now_ns[0])
    for _ in range(3):
        gate.admit("192.0.2.1")
    with pytest.raises(RateLimited) as refused:
        gate.admit("192.0.2.1")
    assert refused.value.retry_after_s == 20
    gate.admit("192.0.2.2")
    now_ns[0] += 20 * 10**9
    gate.admit("192.0.2.1")


class Registry:
    """The database of one code."""

    code = "ABCDE"

    def enrol(self, unit, digest, key, *, with_context):
        return "secret" if (unit, digest) == ("north", code.digest(self.code)) else None


@pytest.fixture
def enrol(holder, site_key):
    """Register a key; Shapes: (status or error's code, events)."""
    key, notes = site_key(), []
    roster = SimpleNamespace(document_context=lambda unit: None)
    resource = EnrolResource(
        Registry(), roster, SimpleNamespace(admit=lambda address: None), refresh=lambda: None,
        tell=lambda outcome, unit, kid: None,
        note=lambda kind, outcome, *, ctx, **more: notes.append((kind, outcome, ctx.client_address, more)),
    )  # fmt: skip

    def enrol(unit, given, **claims):
        proof = key.identity.sign(
            ENROL_AUDIENCE, time.time(), 300, **{"iss": unit, "sub": unit, "code": given, **claims}
        )
        body = {"unit": unit, "alg": "EdDSA", "public_key": public_pem(key.private), "proof": proof}
        raw = json.dumps(body).encode()
        ctx = RequestContext("id-1", 1, "POST", "/relay/v1/enrol", "", "192.0.2.7", holder.current)
        env = {"wsgi.input": io.BytesIO(raw), "CONTENT_LENGTH": str(len(raw))}
        resp = SimpleNamespace(set_header=lambda *_: None)
        try:
            resource.on_post(SimpleNamespace(context=SimpleNamespace(gateway=ctx), env=env), resp)
        except GatewayError as error:
            return error.code, notes, key.kid
        return resp.status, notes, key.kid

    return enrol


@pytest.mark.parametrize(
    ("unit", "given", "claims", "answer", "rule", "about"),
    [
        pytest.param("north", "ABCDE", {}, 201, None, {"unit": "north", "kid": True}, id="good"),
        pytest.param(
            "north", "WRONG", {}, "enrolment-refused", "enrolment-refused", {"unit": "north", "kid": True}, id="code"
        ),
        pytest.param(
            "Anna", "ABCDE", {}, "enrolment-refused", "enrolment-refused", {"kid": True}, id="no unit of ours"
        ),
        pytest.param("north", "ABCDE", {"sub": "south"}, "bad-request", "bad-request", {"unit": "north"}, id="proof"),
    ],
)  # fmt: skip
def test_who_registers_a_key_or_tries_to_is_in_the_trail(enrol, unit, given, claims, answer, rule, about):
    answered, [(kind, outcome, address, more)], kid = enrol(unit, given, **claims)
    assert (answered, kind, address) == (answer, "unit.enrolled", "192.0.2.7")
    assert (outcome, more.pop("rule", None)) == ("allowed" if answer == 201 else "refused", rule)
    assert more == {name: kid if name == "kid" else value for name, value in about.items()}
