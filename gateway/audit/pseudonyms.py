"""Patients under other names: what the trail has in place of a patient's id, and how the one is found by the other.

A pseudonym is random. What joins it to a patient is a row of its own, outside the chains:

    lookup = HMAC-SHA-256(K1, id)          found again by whoever has the id and the key
    sealed = AES-256-GCM(K2, id)           read again by whoever has the key

Without the row nobody can say whose name it was, the owner of the keys included, and no hash has changed. A worker
makes a name the first time it meets a patient, in memory and in a file beside its spool, and never asks the database
for it; so a patient has a few names, and a search takes all of them.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Protocol

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FOLDER = "patients"
KEY = "patients.key"
MOST = 131_072
"""Patients that a worker remembers; beyond it all are met anew."""
_NAME = re.compile(r"p\.[0-9a-f]{32}\Z")
_MOST_CHARS = 256
_NONCE_BYTES = 12
_KEY_BYTES = 32


class KeyUnusable(ValueError):
    """The key of patients is there and cannot be used; the message says why."""


class Name(msgspec.Struct, frozen=True):
    """A row. Shapes: `lookup` and `sealed` in hex."""

    name: str
    lookup: str
    sealed: str


class Keys:
    """Makes and reads rows."""

    def __init__(self, secret: bytes) -> None:
        """Raises: KeyUnusable."""
        if len(secret) < _KEY_BYTES:
            raise KeyUnusable(f"the key of patients has less than {_KEY_BYTES} bytes")
        self._lookup = hmac.digest(secret, b"caregate-patient-lookup-1", hashlib.sha256)
        self._cipher = AESGCM(hmac.digest(secret, b"caregate-patient-seal-1", hashlib.sha256))

    def lookup(self, patient: str) -> str:
        """What a patient's rows are found by."""
        return hmac.digest(self._lookup, patient.encode("utf-8", "replace"), hashlib.sha256).hex()

    def make(self, patient: str, lookup: str) -> Name:
        """A new name of a patient. Source: os.urandom."""
        nonce = os.urandom(_NONCE_BYTES)
        name = f"p.{os.urandom(16).hex()}"
        sealed = self._cipher.encrypt(nonce, patient.encode("utf-8", "replace"), name.encode())
        return Name(name, lookup, (nonce + sealed).hex())

    def open(self, name: str, sealed: bytes) -> str | None:
        """The patient whose name it is; None if the row is not of this key."""
        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], name.encode()).decode()
        except (InvalidTag, ValueError):
            return None


class Store(Protocol):
    """See store.audit.AuditStore."""

    def insert_names(self, names: Sequence[Name], timeout_s: float) -> dict[str, str]: ...
    def erased_names(self, after: int, timeout_s: float) -> tuple[int, list[str]]: ...


class Pseudonyms:
    """One worker's names of patients. No method waits but `ship` and `follow`.

    Holds: up to MOST ids of patients in memory; the names that the database does not have yet in a file.
    """

    def __init__(self, folder: Path, chain: str, keys: Keys, names: dict[str, str] | None = None) -> None:
        """Shapes: `names` patient -> name, shared with who reads it first. Raises: OSError."""
        folder.mkdir(mode=0o700, exist_ok=True)
        self._keys = keys
        self._path = _path(folder, chain)
        self._file = _open_names(self._path)
        self._synced_by: dict[int, int] = {}
        self.names: dict[str, str] = {} if names is None else names
        self.names.clear()
        """Patient -> name."""
        self._by_lookup: dict[str, str] = {}
        self._patients: dict[str, str] = {}
        self._pending = read_names(self._path)
        for one in self._pending:
            self._by_lookup[one.lookup] = one.name
        # Half a line that a crash tore ends here.
        os.write(self._file, b"\n")
        self._written = len(self._pending)
        self._durable = 0
        self._erased = -1

    def of(self, patient: str) -> str:
        """The name of a patient; a new one is in the file when it is returned.

        Raises: OSError.
        """
        name = self.names.get(patient)
        if name is not None:
            return name
        patient = patient[:_MOST_CHARS]
        if _NAME.match(patient):
            return patient
        lookup = self._keys.lookup(patient)
        name = self._by_lookup.get(lookup)
        if name is None:
            made = self._keys.make(patient, lookup)
            line = msgspec.json.encode(made) + b"\n"
            if os.write(self._file, line) != len(line):
                raise OSError(28, "the file of patients' names has no room")
            self._pending.append(made)
            self._written += 1
            name = made.name
        if len(self.names) >= MOST:
            self.names.clear()
            self._by_lookup = {one.lookup: one.name for one in self._pending}
            self._patients.clear()
        self.names[patient] = self._by_lookup[lookup] = name
        self._patients[lookup] = patient
        return name

    def to_sync(self, turn: int) -> tuple[int, list[int]]:
        """How many names were written so far, and the file if some of them are not known to be on the disk.

        Shapes: `turn` as in Spool.files_to_sync.
        Raises: OSError.
        """
        if self._durable == self._written:
            return self._written, []
        if turn not in self._synced_by:
            self._synced_by[turn] = _open_names(self._path)
        return self._written, [self._synced_by[turn]]

    def synced(self, written: int) -> None:
        """The first so many names are on the disk."""
        self._durable = max(self._durable, written)

    def sync_failed(self) -> None:
        """A failed sync may have forgotten what it could not write: what the database does not have is written again.

        Raises: OSError.
        """
        os.write(self._file, b"".join([b"\n", *(msgspec.json.encode(one) + b"\n" for one in self._pending)]))
        self._written += 1

    def ship(self, store: Store, timeout_s: float) -> None:
        """Have the database know the names before the events that use them; take over older ones that it has.

        Raises: DatabaseUnavailable, DatabaseTimeout, RowRefused.
        Yields to the hub: until the database has them.
        """
        batch = list(self._pending)
        if not batch:
            return
        for lookup, name in store.insert_names(batch, timeout_s).items():
            self._by_lookup[lookup] = name
            patient = self._patients.get(lookup)
            if patient is not None:
                self.names[patient] = name
        del self._pending[: len(batch)]
        if not self._pending:
            os.ftruncate(self._file, 0)

    def follow(self, store: Store, timeout_s: float) -> None:
        """Forget the names that were erased since the last look.

        Raises: DatabaseUnavailable, DatabaseTimeout. Yields to the hub: yes.
        """
        self._erased, erased = store.erased_names(self._erased, timeout_s)
        gone = set(erased)
        if gone:
            for lookup in [lookup for lookup, name in self._by_lookup.items() if name in gone]:
                del self._by_lookup[lookup]
                self.names.pop(self._patients.pop(lookup, ""), None)

    def close(self) -> None:
        """The file stays, with what the database does not have."""
        for descriptor in (self._file, *self._synced_by.values()):
            os.close(descriptor)


