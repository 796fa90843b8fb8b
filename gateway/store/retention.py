"""The SQL of retention: months, holds, acts of removal. For the command line, as an owner of the trail."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any, Final

import psycopg
from psycopg import sql

from gateway.audit.removing import RemovalRefused
from gateway.audit.retention import Removed, SealedAct
from gateway.store.trail import TrailUnreadable

_MONTH = re.compile(r"event_(\d{4})_(\d\d)\Z")
_MONTHS = """
SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid
WHERE i.inhparent = 'audit.event'::regclass ORDER BY c.relname
"""
_RANGES = """
SELECT chain, min(sequence), max(sequence), count(*) FROM (
    SELECT chain, sequence, sequence - row_number() OVER (PARTITION BY chain ORDER BY sequence) AS island FROM ({}) one
) numbered GROUP BY chain, island ORDER BY chain, min(sequence)
"""
_HELD = """
SELECT h.name FROM audit.hold h WHERE h.released_at IS NULL AND EXISTS (
    SELECT FROM {} e WHERE e.occurred_at >= h.from_at AND e.occurred_at < h.to_at
    AND (h.unit = '' OR e.unit = h.unit)
    AND (cardinality(h.patients) = 0 OR e.patient = ANY (h.patients) OR e.patient IN (
        SELECT p.name FROM audit.patient p WHERE '{}' || encode(p.lookup, 'hex') = ANY (h.patients))))
