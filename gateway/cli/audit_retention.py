"""`caregate audit hold|release|holds|remove`: how long the trail is kept, and what is kept longer."""

from __future__ import annotations

import argparse
import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.audit_source import (
    Unusable,
    add_patient_key,
    checkpoints_of,
    dsn_of,
    folder_of,
    guarded,
    keys_of,
    note,
    outside_of,
    patients_of,
    private_key_of,
    time_of,
    who,
)

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    from gateway.audit.verify import Anchors
    from gateway.store.trail import TrailReader

clock: Callable[[], float] = time.time
"""Tests of retention set it to another time."""
_KEEP = "CAREGATE_AUDIT_RETENTION_MONTHS"
_KEEP_MONTHS = 72
_HOLD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_REASON = 500


def add_actions(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the commands."""
    hold = actions.add_parser("hold", help="legal hold: months with such events are not removed")
    _add_options(hold)
    hold.add_argument("name", help="of the hold")
    hold.add_argument("--patient", action="append", default=[], help="may be given more than once")
    hold.add_argument("--unit", default="", help="events of this unit")
    hold.add_argument("--from", type=time_of, default=0, dest="from_ms", metavar="TIME", help="events from then on")
    hold.add_argument("--to", type=time_of, default=0, dest="to_ms", metavar="TIME", help="events until then")
    hold.add_argument("--reason", required=True)
    add_patient_key(hold)
    hold.set_defaults(run=guarded(_hold))
    release = actions.add_parser("release", help="end a legal hold")
    _add_options(release)
    release.add_argument("name")
    release.set_defaults(run=guarded(_release))
    holds = actions.add_parser("holds", help="the legal holds, ended ones too")
    _add_options(holds)
    holds.set_defaults(run=guarded(_holds))
    remove = actions.add_parser(
        "remove",
        help="remove the months that are past their time",
        description="What would go is verified first. The act is signed with the key of checkpoints and kept in the "
        "database and in audit/removals.ndjson, so that verification holds and says what was removed.",
    )
    _add_options(remove)
    remove.add_argument("--keep-months", type=int, help=f"{_KEEP}; default {_KEEP_MONTHS}, six years")
    remove.add_argument("--signing-key", type=Path, metavar="FILE", help="default: audit/checkpoint.key")
    remove.add_argument(
        "--key", type=Path, action="append", metavar="FILE", help="public key of older checkpoints; more than once"
    )
    remove.add_argument("--checkpoints", type=Path, metavar="PATH", help="those outside the database; as for verify")
    remove.add_argument("--reason", default="retention", help="stands in the act")
    remove.add_argument("--dry-run", action="store_true", help="say what would be removed")
    remove.set_defaults(run=guarded(_remove))
    _add_erase(actions)


def _add_erase(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    erase = actions.add_parser(
        "erase",
        help="erase a person from the trail",
        description="What joins the person's pseudonyms to the person is erased; records and hashes stay as they are.",
    )
    _add_options(erase)
    erase.add_argument("--patient", required=True, metavar="ID")
    add_patient_key(erase)
    erase.add_argument("--reason", required=True)
    erase.set_defaults(run=guarded(_erase))


def _add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dsn", help="of an administrator of the database; default: the embedded database")
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of the gateway; CAREGATE_DATA_DIR")


def _hold(options: argparse.Namespace) -> int:
    from gateway.audit.timestamp import instant
    from gateway.store.retention import LOOKUP, RetentionStore
    from gateway.store.trail import TrailReader

    if "" in options.patient or not 1 <= len(options.reason) <= _MOST_REASON:
        raise Unusable(f"--patient takes an id, --reason 1 to {_MOST_REASON} characters")
    if _HOLD.fullmatch(options.name) is None:
        raise Unusable("the name of a hold is 1 to 64 letters, digits, dots, hyphens and underscores")
    with TrailReader(dsn_of(options)) as trail:
        known = patients_of(options, trail, naming=bool(options.patient))
        patients = sorted({name for patient in options.patient for name in known.names_of(patient)})
        lookups = {known.lookup_of(patient) for patient in options.patient} - {None}
        patients += sorted(f"{LOOKUP}{lookup}" for lookup in lookups)
    times = tuple(instant(at_ms) if at_ms else "" for at_ms in (options.from_ms, options.to_ms))
    with RetentionStore(dsn_of(options)) as store:
        made = store.hold(options.name, patients, options.unit, (times[0], times[1]), options.reason)
    if not made:
        raise Unusable(f"there is a hold {options.name} already, in force or ended: take another name")
    note(options, "audit.held", hold=options.name, reason=options.reason)
    print(f"{options.name} is in force")
    return 0


def _release(options: argparse.Namespace) -> int:
    from gateway.store.retention import RetentionStore

    with RetentionStore(dsn_of(options)) as store:
        ended = store.release(options.name)
    if not ended:
        raise Unusable(f"no hold {options.name} is in force")
    note(options, "audit.held", hold=options.name, reason="released")
    print(f"{options.name} is ended")
    return 0


def _holds(options: argparse.Namespace) -> int:
    from gateway.store.retention import RetentionStore

    with RetentionStore(dsn_of(options)) as store:
        for name, patients, unit, from_at, to_at, reason, made_at, by, released in store.holds():
            about = [f"{patients} names of a patient"] if patients else []
            about += [f"unit {unit}"] if unit else []
            state = f"ended {released}" if released else "in force"
            span = "at any time" if (from_at, to_at) == ("-infinity", "infinity") else f"{from_at} to {to_at}"
            print(f"{name}  {state}  {', '.join(about) or 'all'}  {span}  {made_at} by {by}: {reason}")
    return 0


def _remove(options: argparse.Namespace) -> int:
    from gateway.audit.removing import ACTS, RemovalRefused, carry_out, plan, read_file
    from gateway.audit.retention import read_acts
    from gateway.store.retention import RetentionStore
    from gateway.store.trail import TrailReader

    keep_months, key, folder = _keep_months(options), private_key_of(options), folder_of(options)
    now_ms = round(clock() * 1000)
    dsn = dsn_of(options)
    keys = [key.public_key(), *(keys_of(options) if options.key else ())]
    with RetentionStore(dsn) as store, TrailReader(dsn) as reader:
        acts = read_acts([*store.acts(), *read_file(folder / ACTS)], keys)
        try:
            found = plan(store, reader, acts, _signed(options, reader, keys), now_ms, keep_months)
        except RemovalRefused as refused:
            print(f"caregate audit: {refused}")
            return 1
        reader.close()
        for month, holds in sorted(found.held.items()):
            print(f"{month} is kept: held by {', '.join(holds)}")
        print(f"{', '.join(found.months) or 'no month'}: {found.records} records are past {keep_months} months")
        if options.dry_run or not found.months:
            return 0
        about = {"keep_months": keep_months, "by": who(), "reason": options.reason}
        try:
            act = carry_out(store, found, key, folder, now_ms=now_ms, **about)
        except RemovalRefused as refused:
            print(f"caregate audit: {refused}")
            return 1
    about = {"act": str(act.number), "months": " ".join(act.months), "records": str(act.records)}
    note(options, "audit.removed", reason=act.reason, **about)
    print(f"removed by act {act.number}")
    return 0


def _signed(options: argparse.Namespace, reader: TrailReader, keys: Sequence[Ed25519PublicKey]) -> Anchors:
    """What was signed, here and outside the database. Raises: RemovalRefused if it is not as it was signed."""
    from gateway.audit.notary import read_shipped
    from gateway.audit.removing import RemovalRefused
    from gateway.audit.span import span_of
    from gateway.audit.verify import Verdict, compare_copies, read_checkpoints

    verdict = Verdict()
    in_database, outside = list(reader.numbered_checkpoints()), checkpoints_of(options)
    compare_copies(in_database, outside, read_shipped(outside_of(options)), verdict)
    span = span_of([*(sealed for _, _, sealed in in_database), *outside], 0, 0)
    anchors = read_checkpoints(span.sealed, keys, verdict)
    if verdict.findings:
        raise RemovalRefused(f"{verdict.findings[0]}: nothing is removed before that is explained")
    return anchors


def _erase(options: argparse.Namespace) -> int:
    from gateway.store.retention import RetentionStore
    from gateway.store.trail import TrailReader

    with TrailReader(dsn_of(options)) as trail:
        lookup = patients_of(options, trail, naming=True).lookup_of(options.patient)
    if lookup is None:
        raise Unusable(
            "the key of patients does not exist; give --patient-key FILE, or --data-dir for the gateway's own"
        )
    with RetentionStore(dsn_of(options)) as store:
        store.check_erasable(lookup, options.patient)
        note(options, "audit.erased", reason=options.reason, pseudonyms=str(store.count_names(lookup)))
        count = store.erase(lookup, options.patient)
    print(f"{count} names of the patient are erased")
    return 0


def _keep_months(options: argparse.Namespace) -> int:
    text = os.environ.get(_KEEP, "")
    if options.keep_months is None and text and not text.isdigit():
        raise Unusable(f"{_KEEP}: takes a whole number of months")
    months: int = options.keep_months if options.keep_months is not None else int(text or _KEEP_MONTHS)
    if months < 1:
        raise Unusable("at least one month is kept")
    return months
