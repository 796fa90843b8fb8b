"""`caregate keys`: the keys of the roles, and the rotation of those that the gateway makes itself."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gateway.auth.rotation import ALGORITHMS, SETTLE_S, await_keys, role_of, rotate
from gateway.cli.operator import Unusable, add_options, dsn_of, read_settings, run_dir_of, unusable
from gateway.config.reload import ReloadFailed, ask
from gateway.config.versions import user_name

if TYPE_CHECKING:
    from gateway.auth.sealed import KeySeal
    from gateway.store.signing_key import KeyOperator

    Parsers = argparse._SubParsersAction[argparse.ArgumentParser]

EXIT_REFUSED = 1
EXIT_LATE = 1
_LENGTH = re.compile(r"(0|[1-9][0-9]{0,4})([smhd])")
_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}
_MAX_OVERLAP_S = 90 * 86_400


def add_parser(subparsers: Parsers) -> None:
    """Add `keys` and its sub-commands."""
    keys = subparsers.add_parser("keys", help="the keys of the roles: list, rotate, retire")
    commands = keys.add_subparsers(dest="keys_command", metavar="COMMAND", required=True)

    listing = commands.add_parser("list", help="the keys of each role, and which one signs")
    listing.add_argument("--json", action="store_true", help="as JSON")
    listing.set_defaults(act=_list)

    rotate = commands.add_parser("rotate", help="make a role's next key; the old one verifies until the overlap ends")
    rotate.add_argument("role", metavar="ROLE")
    rotate.add_argument("--alg", choices=ALGORITHMS, help="default: as the key that signs now, or ES256")
    rotate.add_argument("--at", type=_moment, metavar="TIME", help="when it begins to sign; default: at once")
    rotate.add_argument("--overlap", type=_length, default=86_400, metavar="24h", help="30m, 24h, 7d; default 24h")
    rotate.set_defaults(act=_rotate)

    retire = commands.add_parser("retire", help="refuse a key, and all that it signed, from now on and for ever")
    retire.add_argument("kid", metavar="KID")
    retire.add_argument("--force", action="store_true", help="also the last key of its role")
    retire.set_defaults(act=_retire)

    rewrap = commands.add_parser(
        "rewrap", help="seal keys under CAREGATE_KEY_ENCRYPTION_KEY that are still under …_BEFORE"
    )
    rewrap.set_defaults(act=_rewrap)

    for command in commands.choices.values():
        if command is not listing:
            command.add_argument("--reason", required=True, help="why, for the audit trail")
            command.add_argument("--author", help="default: who runs the command")
        add_options(command)
        command.set_defaults(run=_run)


def _moment(text: str) -> float:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("a time as 2026-11-29T14:05:00Z") from None
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError("a time with its zone: 2026-11-29T14:05:00Z")
    return moment.timestamp()


def _length(text: str) -> int:
    match = _LENGTH.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else -1
    if not 0 <= seconds <= _MAX_OVERLAP_S:
        raise argparse.ArgumentTypeError("a number with s, m, h or d: 30m, 24h; 90d at most")
    return seconds


def _run(options: argparse.Namespace) -> int:
    from gateway.settings import SettingsError
    from gateway.store.revocation import OperatorStoreError
    from gateway.store.signing_key import KeyChangeRefused, KeyOperator

    act: Callable[[KeyOperator, argparse.Namespace], int] = options.act
    try:
        with KeyOperator(dsn_of(options)) as store:
            return act(store, options)
    except KeyChangeRefused as error:
        print(f"caregate keys: {error}", file=sys.stderr)
        return EXIT_REFUSED
    except (Unusable, OperatorStoreError, SettingsError) as error:
        return unusable("keys", error)


# --- list


def _list(store: KeyOperator, options: argparse.Namespace) -> int:
    roles = _roles(options)
    if options.json:
        print(json.dumps(roles, indent=2))
        return 0
    for role, keys in sorted(roles.items()):
        for key in keys:
            print(f"{role:<20} {key['kid']:<40} {key['alg']:<6} {key['source']:<9} {_state(key)}")
    return 0


def _state(key: dict[str, Any]) -> str:
    if not key["live"]:
        return "retired"
    if not key["usable"]:
        return "cannot be used: sealed under a key-encryption key that the gateway does not have"
    state = "signs" if key["signs"] else "verifies"
    if (key["signs_s"] or 0) > time.time():
        state += f", signs from {_time(key['signs_s'])}"
    return state + (f", until {_time(key['retires_s'])}" if key["retires_s"] is not None else "")


def _time(moment_s: float) -> str:
    return datetime.fromtimestamp(moment_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _roles(options: argparse.Namespace) -> dict[str, list[dict[str, Any]]]:
    """The keys of each role, as the workers have them. Raises: Unusable."""
    workers = _ask(options)
    if not workers:
        raise Unusable(f"no worker of a gateway runs under {run_dir_of(options)}")
    found: dict[str, list[dict[str, Any]]] = workers[0]["roles"]
    return found


def _ask(options: argparse.Namespace) -> list[dict[str, Any]]:
    try:
        return ask(run_dir_of(options), "keys", timeout_s=SETTLE_S)
    except ReloadFailed as error:
        raise Unusable(str(error)) from None


# --- rotate


def _rotate(store: KeyOperator, options: argparse.Namespace) -> int:
    roles = _roles(options)
    if options.role not in roles:
        raise Unusable(f"the configuration in force has no role {options.role}")
    if options.at is not None and options.at < time.time():
        raise Unusable("--at is over already")
    made = rotate(
        store, _seal(options), options.role, roles[options.role], alg=options.alg, at_s=options.at,
        overlap_s=options.overlap, author=_author(options), reason=options.reason,
    )  # fmt: skip
    rotated = made.rotated
    print(f"{made.kid} ({made.alg}) signs for {options.role} from {_time(rotated.signs_at.timestamp())}")
    if rotated.retires_at is not None:
        print(f"{rotated.old} verifies until {_time(rotated.retires_at.timestamp())}")
    return _await(options, rotated.revision, made.kid if options.at is None else "")


def _seal(options: argparse.Namespace) -> KeySeal:
    from gateway.auth.key_seal import key_seal

    settings = read_settings()
    directory: Path = options.data_dir or settings.data_dir
    seal = key_seal(settings, directory, make=True)
    assert seal is not None  # noqa: S101 - made if there was none
    return seal


def _author(options: argparse.Namespace) -> str:
    return str(options.author or user_name())


# --- retire, rewrap


def _retire(store: KeyOperator, options: argparse.Namespace) -> int:
    role, last = role_of(options.kid, _roles(options))
    if role is None:
        raise Unusable(f"no role of the configuration in force has a key {options.kid}")
    if last and not options.force:
        raise Unusable(f"{options.kid} is the last key of {role}: give --force, or `caregate keys rotate {role}` first")
    revision = store.retire(options.kid, role, _author(options), options.reason)
    print(f"{options.kid} of {role} is retired")
    return _await(options, revision)


def _rewrap(store: KeyOperator, options: argparse.Namespace) -> int:
    from gateway.auth.vault import Unsealable

    seal, failed = _seal(options), 0
    for row in store.listing():
        if row.sealed is None or row.has_ended or seal.is_current(row.sealed):
            continue
        try:
            content = seal.open(row.sealed, row.kid, row.role, row.alg)
        except Unsealable as error:
            print(f"{row.kid}: {error or 'it was changed'}", file=sys.stderr)
            failed += 1
            continue
        sealed = seal.seal(content, row.kid, row.role, row.alg)
        store.reseal(row.kid, row.role, sealed, _author(options), options.reason)
        print(f"{row.kid} is sealed anew")
    return EXIT_REFUSED if failed else 0


def _await(options: argparse.Namespace, revision: int, signs: str = "") -> int:
    """Say when every worker knows, and signs with the new key."""
    try:
        known, late = await_keys(run_dir_of(options), revision, signs)
    except ReloadFailed as error:
        raise Unusable(str(error)) from None
    if late:
        print(f"not yet in force in worker {', '.join(map(str, late))}", file=sys.stderr)
        return EXIT_LATE
    print(f"in force in {len(known)} workers")
    return 0
