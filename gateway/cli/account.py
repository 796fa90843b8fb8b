"""`caregate account`: who may log in at the gateway, as whom, with what."""

from __future__ import annotations

import argparse
import getpass
import json
import secrets
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from gateway.cli.operator import Unusable, add_options, dsn_of, read_settings, unusable

if TYPE_CHECKING:
    from gateway.store.account_operator import AccountOperator

ISSUER = "Caregate"
_MAX_LINE_CHARS = 2_048


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `account` and its sub-commands."""
    account = subparsers.add_parser("account", help="who may log in at the gateway, as whom, with what")
    commands = account.add_subparsers(dest="account_command", metavar="COMMAND", required=True)

    add = commands.add_parser("add", help="a new account; its password is read from standard input")
    add.add_argument("--role", required=True, help="a role of the configuration")
    add.add_argument("--subject", help="`sub` of its tokens; default: the account's id")
    add.add_argument("--patient", help="the claim `patient` of its tokens")
    add.add_argument("--unit", action="append", default=[], help="a member of the claim `units`; may be given again")
    add.add_argument("--claim", action="append", default=[], type=_claim, metavar="K=V", help="a further claim; text")
    add.set_defaults(act=_add)

    password = commands.add_parser("set-password", help="another password, from standard input; ends its sessions")
    password.set_defaults(act=_set_password)

    factor = commands.add_parser("totp", help="a second factor; prints what an authenticator app reads, once")
    factor.add_argument("--remove", action="store_true", help="take it away")
    factor.set_defaults(act=_totp)

    for name, act, text in (
        ("disable", _disable, "refuse its logins and end its sessions"), ("enable", _enable, "undo disable"),
    ):  # fmt: skip
        command = commands.add_parser(name, help=text)
        command.add_argument("--reason", default="", help="kept with the account")
        command.set_defaults(act=act)

    proxy = commands.add_parser("proxy", help="let it act for a patient, such as a parent for a child")
    proxy.add_argument("--patient", required=True, help="whom for: the claim `patient` of those tokens")
    proxy.add_argument("--subject", help="`sub` of those tokens; default: the patient")
    proxy.add_argument("--until", type=_day, metavar="YYYY-MM-DD", help="last day (UTC); default: no end")
    proxy.add_argument("--reason", default="", help="such as the document that says so")
    proxy.add_argument("--remove", action="store_true", help="no more")
    proxy.set_defaults(act=_proxy)

    listed = commands.add_parser("list", help="all accounts, or one with whom it may act for")
    listed.add_argument("login", nargs="?", type=_login, metavar="LOGIN")
    listed.set_defaults(act=_list)

    for command in commands.choices.values():
        if command is not listed:
            command.add_argument("login", type=_login, metavar="LOGIN")
        command.add_argument("--author", help="for the audit trail; default: who runs the command")
        add_options(command)
        command.set_defaults(run=_run)


def _login(text: str) -> str:
    from gateway.auth.accounts import spelled

    login = spelled(text)
    if not login:
        raise argparse.ArgumentTypeError("a login is lower case letters, digits and . _ @ + -, 128 at most")
    return login


def _claim(text: str) -> tuple[str, str]:
    from gateway.config.check_clients import SET_BY_SERVICE

    name, equals, value = text.partition("=")
    if not name or not equals or not value:
        raise argparse.ArgumentTypeError("not of the form name=value")
    if name in SET_BY_SERVICE:
        raise argparse.ArgumentTypeError(f"{name} is set by the token service")
    return name, value


def _day(text: str) -> datetime:
    try:
        day = datetime.strptime(text, "%Y-%m-%d")
    except ValueError:
        raise argparse.ArgumentTypeError("not a day such as 2031-05-01") from None
    return day.replace(hour=23, minute=59, second=59, tzinfo=UTC)


def _run(options: argparse.Namespace) -> int:
    from gateway.config.versions import user_name
    from gateway.store.account_operator import AccountOperator
    from gateway.store.unit_operator import OperatorError

    act: Callable[[AccountOperator, argparse.Namespace], int] = options.act
    try:
        with AccountOperator(dsn_of(options), options.author or user_name()) as operator:
            return act(operator, options)
    except (Unusable, OperatorError) as error:
        return unusable("account", error)


def _add(operator: AccountOperator, options: argparse.Namespace) -> int:
    claims: dict[str, Any] = dict(options.claim)
    if options.patient is not None:
        claims["patient"] = options.patient
    if options.unit:
        claims["units"] = options.unit
    account = secrets.token_urlsafe(16)
    operator.add(account, options.login, options.subject or account, options.role, claims, _new_password(options.login))
    print(account)
    return 0


def _set_password(operator: AccountOperator, options: argparse.Namespace) -> int:
    changed = operator.set_password(options.login, _new_password(options.login))
    return _told(changed, f"{options.login} has another password; its sessions have ended", options.login)


def _new_password(login: str) -> str:
    """The hash of the password on standard input. SEC: arguments of a command are seen by every user of a machine."""
    from gateway.auth.passwords import PasswordRefused, hash_password

    if sys.stdin.isatty():
        text = getpass.getpass(f"new password of {login}: ")
        if getpass.getpass("again: ") != text:
            raise Unusable("the two are not the same")
    else:
        text = sys.stdin.readline(_MAX_LINE_CHARS).rstrip("\r\n")
    try:
        return hash_password(text, login)
    except PasswordRefused as error:
        raise Unusable(f"the password {error}") from None


def _totp(operator: AccountOperator, options: argparse.Namespace) -> int:
    from gateway.auth import totp
    from gateway.auth.service import account_key
    from gateway.auth.vault import Vault

    if options.remove:
        return _told(operator.set_factor(options.login, None), f"{options.login} has no second factor", options.login)
    known = operator.accounts(options.login)
    if not known:
        return _told(False, "", options.login)
    try:
        vault = Vault(account_key(read_settings(), options.data_dir))
    except (OSError, ValueError) as error:
        raise Unusable(f"CAREGATE_ACCOUNT_KEY: {error}") from None
    secret = totp.new_secret()
    operator.set_factor(options.login, vault.factors.seal(secret, known[0].id.encode()))
    print(totp.uri_of(secret, options.login, ISSUER))
    print("shown once: give it to an authenticator app, on paper or as a QR code", file=sys.stderr)
    return 0


def _disable(operator: AccountOperator, options: argparse.Namespace) -> int:
    changed = operator.disable(options.login, options.reason)
    return _told(changed, f"{options.login} is disabled; its sessions have ended", options.login, " that is enabled")


def _enable(operator: AccountOperator, options: argparse.Namespace) -> int:
    changed = operator.enable(options.login, options.reason)
    return _told(changed, f"{options.login} may log in again", options.login, " that is disabled")


def _proxy(operator: AccountOperator, options: argparse.Namespace) -> int:
    if options.remove:
        dropped = operator.drop_proxy(options.login, options.patient)
        return _told(dropped, f"{options.login} acts for {options.patient} no more", options.login, " with that proxy")
    subject = options.subject or options.patient
    added = operator.add_proxy(options.login, options.patient, subject, options.until, options.reason)
    return _told(added, f"{options.login} may act for {options.patient}", options.login)


def _list(operator: AccountOperator, options: argparse.Namespace) -> int:
    known = operator.accounts(options.login)
    if options.login is not None and not known:
        return _told(False, "", options.login)
    for account in known:
        state = f"disabled since {account.disabled_at:%Y-%m-%d}" if account.disabled_at else "enabled"
        print(f"{account.login}  {account.role}  {account.subject}  {json.loads(account.claims)}  {state}")
    if options.login is not None:
        for patient, until, reason in operator.proxies(options.login):
            print(f"  acts for {patient} {f'until {until:%Y-%m-%d}' if until else 'without end'}  {reason}".rstrip())
    return 0


def _told(changed: bool, done: str, login: str, which: str = "") -> int:
    print(done if changed else f"there is no account {login}{which}", file=sys.stdout if changed else sys.stderr)
    return 0 if changed else 1
