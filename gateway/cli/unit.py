"""`caregate unit`: let a unit register its key, shut a unit or a key out, let a unit in again."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from gateway.cli.operator import Unusable, add_options, ask_workers, connect, run_dir_of, unusable

if TYPE_CHECKING:
    from gateway.store.unit_operator import UnitOperator

_UNIT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_LIFETIME = re.compile(r"([1-9][0-9]{0,4})([mhd])")
_SECONDS = {"m": 60, "h": 3600, "d": 86_400}
MAX_LIFETIME_S = 14 * 86_400
EXIT_LATE = 1
MAX_REASON = 500


def add_parser(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `unit` and its sub-commands."""
    unit = subparsers.add_parser("unit", help="let a unit register its key, revoke a unit or a key")
    commands = unit.add_subparsers(dest="unit_command", metavar="COMMAND", required=True)

    enrol = commands.add_parser("enrol", help="issue a one-time code, shown once, with which the unit registers a key")
    enrol.add_argument("--expires", type=_lifetime, default=86_400, metavar="1h", help="30m, 24h, 7d; default 24h")
    enrol.set_defaults(act=_enrol)

    revoke = commands.add_parser("revoke", help="cut the unit's links and refuse it, or one key of it, from now on")
    revoke.add_argument("--key", metavar="KID", help="this key only, for ever")
    revoke.add_argument("--reason", type=_reason, default="", help="for the timeline")
    revoke.set_defaults(act=_revoke)

    enable = commands.add_parser("enable", help="undo `revoke UNIT`; revoked keys stay revoked")
    enable.add_argument("--reason", type=_reason, default="", help="for the timeline")
    enable.set_defaults(act=_enable)

    for command in (enrol, revoke, enable):
        command.add_argument("unit", type=_unit, metavar="UNIT")
        add_options(command)
        command.set_defaults(run=_run)


def _unit(text: str) -> str:
    if not _UNIT.fullmatch(text):
        raise argparse.ArgumentTypeError("a unit's id is lower case letters, digits and hyphens, 63 at most")
    return text


def _reason(text: str) -> str:
    if len(text) > MAX_REASON:
        raise argparse.ArgumentTypeError(f"at most {MAX_REASON} characters")
    return text


def _lifetime(text: str) -> int:
    match = _LIFETIME.fullmatch(text)
    seconds = int(match[1]) * _SECONDS[match[2]] if match else 0
    if not 0 < seconds <= MAX_LIFETIME_S:
        raise argparse.ArgumentTypeError("a number with m, h or d: 30m, 24h; 14d at most")
    return seconds


def _run(options: argparse.Namespace) -> int:
    from gateway.store.unit_operator import OperatorError

    act: Callable[[UnitOperator, argparse.Namespace], int] = options.act
    try:
        with connect(options) as operator:
            return act(operator, options)
    except (Unusable, OperatorError) as error:
        return unusable("unit", error)


def _enrol(operator: UnitOperator, options: argparse.Namespace) -> int:
    from gateway.units import code

    _warn_if_unknown(options)
    text = code.issue()
    operator.issue_code(options.unit, code.digest(text), options.expires)
    until = datetime.now(UTC) + timedelta(seconds=options.expires)
    print(text)
    print(
        f"for {options.unit}, once, until {until:%Y-%m-%d %H:%M} UTC; at the site:\n"
        f"  caregate agent enrol --gateway URL --unit {options.unit} --code {text} --key-dir DIR",
        file=sys.stderr,
    )
    return 0


def _warn_if_unknown(options: argparse.Namespace) -> None:
    """A unit that the configuration does not name cannot enrol, and to revoke it shuts nobody out."""
    try:
        known = {unit for worker in ask_workers(run_dir_of(options)) for unit in worker.get("known", ())}
    except Unusable:
        return
    if known and options.unit not in known:
        print(f"note: the configuration in force does not name {options.unit} under units", file=sys.stderr)


def _revoke(operator: UnitOperator, options: argparse.Namespace) -> int:
    _warn_if_unknown(options)
    status = _shut_out(operator, options)
    return status or _await(options, operator.revision())


def _await(options: argparse.Namespace, revision: int) -> int:
    """Say which workers know of it."""
    from gateway.auth.settled import UNITS, await_workers
    from gateway.config.reload import ReloadFailed

    try:
        known, late = await_workers(run_dir_of(options), revision, of=UNITS)
    except (ReloadFailed, Unusable) as error:
        print(f"no worker was asked: {error}")
        return 0
    if late:
        print(f"not yet known to worker {', '.join(map(str, late))}", file=sys.stderr)
        return EXIT_LATE
    print(f"in force in {len(known)} workers")
    return 0


def _shut_out(operator: UnitOperator, options: argparse.Namespace) -> int:
    if options.key is not None:
        return _told(
            operator.revoke_key(options.unit, options.key, options.reason),
            f"key {options.key} of {options.unit} is revoked",
            f"{options.unit} has no registered key {options.key} that is not revoked (caregate units {options.unit})",
        )
    return _told(
        operator.revoke(options.unit, options.reason),
        f"{options.unit} is revoked until `caregate unit enable {options.unit}`",
        f"{options.unit} is revoked already",
    )


def _enable(operator: UnitOperator, options: argparse.Namespace) -> int:
    return _told(
        operator.enable(options.unit, options.reason),
        f"{options.unit} may connect again",
        f"{options.unit} is not revoked",
    )


def _told(changed: bool, done: str, not_done: str) -> int:
    print(done if changed else not_done, file=sys.stdout if changed else sys.stderr)
    return 0 if changed else 1
