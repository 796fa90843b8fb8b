"""`caregate account` against a real database: what it does, and that no password is an argument."""

from __future__ import annotations

import base64
import io
import sys
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

from gateway.auth.passwords import matches
from gateway.auth.vault import Vault
from gateway.cli.main import main

PASSWORD = "correct horse battery"


@pytest.fixture
def account(postgres, tmp_path, monkeypatch, capsys):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("TRUNCATE caregate.account CASCADE")
    monkeypatch.setenv(
        "CAREGATE_SECRET_OPERATOR_DSN", postgres.admin_dsn.replace("//postgres@", "//caregate_operator@")
    )
    monkeypatch.setenv("CAREGATE_DATA_DIR", str(tmp_path))

    def account(*arguments, stdin=""):
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        code = main(["account", *arguments])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return account


@pytest.fixture
def sql(postgres):
    def sql(query):
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
            return admin.execute(query).fetchall()

    return sql


def test_an_account_is_added(account, sql):
    code, out, _ = account(
        "add", "Anna", "--role", "patient", "--patient", "pat-1", "--claim", "org=o", stdin=PASSWORD + "\n"
    )
    assert code == 0
    ((identity, login, subject, claims, hashed),) = sql(
        "SELECT id, login, subject, claims, password FROM caregate.account"
    )
    assert (out.strip(), login, subject) == (identity, "anna", identity)
    assert claims == {"patient": "pat-1", "org": "o"}
    assert matches(hashed, PASSWORD)
    code, _, err = account("add", "anna", "--role", "patient", stdin=PASSWORD)
    assert (code, "already" in err) == (2, True)


def test_units_and_a_subject(account, sql):
    account("add", "weber", "--role", "practitioner", "--unit", "n", "--unit", "s", "--subject", "w", stdin=PASSWORD)
    assert sql("SELECT subject, claims FROM caregate.account") == [("w", {"units": ["n", "s"]})]


@pytest.mark.parametrize(
    ("arguments", "stdin", "told"),
    [
        (("add", "anna", "--role", "patient"), "short\n", "fewer than 12"),
        (("add", "anna", "--role", "patient"), "", "fewer than 12"),
        (("add", "anna", "--role", "patient"), "anna-anna-anna\n", "guess"),
        (("add", "anna", "--role", "PATIENT"), PASSWORD, "account_role_check"),
        (("set-password", "nobody"), PASSWORD, "no account nobody"),
        (("totp", "nobody"), "", "no account nobody"),
        (("disable", "nobody"), "", "no account nobody"),
        (("proxy", "nobody", "--patient", "p"), "", "no account nobody"),
        (("list", "nobody"), "", "no account nobody"),
    ],
    ids=str,
)
def test_what_is_refused(account, sql, arguments, stdin, told):
    code, _, err = account(*arguments, stdin=stdin)
    assert code != 0
    assert told in err
    assert sql("SELECT count(*) FROM caregate.account") == [(0,)]


@pytest.mark.parametrize(
    "arguments",
    [
        ("add", "an na", "--role", "patient"), ("add", "anna", "--role", "patient", "--claim", "sub=x"),
        ("add", "anna", "--role", "patient", "--claim", "x"), ("add", "anna"),
        ("add", "anna", "--role", "patient", "--password", "x"), ("proxy", "anna", "--patient", "p", "--until", "x"),
    ],
    ids=str,
)  # fmt: skip
def test_arguments_that_are_none(account, arguments):
    with pytest.raises(SystemExit):
        account(*arguments, stdin=PASSWORD)


def test_a_second_factor_is_shown_once_and_kept_sealed(account, sql, tmp_path):
    account("add", "anna", "--role", "patient", stdin=PASSWORD)
    code, out, _ = account("totp", "anna")
    assert code == 0
    text = parse_qs(urlsplit(out.strip()).query)["secret"][0]
    secret = base64.b32decode(text + "=" * (-len(text) % 8))
    ((identity, sealed),) = sql("SELECT id, totp FROM caregate.account")
    assert secret not in bytes(sealed)
    key = (tmp_path / "accounts.key").read_bytes().strip()
    assert Vault(key).factors.open(bytes(sealed), identity.encode()) == secret
    assert account("totp", "anna", "--remove")[0] == 0
    assert sql("SELECT totp FROM caregate.account") == [(None,)]


def test_the_key_that_the_settings_name(account, monkeypatch, sql):
    account("add", "anna", "--role", "patient", stdin=PASSWORD)
    monkeypatch.setenv("CAREGATE_ACCOUNT_KEY", "env:CAREGATE_SECRET_SITE")
    code, _, err = account("totp", "anna")
    assert (code, "CAREGATE_SECRET_SITE is not set" in err) == (2, True)
    monkeypatch.setenv("CAREGATE_SECRET_SITE", "short")
    code, _, err = account("totp", "anna")
    assert (code, "at least 32" in err) == (2, True)
    monkeypatch.setenv("CAREGATE_SECRET_SITE", "k" * 40)
    assert account("totp", "anna")[0] == 0


def test_disabled_enabled_and_listed(account):
    account("add", "anna", "--role", "patient", stdin=PASSWORD)
    assert account("disable", "anna", "--reason", "left")[0] == 0
    assert account("disable", "anna")[0] == 1
    assert "disabled" in account("list")[1]
    assert account("enable", "anna")[0] == 0
    assert account("proxy", "anna", "--patient", "pat-2", "--until", "2031-05-01", "--reason", "mother")[0] == 0
    assert "acts for pat-2 until 2031-05-01  mother" in account("list", "anna")[1]
    assert account("proxy", "anna", "--patient", "pat-2", "--remove")[0] == 0
    assert account("proxy", "anna", "--patient", "pat-2", "--remove")[0] == 1
    assert "acts for" not in account("list", "anna")[1]


def test_another_password(account, sql):
    account("add", "anna", "--role", "patient", stdin=PASSWORD)
    assert account("set-password", "anna", stdin="another horse battery")[0] == 0
    ((hashed,),) = sql("SELECT password FROM caregate.account")
    assert matches(hashed, "another horse battery")
    assert account("set-password", "anna", stdin="short")[0] == 2
    assert sql("SELECT password FROM caregate.account") == [(hashed,)]


def test_every_change_is_told_to_the_audit_trail(account, sql, postgres):
    account("add", "anna", "--role", "patient", "--author", "eve", stdin=PASSWORD)
    account("set-password", "anna", stdin="another horse battery")
    account("totp", "anna")
    account("totp", "anna", "--remove")
    account("proxy", "anna", "--patient", "pat-2", "--reason", "mother")
    account("proxy", "anna", "--patient", "pat-2", "--remove")
    account("disable", "anna", "--reason", "left")
    account("disable", "anna")
    account("enable", "anna")
    ((identity,),) = sql("SELECT id FROM caregate.account")
    rows = sql(
        "SELECT detail ->> 'what', coalesce(detail ->> 'patient', ''), reason, author, actor"
        " FROM caregate.access_change"
        f" WHERE kind = 'account' AND detail ->> 'account' = '{identity}' ORDER BY number"
    )
    assert [row[:3] for row in rows] == [
        ("added", "", ""), ("password", "", ""), ("second-factor", "", ""), ("no-second-factor", "", ""),
        ("proxy", "pat-2", "mother"), ("no-proxy", "pat-2", ""), ("disabled", "", "left"), ("enabled", "", ""),
    ]  # fmt: skip
    assert rows[0][3] == "eve"
    assert {row[4] for row in rows} == {"caregate_operator"}
    assert PASSWORD not in str(sql("SELECT detail::text FROM caregate.access_change"))
