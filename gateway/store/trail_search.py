"""The SQL of searches of the trail: as the login that may read it, through the view that shows what a scope allows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, LiteralString

import psycopg
from gevent.lock import BoundedSemaphore
from psycopg import sql

from gateway.audit.search import Place, Scope, Search
from gateway.errors import DatabaseTimeout, DatabaseUnavailable, Overloaded
from gateway.store.pool import Database

Query = sql.Composed | sql.SQL
AT_ONCE = 4
"""Searches of one worker that run at the same time; more wait."""
_WAIT_S = 2.0
_INTENT_MS = 3_600_000
"""How long after its intent an outcome is looked for: no request may take longer."""

_SCOPE: LiteralString = """
SELECT set_config('caregate.audit_scope', %s, true), set_config('caregate.audit_units', %s, true),
       set_config('caregate.audit_patients', %s, true), set_config('statement_timeout', %s, true)
"""
_ACCESSES: LiteralString = """
(phase = 'outcome' OR (phase = 'intent' AND NOT EXISTS (
    SELECT FROM audit.visible o WHERE o.request_id = e.request_id AND o.request_id <> '' AND o.phase = 'outcome'
    AND o.kind = e.kind
    AND o.occurred_at BETWEEN e.occurred_at - interval '1 minute' AND e.occurred_at + interval '1 hour')))
