"""What the commands about the audit trail share: where the trail is, its keys, times, and the note that it was read."""

from __future__ import annotations

import argparse
import os
import pwd
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from gateway.cli.said import reason

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

    from gateway.audit.checkpoint import Sealed
    from gateway.audit.pseudonyms import Keys, NamesReader
    from gateway.store.trail import TrailReader

DSN_VARIABLE = "CAREGATE_SECRET_AUDIT_DSN"
PATIENT_KEY_VARIABLE = "CAREGATE_AUDIT_PATIENT_KEY"
_SEGMENT_BYTES = 262_144


class Unusable(Exception):
    """Arguments, files or a database the command cannot work with; the message is for the user."""


def add_source(parser: argparse.ArgumentParser) -> None:
    """Where the trail is, and which time of it."""
    parser.add_argument(
        "--dsn", help=f"of a member of caregate_auditor; {DSN_VARIABLE}; default: the embedded database"
    )
    parser.add_argument("--data-dir", type=Path, metavar="DIR", help="of the gateway; CAREGATE_DATA_DIR")
    parser.add_argument(
        "--from", type=time_of, default=0, dest="from_ms", metavar="TIME", help="ISO 8601, UTC if it says nothing"
    )
    parser.add_argument(
        "--to", type=time_of, default=0, dest="to_ms", metavar="TIME", help="until then; of a date alone its beginning"
    )
    parser.add_argument(
        "--checkpoints",
        type=Path,
        metavar="PATH",
        help="a file or folder of checkpoints outside the database; default: audit/checkpoints of the data directory",
    )


