"""A gateway without sockets over a real PostgreSQL, with accounts of three roles and apps to log in by."""

from __future__ import annotations

import datetime
import ipaddress
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import falcon.testing
import gevent
import psycopg
import pytest
import yaml
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from gevent import ssl

from gateway import shared
from gateway.app import Gateway
from gateway.audit.trail import AuditTrail
from gateway.auth import passwords, totp
from gateway.auth.vault import Vault, load_or_make_key
from gateway.errors import AuditUnavailable
from gateway.settings import Settings
from gateway.store.account_operator import AccountOperator
from tests.auth.kit import (
    ACCOUNTS,
    BACK,
    CHALLENGE,
    CLIENT_KEYS,
    DISABLED,
    DOCUMENT,
    FAILURES,
    LOGIN_FAILURES,
    PASSWORD,
    ROLES,
    URL,
    VERIFIER,
    WITH_FACTOR,
    proof,
    write,
    write_pair,
)
from tests.auth.scripted_provider import ScriptedProvider


class Notes(list):
    """Audit events; a trail that is full takes none."""

    full = False

    def append(self, event):
        if self.full:
            raise AuditUnavailable
        super().append(event)


@pytest.fixture(scope="session")
def hashed():
    """One hash for all accounts: making it takes a tenth of a second."""
    return passwords.hash_password(PASSWORD)


@pytest.fixture
def service(tmp_path, postgres, hashed, monkeypatch):
    """Shapes: `.notes` are the audit events, as (kind, outcome, members)."""
    for role in ROLES:
        write_pair(tmp_path, role, ec.generate_private_key(ec.SECP256R1()))
    for name, key in CLIENT_KEYS.items():
        write_pair(tmp_path, name, key)
    write(tmp_path / "caregate.yaml", yaml.safe_dump(DOCUMENT).encode())
    (tmp_path / "run").mkdir(mode=0o700)
    vault = Vault(load_or_make_key(tmp_path / "accounts.key"))
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("TRUNCATE caregate.account CASCADE")
    operator = AccountOperator(postgres.admin_dsn.replace("//postgres@", "//caregate_operator@"))
    secret = totp.new_secret()
    ids = {}
    for login, (role, claims) in ACCOUNTS.items():
        ids[login] = account = secrets.token_urlsafe(16)
        operator.add(account, login, f"user-{login}", role, claims, hashed)
    operator.set_factor(WITH_FACTOR, vault.factors.seal(secret, ids[WITH_FACTOR].encode()))
    operator.disable(DISABLED, "gone")
    settings = Settings(
        config_path=tmp_path / "caregate.yaml", data_dir=tmp_path, run_dir=tmp_path / "run", access_log=False,
        dsn=postgres.gateway_dsn, bucket_capacity=1024, token_failures_per_minute=FAILURES,
        login_failures_per_hour=LOGIN_FAILURES,
    )  # fmt: skip
    notes = Notes()
    monkeypatch.setattr(AuditTrail, "note", lambda self, kind, outcome, **more: notes.append((kind, outcome, more)))
    gateway = Gateway(settings, shared.create(settings), 0)
    client = falcon.testing.TestClient(gateway.public)
    made = SimpleNamespace(
        gateway=gateway, client=client, operator=operator, ids=ids, secret=secret, notes=notes, vault=vault,
        postgres=postgres,
    )  # fmt: skip
    yield made
    operator.__exit__()
    gateway.tokens._passwords.stop()
    gateway.database.close()


@pytest.fixture
def quick(monkeypatch):
    """Passwords are compared without the work, where they are not what is tested."""
    monkeypatch.setattr(
        passwords, "matches", lambda hashed, password: password == PASSWORD and hashed != passwords.DUMMY
    )


@pytest.fixture
def sql(postgres):
    def sql(query, *values):
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
            cursor = admin.execute(query, values)
            return cursor.fetchall() if cursor.description else cursor.rowcount

    return sql