"""
"""One event of each access: its outcome, or its intent where there is none. What else the request did, such as the use
of an emergency case, is no outcome of it."""
_ORDER: LiteralString = "ORDER BY occurred_at DESC, chain DESC, sequence DESC"
_PAGE: LiteralString = """
SELECT occurred_at, chain, sequence, canonical FROM audit.visible e WHERE {}
ORDER BY occurred_at DESC, chain DESC, sequence DESC LIMIT %s
"""
_RESULT: LiteralString = "(extract(epoch FROM occurred_at) * 1000)::bigint, chain, sequence, canonical"
_SPREAD = (
    "patient", "request_id", "resource_id", "subject", "client_address", "client", "unit", "route", "role",
    "organisation", "node", "issuer", "resource_type", "rule",
)  # fmt: skip
"""Columns of which several values are asked for one by one."""
_TIME: LiteralString = "timestamptz 'epoch' + %s * interval '1 ms'"
_PARTIAL: dict[str, LiteralString] = {
    "action": "action <> '' AND action <> 'R'",
    "outcome": "outcome <> 'allowed' AND outcome <> 'pending' AND outcome <> 'complete'",
    "kind": "kind <> 'access'",
    "rule": "rule <> '' AND rule <> 'allowed'",
    "phase": "phase <> 'outcome'",
}
_COMMON = {
    "action": {"R", ""}, "outcome": {"allowed", "pending", "complete"}, "kind": {"access"}, "rule": {"allowed"},
    "phase": {"outcome"},
}  # fmt: skip


_NAMES: dict[str, LiteralString] = {
    "lookup": (
        "SELECT name, sealed FROM audit.patient "
        "WHERE lookup = ANY (SELECT decode(one, 'hex') FROM unnest(%s::text[]) one)"
    ),
    "name": "SELECT name, sealed FROM audit.patient WHERE name = ANY (%s)",
}


class SearchStore:
    """Asks over ordinary connections of a pool of its own.

    Raises, in its methods: DatabaseUnavailable, DatabaseTimeout, Overloaded.
    """

    def __init__(self, database: Database, timeout_ms: int) -> None:
        """Units: `timeout_ms` for one search."""
        self._database = database
        self._timeout_ms = timeout_ms
        self._turns = BoundedSemaphore(AT_ONCE)

    def find(self, search: Search, scope: Scope) -> list[tuple[Place, bytes]]:
        """The events of a page and one more if there is one, newest first: place and canonical bytes.

        Yields to the hub: until the database answered.
        """
        query, values = statement(search)
        rows = self._ask(query, values, scope)
        return [(Place(at_ms, chain, sequence), canonical.encode()) for at_ms, chain, sequence, canonical in rows]

    def read(self, chain: str, sequence: int, scope: Scope) -> bytes | None:
        """One event. Yields to the hub: until the database answered."""
        query = sql.SQL("SELECT canonical FROM audit.visible WHERE chain = %s AND sequence = %s")
        rows = self._ask(query, [chain, sequence], scope)
        return rows[0][0].encode() if rows else None

    def names(self, column: str, values: Sequence[str]) -> list[tuple[str, bytes]]:
        """Pseudonyms of patients by their `lookup` (in hex) or `name`. Shapes: (name, sealed id).

        Yields to the hub: until the database answered.
        """
        query = sql.SQL(_NAMES[column])
        return [(name, bytes(sealed)) for name, sealed in self._ask(query, [list(values)], Scope())]

    def _ask(self, query: Query, values: Sequence[object], scope: Scope) -> list[tuple[Any, ...]]:
        if not self._turns.acquire(timeout=_WAIT_S):
            raise Overloaded("Too many searches of the audit trail run already", retry_after_s=2)
        try:
            with self._database.connection(self._timeout_ms / 1000 + 1) as connection:
                return self._run(connection, query, values, scope)
        except psycopg.ProgrammingError as error:
            raise DatabaseUnavailable(retry_after_s=5) from error
        finally:
            self._turns.release()

    def _run(
        self, connection: psycopg.Connection[Any], query: Query, values: Sequence[object], scope: Scope
    ) -> list[tuple[Any, ...]]:
        try:
            with connection.transaction():
                connection.execute("SET TRANSACTION READ ONLY")
                connection.execute(_SCOPE, _settings(scope, self._timeout_ms))
                # PERF: a plan made for one patient is not one for another, nor for all: `make audit-search`.
                return connection.execute(query, values, prepare=False).fetchall()
        except psycopg.errors.QueryCanceled:
            what = "The search took too long: narrow its dates, or name more of what is sought"
            raise DatabaseTimeout(what) from None


def statement(search: Search) -> tuple[sql.Composed, list[object]]:
    """A search as SQL with its values."""
    at_ms = search.after.at_ms + 1 if search.after is not None else search.to_ms
    spread = next((name for name in _SPREAD if len(search.where.get(name, ())) > 1), None)
    values: list[object] = [] if spread is None else [list(search.where[spread])]
    parts: list[sql.Composable] = [sql.SQL(f"occurred_at >= {_TIME} AND occurred_at < {_TIME}")]
    values += [search.from_ms, min(at_ms, search.to_ms)]
    for column, wanted in search.where.items():
        # PERF: `make audit-search`: the planner takes a partial index only if its condition is among the query's.
        parts.append(_narrowed(column, wanted))
        if column == spread:
            parts.append(sql.SQL("{} = one.wanted").format(sql.Identifier(column)))
            continue
        form = "{} = ANY(%s)" if len(wanted) > 1 else "{} = %s"
        parts.append(sql.SQL(form).format(sql.Identifier(column)))
        values.append(list(wanted) if len(wanted) > 1 else wanted[0])
    if "phase" not in search.where:
        parts.append(sql.SQL(_ACCESSES))
    if search.after is not None:
        parts.append(sql.SQL(f"(occurred_at, chain, sequence) < ({_TIME}, %s, %s)"))
        values += [search.after.at_ms, search.after.chain, search.after.sequence]
    page = sql.SQL(_PAGE).format(sql.SQL(" AND ").join(parts))
    values.append(search.count + 1)
    if spread is None:
        return sql.SQL("SELECT {} FROM ({}) page {}").format(sql.SQL(_RESULT), page, sql.SQL(_ORDER)), values
    # PERF: `make audit-search`, "own units": one value's events come in order from its index, several values' do not;
    # so a page is taken of each, and the newest of these.
    query = sql.SQL("SELECT {} FROM unnest(%s::text[]) AS one(wanted) CROSS JOIN LATERAL ({}) page {} LIMIT %s").format(
        sql.SQL(_RESULT), page, sql.SQL(_ORDER)
    )
    return query, [*values, search.count + 1]


def _narrowed(column: str, wanted: tuple[str, ...]) -> sql.SQL:
    if column in _PARTIAL:
        return sql.SQL("TRUE" if _COMMON[column] & set(wanted) else _PARTIAL[column])
    return sql.SQL("{} <> ''").format(sql.Identifier(column)) if all(wanted) else sql.SQL("TRUE")  # type: ignore[return-value]


def _settings(scope: Scope, timeout_ms: int) -> list[str]:
    return [
        "all" if scope.everything else "some", _array(scope.units), _array(scope.patients), str(timeout_ms),
    ]  # fmt: skip


def _array(texts: Sequence[str]) -> str:
    """As PostgreSQL writes an array of texts."""
    quoted = ('"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"' for text in texts)
    return "{" + ",".join(quoted) + "}"
