"""Accounts, sessions, refresh tokens and codes in PostgreSQL: who may do what to them, and who is first."""

from __future__ import annotations

import secrets
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg
import pytest

from gateway.auth.passwords import DUMMY
from gateway.auth.sessions import NewSession, digest_of, new_code, new_refresh_token
from gateway.store.account_operator import AccountOperator
from gateway.store.accounts import AccountStore
from gateway.store.revocation import NewRevocation, RevocationOperator, RevocationStore
from gateway.store.sessions import SessionStore
from gateway.store.tokens import TokenStore
from gateway.store.unit_operator import OperatorError

TABLES = "account, session, refresh_token, authorization_code, proxy"


@pytest.fixture
def operator_dsn(postgres):
    return postgres.admin_dsn.replace("//postgres@", "//caregate_operator@")


@pytest.fixture
def operator(postgres, operator_dsn):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("TRUNCATE caregate.account CASCADE")
    with AccountOperator(operator_dsn) as operator:
        yield operator


@pytest.fixture
def anna(operator):
    operator.add("A" * 22, "anna", "user-anna", "patient", {"patient": "pat-0001", "units": ["north"]}, DUMMY)
    return "A" * 22


@pytest.fixture
def store(database):
    return SessionStore(database)


def sql(postgres, query, values=()):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        cursor = admin.execute(query, values)
        return cursor.fetchall() if cursor.description else []


def session(account, **changes):
    fields = {
        "id": secrets.token_urlsafe(16), "account": account, "client": "app", "role": "patient", "issuer": "https://id.test/p",
        "audience": "app", "scope": "", "methods": ("pwd",), "proof_key": "",
        "started_s": time.time(), "ends_in_s": 3_600, **changes,
    }  # fmt: skip
    return NewSession(**fields)


@pytest.fixture
def begun(store, anna):
    """A session with its first refresh token."""
    text, made = new_refresh_token(), session(anna)
    store.begin(made, (digest_of(text), 600))
    return text, made


def rotate(store, text, proof=b"p" * 32):
    following = new_refresh_token()
    with store.family(digest_of(text)) as family:
        family.rotate(digest_of(following), time.time() + 600, proof, b"sealed")
    return following


def test_an_account_is_found_by_its_login(database, operator, anna):
    found = AccountStore(database).find("anna")
    assert (found.id, found.subject, found.role, found.disabled) == (anna, "user-anna", "patient", False)
    assert found.claims == {"patient": "pat-0001", "units": ["north"]}
    assert AccountStore(database).find("berta") is None
    operator.disable("anna", "left")
    assert AccountStore(database).find("anna").disabled


def test_a_one_time_code_is_used_once_also_at_the_same_moment(database, anna):
    accounts = AccountStore(database)
    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(lambda _: accounts.use_step(anna, 100), range(8))) == 1
    assert not accounts.use_step(anna, 99)
    assert accounts.use_step(anna, 101)


def test_what_an_operator_cannot_write(operator, anna):
    with pytest.raises(OperatorError, match="already"):
        operator.add("B" * 22, "anna", "other", "patient", {}, DUMMY)
    with pytest.raises(OperatorError, match="already"):
        operator.add("B" * 22, "anna2", "user-anna", "patient", {}, DUMMY)
    for password in ("plain text", DUMMY.replace("m=65536", "m=8"), DUMMY.replace("argon2id", "argon2i")):
        with pytest.raises(OperatorError, match="account_password_check"):
            operator.add("B" * 22, "berta", "berta", "patient", {}, password)
    with pytest.raises(OperatorError, match="account_login_check"):
        operator.add("B" * 22, "Berta", "berta", "patient", {}, DUMMY)


def test_a_presented_token_and_its_successor(store, begun):
    text, made = begun
    with store.family(digest_of(text)) as family:
        presented = family.presented
    assert (presented.session.id, presented.account.login, presented.token.used_s) == (made.id, "anna", 0)
    following = rotate(store, text)
    with store.family(digest_of(text)) as family:
        token = family.presented.token
    assert token.used_s
    assert (token.used_by, token.successor, token.successor_used, token.repeated) == (
        b"p" * 32, b"sealed", False, False,
    )  # fmt: skip
    rotate(store, following)
    with store.family(digest_of(text)) as family:
        assert family.presented.token.successor_used
    with store.family(digest_of(new_refresh_token())) as family:
        assert family.presented is None


