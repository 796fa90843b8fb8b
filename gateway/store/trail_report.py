"""The SQL of ready-made reports. Times in them are the database's, in the zone that is asked for."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, LiteralString

import psycopg
from psycopg import sql

from gateway.store.trail import TrailUnreadable

_COLUMNS: LiteralString = (
    "(extract(epoch FROM occurred_at) * 1000)::bigint, kind, action, outcome, rule, subject, role, organisation, "
    "client, unit, route, patient, resource_type, resource_id, purpose, client_address, request_id"
)
COLUMNS = (
    "at", "kind", "action", "outcome", "rule", "user", "role", "organisation", "client", "unit", "route", "patient",
    "resource_type", "resource_id", "purpose", "address", "request",
)  # fmt: skip
_SPAN: LiteralString = (
    "e.occurred_at >= timestamptz 'epoch' + %(from)s * interval '1 ms' "
    "AND e.occurred_at < timestamptz 'epoch' + %(to)s * interval '1 ms'"
)
_OUTCOME: LiteralString = "e.phase = 'outcome'"
_ONCE: LiteralString = """
(e.phase = 'outcome' OR (e.phase = 'intent' AND NOT EXISTS (
    SELECT FROM audit.event o WHERE o.request_id = e.request_id AND o.request_id <> '' AND o.phase = 'outcome'
    AND o.kind = e.kind
    AND o.occurred_at BETWEEN e.occurred_at - interval '1 minute' AND e.occurred_at + interval '1 hour')))
"""
"""One event of each access, as in trail_search: who died before the outcome may have seen the record all the same."""
_ACCESSES: dict[str, LiteralString] = {
    "patient": "e.patient = ANY (%(patients)s)",
    "user": "e.subject = %(user)s",
    "unit": """
e.kind = 'access' AND e.subject <> '' AND e.unit <> '' AND (%(unit)s = '' OR e.unit = %(unit)s)
AND (%(role)s = '' OR e.role = %(role)s) AND e.unit <> (
    SELECT home.unit FROM audit.event home WHERE home.subject = e.subject AND home.issuer = e.issuer
    AND home.subject <> '' AND home.unit <> '' AND home.kind = 'access' AND home.outcome = 'allowed'
    AND home.phase = 'outcome' AND home.occurred_at >= timestamptz 'epoch' + %(from)s * interval '1 ms'
    AND home.occurred_at < timestamptz 'epoch' + %(to)s * interval '1 ms'
    GROUP BY home.unit ORDER BY count(*) DESC, home.unit LIMIT 1)
""",
    "night": """
e.kind = 'access' AND e.subject <> '' AND (%(role)s = '' OR e.role = %(role)s) AND (%(unit)s = '' OR e.unit = %(unit)s)
AND CASE WHEN %(from_hour)s <= %(to_hour)s
    THEN extract(hour FROM e.occurred_at AT TIME ZONE %(zone)s) >= %(from_hour)s
         AND extract(hour FROM e.occurred_at AT TIME ZONE %(zone)s) < %(to_hour)s
    ELSE extract(hour FROM e.occurred_at AT TIME ZONE %(zone)s) >= %(from_hour)s
         OR extract(hour FROM e.occurred_at AT TIME ZONE %(zone)s) < %(to_hour)s END
""",
    "break-glass": """
e.kind = 'break-glass.started' AND e.outcome = 'allowed'
AND e.occurred_at < timestamptz 'epoch' + (%(now)s - %(review_ms)s) * interval '1 ms' AND NOT EXISTS (
    SELECT FROM audit.event r WHERE r.kind = 'break-glass.reviewed' AND r.outcome = 'allowed'
    AND r.occurred_at >= e.occurred_at
    AND r.canonical::json -> 'detail' ->> 'case' = e.canonical::json -> 'detail' ->> 'case')
""",
}
"""Reports that list accesses: report -> its condition."""
_DENIALS = """
WITH denied AS (
    SELECT occurred_at, unit, route, rule, patient,
        CASE WHEN kind = 'access' AND subject <> '' THEN issuer || ' ' || subject
            ELSE 'address ' || client_address END AS who
    FROM audit.event e WHERE {} AND e.outcome = 'refused'
        AND e.kind IN ('access', 'login', 'token.issued', 'token.refreshed', 'token.introspected', 'token.revoked')
        AND e.outcome <> 'allowed' AND e.outcome <> 'pending' AND e.outcome <> 'complete'),
marked AS (
    SELECT *, lag(occurred_at) OVER (PARTITION BY who ORDER BY occurred_at) AS before,
        count(*) OVER (PARTITION BY who ORDER BY occurred_at
                       RANGE BETWEEN %(window)s * interval '1 ms' PRECEDING AND CURRENT ROW) AS recent FROM denied),
numbered AS (
    SELECT *, count(*) FILTER (WHERE before IS NULL OR occurred_at - before > %(window)s * interval '1 ms')
        OVER (PARTITION BY who ORDER BY occurred_at) AS burst FROM marked)
SELECT (extract(epoch FROM min(occurred_at)) * 1000)::bigint, (extract(epoch FROM max(occurred_at)) * 1000)::bigint,
    who, count(*), max(recent), count(DISTINCT patient) FILTER (WHERE patient <> ''),
    count(DISTINCT unit) FILTER (WHERE unit <> ''), string_agg(DISTINCT rule, ' '),
    string_agg(DISTINCT nullif(route, ''), ' ')
FROM numbered GROUP BY who, burst HAVING max(recent) >= %(most)s ORDER BY max(recent) DESC, who
"""
DENIAL_COLUMNS = ("first", "last", "who", "refusals", "most_at_once", "patients", "units", "rules", "routes")
REPORTS = (*_ACCESSES, "denials")


class ReportReader:
    """One connection, one snapshot, as a login that may read the trail.

    Raises: TrailUnreadable, in its `with` statement too.
    """

    def __init__(self, dsn: str) -> None:
        """Raises: TrailUnreadable."""
        try:
            self._connection = psycopg.connect(dsn)
            self._connection.read_only = True
            self._connection.execute("SET LOCAL TimeZone = 'UTC'")
        except psycopg.Error as reason:
            raise TrailUnreadable(str(reason).strip()) from reason

    def __enter__(self) -> ReportReader:
        return self

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._connection.close()
        if isinstance(error, psycopg.Error):
            raise TrailUnreadable(str(error).strip()) from error

    def rows(self, report: str, values: dict[str, Any]) -> Iterator[Sequence[Any]]:
        """The rows of a report in the order of its columns, oldest first; of bursts the worst first.

        Shapes: `values` has from, to, now (ms since 1970) and what else the report asks for.
        """
        if report == "denials":
            query = sql.SQL(_DENIALS).format(sql.SQL(f"{_SPAN} AND {_OUTCOME}"))
        else:
            query = sql.SQL(
                "SELECT {} FROM audit.event e WHERE {} AND ({}) ORDER BY occurred_at, chain, sequence"
            ).format(sql.SQL(_COLUMNS), sql.SQL(f"{_SPAN} AND {_ONCE}"), sql.SQL(_ACCESSES[report]))
        with self._connection.cursor("report") as cursor:
            yield from cursor.execute(query, values)


def columns_of(report: str) -> tuple[str, ...]:
    """The names of a report's columns; those that end in `at`, `first` and `last` are ms since 1970."""
    return DENIAL_COLUMNS if report == "denials" else COLUMNS
