"""Searches of a large audit trail: `python -m loadtests.audit_search --events 10000000`, a table, then RESULT and JSON.

The table is filled by the server itself with made-up events of six months: two phases of each access, 500 units, some
rare values. Then a mix of searches runs as the gateway runs them, one after another; each kind must meet the bar.
`--keep` leaves the database.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

from gevent import monkey

if __name__ == "__main__":
    # NOTE: before psycopg is imported, which chooses then how it waits.
    monkey.patch_all()

import orjson
import psycopg

from loadtests.interruption import interruptible

BEGAN_MS = 1_767_225_600_000
"""The first of January 2026."""
SPAN_S = 181 * 86_400
PATIENTS, USERS, UNITS, ROUTES, ORGANISATIONS = 200_000, 20_000, 500, 40, 2_000
BAR_MS = 200.0

FILL = """
INSERT INTO audit.event (chain, sequence, occurred_at, kind, phase, duration_us, request_id, outcome, rule, status,
    method, trace, delivery, unit, agent, patient, resource_id, client_address, route, action, resource_type, phi,
    purpose, issuer, subject, role, audience, organisation, client, token_id, node, config_version, hash, canonical)
SELECT chain, n / 4 + 1, at, 'access', phase, duration_us, request_id, outcome, rule,
    CASE outcome WHEN 'refused' THEN 403 ELSE 200 END,
    'GET', '', 'response_started', unit, 'caregate/0.1.0', patient, resource_id, address, route, action,
    type, true, purpose, issuer, subject, role, 'staff-portal', organisation, client,
    request_id, node, 7, sha256(request_id::bytea),
    '{"v":1,"kind":"access","phase":"' || phase || '","at_ms":' || (extract(epoch FROM at) * 1000)::bigint
    || ',"duration_us":' || duration_us || ',"request_id":"' || request_id || '","outcome":"' || outcome
    || '","rule":"' || rule || '","status":200,"method":"GET","delivery":"response_started","unit":"' || unit
    || '","agent":"caregate/0.1.0","patient":"' || patient || '","resource_id":"' || resource_id
    || '","client_address":"' || address || '","route":"' || route || '","action":"' || action
    || '","resource_type":"' || type || '","phi":true,"purpose":"' || purpose
    || '","issuer":"' || issuer || '","subject":"' || subject || '","role":"' || role
    || '","audience":"staff-portal","organisation":"' || organisation || '","token_id":"' || request_id
    || '","node":"' || node || '","config_version":7}'