@pytest.fixture
def post(service):
    def post(endpoint, form, **headers):
        fields = {
            "Content-Type": "application/x-www-form-urlencoded",
            **{n.replace("_", "-"): v for n, v in headers.items()},
        }
        return service.client.simulate_post(f"/auth/v1/{endpoint}", body=urlencode(form), headers=fields)

    return post


@pytest.fixture
def log_in(post):
    """A login by password; the answer's JSON."""

    def log_in(login="anna", client="terminal", headers=None, **more):
        who = proof(client) if client == "desk" else {"client_id": client}
        form = {"grant_type": "password", "username": login, "password": PASSWORD, **who, **more}
        answer = post("token", form, **(headers or {}))
        assert answer.status_code == 200, answer.text
        return answer.json

    return log_in


@pytest.fixture
def refresh(post):
    def refresh(token, client="terminal", headers=None, **more):
        who = proof(client) if client == "desk" else {"client_id": client}
        return post("token", {"grant_type": "refresh_token", "refresh_token": token, **who, **more}, **(headers or {}))

    return refresh


@pytest.fixture
def page(service):
    """The login page as a browser has it: `open`, then `send` the form."""

    class Page:
        def __init__(self) -> None:
            self.cookie = ""

        def open(self, headers=None, **changes: Any) -> Any:
            query = {
                "response_type": "code", "client_id": "app", "redirect_uri": BACK, "code_challenge": CHALLENGE,
                "code_challenge_method": "S256", "state": "a&b=1", **changes,
            }  # fmt: skip
            text = urlencode({name: value for name, value in query.items() if value is not None})
            fields = {"Cookie": self.cookie, **(headers or {})} if self.cookie else headers
            answer = service.client.simulate_get("/auth/v1/authorize", query_string=text, headers=fields)
            if "set-cookie" in answer.headers:
                self.cookie = answer.headers["set-cookie"].partition(";")[0]
            found = re.search(r'name="request" value="([^"]*)"', answer.text)
            self.request = found[1] if found else ""
            return answer

        def send(self, username="anna", password=PASSWORD, headers=None, **changes: Any) -> Any:
            form = {"request": self.request, "username": username, "password": password, **changes}
            fields = {
                "Content-Type": "application/x-www-form-urlencoded", "Origin": URL, "Cookie": self.cookie,
                **(headers or {}),
            }  # fmt: skip
            return service.client.simulate_post("/auth/v1/authorize", body=urlencode(form), headers=fields)

        def code(self, **changes: Any) -> str:
            self.open(**changes)
            answer = self.send()
            assert answer.status_code == 303, answer.text
            return parse_qs(urlsplit(answer.headers["location"]).query)["code"][0]

    return Page()


@pytest.fixture
def redeem(post):
    def redeem(code, headers=None, **changes):
        form = {
            "grant_type": "authorization_code", "client_id": "app", "redirect_uri": BACK, "code": code,
            "code_verifier": VERIFIER, **changes,
        }  # fmt: skip
        return post("token", {name: value for name, value in form.items() if value is not None}, **(headers or {}))

    return redeem


@pytest.fixture
def idp() -> Iterator[ScriptedProvider]:
    made = ScriptedProvider()
    made.add_key("k1")
    yield made
    made.stop()
    gevent.sleep(0)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and idp.test that vouches for itself, and its key."""
    directory = tmp_path_factory.mktemp("idp")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "idp.test")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.IPAddress(ipaddress.ip_address("127.0.0.1")), x509.DNSName("idp.test")]
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    (directory / "idp.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    (directory / "idp.key").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return directory / "idp.pem", directory / "idp.key"


@pytest.fixture
def tls_idp(certificate: tuple[Path, Path]) -> Iterator[ScriptedProvider]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*certificate)
    made = ScriptedProvider(context)
    made.add_key("k1")
    yield made
    made.stop()
