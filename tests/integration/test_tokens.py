"""The token service of a real platform: four workers, PostgreSQL, one partner with a key of its own."""

from __future__ import annotations

import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlencode

import jwt
import psycopg
import pytest

pytestmark = pytest.mark.integration

URL = "https://api.caregate.test"
TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
WORKERS = 4


@pytest.fixture(scope="module")
def private_key(platform):
    return (platform.directory / "keys" / "client-insurer.key").read_bytes()


@pytest.fixture
def proof(private_key):
    def proof():
        now = int(time.time())
        claims = {
            "iss": "client-insurer", "sub": "client-insurer", "aud": URL, "iat": now, "exp": now + 60,
            "jti": str(uuid.uuid4()),
        }  # fmt: skip
        signed = jwt.encode(claims, private_key, "EdDSA", {"kid": "client-insurer-1"})
        return {"client_assertion_type": TYPE, "client_assertion": signed}

    return proof


@pytest.fixture
def post(call):
    def post(endpoint, form):
        body = urlencode(form).encode()
        return call("POST", f"/auth/v1/{endpoint}", None, body, Content_Type="application/x-www-form-urlencoded")

    return post


@pytest.fixture
def grant(post, proof):
    def grant():
        answer = post("token", {"grant_type": "client_credentials", **proof()})
        assert answer.status == 200, answer.body
        return answer.json["access_token"]

    return grant


def test_a_partner_gets_a_token_and_calls(call, grant):
    token = grant()
    answers = [call("GET", "/terminology/v1/none", token).status for _ in range(2)]
    assert 401 not in answers
    assert call("GET", "/partner/v1/statistics", token).status in (200, 429)


def test_an_assertion_is_used_once_by_all_workers(post, proof):
    form = {"grant_type": "client_credentials", **proof()}
    with ThreadPoolExecutor(16) as pool:
        found = [answer.status for answer in pool.map(lambda _: post("token", form), range(16))]
    assert sorted(found) == [200] + [401] * 15


def everywhere(call, token, status, rounds=40):
    """Is this what each of many new connections is answered? The kernel spreads them over the workers."""
    return all(call("GET", "/auth/v1/none", token).status == status for _ in range(rounds))


def test_a_revocation_holds_in_every_worker_within_a_second_and_after_a_restart(
    call, post, proof, grant, wait, worker_pids, kill
):
    token, other = grant(), grant()
    assert everywhere(call, token, 404), "a good token, no such path"
    assert post("introspect", {"token": token, **proof()}).json["active"] is True
    assert post("revoke", {"token": token, **proof()}).status == 200
    revoked_s = time.monotonic()
    assert post("introspect", {"token": token, **proof()}).json == {"active": False}
    wait(lambda: everywhere(call, token, 401), limit_s=revoked_s + 1.0 - time.monotonic())
    assert everywhere(call, other, 404)
    before = set(worker_pids())
    for pid in before:
        kill(pid)
    wait(lambda: len(set(worker_pids()) - before) == WORKERS, limit_s=30)
    wait(lambda: answers(call), limit_s=30)
    assert everywhere(call, token, 401)


def answers(call):
    try:
        return call("GET", "/auth/v1/jwks").status == 200
    except OSError:
        return False


def test_a_lost_notification_is_healed_by_a_look(platform, call, grant, wait):
    """As if another writer's NOTIFY had never come: the trigger that sends it is off."""
    token = grant()
    jti = jwt.decode(token, options={"verify_signature": False})["jti"]
    with psycopg.connect(platform._postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("ALTER TABLE caregate.revoked_token DISABLE TRIGGER revision")
        try:
            row = admin.execute("UPDATE caregate.token_revision SET number = number + 1 RETURNING number").fetchone()
            admin.execute(
                "INSERT INTO caregate.revoked_token (jti, until_at, revoked_by, revision)"
                " VALUES (%s, now() + interval '1 hour', 'test', %s)",
                (jti, row[0]),
            )
        finally:
            admin.execute("ALTER TABLE caregate.revoked_token ENABLE TRIGGER revision")
    wait(lambda: everywhere(call, token, 401), limit_s=4)


def test_the_published_key_verifies(call, grant):
    keys = {key["kid"]: key for key in call("GET", "/auth/v1/jwks").json["keys"]}
    assert "patient-1" not in keys, "a shared secret"
    token = grant()
    key = jwt.PyJWK(keys[jwt.get_unverified_header(token)["kid"]])
    assert jwt.decode(token, key, ["RS256"], audience="partner-api")["org"] == "insurer-1"
    assert call("GET", "/.well-known/oauth-authorization-server").json["issuer"] == URL