def test_a_block_that_fails_changes_nothing(store, begun):
    text, _ = begun

    def fail():
        with store.family(digest_of(text)) as family:
            family.end("tried")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    with store.family(digest_of(text)) as family:
        assert family.presented is not None


def test_of_many_at_the_same_moment_one_rotates(store, begun):
    text, _ = begun

    def attempt(_):
        with store.family(digest_of(text)) as family:
            if family.presented.token.used_s:
                return False
            family.rotate(digest_of(new_refresh_token()), time.time() + 600, b"", b"")
            return True

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(attempt, range(16))) == 1


def test_a_session_ends_with_its_tokens(store, begun, database):
    text, made = begun
    following = rotate(store, text)
    with store.family(digest_of(text)) as family:
        family.end("reused")
    for each in (text, following):
        with store.family(digest_of(each)) as family:
            assert family.presented is None
    assert TokenStore(database).is_revoked("none", made.id)
    (rule,) = [rule for rule in TokenStore(database).changes(0, 1.0).rules if rule.value == made.id]
    assert rule.kind == "session", "every worker is told"
    assert rule.until_s > time.time() + 86_400, "longer than any token"
    assert store.owner(digest_of(following)).good is False


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda operator: operator.disable("anna", ""), id="disabled"),
        pytest.param(lambda operator: operator.set_password("anna", DUMMY[:-1] + "F"), id="another password"),
        pytest.param(lambda operator: operator.set_factor("anna", bytes(48)), id="a second factor"),
    ],
)
def test_a_change_of_the_account_ends_its_sessions(store, begun, operator, change):
    assert change(operator)
    with store.family(digest_of(begun[0])) as family:
        assert family.presented is None


REVOCATIONS = {
    "its session": ({"kind": "session", "value": None}, True),
    "another session": ({"kind": "session", "value": "x" * 22}, False),
    "its subject": ({"kind": "subject", "value": "user-anna"}, True),
    "its subject in its role": ({"kind": "subject", "value": "user-anna", "role": "patient"}, True),
    "its subject in another role": ({"kind": "subject", "value": "user-anna", "role": "nurse"}, False),
    "its subject of another issuer": ({"kind": "subject", "value": "user-anna", "issuer": "https://else.test"}, False),
    "another subject": ({"kind": "subject", "value": "user-berta"}, False),
    "its subject before it began": ({"kind": "subject", "value": "user-anna", "before_s": 1.0}, False),
    "its unit": ({"kind": "unit", "value": "north"}, True),
    "another unit": ({"kind": "unit", "value": "nort"}, False),
    "everything": ({"kind": "before"}, True),
    "everything of its audience": ({"kind": "before", "audience": "app"}, True),
    "everything of another": ({"kind": "before", "audience": "staff"}, False),
    "everything from before it": ({"kind": "before", "before_s": 1.0}, False),
    "a token": ({"kind": "jti", "value": "j"}, False),
}


@pytest.mark.parametrize(("rule", "ends"), REVOCATIONS.values(), ids=REVOCATIONS.keys())
@pytest.mark.parametrize("by", ["gateway", "operator"])
def test_what_is_revoked_gets_nothing_by_an_old_refresh_token(store, begun, database, operator_dsn, rule, ends, by):
    text, made = begun
    values = {**rule, "value": made.id} if rule.get("value", "") is None else rule
    new = NewRevocation(author="test", reason="", **values)
    if by == "gateway":
        RevocationStore(database).add(new)
    else:
        with RevocationOperator(operator_dsn) as revoker:
            revoker.add(new)
    with store.family(digest_of(text)) as family:
        assert (family.presented is None) is ends


def test_a_used_one_time_code_ends_no_session(store, begun, database, anna):
    assert AccountStore(database).use_step(anna, 5)
    with store.family(digest_of(begun[0])) as family:
        assert family.presented is not None


def test_a_code_is_seen_as_used_and_knows_what_it_gave(store, database, anna):
    text = new_code()
    account = AccountStore(database).find("anna")
    store.add_code(digest_of(text), "app", "https://app.test/", "c" * 43, "", account, "", ("pwd",))
    with store.redemption(digest_of(text)) as redemption:
        assert (redemption.code.used, redemption.code.session, redemption.code.expired) == (False, "", False)
        redemption.use()
        made = session(anna)
        redemption.begin(made, None)
    with store.redemption(digest_of(text)) as redemption:
        assert (redemption.code.used, redemption.code.session) == (True, made.id)
    with store.redemption(digest_of(new_code())) as redemption:
        assert redemption.code is None


