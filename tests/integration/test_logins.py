"""Logins at a real platform, four workers and PostgreSQL: they work, and attacks on them end as they should.

CAREGATE_TEST_WRONG_PASSWORDS says how many wrong passwords are tried; the figures are printed.
"""

from __future__ import annotations

import hashlib
import http.client
import itertools
import json
import os
import re
import secrets
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.auth import totp
from gateway.auth.passwords import hash_password
from gateway.demo.logins import BACK, TERMINAL, VERIFIER, authorize_url
from gateway.store.account_operator import AccountOperator

pytestmark = pytest.mark.integration

URL = "https://api.caregate.test"
WRONG = int(os.environ.get("CAREGATE_TEST_WRONG_PASSWORDS", "300"))
CLIENTS = 20
FAILURES_OF_A_LOGIN = 20
FAILURES_OF_AN_ADDRESS = 30
"""The settings' defaults, which the platform has."""
_addresses = itertools.count(2)


@pytest.fixture
def address():
    """A loopback address of this test alone: failures are counted by address."""
    return f"127.0.1.{next(_addresses)}"


@pytest.fixture
def post(platform):
    def post(endpoint, form, address, **headers):
        fields = {
            "Content-Type": "application/x-www-form-urlencoded",
            **{n.replace("_", "-"): v for n, v in headers.items()},
        }
        connection = http.client.HTTPConnection(
            "127.0.0.1", platform.ports.gateway, timeout=60, source_address=(address, 0)
        )
        try:
            connection.request("POST", f"/auth/v1/{endpoint}", urlencode(form), fields)
            answer = connection.getresponse()
            return answer.status, json.loads(answer.read() or b"{}"), answer.headers
        finally:
            connection.close()

    return post


@pytest.fixture
def log_in(platform, post, address):
    def log_in(username="anna", where=None, **more):
        headers = {n: more.pop(n) for n in list(more) if n == "DPoP"}
        form = {
            "grant_type": "password", "client_id": TERMINAL, "username": username,
            "password": platform.logins.password, **more,
        }  # fmt: skip
        status, given, _ = post("token", form, where or address, **headers)
        assert status == 200, given
        return given

    return log_in


def refresh_form(token):
    return {"grant_type": "refresh_token", "client_id": TERMINAL, "refresh_token": token}


def at_once(work, number):
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(work, range(number)))


def everywhere(call, token, status, rounds=40):
    """Is this what each of many new connections is answered? The kernel spreads them over the workers."""
    return all(call("GET", "/auth/v1/none", token).status == status for _ in range(rounds))


def test_a_patient_logs_in_and_reads_her_appointments(call, log_in):
    token = log_in()["access_token"]
    assert call("GET", "/portal/v1/me/appointments", token).status == 200
    assert call("GET", "/portal/v1/patients/pat-0002/appointments", token).status == 404


