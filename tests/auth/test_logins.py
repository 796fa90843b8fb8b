"""Logins by password: what they give, what is refused, and what a refusal tells."""

from __future__ import annotations

import time

import gevent
import pytest

from gateway.auth import passwords, totp
from gateway.auth.passwords import Passwords, hash_password
from gateway.errors import Overloaded
from tests.auth.kit import FAILURES, LOGIN_FAILURES, PASSWORD, claims_of, proof


def attempt(post, username="anna", password=PASSWORD, client="terminal", **more):
    who = proof(client) if client == "desk" else {"client_id": client}
    return post("token", {"grant_type": "password", "username": username, "password": password, **who, **more})


def code_of(service, offset=0):
    return totp.code_at(service.secret, int(time.time()) // totp.STEP_S + offset)


def test_a_login_gives_tokens_of_the_account(service, post):
    before_s = int(time.time())
    answer = attempt(post)
    assert answer.status_code == 200, answer.text
    assert answer.headers["cache-control"] == "no-store"
    given = answer.json
    assert (given["token_type"], given["expires_in"]) == ("Bearer", 900)
    assert given["refresh_token"].startswith("cgr_")
    claims = claims_of(given["access_token"])
    assert claims.pop("exp") - claims["iat"] == 900
    assert before_s <= claims.pop("iat") == claims.pop("auth_time") <= time.time()
    assert len(claims.pop("jti")) == len(claims.pop("sid")) == 22
    assert claims == {
        "iss": "https://id.test/patient", "aud": "patient", "sub": "user-anna", "client_id": "terminal",
        "role": "patient", "patient": "pat-1", "amr": ["pwd"],
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {given['access_token']}"}
    assert service.client.simulate_get("/anything", headers=headers).status_code == 200


def test_an_app_with_a_key_logs_people_in(log_in):
    assert claims_of(log_in("weber", "desk")["access_token"])["units"] == ["north"]


def test_a_login_is_written_in_any_case_and_a_password_in_any_form(log_in, service, post):
    assert log_in(" Anna ")["access_token"]
    service.operator.set_password("weber", hash_password("Grüße an alle da"))
    assert attempt(post, "weber", "Gru\u0308ße an alle da").status_code == 200


WRONG = {
    "another password": {"password": "wrong horse battery"},
    "no such account": {"username": "nobody"},
    "a name that none can have": {"username": "no body'; --"},
    "a long password": {"password": "x" * 5_000},
    "a disabled account": {"username": "dora"},
    "a role that the app is not for": {"username": "otto", "client": "desk"},
    "no second factor where the role asks for one": {"username": "otto"},
    "no code": {"username": "olga"},
    "another code": {"username": "olga", "totp": "000000"},
    "a code that is none": {"username": "olga", "totp": "12345\u0663"},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG.keys())
def test_every_wrong_login_gets_the_one_answer(service, post, wrong):
    answer = attempt(post, **wrong)
    expected = attempt(post, "berta", "whatever it may be")
    for document in (answer.json, expected.json):
        for name in ("request_id", "instance"):
            assert document.pop(name)
    assert (answer.status_code, answer.json | {"request_id": 0, "instance": 0}) == (
        400, expected.json | {"request_id": 0, "instance": 0},
    )  # fmt: skip
    assert answer.json["error"] == "invalid_grant"
    volatile = {"x-request-id"}
    assert {n: v for n, v in answer.headers.items() if n not in volatile} == {
        n: v for n, v in expected.headers.items() if n not in volatile
    }


def test_a_refusal_takes_the_same_steps_whether_or_not_there_is_an_account(service, post, monkeypatch):
    """What takes time is done as often: a look at the database, a check of a password, one of a code."""
    steps = []
    pool, accounts = service.gateway.tokens._passwords, service.gateway.tokens._accounts
    check, find, step_of = pool.check, accounts.find, totp.step_of
    monkeypatch.setattr(pool, "check", lambda *a: (steps.append("password"), check(*a))[1])
    monkeypatch.setattr(accounts, "find", lambda *a: (steps.append("look"), find(*a))[1])
    monkeypatch.setattr(totp, "step_of", lambda *a: (steps.append("code"), step_of(*a))[1])
    seen = []
    for username in ("anna", "nobody", "'", "olga", "dora", "otto"):
        steps.clear()
        assert attempt(post, username, "wrong horse battery", totp="123456").status_code == 400
        seen.append(tuple(steps))
    assert set(seen) == {("look", "password", "code")}


def test_for_nobody_a_dummy_is_checked(monkeypatch):
    checked = []
    monkeypatch.setattr(passwords, "matches", lambda hashed, password: checked.append(hashed) or True)
    pool = Passwords(1, 1)
    assert pool.check(None, "x") is False
    pool.stop()
    assert checked == [passwords.DUMMY]


def test_a_check_takes_as_long_for_nobody(hashed):
    """Processor time of the thread that checks, which a busy machine does not change."""

    def cost_s(hash_):
        begun_s = time.thread_time()
        for _ in range(3):
            passwords.matches(hash_, "wrong horse battery")
        return time.thread_time() - begun_s

    known, nobody = cost_s(hashed), cost_s(passwords.DUMMY)
    assert 0.5 < nobody / known < 2.0
    assert nobody > 0.03, "the dummy is really worked on"


def test_the_trail_tells_why_and_keeps_no_name(service, post):
    attempt(post, "anna", "wrong horse battery")
    attempt(post, "my-password-1", "wrong horse battery")
    attempt(post, "olga")
    attempt(post)
    told = [(kind, outcome, more.get("rule", "")) for kind, outcome, more in service.notes]
    assert told == [
        ("login", "refused", "login:password"), ("login", "refused", "login:unknown"),
        ("login", "refused", "login:second-factor"), ("login", "allowed", ""), ("token.issued", "allowed", ""),
    ]  # fmt: skip
    assert [more.get("account") for _, _, more in service.notes] == [
        service.ids["anna"], None, service.ids["olga"], service.ids["anna"], service.ids["anna"],
    ]  # fmt: skip
    assert service.notes[1][2]["alias"] == service.vault.alias("my-password-1")
    text = str([{k: v for k, v in more.items() if k != "ctx"} for _, _, more in service.notes])
    for secret in ("my-password", PASSWORD, "wrong horse", "cgr_", "eyJ"):
        assert secret not in text


def test_a_code_is_for_one_use_and_near_now(service, post):
    def status(code):
        return attempt(post, "olga", totp=code).status_code

    code = code_of(service)
    assert [status(code), status(code)] == [200, 400]
    assert service.notes[-1][2]["rule"] == "login:code-used"
    assert status(code_of(service, -1)) == 400, "the step before one that was used"
    assert status(code_of(service, 4)) == 400
    answer = attempt(post, "olga", totp=code_of(service, 1))
    assert answer.status_code == 200
    assert claims_of(answer.json["access_token"])["amr"] == ["pwd", "otp"]


def test_an_account_with_a_second_factor_needs_it_whatever_its_role(service, post, log_in):
    assert log_in("anna")
    service.operator.set_factor("anna", service.vault.factors.seal(service.secret, service.ids["anna"].encode()))
    assert attempt(post).status_code == 400
    assert attempt(post, totp=code_of(service)).status_code == 200


def test_a_second_factor_moved_to_another_account_is_none(service, post):
    """What the database may be made to say: the sealed secret belongs to one account."""
    service.operator.set_factor("otto", service.vault.factors.seal(service.secret, service.ids["olga"].encode()))
    assert attempt(post, "otto", totp=code_of(service)).status_code == 400


@pytest.mark.usefixtures("quick")
def test_failures_of_one_login_are_limited_from_wherever_they_come(service, post, log_in):
    for name in ("anna", "nobody"):
        answers = [attempt(post, name, "wrong horse battery") for _ in range(LOGIN_FAILURES + 1)]
        assert [answer.status_code for answer in answers] == [400] * LOGIN_FAILURES + [429]
        assert int(answers[-1].headers["retry-after"]) >= 60
    assert attempt(post).status_code == 429, "the right password too"
    assert log_in("weber"), "another login"


@pytest.mark.usefixtures("quick")
def test_successes_are_not_limited(log_in):
    for _ in range(LOGIN_FAILURES + 2):
        assert log_in()


@pytest.mark.usefixtures("quick")
def test_failures_of_an_address_are_limited(post):
    found = [attempt(post, f"nobody-{n}", "wrong horse battery").status_code for n in range(FAILURES + 2)]
    assert found == [400] * FAILURES + [429] * 2


def test_who_may_send_passwords(post):
    assert attempt(post, client="app").json["error"] == "unauthorized_client"
    assert attempt(post, client="nobody").json["error"] == "invalid_client"
    bare = post("token", {"grant_type": "password", "client_id": "desk", "username": "anna", "password": PASSWORD})
    assert bare.json["error"] == "invalid_client", "an app with a key must prove itself"
    watch = post("token", {"grant_type": "password", "username": "anna", "password": PASSWORD, **proof("watch")})
    assert watch.json["error"] == "unauthorized_client"


def test_what_is_missing_is_named(post):
    form = {"grant_type": "password", "client_id": "terminal"}
    assert post("token", form).json["error_description"] == "username is missing"
    assert post("token", {**form, "username": "anna"}).json["error_description"] == "password is missing"
    whole = {**form, "username": "anna", "password": PASSWORD}
    assert post("token", {**whole, "scope": "x"}).json["error"] == "invalid_scope"


def test_more_than_may_wait_are_sent_away(hashed):
    pool = Passwords(1, 2)
    jobs = [gevent.spawn(pool.check, hashed, PASSWORD) for _ in range(5)]
    gevent.joinall(jobs)
    pool.stop()
    assert sum(job.value is True for job in jobs) == 3
    assert [type(job.exception) for job in jobs if job.exception] == [Overloaded] * 2


def test_too_many_passwords_are_503_and_no_failure(service, post, monkeypatch, log_in):
    def busy(hashed, password):
        raise Overloaded("Too many logins at this moment", retry_after_s=1)

    with monkeypatch.context() as patch:
        patch.setattr(service.gateway.tokens._passwords, "check", busy)
        for _ in range(LOGIN_FAILURES + 1):
            answer = attempt(post)
            assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert log_in()