def ship_left(folder: Path, chain: str, store: Store, timeout_s: float) -> None:
    """Ship the names that a worker left whose chain is adopted.

    Raises: OSError, and as Pseudonyms.ship. Yields to the hub: yes.
    """
    path = _path(folder, chain)
    names = read_names(path)
    if names:
        store.insert_names(names, timeout_s)
    path.unlink(missing_ok=True)


def read_names(path: Path) -> list[Name]:
    """The names in a file; half a line, torn by a crash, is none. Raises: OSError."""
    if not path.exists():
        return []
    found = []
    for line in path.read_bytes().splitlines():
        try:
            found.append(msgspec.json.decode(line, type=Name))
        except msgspec.DecodeError:
            continue
    return found


def _path(folder: Path, chain: str) -> Path:
    return folder / f"{chain}.ndjson"


def _open_names(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)


def load_or_make_key(path: Path) -> bytes:
    """The key of patients in a file, 32 random bytes in hex; made if there is none.

    Raises: KeyUnusable, OSError.
    """
    if not path.exists():
        part = path.with_name(f"{path.name}.{os.getpid()}")
        part.unlink(missing_ok=True)
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(os.urandom(_KEY_BYTES).hex().encode())
            file.flush()
            os.fsync(descriptor)
        try:
            os.link(part, path)
        except FileExistsError:
            pass  # another worker was faster: one key for all
        part.unlink()
    # SEC: who can read it can tell whose accesses they are.
    if path.stat().st_mode & 0o077:
        raise KeyUnusable(f"{path} is readable by others, chmod 600 it")
    return path.read_bytes().strip()


class NamesReader:
    """Patients' names and ids for those who may read the trail."""

    def __init__(
        self, keys: Callable[[], Keys | None], ask: Callable[[str, Sequence[str]], Iterable[tuple[str, bytes]]]
    ) -> None:
        """Shapes: `ask("lookup" or "name", values)` gives (name, sealed) of the rows that have one of them."""
        self._load = keys
        self._ask = ask
        self._loaded: Keys | None = None

    def _keys(self) -> Keys | None:
        if self._loaded is None:
            self._loaded = self._load()
        return self._loaded

    def names_of(self, patient: str) -> tuple[str, ...]:
        """Under which names the trail may have a patient; the id itself is one, of times without pseudonyms."""
        keys, patient = self._keys(), patient[:_MOST_CHARS]
        if keys is None:
            return (patient,)
        # SEC: a row says itself whose it is; by which lookup it is found can be changed by whoever owns the table.
        rows = self._ask("lookup", [keys.lookup(patient)])
        return (patient, *(name for name, sealed in rows if keys.open(name, sealed) == patient))

    def lookup_of(self, patient: str) -> str | None:
        """By what all of a patient's names are found, those of later too; None without the key."""
        keys = self._keys()
        return None if keys is None else keys.lookup(patient[:_MOST_CHARS])

    def ids_of(self, names: Sequence[str]) -> dict[str, str]:
        """The ids of those names that were not erased."""
        keys, wanted = self._keys(), sorted({name for name in names if _NAME.match(name)})
        if keys is None or not wanted:
            return {}
        found = ((name, keys.open(name, sealed)) for name, sealed in self._ask("name", wanted))
        return {name: patient for name, patient in found if patient is not None}
