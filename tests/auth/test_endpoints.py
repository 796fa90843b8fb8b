"""The token service without sockets: what is granted, what is refused, and what a refusal tells."""

from __future__ import annotations

import json
import time
import uuid
from dataclasses import replace
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlencode

import falcon.testing
import jwt
import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from jwt.algorithms import ECAlgorithm

from gateway import shared
from gateway.app import Gateway
from gateway.audit.trail import AuditTrail
from gateway.errors import DatabaseUnavailable
from gateway.settings import Settings
from tests.auth.conftest import Notes

URL = "https://api.test"
TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
FAILURES = 12


def pem(key: Any) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def public(key: Any) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


KEYS = {
    "labs": ed25519.Ed25519PrivateKey.generate(),
    "watch": ed25519.Ed25519PrivateKey.generate(),
    "stranger": ed25519.Ed25519PrivateKey.generate(),
    "partner": ec.generate_private_key(ec.SECP256R1()),
}
DOCUMENT = {
    "version": 1,
    "audiences": {"partners": {"issuer": "https://id.test/partners"}, "staff": {"issuer": "https://id.test/staff"}},
    "roles": {
        "partner": {
            "audience": "partners", "access_lifetime_s": 300, "permissions": ["list.read"],
            "keys": [{"kid": "partner-1", "alg": "ES256", "public_key": "file:partner.pub",
                      "private_key": "file:partner.key"}],
        },
        "nurse": {"audience": "staff", "keys": [{"kid": "nurse-1", "alg": "HS256", "secret": "file:nurse.secret"}]},
    },
    "controllers": {
        "who": {"path": "/{any:path}", "methods": ["GET"], "audiences": ["partners"], "roles": ["partner"],
                "resource": "whoami"},
    },
    "token_service": {"url": URL},
    "clients": {
        "labs": {"role": "partner", "claims": {"org": "labs-1", "units": ["north"]},
                 "keys": [{"kid": "labs-1", "alg": "EdDSA", "public_key": "file:labs.pub"}]},
        "watch": {"introspect": ["partners"],
                  "keys": [{"kid": "watch-1", "alg": "EdDSA", "public_key": "file:watch.pub"}]},
    },
}  # fmt: skip
SECRET = "a-secret-of-nurses-51b7e3a90c4f8d26"


class Store:
    """A database that can be away."""

    def __init__(self) -> None:
        self.spent: set[bytes] = set()
        self.revoked: dict[str, float] = {}
        self.away = False

    def spend(self, digest, until_s):
        self._answer()
        new = digest not in self.spent
        self.spent.add(digest)
        return new

    def revoke(self, jti, until_s, by):
        self._answer()
        self.revoked[jti] = until_s

    def is_revoked(self, jti, session):
        self._answer()
        return jti in self.revoked

    def _answer(self):
        if self.away:
            raise DatabaseUnavailable


@pytest.fixture
def service(tmp_path, monkeypatch):
    for name, key in KEYS.items():
        write(tmp_path / f"{name}.pub", public(key))
        write(tmp_path / f"{name}.key", pem(key))
    write(tmp_path / "nurse.secret", SECRET.encode())
    write(tmp_path / "caregate.yaml", yaml.safe_dump(DOCUMENT).encode())
    (tmp_path / "run").mkdir(mode=0o700)
    store = Store()
    monkeypatch.setattr("gateway.auth.service.TokenStore", lambda database: store)
    store.changes = None
    settings = Settings(
        config_path=tmp_path / "caregate.yaml", data_dir=tmp_path, run_dir=tmp_path / "run", access_log=False,
        dsn="host=/nowhere connect_timeout=1", bucket_capacity=1024, token_failures_per_minute=FAILURES,
    )  # fmt: skip
    notes = Notes()
    monkeypatch.setattr(AuditTrail, "note", lambda self, kind, outcome, **more: notes.append((kind, outcome, more)))
    gateway = Gateway(settings, shared.create(settings), 0)
    client = falcon.testing.TestClient(gateway.public)
    yield SimpleNamespace(gateway=gateway, store=store, client=client, notes=notes)
    gateway.database.close()


def write(path, content):
    path.touch(mode=0o600)
    path.write_bytes(content)


def assertion(of="labs", *, key=None, kid=None, alg="EdDSA", **changes):
    now = int(time.time())
    claims = {"iss": of, "sub": of, "aud": URL, "iat": now, "exp": now + 60, "jti": str(uuid.uuid4()), **changes}
    claims = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(claims, KEYS[key or of], alg, {"kid": kid or f"{of}-1"})


def proof(of="labs", **changes):
    return {"client_assertion_type": TYPE, "client_assertion": assertion(of, **changes)}