"""
LOOKUP: Final = "lookup:"
"""What a hold begins with that names a patient by the lookup of his names: those he is given later are held too."""
_NAMING = "SELECT name FROM audit.hold WHERE released_at IS NULL AND patients && %s::text[] ORDER BY name"


class RetentionStore:
    """One connection as an administrator, who acts as caregate_owner.

    Raises, in its `with` statement: TrailUnreadable.
    """

    def __init__(self, dsn: str) -> None:
        """Raises: TrailUnreadable."""
        try:
            self._connection = psycopg.connect(dsn, autocommit=True)
            self._connection.execute("SET ROLE caregate_owner; SET TimeZone = 'UTC'")
        except psycopg.Error as reason:
            raise TrailUnreadable(str(reason).strip()) from reason

    def __enter__(self) -> RetentionStore:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._connection.close()
        if isinstance(error, psycopg.Error):
            raise TrailUnreadable(str(error).strip()) from error

    def months(self) -> list[str]:
        """The months that there are, as 2026-01."""
        names = [name for (name,) in self._connection.execute(_MONTHS)]
        return [f"{found[1]}-{found[2]}" for name in names if (found := _MONTH.match(name))]

    def holds_of(self, month: str) -> list[str]:
        """The holds that keep a month."""
        return [name for (name,) in self._connection.execute(sql.SQL(_HELD).format(_table(month), sql.SQL(LOOKUP)))]

    def ranges(self, months: Sequence[str]) -> list[tuple[str, int, int, int]]:
        """The records of some months. Shapes: (chain, first, last, count), each without a gap."""
        one = sql.SQL(" UNION ALL ").join(
            [sql.SQL("SELECT chain, sequence FROM {}").format(_table(month)) for month in months]
        )
        rows = self._connection.execute(sql.SQL(_RANGES).format(one))
        return [(chain, int(first), int(last), int(count)) for chain, first, last, count in rows]

    def hash_of(self, chain: str, sequence: int) -> bytes | None:
        query = "SELECT hash FROM audit.event WHERE chain = %s AND sequence = %s"
        found = self._connection.execute(query, (chain, sequence)).fetchone()
        return None if found is None else bytes(found[0])

    def acts(self) -> list[SealedAct]:
        """All acts, in order."""
        rows = self._connection.execute("SELECT act, signature FROM audit.removal ORDER BY number")
        return [SealedAct(act, signature) for act, signature in rows]

    def remove(self, number: int, sealed: SealedAct, months: Sequence[str], removed: Sequence[Removed]) -> None:
        """Note the act and drop its months, both or neither.

        Raises: RemovalRefused if a month holds other records than the act says, or a legal hold came meanwhile.
        """
        with self._connection.transaction():
            self._connection.execute("LOCK TABLE audit.hold IN SHARE MODE")
            for month in months:
                self._connection.execute(sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(_table(month)))
                if holds := self.holds_of(month):
                    raise RemovalRefused(f"{month} is held by {', '.join(holds)} by now: nothing was removed")
            expected = [(one.chain, one.first, one.last) for one in removed]
            if [found[:3] for found in self.ranges(months)] != sorted(expected):
                raise RemovalRefused("records arrived in a month that is to be removed: nothing was removed, try again")
            self._connection.execute(
                "INSERT INTO audit.removal (number, act, signature) VALUES (%s, %s, %s)",
                (number, sealed.act, sealed.signature),
            )
            for month in months:
                self._connection.execute(sql.SQL("DROP TABLE {}").format(_table(month)))

    def check_erasable(self, lookup: str, patient: str) -> None:
        """Raises: TrailUnreadable if a legal hold in force names the patient."""
        holds = self._connection.execute(_NAMING, ([LOOKUP + lookup, patient],)).fetchall()
        if holds:
            raise TrailUnreadable(f"the patient is held by {', '.join(name for (name,) in holds)}: nobody is erased")

    def count_names(self, lookup: str) -> int:
        """How many names of a patient there are."""
        query = "SELECT count(*) FROM audit.patient WHERE lookup = decode(%s, 'hex')"
        found = self._connection.execute(query, (lookup,)).fetchone()
        return int(found[0]) if found is not None else 0

    def erase(self, lookup: str, patient: str) -> int:
        """Erase what joins a patient to its names; how many there were.

        Raises: TrailUnreadable if a legal hold in force names the patient.
        """
        with self._connection.transaction():
            self._connection.execute("LOCK TABLE audit.hold IN SHARE MODE")
            self.check_erasable(lookup, patient)
            self._connection.execute(
                "INSERT INTO audit.erased_patient (name) SELECT name FROM audit.patient "
                "WHERE lookup = decode(%s, 'hex') ON CONFLICT DO NOTHING",
                (lookup,),
            )
            return self._connection.execute(
                "DELETE FROM audit.patient WHERE lookup = decode(%s, 'hex')", (lookup,)
            ).rowcount

    # --- holds

    def hold(self, name: str, patients: Sequence[str], unit: str, times: tuple[str, str], reason: str) -> bool:
        """Add a hold; False if there is one of that name. Shapes: `times` from and to, "" without bound."""
        query = (
            "INSERT INTO audit.hold (name, patients, unit, from_at, to_at, reason) VALUES (%s, %s, %s, "
            "coalesce(nullif(%s, '')::timestamptz, '-infinity'), "
            "coalesce(nullif(%s, '')::timestamptz, 'infinity'), %s) "
            "ON CONFLICT DO NOTHING"
        )
        return bool(self._connection.execute(query, (name, list(patients), unit, *times, reason)).rowcount)

    def release(self, name: str) -> bool:
        """End a hold; False if there is none in force. Its row stays."""
        query = (
            "UPDATE audit.hold SET released_at = now(), released_by = session_user "
            "WHERE name = %s AND released_at IS NULL"
        )
        return bool(self._connection.execute(query, (name,)).rowcount)

    def holds(self) -> Iterator[tuple[Any, ...]]:
        """All holds. Shapes: name, patients, unit, from, to, reason, made at, made by, released at."""
        yield from self._connection.execute(
            "SELECT name, (SELECT count(*) FROM unnest(patients) one WHERE one NOT LIKE %s), unit, from_at::text, "
            "to_at::text, reason, made_at::text, made_by, "
            "released_at::text FROM audit.hold ORDER BY made_at",
            (f"{LOOKUP}%",),
        )


def _table(month: str) -> sql.Identifier:
    return sql.Identifier("audit", f"event_{month.replace('-', '_')}")