def test_an_auditor_needs_a_one_time_code_once(platform, post, log_in, address):
    """At four workers at once, too."""
    form = {
        "grant_type": "password", "client_id": TERMINAL, "username": "audit", "password": platform.logins.password,
    }  # fmt: skip
    assert post("token", form, address)[0] == 400
    code = totp.code_at(platform.logins.factor, int(time.time()) // 30)
    found = at_once(lambda _: post("token", {**form, "totp": code}, address)[0], 6)
    assert sorted(found) == [200] + [400] * 5


def test_the_login_page(call, post, platform, address):
    target = authorize_url("").partition("?")
    page = call("GET", f"{target[0]}?{target[2]}")
    assert page.status == 200
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")
    cookie = page.headers["Set-Cookie"].partition(";")[0]
    sealed = re.search(rb'name="request" value="([^"]*)"', page.body)[1].decode()
    form = {"request": sealed, "username": "anna", "password": platform.logins.password}
    origin = f"http://127.0.0.1:{platform.ports.gateway}"
    headers = {"Content_Type": "application/x-www-form-urlencoded", "Origin": origin}
    assert call("POST", "/auth/v1/authorize", None, urlencode(form).encode(), **headers).status == 400, "no cookie"
    answer = call("POST", "/auth/v1/authorize", None, urlencode(form).encode(), Cookie=cookie, **headers)
    assert answer.status == 303, answer.body
    assert answer.headers["Location"].startswith(BACK + "?")
    (code,) = parse_qs(urlsplit(answer.headers["Location"]).query)["code"]
    redeem = {
        "grant_type": "authorization_code", "client_id": "patient-web", "redirect_uri": BACK, "code": code,
        "code_verifier": VERIFIER,
    }  # fmt: skip
    found = at_once(lambda _: post("token", redeem, address), 8)
    assert sorted(status for status, _, _ in found) == [200] + [400] * 7
    (given,) = [document for status, document, _ in found if status == 200]
    again = {**refresh_form(given["refresh_token"]), "client_id": "patient-web"}
    assert post("token", again, address)[0] == 400, "a code that came again ends what it gave"


def test_a_parent_reads_for_her_child(call, log_in, post, address):
    parent = log_in()["access_token"]
    form = {
        "grant_type": "urn:ietf:params:oauth:grant-type:token-exchange", "client_id": TERMINAL,
        "subject_token": parent, "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
    }  # fmt: skip
    assert post("token", {**form, "requested_subject": "pat-0004"}, address)[0] == 400
    status, given, _ = post("token", {**form, "requested_subject": "pat-0003"}, address)
    assert status == 200, given
    assert call("GET", "/portal/v1/patients/pat-0003/appointments", given["access_token"]).status == 200
    assert call("GET", "/portal/v1/patients/pat-0001/appointments", given["access_token"]).status == 404


# --- attacks


def test_of_twenty_clients_with_one_refresh_token_one_gets_the_next(call, log_in, post, address, wait):
    first = log_in()
    assert everywhere(call, first["access_token"], 404), "a good token, no such path"
    found = at_once(lambda _: post("token", refresh_form(first["refresh_token"]), address), CLIENTS)
    given = [document for status, document, _ in found if status == 200]
    assert len(given) == 1
    assert {document["error"] for status, document, _ in found if status != 200} == {"invalid_grant"}
    assert post("token", refresh_form(given[0]["refresh_token"]), address)[0] == 400, "the family has ended"
    for token in (first["access_token"], given[0]["access_token"]):
        wait(lambda token=token: everywhere(call, token, 401), limit_s=5)


def test_of_twenty_clients_with_its_key_two_get_the_same(log_in, post, address, platform):
    key = ec.generate_private_key(ec.SECP256R1())
    first = log_in(DPoP=dpop(key))
    found = at_once(lambda _: post("token", refresh_form(first["refresh_token"]), address, DPoP=dpop(key)), CLIENTS)
    given = [document for status, document, _ in found if status == 200]
    assert 1 <= len(given) <= 2
    assert len({document["refresh_token"] for document in given}) == 1, "at most one successor"
    assert post("token", refresh_form(given[0]["refresh_token"]), address, DPoP=dpop(key))[0] == 400
    digest = hashlib.sha256(first["refresh_token"].encode()).digest()
    with psycopg.connect(platform._postgres.admin_dsn) as admin:
        tokens, why = admin.execute(
            "SELECT count(*), min(s.ended_why) FROM caregate.refresh_token t JOIN caregate.session s"
            " ON s.id = t.session WHERE s.id = (SELECT session FROM caregate.refresh_token WHERE digest = %s)",
            (digest,),
        ).fetchone()
    assert (tokens, why) == (2, "refresh-token-reused")


def test_a_chain_of_refreshes_at_different_workers(log_in, post, address):
    token = log_in()["refresh_token"]
    for _ in range(12):
        status, given, _ = post("token", refresh_form(token), address)
        assert status == 200, given
        token = given["refresh_token"]


def test_a_replayed_proof_is_used_once_by_all_workers(log_in, post, address):
    key = ec.generate_private_key(ec.SECP256R1())
    field = dpop(key)
    form = {"grant_type": "refresh_token", "client_id": TERMINAL, "refresh_token": "cgr_" + "x" * 43}
    found = at_once(lambda _: post("token", form, address, DPoP=field)[1]["error"], 12)
    assert Counter(found) == {"invalid_grant": 1, "invalid_dpop_proof": 11}


def test_a_disabled_account_is_out_everywhere_within_a_second(call, log_in, account, operator, wait):
    login = account()
    token = log_in(login)["access_token"]
    assert everywhere(call, token, 404)
    operator.disable(login, "left")
    wait(lambda: everywhere(call, token, 401), limit_s=5)


def test_wrong_passwords_are_bounded_in_every_respect(
    platform, post, log_in, account, worker_pids, capsys, call
):  # fmt: skip
    """From twenty clients at sixteen addresses, at one account and at names that are none."""
    victim = account()
    addresses = [f"127.0.2.{n}" for n in range(1, 17)]
    before = Load.of(platform, worker_pids())
    done = []

    def attack(number):
        name = victim if number % 2 else f"nobody-{number % 7}"
        form = {"grant_type": "password", "client_id": TERMINAL, "username": name, "password": f"wrong {number}"}
        begun_s = time.monotonic()
        status, document, headers = post("token", form, addresses[number % len(addresses)])
        done.append(time.monotonic() - begun_s)
        return name == victim, status, document.get("error", document["type"]), headers.get("Retry-After")

    with ThreadPoolExecutor(CLIENTS) as pool:
        attacking = [pool.submit(attack, number) for number in range(WRONG)]
        own_s = time.monotonic()
        own = log_in("weber", "127.0.3.1")
        own_s = time.monotonic() - own_s
        found = [each.result() for each in attacking]
    load = Load.of(platform, worker_pids()) - before
    outcomes = Counter((status, error) for _, status, error, _ in found)
    hours = 1 + load.took_s / 3_600
    of_victim = sum(1 for is_victim, status, _, _ in found if is_victim and status == 400)
    assert set(outcomes) <= {
        (400, "invalid_grant"), (429, "urn:caregate:problem:rate-limited"), (503, "urn:caregate:problem:overloaded"),
    }  # fmt: skip
    assert all(after and int(after) >= 1 for _, status, _, after in found if status in (429, 503))
    assert of_victim <= FAILURES_OF_A_LOGIN * hours + 1
    assert outcomes[400, "invalid_grant"] <= 8 * (FAILURES_OF_A_LOGIN * hours + 1)
    assert own["access_token"], "whoever is somebody else still logs in"
    assert load.sessions == 1
    form = {"grant_type": "password", "client_id": TERMINAL, "username": victim, "password": platform.logins.password}
    assert post("token", form, "127.0.3.2")[0] == 429, "the account is closed for a while, and says so"
    # A check costs 0.15 s of a core, whatever the machine does; all the rest together is far below that of as many.
    checked = outcomes[400, "invalid_grant"] + 1
    assert load.cpu_s <= 0.6 * checked + 0.02 * WRONG + 2.0
    assert load.transactions <= 12 * checked + 3 * WRONG + 400
    with capsys.disabled():
        print(
            f"\n{WRONG} wrong passwords: {dict(outcomes)}; took {load.took_s:.1f} s, slowest answer {max(done):.2f} s, "
            f"workers' CPU {load.cpu_s:.1f} s, {load.transactions} transactions, a login meanwhile {own_s:.2f} s"
        )


class Load:
    """What the platform has done so far."""

    def __init__(self, at_s, cpu_s, transactions, sessions):
        self.took_s, self.cpu_s, self.transactions, self.sessions = at_s, cpu_s, transactions, sessions

    @classmethod
    def of(cls, platform, pids):
        ticks = 0
        for pid in pids:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += int(fields[11]) + int(fields[12])
        with psycopg.connect(platform._postgres.admin_dsn, autocommit=True) as admin:
            admin.execute("SELECT pg_stat_force_next_flush()")
            (transactions,) = admin.execute(
                "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
            ).fetchone()
            (sessions,) = admin.execute("SELECT count(*) FROM caregate.session").fetchone()
        return cls(time.monotonic(), ticks / os.sysconf("SC_CLK_TCK"), transactions, sessions)

    def __sub__(self, before):
        return Load(*(getattr(self, n) - getattr(before, n) for n in ("took_s", "cpu_s", "transactions", "sessions")))


@pytest.fixture
def operator(platform):
    with AccountOperator(platform._postgres.operator_dsn) as operator:
        yield operator


@pytest.fixture
def account(platform, operator):
    def account():
        login = f"p{secrets.token_hex(4)}"
        hashed = hash_password(platform.logins.password)
        operator.add(secrets.token_urlsafe(16), login, login, "patient", {"patient": "pat-0001"}, hashed)
        return login

    return account


def dpop(key):
    public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    claims = {"htm": "POST", "htu": f"{URL}/auth/v1/token", "iat": int(time.time()), "jti": str(uuid.uuid4())}
    return jwt.encode(claims, key, "ES256", {"typ": "dpop+jwt", "jwk": public})