FROM (
    SELECT *, CASE WHEN outcome <> 'refused' THEN 'allowed' WHEN m %% 20000 = 7 THEN 'token:revoked'
        ELSE 'binding:unit' END AS rule FROM (
    SELECT n, m,
        CASE WHEN m %% 50000 = 5 THEN 'node-9' ELSE 'node-' || m %% 4 END AS node,
        CASE WHEN m %% 50000 = 6 THEN 'https://id.example.org/old' ELSE 'https://id.example.org/staff' END AS issuer,
        CASE WHEN m %% 50000 = 8 THEN 'Consent' ELSE 'Observation' END AS type,
        'org-' || abs(hashint8(m + 41)::bigint) %% %(organisations)s AS organisation,
        (ARRAY['a000000000000000', 'b000000000000000', 'c000000000000000', 'd000000000000000'])[n %% 4 + 1] AS chain,
        date_trunc('milliseconds', timestamptz '2026-01-01 00:00:00+00' + n * interval '1 second' * %(step)s) AS at,
        CASE n %% 2 WHEN 0 THEN 'intent' ELSE 'outcome' END AS phase, 3000 + n %% 90000 AS duration_us,
        CASE WHEN n %% 2 = 0 THEN 'pending' WHEN m %% 200 = 7 THEN 'refused' WHEN m %% 1000 = 9 THEN 'failed'
             ELSE 'allowed' END AS outcome,
        md5(m::text)::uuid::text AS request_id, 'unit-' || abs(hashint8(m)::bigint) %% %(units)s AS unit,
        'pat-' || abs(hashint8(m + 17)::bigint) %% %(patients)s AS patient, 'obs-' || m %% 3000000 AS resource_id,
        'user-' || abs(hashint8(m + 29)::bigint) %% %(users)s AS subject,
        '10.1.' || abs(hashint8(m + 31)::bigint) %% 200 || '.' || m %% 250 AS address,
        'route-' || abs(hashint8(m + 37)::bigint) %% %(routes)s AS route,
        CASE WHEN m %% 50 = 3 THEN 'HOPERAT' ELSE 'TREAT' END AS purpose,
        CASE WHEN m %% 300 = 11 THEN 'client-' || m %% 7 ELSE '' END AS client,
        CASE WHEN m %% 100 = 1 THEN 'C' WHEN m %% 100 = 2 THEN 'U' WHEN m %% 50000 = 3 THEN 'D' ELSE 'R' END AS action,
        CASE WHEN m %% 10 < 4 THEN 'patient' WHEN m %% 100000 = 77 THEN 'platform_admin' ELSE 'practitioner' END AS role
    FROM (SELECT n, n / 2 AS m FROM generate_series(%(from)s::bigint, %(to)s::bigint) AS n) numbers
) drawn ) made
"""


def fill(dsn: str, events: int, tell: bool = True) -> float:
    """Fill the table; how long that took. Units: seconds."""
    began = time.monotonic()
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        # PERF: indexes are made once the rows are there: a third of the time.
        indexes = drop_indexes(connection)
        for month in range(1, 8):
            connection.execute("SELECT audit.make_month(make_date(2026, %s, 1))", (month,))
        step = 1_000_000
        for first in range(0, events, step):
            values = {
                "from": first, "to": min(events, first + step) - 1, "step": SPAN_S / events, "patients": PATIENTS,
                "users": USERS, "units": UNITS, "routes": ROUTES, "organisations": ORGANISATIONS,
            }  # fmt: skip
            connection.execute(FILL, values)
            if tell:
                print(f"{min(events, first + step):,} events, {time.monotonic() - began:.0f} s", flush=True)
        connection.execute("SET maintenance_work_mem = '512MB'")
        for definition in indexes:
            connection.execute(definition)
        connection.execute("VACUUM ANALYZE audit.event")
    return time.monotonic() - began


def drop_indexes(connection: psycopg.Connection) -> list[str]:
    """Drop all but the primary key; the statements that make them again."""
    rows = connection.execute(
        "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'audit' AND tablename = 'event' "
        "AND indexname <> 'event_pkey' AND indexname NOT LIKE 'event_pkey%'"
    ).fetchall()
    for name, _ in rows:
        connection.execute(f'DROP INDEX audit."{name}"')
    return [definition.replace(" ON ONLY ", " ON ") for _, definition in rows]


def mix(rounds: int, draw: random.Random) -> Iterator[tuple[str, str]]:
    """(name, query) of the searches, in turns."""

    def span(days: int) -> str:
        first = draw.randrange(0, 181 - days)
        from_s = BEGAN_MS // 1000 + first * 86_400
        texts = [time.strftime("%Y-%m-%d", time.gmtime(from_s + d * 86_400)) for d in (0, days)]
        return f"date=ge{texts[0]}&date=lt{texts[1]}"

    def any_of(name: str, count: int) -> str:
        return f"{name}-{draw.randrange(count)}"

    for _ in range(rounds):
        yield "patient, all time", f"{span(180)}&patient={any_of('pat', PATIENTS)}"
        yield "patient, a month", f"{span(30)}&patient={any_of('pat', PATIENTS)}"
        yield "user, a month", f"{span(30)}&user={any_of('user', USERS)}"
        yield "unit, a day", f"{span(1)}&unit={any_of('unit', UNITS)}"
        yield "unit, all time", f"{span(180)}&unit={any_of('unit', UNITS)}"
        own = ",".join(f"unit-{draw.randrange(UNITS)}" for _ in range(3))
        yield "own units", f"{span(180)}&unit={own}"
        yield "own units, refused", f"{span(180)}&unit={own}&outcome=4"
        yield "unit and action C", f"{span(90)}&unit={any_of('unit', UNITS)}&action=C"
        yield (
            "unit, role, route",
            f"{span(90)}&unit={any_of('unit', UNITS)}&role=patient&route={any_of('route', ROUTES)}",
        )
        yield "role that is common", f"{span(90)}&role=patient"
        yield "role that is rare", f"{span(180)}&role=platform_admin"
        yield "client", f"{span(180)}&client={any_of('client', 7)}"
        yield "action D (rare)", f"{span(180)}&action=D"
        yield "action R (nearly all)", f"{span(180)}&action=R"
        yield "outcome refused", f"{span(180)}&outcome=4"
        yield "refused at a unit", f"{span(60)}&outcome=4&unit={any_of('unit', UNITS)}"
        yield "purpose that is rare", f"{span(180)}&purpose=HOPERAT"
        yield "request id of none", f"{span(180)}&request=00000000-0000-4000-8000-00000000dead"
        yield "address", f"{span(180)}&address=10.1.{draw.randrange(200)}.{draw.randrange(250)}"
        yield "route, a week", f"{span(7)}&route={any_of('route', ROUTES)}"
        yield "entity", f"{span(180)}&entity=Observation/obs-{draw.randrange(3_000_000)}"
        yield "node", f"{span(180)}&node=node-{draw.randrange(4)}"
        yield "node that is rare", f"{span(180)}&node=node-9"
        yield "node of none", f"{span(180)}&node=node-99"
        yield "organisation", f"{span(180)}&organisation={any_of('org', ORGANISATIONS)}"
        yield "issuer that is rare", f"{span(180)}&issuer=https://id.example.org/old"
        yield "entity type that is rare", f"{span(180)}&entity-type=Consent"
        yield "entity type of none", f"{span(180)}&entity-type=Basic"
        yield "rule that is rare", f"{span(180)}&rule=token:revoked"
        yield "rule that is common", f"{span(180)}&rule=allowed"
        yield "rule of none", f"{span(180)}&rule=nothing"
        yield "phase intent", f"{span(180)}&phase=intent"
        yield "phase of none", f"{span(180)}&phase=completion"
        yield "kind of none", f"{span(180)}&kind=login"
        yield "two nodes", f"{span(180)}&node=node-9,node-1"
        yield "nobody", f"{span(180)}&user=nobody&role=patient"
        yield "dates alone", span(180)
        yield "page of 200", f"{span(30)}&unit={any_of('unit', UNITS)}&_count=200"


def measure(dsn: str, rounds: int, seed: int = 7) -> dict[str, list[float]]:
    """Each search and its second page as the gateway asks; name -> times. Units: ms."""
    from gateway.audit.endpoint import _PAGE
    from gateway.audit.event import decode
    from gateway.audit.fhir import audit_event
    from gateway.audit.search import Scope, parse
    from gateway.store.pool import Database
    from gateway.store.trail_search import SearchStore

    database = Database(dsn, pool_min=0, pool_max=1)
    database.open()
    store, times = SearchStore(database, 60_000), {}
    try:
        for name, query in mix(rounds, random.Random(seed)):
            search = parse(query, count=_PAGE, most=200)
            for page in ("", ", next page"):
                began = time.perf_counter()
                found = store.find(search, Scope(everything=True))
                resources = [audit_event(decode(text), at.chain, at.sequence) for at, text in found[: search.count]]
                orjson.dumps(resources)
                times.setdefault(name + page, []).append((time.perf_counter() - began) * 1000)
                if len(found) <= search.count:
                    break
                search = parse(search.link("", found[search.count - 1][0])[1:], count=_PAGE, most=200)
    finally:
        database.close()
    return times


def quantile(times: list[float], share: float) -> float:
    ordered = sorted(times)
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--directory", type=Path, default=Path("/tmp/caregate-audit-search"), help="of the database")
    parser.add_argument("--keep", action="store_true", help="leave the database, and use one that is there")
    options = parser.parse_args()
    from gateway.store.embedded import EmbeddedPostgres
    from gateway.store.migrate import migrate

    options.directory.mkdir(mode=0o711, parents=True, exist_ok=True)
    postgres = EmbeddedPostgres(options.directory / "pg", shared_buffers="512MB")
    postgres.start()
    try:
        migrate(postgres.admin_dsn)
        filled_s = 0.0
        with psycopg.connect(postgres.admin_dsn) as connection:
            there = connection.execute("SELECT count(*) FROM (SELECT FROM audit.event LIMIT 1) one").fetchone()
        if not there[0]:
            filled_s = fill(postgres.admin_dsn, options.events)
        times = measure(postgres.reader_dsn, options.rounds)
        with psycopg.connect(postgres.admin_dsn) as connection:
            size = connection.execute("SELECT pg_database_size(current_database())").fetchone()[0]
    finally:
        postgres.stop()
        if not options.keep:
            postgres.remove()
            with contextlib.suppress(OSError):
                options.directory.rmdir()
    return report(times, options.events, filled_s, size)


def report(times: dict[str, list[float]], events: int, filled_s: float, size_bytes: int) -> int:
    print(f"\n{'search':34}{'runs':>6}{'median':>10}{'p95':>10}{'worst':>10}   ms")
    for name, of in times.items():
        print(f"{name:34}{len(of):6}{statistics.median(of):10.1f}{quantile(of, 0.95):10.1f}{max(of):10.1f}")
    every = [one for of in times.values() for one in of]
    slowest = max(times, key=lambda name: quantile(times[name], 0.95))
    final = {
        "events": events, "searches": len(every), "median_ms": round(statistics.median(every), 1),
        "p95_ms": round(quantile(every, 0.95), 1), "worst_ms": round(max(every), 1), "fill_s": round(filled_s),
        "size_gb": round(size_bytes / 1e9, 1), "slowest": slowest,
        "slowest_p95_ms": round(quantile(times[slowest], 0.95), 1),
    }  # fmt: skip
    print("RESULT " + orjson.dumps(final).decode())
    return 0 if final["slowest_p95_ms"] < BAR_MS else 1


if __name__ == "__main__":
    raise SystemExit(interruptible(main))
