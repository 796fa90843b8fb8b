"""The demo's accounts: made once, kept, and given the password of the directory."""

from __future__ import annotations

import psycopg
import pytest

from gateway.auth.passwords import matches
from gateway.cli.main import main
from gateway.demo.accounts import ACCOUNTS, FACTOR_FILE, PASSWORD_FILE, WITH_FACTOR, code_now, make_accounts
from gateway.demo.logins import authorize_url, print_logins


@pytest.fixture
def operator_dsn(postgres):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("TRUNCATE caregate.account CASCADE")
    return postgres.admin_dsn.replace("//postgres@", "//caregate_operator@")


def kept(postgres):
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        return dict(admin.execute("SELECT login, (password, totp, id)::text FROM caregate.account").fetchall())


def test_made_once_and_kept(tmp_path, operator_dsn, postgres):
    first = make_accounts(tmp_path, operator_dsn)
    before = kept(postgres)
    assert set(before) == set(ACCOUNTS)
    again = make_accounts(tmp_path, operator_dsn)
    assert (again.password, again.factor) == (first.password, first.factor)
    assert kept(postgres) == before
    for name in (PASSWORD_FILE, FACTOR_FILE, "accounts.key"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o600
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        factors = admin.execute("SELECT login FROM caregate.account WHERE totp IS NOT NULL").fetchall()
        (hashed,) = admin.execute("SELECT password FROM caregate.account WHERE login = 'anna'").fetchone()
    assert {login for (login,) in factors} == WITH_FACTOR
    assert matches(hashed, first.password)


def test_another_directory_over_the_same_database_has_its_own_password(tmp_path, operator_dsn, postgres):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    make_accounts(tmp_path / "one", operator_dsn)
    second = make_accounts(tmp_path / "two", operator_dsn)
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        (hashed,) = admin.execute("SELECT password FROM caregate.account WHERE login = 'anna'").fetchone()
    assert matches(hashed, second.password)


def test_what_is_printed(tmp_path, operator_dsn, capsys):
    lines = []
    print_logins("http://127.0.0.1:8080", make_accounts(tmp_path, operator_dsn), lines.append)
    text = "\n".join(lines)
    for login in ACCOUNTS:
        assert login in text
    assert authorize_url("http://127.0.0.1:8080") in text
    assert main(["demo", "--dir", str(tmp_path), "code"]) == 0
    assert capsys.readouterr().out.strip() == code_now(tmp_path)
    assert main(["demo", "--dir", str(tmp_path / "none"), "code"]) == 1
