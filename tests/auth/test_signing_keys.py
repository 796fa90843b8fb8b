"""Keys that the gateway made, in a worker: they verify at once, sign from their moment, end at theirs, and only those
count that its key-encryption key opens."""

from __future__ import annotations

import json
from base64 import b64encode
from types import SimpleNamespace

import jwt
import pytest

from fastpath.token import Key, TokenError, Verifier
from gateway.auth.keys import issue_token, load_private_key
from gateway.auth.model import Revocations, SigningKey
from gateway.auth.revocations import RevokedTokens
from gateway.auth.rotation import ALGORITHMS
from gateway.auth.rotation import private_pem as _private_pem
from gateway.auth.sealed import KeyEncryptionKey, KeySeal
from gateway.auth.signing_keys import SigningKeys
from gateway.config.snapshot import CompiledTokens, SnapshotHolder

NOW = 1_700_000_000.0
SEAL = KeySeal(KeyEncryptionKey(b"k" * 32))
DOCUMENT_KEY = load_private_key(_private_pem("ES256"), alg="ES256", kid="doc-1")


def row(kid="made-1", role="nurse", alg="ES256", seal=SEAL, pem=None, **more):
    sealed = b64encode(seal.seal(pem or _private_pem(alg), kid, role, alg)).decode()
    values = {"created_s": NOW, "signs_s": NOW, **more}
    return SigningKey(kid=kid, role=role, alg=alg, sealed=sealed, **values)


def end_of(kid="doc-1", **more):
    return SigningKey(kid=kid, role="nurse", alg="", created_s=NOW, signs_s=0.0, **more)


def snapshot(*, document=True):
    role = SimpleNamespace(audience="staff", max_lifetime_s=3_600)
    keys = (DOCUMENT_KEY,) if document else ()
    verifier = Verifier(
        [Key(k.kid, k.alg, k.verifying, issuer="us", audiences=["staff"], role="nurse") for k in keys],
        known_audiences=["staff"],
    )
    return SimpleNamespace(
        version=1, verifier=verifier, unit_verifier=Verifier([]), roles={"nurse": role, "clerk": role},
        audiences={"staff": SimpleNamespace(issuer="us")}, role_keys={"nurse": keys}, thumbprints=frozenset(),
        tokens=CompiledTokens(url="https://g", verifier=Verifier([]), signers={}, jwks=b""),
    )  # fmt: skip


class Worker:
    def __init__(self, seal=SEAL):
        self.now_s = NOW
        self.seal = seal
        self.holder = SnapshotHolder(snapshot())
        self.keys = SigningKeys(self.holder, lambda: self.seal, lambda: self.now_s)

    def signer(self, role="nurse"):
        key = self.holder.current.tokens.signers.get(role)
        return key and key.kid

    def token(self):
        payload = {"iss": "us", "aud": "staff", "sub": "s", "iat": int(NOW), "exp": int(NOW) + 3_000}
        return issue_token(payload, self.holder.current.tokens.signers["nurse"])

    def accepts(self, token):
        try:
            self.holder.current.verifier.verify(token, self.now_s)
        except TokenError:
            return False
        return True

    def published(self):
        return [key["kid"] for key in json.loads(self.holder.current.tokens.jwks)["keys"]]


@pytest.fixture
def worker():
    return Worker()


def test_a_new_key_verifies_before_it_signs_and_the_old_one_until_it_ends(worker):
    before = worker.token()
    worker.keys.take([row(signs_s=NOW + 10), end_of(retires_s=NOW + 100)])
    assert (worker.signer(), worker.published()) == ("doc-1", ["doc-1", "made-1"])
    worker.now_s = NOW + 10
    assert worker.signer() == "doc-1"
    worker.keys.tick()
    assert worker.signer() == "made-1"
    after = worker.token()
    assert jwt.get_unverified_header(after)["kid"] == "made-1"
    assert worker.accepts(before)
    assert worker.accepts(after)
    worker.now_s = NOW + 100
    worker.keys.tick()
    assert (worker.accepts(before), worker.accepts(after)) == (False, True)
    assert worker.published() == ["made-1"]


def test_an_ended_key_is_refused_at_once(worker):
    token = worker.token()
    assert worker.accepts(token)
    worker.keys.take([end_of(ended=True)])
    assert not worker.accepts(token)
    assert worker.signer() is None, "nothing else can sign"
    worker.holder.swap(snapshot())
    assert not worker.accepts(token), "also under the next configuration"


