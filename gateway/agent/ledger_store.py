"""The ledger on disk: one SQLite file, one transaction for whatever is asked at the same moment. No greenlets here.

SQLite instead of an append file of our own: the index stays on disk (24 hours of keys would not fit the agent's
memory), a torn write is its problem, and WAL with synchronous=FULL costs one fsync a commit, as an own file would.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gateway.agent.settings import LedgerSettings

FILE = "ledger.sqlite"
LOCK = "ledger.lock"
SCHEMA_VERSION = 1
PAGE_BYTES = 4096
EXPIRE_AT_ONCE = 500
_SCHEMA = """
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS entry (
    id INTEGER PRIMARY KEY, name BLOB NOT NULL UNIQUE, head BLOB NOT NULL, body BLOB,
    state INTEGER NOT NULL, created_s REAL NOT NULL, answer BLOB
);
CREATE INDEX IF NOT EXISTS entry_created ON entry (created_s);
"""


class LedgerUnavailable(Exception):
    """The ledger cannot be read or written now; the message is for the log and quotes nothing of a request."""


class EntryState(IntEnum):
    INTENT = 0
    """The local service may have seen the request; no answer is known."""
    KEPT = 1
    SPENT = 2
    """Answered, and the answer is not kept: it was too large, or made room for younger ones."""


@dataclass(frozen=True, slots=True)
class Entry:
    """Shapes: `head` and `body` are fingerprints, `body` None where the answer came before the whole request."""

    state: EntryState
    head: bytes
    body: bytes | None
    answer: bytes | None


class LedgerStore:
    """Used by one thread at a time. Every method is called inside `transaction`.

    Holds: the directory's lock, so that no second agent runs a key that this one has seen.
    """

    def __init__(self, settings: LedgerSettings, check: Callable[[bool], bytes]) -> None:
        """`check(existing)` gives the value that proves the key belongs to the file.

        Raises: LedgerUnavailable.
        """
        self._settings = settings
        self._lock = _lock(settings.directory)
        try:
            self._database = self._open(settings.directory / FILE, check)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, path: Path, check: Callable[[bool], bytes]) -> sqlite3.Connection:
        try:
            existing = path.exists() and path.stat().st_size > 0
            proof = check(existing)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            database = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise LedgerUnavailable(_reason(error)) from error
        try:
            self._prepare(database, proof)
        except sqlite3.Error as error:
            database.close()
            raise LedgerUnavailable(_reason(error)) from error
        except BaseException:
            database.close()
            raise
        return database

    def _prepare(self, database: sqlite3.Connection, proof: bytes) -> None:
        settings = self._settings
        pages = (settings.max_bytes + settings.max_bytes // 4 + settings.max_entries * 512) // PAGE_BYTES + 64
        for pragma in (
            "journal_mode = WAL",
            "synchronous = FULL",
            "cache_size = -64",
            f"journal_size_limit = {1024 * PAGE_BYTES}",
            f"max_page_count = {pages}",
            "secure_delete = ON",
        ):
            database.execute(f"PRAGMA {pragma}").fetchall()
        version = database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise LedgerUnavailable("written by another version")
        database.executescript(_SCHEMA)
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        known = database.execute("SELECT value FROM meta WHERE name = 'check'").fetchone()
        if known is None:
            database.execute("INSERT INTO meta VALUES ('check', ?)", (proof,))
        elif known[0] != proof:
            raise LedgerUnavailable("another key")
        count, kept = database.execute("SELECT count(*), coalesce(sum(length(answer)), 0) FROM entry").fetchone()
        self._entries: int = count
        self._kept_bytes: int = kept

    def transaction(self, operations: list[Callable[[LedgerStore], Any]], now_s: float) -> list[Any]:
        """Run them all, durably, or none; one that raises LedgerUnavailable has that as its result.

        Raises: LedgerUnavailable. Blocks: one fsync.
        """
        counts = self._entries, self._kept_bytes
        try:
            self._database.execute("BEGIN IMMEDIATE")
            try:
                self._expire(now_s)
                results = [self._result(operation) for operation in operations]
                self._database.execute("COMMIT")
            except BaseException:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            self._entries, self._kept_bytes = counts
            raise LedgerUnavailable(_reason(error)) from error
        except BaseException:
            self._entries, self._kept_bytes = counts
            raise
        return results

    def _result(self, operation: Callable[[LedgerStore], Any]) -> Any:
        try:
            return operation(self)
        except LedgerUnavailable as error:
            return error

    def _expire(self, now_s: float) -> None:
        self._delete(
            "SELECT id, length(answer) FROM entry WHERE created_s <= ? ORDER BY created_s LIMIT ?",
            (now_s - self._settings.keep_s, EXPIRE_AT_ONCE),
        )

    def _delete(self, query: str, values: tuple[object, ...]) -> None:
        rows = self._database.execute(query, values).fetchall()
        self._database.executemany("DELETE FROM entry WHERE id = ?", [(entry,) for entry, _ in rows])
        self._entries -= len(rows)
        self._kept_bytes -= sum(size or 0 for _, size in rows)

    def find(self, name: bytes, now_s: float) -> Entry | None:
        row = self._database.execute(
            "SELECT state, head, body, answer FROM entry WHERE name = ? AND created_s > ?",
            (name, now_s - self._settings.keep_s),
        ).fetchone()
        return None if row is None else Entry(EntryState(row[0]), row[1], row[2], row[3])

    def intend(self, name: bytes, head: bytes, now_s: float) -> None:
        """The local service is about to see the request. Raises: LedgerUnavailable when full."""
        if self._entries >= self._settings.max_entries:
            raise LedgerUnavailable("full")
        # One that expired and still waits to be deleted gives way.
        self._delete("SELECT id, length(answer) FROM entry WHERE name = ?", (name,))
        self._database.execute(
            "INSERT INTO entry (name, head, state, created_s) VALUES (?, ?, ?, ?)",
            (name, head, EntryState.INTENT, now_s),
        )
        self._entries += 1

    def forget(self, name: bytes) -> None:
        """The local service saw no byte of it after all."""
        done = self._database.execute("DELETE FROM entry WHERE name = ? AND state = ?", (name, EntryState.INTENT))
        self._entries -= done.rowcount

    def keep(self, name: bytes, body: bytes | None, answer: bytes) -> None:
        self._make_room(len(answer))
        done = self._database.execute(
            "UPDATE entry SET state = ?, body = ?, answer = ? WHERE name = ?", (EntryState.KEPT, body, answer, name)
        )
        self._kept_bytes += len(answer) if done.rowcount else 0

    def spend(self, name: bytes) -> None:
        """It was answered, too large to keep."""
        self._database.execute("UPDATE entry SET state = ? WHERE name = ?", (EntryState.SPENT, name))

    def _make_room(self, size: int) -> None:
        """Old answers go before their keys do: a key that is remembered is never run again."""
        while self._kept_bytes and self._kept_bytes + size > self._settings.max_bytes:
            rows = self._database.execute(
                "SELECT id, length(answer) FROM entry WHERE state = ? ORDER BY created_s LIMIT 16", (EntryState.KEPT,)
            ).fetchall()
            for entry, length in rows:
                self._database.execute(
                    "UPDATE entry SET state = ?, answer = NULL WHERE id = ?", (EntryState.SPENT, entry)
                )
                self._kept_bytes -= length
            if not rows:
                return

    def close(self) -> None:
        self._database.close()
        os.close(self._lock)


def _lock(directory: Path) -> int:
    try:
        lock = os.open(directory / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise LedgerUnavailable(_reason(error)) from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise LedgerUnavailable("in use by another agent") from error
    return lock


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return getattr(error, "sqlite_errorname", type(error).__name__)
