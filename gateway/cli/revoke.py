"""`caregate revoke`: refuse tokens before their time, in every worker and on open unit links."""

from __future__ import annotations

import argparse
import re
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from gateway.auth.settled import UNITS, await_workers
from gateway.cli.operator import Unusable, add_options, connect, dsn_of, run_dir_of, unusable
from gateway.config.reload import ReloadFailed
from gateway.config.versions import user_name

if TYPE_CHECKING:
    from gateway.store.revocation import RevocationOperator, Revoked

    Parsers = argparse._SubParsersAction[argparse.ArgumentParser]

AHEAD_S = 60.0
"""How far a moment may be in the future: clocks differ."""
EXIT_LATE = 1
_UNIT = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")


def add_parser(subparsers: Parsers) -> None:
    """Add `revoke` and its sub-commands."""
    revoke = subparsers.add_parser("revoke", help="refuse tokens before their time")
    commands = revoke.add_subparsers(dest="kind", metavar="WHAT", required=True)

    _parser(commands, "jti", "one token, by its jti").add_argument("value", metavar="JTI")
    _parser(commands, "session", "all tokens of a session, by their sid").add_argument("value", metavar="SID")

    subject = _parser(commands, "subject", "the tokens of a subject that were issued before the moment")
    subject.add_argument("value", metavar="SUB")
    subject.add_argument("--issuer", default="", help="of this issuer only")
    _add_scope(subject)

    unit = _parser(commands, "unit", "shut a unit out, and refuse the tokens that name it in `units`")
    unit.add_argument("value", type=_unit, metavar="UNIT")
    unit.add_argument(
        "--tokens-only", action="store_true", help="leave the unit alone: with a new token it may link at once"
    )
    _add_moment(unit)

    before = _parser(commands, "before", "everything that was issued before a moment")
    before.add_argument("moment", type=_moment, metavar="TIME", help="now, or as 2026-11-29T14:05:00Z")
    _add_filter(before)

    listing = commands.add_parser("list", help="what is revoked, the newest first")
    listing.add_argument("--limit", type=int, default=50, metavar="N")
    add_options(listing)
    listing.set_defaults(run=lambda options: _guarded(options, _list))


def _parser(commands: Parsers, name: str, text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text)
    parser.add_argument("--reason", required=True, help="why, for the audit trail")
    parser.add_argument("--author", help="default: who runs the command")
    add_options(parser)
    parser.set_defaults(run=lambda options: _guarded(options, _revoke))
    return parser


def _add_scope(parser: argparse.ArgumentParser) -> None:
    _add_filter(parser)
    _add_moment(parser)


def _add_filter(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--audience", default="", help="of this audience only; unit-link: the units' own")
    parser.add_argument("--role", default="", help="of this role only")


def _add_moment(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--before", dest="moment", type=_moment, metavar="TIME", help="default: now")


def _moment(text: str) -> float | None:
    """Seconds since 1970, None for now."""
    if text == "now":
        return None
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("now, or a time as 2026-11-29T14:05:00Z") from None
    if moment.tzinfo is None:
        raise argparse.ArgumentTypeError("a time with its zone: 2026-11-29T14:05:00Z")
    if moment.timestamp() > time.time() + AHEAD_S:
        # SEC: what will be issued cannot be judged yet, and nobody could log in until then.
        raise argparse.ArgumentTypeError("a time that has not come yet")
    return moment.timestamp()


def _unit(text: str) -> str:
    if not _UNIT.fullmatch(text):
        raise argparse.ArgumentTypeError("a unit's id is lower case letters, digits and hyphens, 63 at most")
    return text


def _guarded(options: argparse.Namespace, act: Callable[[argparse.Namespace, RevocationOperator], int]) -> int:
    from gateway.store.revocation import OperatorStoreError, RevocationOperator, RevocationRefused
    from gateway.store.unit_operator import OperatorError

    try:
        with RevocationOperator(dsn_of(options)) as store:
            return act(options, store)
    except (Unusable, OperatorStoreError, OperatorError, RevocationRefused) as error:
        return unusable("revoke", error)


def _revoke(options: argparse.Namespace, store: RevocationOperator) -> int:
    from gateway.store.revocation import NewRevocation

    units = 0
    if options.kind == "unit" and not options.tokens_only:
        # First: in between, a unit whose token is revoked would sign the next one and be let in.
        with connect(options) as operator:
            operator.revoke(options.value, options.reason)
            units = operator.revision()
        print(f"{options.value} is shut out until `caregate unit enable {options.value}`")
    revoked = store.add(
        NewRevocation(
            kind=options.kind,
            value=getattr(options, "value", ""),
            issuer=getattr(options, "issuer", ""),
            audience=getattr(options, "audience", ""),
            role=getattr(options, "role", ""),
            before_s=getattr(options, "moment", None),
            author=options.author or user_name(),
            reason=options.reason,
        )
    )
    return _await(options, revoked, units)


def _await(options: argparse.Namespace, revoked: Revoked, units: int) -> int:
    """Say which workers know of it, and of that revision of the units' registry."""
    try:
        known, late = await_workers(run_dir_of(options), revoked.revision)
        if not late:
            known, late = await_workers(run_dir_of(options), units, of=UNITS)
    except (ReloadFailed, Unusable) as error:
        print(f"revoked (revision {revoked.revision}); no worker was asked: {error}")
        return 0
    if late:
        print(f"revoked, and not yet known to worker {', '.join(map(str, late))}", file=sys.stderr)
        return EXIT_LATE
    print(f"revoked (revision {revoked.revision}), in force in {len(known)} workers")
    return 0


def _list(options: argparse.Namespace, store: RevocationOperator) -> int:
    for row in store.listing(options.limit):
        scope = "".join(f" {name}={value}" for name, value in _scope(row) if value)
        moment = "" if row.kind in ("jti", "session") else f" before {_time(row.before_at)}"
        print(f"{_time(row.at)} {row.kind} {row.value or '*'}{moment}{scope}  {row.author} ({row.actor}): {row.reason}")
    return 0


def _scope(row: object) -> list[tuple[str, str]]:
    return [(name, getattr(row, name)) for name in ("issuer", "audience", "role")]


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