def guarded(run: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Ends with 2 and the reason where a command cannot work."""

    def guarding(options: argparse.Namespace) -> int:
        from gateway.store.trail import TrailUnreadable

        try:
            if 0 < getattr(options, "to_ms", 0) <= getattr(options, "from_ms", 0):
                raise Unusable("--to is not after --from")
            return run(options)
        except (Unusable, TrailUnreadable, OSError, ValueError) as error:
            print(f"caregate audit: {reason(error)}", file=sys.stderr)
        return 2

    return guarding


def keys_of(options: argparse.Namespace) -> list[Ed25519PublicKey]:
    """The public keys of checkpoints. Raises: Unusable."""
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    paths: list[Path] = options.key or [folder_of(options) / "checkpoint.pub"]
    keys = []
    for path in paths:
        if not path.exists():
            raise Unusable(f"{path}: does not exist; give --key FILE, or --data-dir for the gateway's own")
        try:
            key = serialization.load_pem_public_key(path.read_bytes())
        except (ValueError, UnsupportedAlgorithm):
            raise Unusable(f"{path} is no public key in PEM") from None
        if not isinstance(key, Ed25519PublicKey):
            raise Unusable(f"{path} is no Ed25519 key")
        keys.append(key)
    return keys


def checkpoints_of(options: argparse.Namespace) -> list[Sealed]:
    """The checkpoints outside the database. Without --checkpoints those of the data directory, if they are here.

    Raises: Unusable if --checkpoints has none: nothing could be compared with them.
    """
    from gateway.audit.notary import read_sealed

    path = outside_of(options)
    if options.checkpoints is None and (getattr(options, "export", None) is not None or not path.is_dir()):
        return []
    files = sorted(path.glob("*.ndjson")) if path.is_dir() else [path]
    found = [sealed for file in files for sealed in read_sealed(file)]
    if options.checkpoints is not None and not found:
        raise Unusable(f"{path}: no checkpoint is there")
    return found


def outside_of(options: argparse.Namespace) -> Path:
    """Where checkpoints outside the database are, or would be."""
    path: Path = options.checkpoints or folder_of(options) / "checkpoints"
    return path


def data_dir_of(options: argparse.Namespace) -> Path:
    """The gateway's data directory."""
    return options.data_dir or Path(os.environ.get("CAREGATE_DATA_DIR", ".caregate"))


def folder_of(options: argparse.Namespace) -> Path:
    """The folder of the trail in it."""
    return data_dir_of(options) / "audit"


def dsn_of(options: argparse.Namespace) -> str:
    """The database of the trail. Raises: Unusable."""
    dsn: str = options.dsn or os.environ.get(DSN_VARIABLE, "")
    if dsn:
        return dsn
    from gateway.store.embedded import EmbeddedPostgres

    directory = data_dir_of(options) / "postgres"
    if not directory.is_dir():
        raise Unusable(f"{directory}: no embedded database; give --dsn, --data-dir, or set {DSN_VARIABLE}")
    # The login of the embedded database that may read the trail; nobody but its owner reaches its socket.
    return EmbeddedPostgres(directory).find().admin_dsn


def time_of(text: str) -> int:
    """ISO 8601 -> ms since 1970."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise argparse.ArgumentTypeError("a time such as 2026-05-01 or 2026-05-01T12:00:00Z") from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def iso(at_ms: int) -> str:
    """RFC 3339 in UTC. Units: ms since 1970."""
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def private_key_of(options: argparse.Namespace) -> Ed25519PrivateKey:
    """The key that signs checkpoints, manifests and acts. Raises: Unusable."""
    from gateway.audit.notary import KEY, KeyUnusable, load_or_make_key

    path: Path = options.signing_key or folder_of(options) / KEY
    if not path.exists():
        raise Unusable(f"{path}: does not exist; give --signing-key FILE, or --data-dir for the gateway's own")
    try:
        return load_or_make_key(path)
    except KeyUnusable as error:
        raise Unusable(str(error)) from None


def add_patient_key(parser: argparse.ArgumentParser) -> None:
    """By what patients and their pseudonyms are joined."""
    parser.add_argument(
        "--patient-key", type=Path, metavar="FILE", help=f"{PATIENT_KEY_VARIABLE}; default: audit/patients.key"
    )


def patient_keys_of(options: argparse.Namespace) -> Keys | None:
    """The key of patients, None if it is not on this machine. Raises: Unusable, ValueError."""
    from gateway.audit.pseudonyms import KEY, Keys, load_or_make_key
    from gateway.config.secret import Secrets, SecretUnavailable

    path, reference = options.patient_key, os.environ.get(PATIENT_KEY_VARIABLE, "")
    if path is None and reference:
        beside = Path(os.environ.get("CAREGATE_CONFIG_PATH", ".")).parent
        try:
            return Keys(Secrets(beside, os.environ).resolve(reference, private=True).strip())
        except SecretUnavailable as error:
            raise Unusable(f"{PATIENT_KEY_VARIABLE}: {error}") from None
    if path is not None and not path.exists():
        raise Unusable(f"{path}: does not exist")
    path = path or folder_of(options) / KEY
    return Keys(load_or_make_key(path)) if path.exists() else None


def patients_of(options: argparse.Namespace, reader: TrailReader, *, naming: bool = False) -> NamesReader:
    """Names and ids of patients; ids alone where the key of patients is not on this machine.

    Raises: Unusable, with `naming`, if the trail has pseudonyms of which the key says nothing: whoever asks for a
    patient would find nothing, hold nothing and erase nothing.
    """
    from gateway.audit.pseudonyms import NamesReader

    keys, row = patient_keys_of(options), reader.a_name() if naming else None
    if row is not None and (keys is None or keys.open(*row) is None):
        what = "their key is not here" if keys is None else "this is not their key"
        raise Unusable(
            f"patients have pseudonyms in this trail, and {what}: give --patient-key FILE, or --data-dir for the "
            "gateway's own"
        )
    return NamesReader(lambda: keys, reader.names)


def who() -> str:
    """Who runs this process, as the machine knows it."""
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid-{os.geteuid()}"


def note(options: argparse.Namespace, kind: str, *, patient: str = "", **detail: str) -> None:
    """Leave an event in the trail: by way of a spool in the gateway's data directory, which its workers ship.

    Shapes: `patient` as the trail names one.
    Without such a directory, as on an auditor's own machine, stderr is told that nobody was.
    """
    from gateway.audit.event import encode, other_event
    from gateway.audit.spool import SpoolFull, open_spool, sync_files

    folder = folder_of(options)
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        print(f"caregate audit: not in the trail itself: {folder} is no trail of this machine", file=sys.stderr)
        return
    now_ms = time.time_ns() // 1_000_000
    event = other_event(
        os.uname().nodename, kind, "allowed", now_ms, None, {"patient": patient}, {"by": who(), **detail}
    )
    try:
        spool = open_spool(folder, _SEGMENT_BYTES, 16 * _SEGMENT_BYTES)
        try:
            spool.append(encode(event))
            head, descriptors = spool.files_to_sync(now_ms)
            sync_files(descriptors)
            spool.synced(head)
        finally:
            spool.close()
    except (OSError, SpoolFull) as error:
        raise Unusable(f"the trail cannot be told of this, so it is not done: {error}") from None
    _give_to_owner(folder, spool.folder)


def _give_to_owner(folder: Path, chain: Path) -> None:
    """Run by root, the chain is the gateway's all the same."""
    owner = folder.stat()
    if os.geteuid() == 0 and owner.st_uid != 0:
        for path in (chain, *chain.iterdir()):
            os.chown(path, owner.st_uid, owner.st_gid)