def test_proxies(store, begun, operator, anna):
    _, made = begun
    assert operator.add_proxy("anna", "pat-0009", "kid-nine", None, "birth certificate")
    assert not operator.add_proxy("nobody", "pat-0009", "kid-nine", None, "")
    assert store.ward(made.id, "app", "pat-0009")[:3] == (anna, "patient", "kid-nine")
    assert store.ward(made.id, "app", "pat-0008")[2] is None
    assert store.ward(made.id, "another-app", "pat-0009") is None
    assert store.ward("none", "app", "pat-0009") is None
    assert operator.drop_proxy("anna", "pat-0009")
    assert store.ward(made.id, "app", "pat-0009")[2] is None
    store.end(made.id, "revoked")
    assert store.ward(made.id, "app", "pat-0009") is None


def test_successors_are_burnt_after_seconds_and_the_rest_when_it_is_over(store, begun, postgres):
    text, made = begun
    rotate(store, text)
    store.burn()
    assert sql(postgres, "SELECT count(successor) FROM caregate.refresh_token") == [(1,)]
    sql(postgres, "UPDATE caregate.refresh_token SET used_at = used_at - interval '11 s'")
    store.burn()
    assert sql(postgres, "SELECT count(successor) FROM caregate.refresh_token") == [(0,)]
    store.forget()
    assert sql(postgres, "SELECT count(*) FROM caregate.refresh_token") == [(2,)]
    sql(postgres, "UPDATE caregate.session SET ends_at = now() - interval '25 h' WHERE id = %s", (made.id,))
    store.forget()
    assert sql(postgres, "SELECT count(*) FROM caregate.refresh_token") == [(0,)]


GATEWAY_MAY_NOT = [
    "INSERT INTO caregate.account (id, login, subject, role, password) VALUES ('B', 'b', 'b', 'patient', 'x')",
    "UPDATE caregate.account SET disabled_at = NULL",
    "UPDATE caregate.account SET role = 'platform_admin'",
    "UPDATE caregate.account SET password = 'x'",
    "DELETE FROM caregate.account",
    "INSERT INTO caregate.proxy (account, patient, subject) VALUES ('A', 'p', 's')",
    "UPDATE caregate.proxy SET subject = 'x'",
    "UPDATE caregate.session SET ends_at = 'infinity'",
    "UPDATE caregate.session SET role = 'platform_admin'",
    "UPDATE caregate.refresh_token SET until_at = now()",
    "DELETE FROM caregate.refresh_token",
    "UPDATE caregate.authorization_code SET until_at = now()",
    f"TRUNCATE {', '.join('caregate.' + table for table in TABLES.split(', '))}",
]


@pytest.mark.parametrize("query", GATEWAY_MAY_NOT)
def test_what_the_gateway_may_not(begun, postgres, query):
    with psycopg.connect(postgres.gateway_dsn) as login, pytest.raises(psycopg.errors.InsufficientPrivilege):
        login.execute(query)


def test_the_gateway_cannot_undo(store, begun, postgres, anna, database):
    text, made = begun
    AccountStore(database).use_step(anna, 100)
    rotate(store, text)
    store.end(made.id, "revoked")
    with psycopg.connect(postgres.gateway_dsn, autocommit=True) as login:
        assert login.execute("UPDATE caregate.session SET ended_at = NULL").rowcount == 0
        assert login.execute("DELETE FROM caregate.session").rowcount == 0
        for undo in (
            "UPDATE caregate.refresh_token SET used_at = NULL WHERE used_at IS NOT NULL",
            "UPDATE caregate.account SET totp_step = 99",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                login.execute(undo)


def test_what_operators_may_not(operator_dsn, begun):
    for query in (
        "SELECT password FROM caregate.account",
        "SELECT totp FROM caregate.account",
        "SELECT * FROM caregate.refresh_token",
        "SELECT * FROM caregate.authorization_code",
        "INSERT INTO caregate.session (id) VALUES ('x')",
    ):
        with psycopg.connect(operator_dsn) as login, pytest.raises(psycopg.errors.InsufficientPrivilege):
            login.execute(query)
