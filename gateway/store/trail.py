"""The SQL of those who read the audit trail: verification and export. For the command line, not for workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import LiteralString

import psycopg
from psycopg import sql

from gateway.audit.checkpoint import Sealed
from gateway.audit.columns import COLUMNS
from gateway.audit.retention import SealedAct

_NAMES = sql.SQL(", ").join([sql.Identifier(name) for name in COLUMNS])
_CHAINS = """
WITH RECURSIVE found(chain) AS (
    (SELECT chain FROM audit.event ORDER BY chain LIMIT 1)
    UNION ALL
    SELECT (SELECT e.chain FROM audit.event e WHERE e.chain > f.chain ORDER BY e.chain LIMIT 1)
    FROM found f WHERE f.chain IS NOT NULL)
SELECT chain FROM found WHERE chain IS NOT NULL
"""


_PATIENTS: dict[str, LiteralString] = {
    "lookup": "SELECT name, sealed FROM audit.patient WHERE lookup = ANY "
    "(SELECT decode(one, 'hex') FROM unnest(%s::text[]) one)",
    "name": "SELECT name, sealed FROM audit.patient WHERE name = ANY (%s)",
}
_BY_INDEX = "SET LOCAL enable_sort = off; SET LOCAL max_parallel_workers_per_gather = 0"
_ANY_WAY = "SET LOCAL enable_sort TO DEFAULT; SET LOCAL max_parallel_workers_per_gather TO DEFAULT"
_FOREVER_MS = 253_402_300_799_999


class TrailUnreadable(RuntimeError):
    """The database cannot be asked; the message says why."""


class TrailReader:
    """One connection, one snapshot: what arrives while it reads is not seen.

    Raises: TrailUnreadable, in its `with` statement.
    """

    def __init__(self, dsn: str) -> None:
        """Raises: TrailUnreadable."""
        try:
            self._connection = psycopg.connect(dsn)
        except psycopg.Error as reason:
            raise TrailUnreadable(str(reason).strip()) from reason
        self._connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        self._connection.read_only = True
        self._connection.execute(
            "SET LOCAL TimeZone = 'UTC'; SET LOCAL DateStyle = 'ISO'; SET LOCAL bytea_output = 'hex'"
        )

    def __enter__(self) -> TrailReader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._connection.close()
        if isinstance(error, psycopg.Error):
            raise TrailUnreadable(str(error).strip()) from error

    def close(self) -> None:
        """Let go of the snapshot, and of its locks."""
        self._connection.close()

    def chains(self) -> list[str]:
        """The names of all chains."""
        return [name for (name,) in self._connection.execute(_CHAINS)]

    def since(self, at_s: float) -> Iterator[dict[str, object]]:
        """Events that the database was given since then, column -> value. Units: `at_s` seconds since 1970."""
        cursor = self._connection.execute(
            "SELECT * FROM audit.event WHERE recorded_at >= to_timestamp(%s) AND occurred_at >= to_timestamp(%s)",
            (at_s, at_s),
        )
        names = [column.name for column in cursor.description or ()]
        for row in cursor:
            yield dict(zip(names, row, strict=True))

    def checkpoints(self) -> Iterator[Sealed]:
        """All that are there, in the order of their numbers."""
        for _, _, sealed in self.numbered_checkpoints():
            yield sealed

    def numbered_checkpoints(self) -> Iterator[tuple[str, int, Sealed]]:
        """The same with what the columns say: source and number."""
        query = "SELECT source, number, checkpoint, signature FROM audit.checkpoint ORDER BY source, number"
        with self._connection.cursor("checkpoints") as cursor:
            for source, number, checkpoint, signature in cursor.execute(query):
                yield source, number, Sealed(checkpoint, signature)

    def names(self, column: str, values: Sequence[str]) -> list[tuple[str, bytes]]:
        """Pseudonyms of patients by their `lookup` (in hex) or `name`. Shapes: (name, sealed id)."""
        rows = self._connection.execute(_PATIENTS[column], (list(values),))
        return [(name, bytes(sealed)) for name, sealed in rows]

    def a_name(self) -> tuple[str, bytes] | None:
        """Some pseudonym and its sealed id, if there is one."""
        row = self._connection.execute("SELECT name, sealed FROM audit.patient LIMIT 1").fetchone()
        return None if row is None else (row[0], bytes(row[1]))

    def acts(self) -> list[SealedAct]:
        """What was removed by right, in order."""
        rows = self._connection.execute("SELECT act, signature FROM audit.removal ORDER BY number")
        return [SealedAct(act, signature) for act, signature in rows]

    def lines(self, chain: str, after: int = 0, until: int | None = None) -> Iterator[bytes]:
        """A chain's rows in COPY's text format, in order."""
        query = sql.SQL(
            "COPY (SELECT {} FROM audit.event WHERE chain = {} AND sequence > {} AND sequence <= {} "
            "ORDER BY sequence, occurred_at) TO STDOUT"
        ).format(_NAMES, sql.Literal(chain), sql.Literal(after), sql.Literal(until if until is not None else 2**62))
        # PERF: `make audit-verify`: the planner would read every chain's rows and sort them on the disk, once a chain.
        self._connection.execute(_BY_INDEX)
        with self._connection.cursor() as cursor, cursor.copy(query) as copy:
            for block in copy:
                yield bytes(block)
        self._connection.execute(_ANY_WAY)

    def events(self, from_ms: int, to_ms: int) -> Iterator[tuple[str, int, bytes]]:
        """All events of a span of time, oldest first. Shapes: chain, sequence, canonical bytes. Units: 0: no bound."""
        query = (
            "SELECT chain, sequence, canonical FROM audit.event "
            "WHERE occurred_at >= timestamptz 'epoch' + %s * interval '1 ms' "
            "AND occurred_at < timestamptz 'epoch' + %s * interval '1 ms' ORDER BY occurred_at, chain, sequence"
        )
        with self._connection.cursor("events") as cursor:
            cursor.itersize = 5000
            for chain, sequence, canonical in cursor.execute(query, (from_ms, to_ms or _FOREVER_MS)):
                yield chain, sequence, canonical.encode()

    def unfinished(self, from_ms: int, to_ms: int) -> Iterator[tuple[str, str, int, str, str]]:
        """Intents without an outcome; what else their requests did, such as the use of an emergency case, is none.

        Shapes: occurred_at, chain, sequence, request_id, route.
        """
        query = """
        SELECT i.occurred_at::text, i.chain, i.sequence, i.request_id, i.route FROM audit.event i
        WHERE i.phase = 'intent' AND i.occurred_at >= to_timestamp(%s / 1000.0)
        AND i.occurred_at < to_timestamp(%s / 1000.0)
        AND NOT EXISTS (SELECT FROM audit.event o WHERE o.request_id = i.request_id AND o.phase = 'outcome'
            AND o.kind = i.kind)
        ORDER BY i.occurred_at
        """
        yield from self._connection.execute(query, (from_ms, to_ms))