@pytest.fixture
def post(service):
    def post(endpoint, form, **more):
        body = form if isinstance(form, str) else urlencode(form)
        headers = {"Content-Type": "application/x-www-form-urlencoded", **more.pop("headers", {})}
        return service.client.simulate_post(f"/auth/v1/{endpoint}", body=body, headers=headers, **more)

    return post


@pytest.fixture
def grant(post):
    def grant(**changes):
        answer = post("token", {"grant_type": "client_credentials", **proof(**changes)})
        assert answer.status_code == 200, answer.text
        return answer.json["access_token"]

    return grant


def nurse_token(**changes):
    now = int(time.time())
    claims = {"iss": "https://id.test/staff", "aud": "staff", "sub": "n1", "iat": now, "exp": now + 60, **changes}
    return jwt.encode(claims, SECRET, "HS256", {"kid": "nurse-1"})


def test_a_client_gets_a_token_of_its_role(service, post):
    answer = post("token", {"grant_type": "client_credentials", **proof()})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    assert {**answer.json, "access_token": ""} == {"access_token": "", "token_type": "Bearer", "expires_in": 300}
    keys = service.client.simulate_get("/auth/v1/jwks").json["keys"]
    assert [key["kid"] for key in keys] == ["partner-1"], "a shared secret is not published"
    assert "d" not in keys[0]
    claims = jwt.decode(
        answer.json["access_token"], ECAlgorithm.from_jwk(json.dumps(keys[0])), ["ES256"], audience="partners"
    )
    assert claims.pop("exp") - claims.pop("iat") == 300
    assert len(claims.pop("jti")) >= 16
    assert claims == {
        "iss": "https://id.test/partners", "aud": "partners", "sub": "labs", "client_id": "labs", "role": "partner",
        "org": "labs-1", "units": ["north"],
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {answer.json['access_token']}"}
    assert service.client.simulate_get("/anything", headers=headers).status_code == 200


def ago(seconds):
    return int(time.time()) - seconds


BAD_ASSERTIONS = {
    "none": dict,
    "no type": lambda: {"client_assertion": "x.y.z"},
    "another type": lambda: {
        **proof(),
        "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:saml2-bearer",
    },
    "garbage": lambda: {"client_assertion_type": TYPE, "client_assertion": "x.y.z"},
    "foreign key": lambda: proof(key="stranger"),
    "another client's key": lambda: proof(key="watch"),
    "another client's kid": lambda: proof(kid="watch-1"),
    "unknown client": lambda: proof("stranger"),
    "another subject": lambda: proof(sub="watch"),
    "another issuer": lambda: proof(iss="watch"),
    "another audience": lambda: proof(aud="https://evil.test"),
    "the audience of tokens": lambda: proof(aud="partners"),
    "two audiences of ours": lambda: proof(aud=[URL, f"{URL}/auth/v1/token"]),
    "another audience beside ours": lambda: proof(aud=[URL, "https://elsewhere.test"]),
    "another audience before ours": lambda: proof(aud=["https://elsewhere.test", f"{URL}/auth/v1/token"]),
    "ours twice": lambda: proof(aud=[URL, URL]),
    "no audience": lambda: proof(aud=None),
    "expired": lambda: proof(iat=ago(600), exp=ago(300)),
    "no end": lambda: proof(exp=None),
    "lives too long": lambda: proof(exp=ago(-3_000)),
    "from the future": lambda: proof(iat=ago(-600), exp=ago(-660)),
    "no jti": lambda: proof(jti=None),
    "empty jti": lambda: proof(jti=""),
    "another client_id": lambda: {**proof(), "client_id": "watch"},
    "key of a role": lambda: proof(key="partner", kid="partner-1", alg="ES256"),
}


@pytest.mark.parametrize("form", BAD_ASSERTIONS.values(), ids=BAD_ASSERTIONS.keys())
def test_a_bad_assertion_gets_the_one_answer(service, post, form):
    answer = post("token", {"grant_type": "client_credentials", **form()})
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["www-authenticate"] == 'Bearer realm="caregate"'
    assert answer.json["error"] == "invalid_client"
    assert answer.json["error_description"] == "The client did not prove who it is"
    assert service.store.spent == set()


def test_both_names_of_the_service_are_its_audience(grant):
    assert grant(aud=f"{URL}/auth/v1/token")
    assert grant(aud=[URL])


def test_an_assertion_is_for_one_use(post):
    form = {"grant_type": "client_credentials", **proof()}
    assert [post("token", form).status_code for _ in range(3)] == [200, 401, 401]


REFUSED = {
    "no grant type": ({}, "invalid_request"),
    "another grant": ({"grant_type": "urn:ietf:params:oauth:grant-type:saml2-bearer"}, "unsupported_grant_type"),
    "a grant of apps": ({"grant_type": "password", "username": "a", "password": "b"}, "unauthorized_client"),
    "a scope": ({"grant_type": "client_credentials", "scope": "list.read"}, "invalid_scope"),
}


@pytest.mark.parametrize(("form", "error"), REFUSED.values(), ids=REFUSED.keys())
def test_what_is_not_granted(post, form, error):
    answer = post("token", {**form, **proof()})
    assert (answer.status_code, answer.json["error"]) == (400, error)


def test_a_client_without_a_role_gets_no_token(post):
    answer = post("token", {"grant_type": "client_credentials", **proof("watch")})
    assert (answer.status_code, answer.json["error"]) == (400, "unauthorized_client")


BODIES = {
    "twice": "grant_type=client_credentials&grant_type=client_credentials",
    "no pair": "grant_type",
    "bad escape": "grant_type=%ff",
    "not ascii": "grant_type=\u00e9",
    "too many": "&".join(f"p{n}=1" for n in range(40)),
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES.keys())
def test_a_body_that_is_no_form(post, body):
    answer = post("token", body)
    assert (answer.status_code, answer.json["error"]) == (400, "invalid_request")


def test_parameters_elsewhere(post, service):
    assert post("token", {}, query_string="grant_type=client_credentials").json["error"] == "invalid_request"
    assert post("token", "{}", headers={"Content-Type": "application/json"}).json["error"] == "invalid_request"
    assert post("token", "a=" + "x" * 40_000).status_code == 413
    assert service.client.simulate_get("/auth/v1/token").status_code == 405


def test_failures_are_limited_and_successes_are_not(post, grant):
    for _ in range(FAILURES + 3):
        grant()
    for _ in range(FAILURES):
        assert post("token", {"grant_type": "client_credentials"}).status_code == 401
    limited = post("token", {"grant_type": "client_credentials", **proof()})
    assert limited.status_code == 429
    assert int(limited.headers["retry-after"]) >= 1


def test_without_the_database_nothing_is_granted_said_or_revoked(post, grant, service):
    token = grant()
    service.store.away = True
    for _ in range(FAILURES + 3):
        assert post("token", {"grant_type": "client_credentials", **proof()}).status_code == 503, "is no failure"
    assert post("introspect", {"token": token, **proof("watch")}).status_code == 503
    assert post("revoke", {"token": nurse_token(jti="j")}).status_code == 503
    assert service.gateway.holder.current.verifier.revoked == {}


# --- introspection


def test_introspection_of_a_good_token(post, grant):
    answer = post("introspect", {"token": grant(), **proof("watch")})
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-store"
    found = answer.json
    assert (found["active"], found["client_id"], found["role"], found["token_type"]) == (
        True, "labs", "partner", "Bearer",
    )  # fmt: skip


INACTIVE = {
    "garbage": lambda: "x.y.z",
    "another audience": lambda: nurse_token(),
    "expired": lambda: nurse_token(iat=ago(600), exp=ago(300)),
    "an assertion": lambda: assertion(),
}


@pytest.mark.parametrize("token", INACTIVE.values(), ids=INACTIVE.keys())
def test_introspection_of_anything_else(post, token):
    answer = post("introspect", {"token": token(), **proof("watch")})
    assert (answer.status_code, answer.json) == (200, {"active": False})


def test_introspection_asks_the_database(post, grant, service):
    token = grant()
    service.store.revoked[jwt.decode(token, options={"verify_signature": False})["jti"]] = 1e12
    assert post("introspect", {"token": token, **proof("watch")}).json == {"active": False}


def test_who_may_introspect(post, grant):
    token = grant()
    assert post("introspect", {"token": token}).json["error"] == "invalid_client"
    assert post("introspect", {"token": token, **proof()}).json["error"] == "unauthorized_client"
    assert post("introspect", proof("watch")).json["error"] == "invalid_request"


# --- revocation


def test_a_revoked_token_is_refused(post, grant, service):
    token = grant()
    headers = {"Authorization": f"Bearer {token}"}
    assert service.client.simulate_get("/anything", headers=headers).status_code == 200
    answer = post("revoke", {"token": token, **proof()})
    assert (answer.status_code, answer.content) == (200, b"")
    assert service.client.simulate_get("/anything", headers=headers).status_code == 401
    assert post("revoke", {"token": token, **proof()}).status_code == 200


def test_who_may_revoke(post, grant, service):
    token = grant()
    assert post("revoke", {"token": token}).json["error"] == "invalid_client"
    assert post("revoke", {"token": token, "client_id": "labs"}).json["error"] == "invalid_client"
    assert post("revoke", {"token": token, **proof("watch")}).json["error"] == "invalid_grant"
    assert service.store.revoked == {}
    assert post("revoke", {"token": nurse_token(jti="nobody's")}).status_code == 200
    assert list(service.store.revoked) == ["nobody's"]
    assert list(service.gateway.holder.current.verifier.revoked) == ["nobody's"]


def test_what_cannot_be_revoked(post):
    assert post("revoke", {"token": "x.y.z"}).status_code == 200
    assert post("revoke", {"token": nurse_token()}).json["error"] == "unsupported_token_type"
    assert post("revoke", "").json["error"] == "invalid_request"


# --- the trail


CLIENT = {"grant_type": "client_credentials"}
NOTED = {
    "a client that proves nothing": ("token", lambda: CLIENT, ("token.issued", "invalid_client", "")),
    "a scope": ("token", lambda: {**CLIENT, "scope": "s", **proof()}, ("token.issued", "invalid_scope", "labs")),
    "a grant of apps": (
        "token", lambda: {"grant_type": "refresh_token", "refresh_token": "r", **proof()},
        ("token.refreshed", "unauthorized_client", "labs"),
    ),
    "no form": ("token", lambda: "grant_type", ("token.issued", "invalid_request", "")),
    "introspection by nobody": ("introspect", lambda: {"token": "t"}, ("token.introspected", "invalid_client", "")),
    "introspection by another": (
        "introspect", lambda: {"token": "t", **proof()}, ("token.introspected", "unauthorized_client", "labs"),
    ),
    "revocation of nothing": ("revoke", lambda: "", ("token.revoked", "invalid_request", "")),
    "revocation without a jti": (
        "revoke", lambda: {"token": nurse_token()}, ("token.revoked", "unsupported_token_type", ""),
    ),
}  # fmt: skip


@pytest.mark.parametrize(("endpoint", "form", "noted"), NOTED.values(), ids=NOTED.keys())
def test_what_is_refused_is_an_event(post, service, endpoint, form, noted):
    answer = post(endpoint, form())
    assert answer.status_code in (400, 401)
    [(kind, outcome, more)] = service.notes
    assert (kind, more["rule"], more["client"]) == noted
    assert outcome == "refused"
    assert more["ctx"].id == answer.headers["x-request-id"]


def test_what_failed_is_an_event_and_what_a_limit_refused_is_none(post, service):
    service.store.away = True
    post("token", {"grant_type": "client_credentials", **proof()})
    assert [(kind, outcome, more["rule"]) for kind, outcome, more in service.notes] == [
        ("token.issued", "failed", "database-unavailable")
    ]
    for _ in range(FAILURES + 2):
        post("token", {})
    assert len(service.notes) == 1 + FAILURES


def test_questions_about_tokens_are_events(post, grant, service):
    token = grant()
    jti = jwt.decode(token, options={"verify_signature": False})["jti"]
    service.notes.clear()
    post("introspect", {"token": token, **proof("watch")})
    post("introspect", {"token": nurse_token(jti="hidden"), **proof("watch")})
    assert [(kind, outcome, more["client"], more["active"], more["jti"]) for kind, outcome, more in service.notes] == [
        ("token.introspected", "allowed", "watch", "yes", jti), ("token.introspected", "allowed", "watch", "no", ""),
    ]  # fmt: skip


def test_nothing_is_revoked_without_the_trail(post, grant, service):
    token = grant()
    service.notes.clear()
    service.notes.full = True
    answer = post("revoke", {"token": token, **proof()})
    assert (answer.status_code, answer.headers["x-request-id"] != "", service.store.revoked) == (503, True, {})
    service.notes.full = False
    assert post("revoke", {"token": token, **proof()}).status_code == 200
    assert [(kind, outcome, more["durable"]) for kind, outcome, more in service.notes] == [
        ("token.revoked", "pending", True), ("token.revoked", "allowed", True),
    ]  # fmt: skip


# --- metadata


def test_metadata(service):
    answer = service.client.simulate_get("/.well-known/oauth-authorization-server")
    assert answer.status_code == 200, "no route of the configuration comes before it"
    found = answer.json
    assert found["issuer"] == URL
    for name in ("token_endpoint", "introspection_endpoint", "revocation_endpoint", "jwks_uri"):
        path = found[name].removeprefix(URL)
        method = "GET" if name == "jwks_uri" else "POST"
        assert service.client.simulate_request(method, path).status_code in (200, 400, 401), path
    assert found["grant_types_supported"] == ["client_credentials"]
    assert "none" not in found["token_endpoint_auth_methods_supported"]


def test_without_a_token_service_there_is_none(service, post):
    service.gateway.holder.swap(replace(service.gateway.holder.current, tokens=None))
    for endpoint in ("token", "introspect", "revoke"):
        assert post(endpoint, {}).status_code == 404
    assert service.client.simulate_get("/auth/v1/jwks").status_code == 404
    assert service.client.simulate_get("/.well-known/oauth-authorization-server").status_code == 404