def test_a_second_rotation(worker):
    worker.keys.take([row("made-1"), end_of(retires_s=NOW + 50)])
    worker.keys.take([row("made-2", signs_s=NOW + 1, created_s=NOW + 1, alg="EdDSA")])
    worker.now_s = NOW + 1
    worker.keys.tick()
    assert worker.signer() == "made-2"
    worker.holder.swap(snapshot(document=False))
    assert (worker.signer(), worker.published()) == ("made-2", ["made-2", "made-1"])


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_each_algorithm_signs_and_is_published(worker, alg):
    worker.keys.take([row(alg=alg)])
    token = worker.token()
    assert worker.accepts(token)
    published = next(k for k in json.loads(worker.holder.current.tokens.jwks)["keys"] if k["kid"] == "made-1")
    assert jwt.decode(token, jwt.PyJWK(published), [alg], audience="staff", options={"verify_exp": False})["sub"] == "s"
    assert "d" not in published


@pytest.mark.parametrize(
    "forged",
    [
        lambda: row(seal=KeySeal(KeyEncryptionKey(b"x" * 32))),
        lambda: SigningKey(kid="made-1", role="nurse", alg="ES256", sealed="AAAA", created_s=NOW, signs_s=NOW),
        lambda: SigningKey(
            kid="made-1", role="nurse", alg="ES256", sealed=row(role="clerk").sealed, created_s=NOW, signs_s=NOW
        ),
        lambda: SigningKey(kid="made-2", role="nurse", alg="ES256", sealed=row().sealed, created_s=NOW, signs_s=NOW),
        lambda: row(pem=b"no key"),
        lambda: row(role="nobody"),
    ],
    ids=["another-seal", "garbage", "of-another-role", "renamed", "no-key-inside", "no-such-role"],
)
def test_a_row_that_somebody_else_wrote_adds_no_key(worker, forged):
    worker.keys.take([forged()])
    assert (worker.signer(), worker.published()) == ("doc-1", ["doc-1"])


def test_a_made_key_is_of_its_role_alone(worker):
    worker.keys.take([row(role="clerk")])
    verified = worker.holder.current.verifier.verify(
        issue_token(
            {"iss": "us", "aud": "staff", "sub": "s", "iat": int(NOW), "exp": int(NOW) + 60},
            worker.holder.current.tokens.signers["clerk"],
        ),
        NOW,
    )
    assert verified.role == "clerk"
    assert worker.signer("nurse") == "doc-1"


def test_without_its_key_encryption_key_a_worker_uses_none_and_with_it_again(worker):
    worker.seal = None
    worker.keys.take([row()])
    assert worker.signer() == "doc-1"
    assert [key["usable"] for key in worker.keys.describe()["nurse"]] == [True, False]
    worker.seal = SEAL
    worker.keys.take([row(created_s=NOW + 1)])
    assert worker.signer() == "made-1"


def test_another_database_brings_nothing_back_and_takes_live_ones_away(worker):
    token = worker.token()
    worker.keys.take([row(), end_of(ended=True)])
    made = worker.token()
    assert (worker.accepts(token), worker.accepts(made)) == (False, True)
    worker.keys.take([], whole=True)
    assert (worker.accepts(token), worker.accepts(made)) == (False, False)
    worker.keys.take([end_of()])
    worker.holder.swap(snapshot())
    assert not worker.accepts(token)


def test_an_end_does_not_move_back(worker):
    worker.keys.take([end_of(retires_s=NOW + 10)])
    worker.keys.take([end_of(retires_s=NOW + 1_000)])
    assert worker.keys.rows()[0].retires_s == NOW + 10


def test_they_travel_with_the_revocations_and_over_the_disk():
    worker = Worker()
    revoked = RevokedTokens(worker.holder, lambda: worker.now_s, keys=worker.keys)
    revoked.take(Revocations(3, keys=[row(), end_of(retires_s=NOW + 5)]))
    assert worker.signer() == "made-1"
    other = Worker()
    again = RevokedTokens(other.holder, lambda: NOW, keys=other.keys)
    again.take(revoked.whole())
    assert other.signer() == "made-1"
    assert sorted(key.kid for key in again.whole().keys) == ["doc-1", "made-1"]


def test_describe(worker):
    worker.keys.take([row(), end_of(ended=True)])
    doc, made = worker.keys.describe()["nurse"]
    assert (doc["kid"], doc["source"], doc["live"], doc["signs"]) == ("doc-1", "document", False, False)
    assert (made["kid"], made["source"], made["live"], made["signs"], made["alg"]) == (
        "made-1", "made", True, True, "ES256",
    )  # fmt: skip
