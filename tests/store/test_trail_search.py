"""Searches against a real server, compared with a plain model over the same events."""

import itertools
import random

import psycopg
import pytest

from gateway.audit.chain import genesis, link
from gateway.audit.columns import COLUMNS, row
from gateway.audit.event import AuditEvent, decode, encode
from gateway.audit.search import FIELDS, Place, Scope, parse
from gateway.errors import DatabaseTimeout
from gateway.store.pool import Database
from gateway.store.trail_search import SearchStore

BEGAN_MS = 1_772_323_200_000
"""The first of March 2026."""
DAY_MS = 86_400_000
ALL = Scope(everything=True)
SPAN = "date=ge2026-03-01&date=lt2026-07-01"


def made(count, seed=1):
    """Events over four months: some accesses with intent and outcome, some whose gateway died."""
    draw = random.Random(seed)
    at_ms = BEGAN_MS
    for n in range(count):
        at_ms += draw.randrange(0, 4 * 30 * DAY_MS // count * 2)
        fields = {
            "request_id": f"r-{n}", "rule": "allowed", "status": 200, "duration_us": n,
            "patient": draw.choice(["", "pat,1", "pat\t\\2", "pat-3"]), "unit": draw.choice(["", "u-1", "u-2", "u-3"]),
            "subject": f"s-{draw.randrange(9)}", "role": draw.choice(["patient", "nurse"]),
            "client": draw.choice(["", "c-1"]), "action": draw.choice("RRRRCUD"), "route": draw.choice(["a", "b"]),
            "purpose": draw.choice(["TREAT", "HOPERAT", ""]), "client_address": f"192.0.2.{draw.randrange(4)}",
            "resource_type": "Observation", "resource_id": f"o-{draw.randrange(5)}",
        }  # fmt: skip
        kind = draw.choice(["access"] * 6 + ["unit.up"])
        ended = draw.random() > 0.1
        if draw.random() < 0.5:
            yield event(at_ms, kind, "intent", outcome="pending", **fields)
        if draw.random() < 0.1:
            yield event(at_ms, "break-glass.used", "outcome", outcome="allowed", **fields)
        if ended:
            outcome = draw.choice(["allowed", "allowed", "refused", "failed"])
            yield event(at_ms + draw.choice([0, 5, 4000]), kind, "outcome", outcome=outcome, **fields)
            yield event(at_ms + 6000, kind, "completion", outcome="complete", request_id=f"r-{n}", rule="", status=200)


def event(at_ms, kind, phase, **fields):
    fields.setdefault("duration_us", 1)
    return encode(AuditEvent(v=1, kind=kind, phase=phase, at_ms=at_ms, **fields))


@pytest.fixture(scope="module")
def events(postgres_server):
    """All events, newest first, as (place, event)."""
    postgres_server.start()
    found = []
    with psycopg.connect(postgres_server.admin_dsn, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute("DELETE FROM audit.event")
        with cursor.copy(f"COPY audit.event ({', '.join(COLUMNS)}) FROM STDIN") as copy:
            heads = {chain: (0, genesis(chain)) for chain in ("a" * 16, "b" * 16)}
            for n, canonical in enumerate(made(900)):
                chain = "ab"[n % 2] * 16
                sequence, head = heads[chain][0] + 1, link(heads[chain][1], heads[chain][0] + 1, canonical)
                heads[chain] = (sequence, head)
                copy.write(row(chain, sequence, head, canonical))
                found.append((Place(decode(canonical).at_ms, chain, sequence), decode(canonical)))
    yield sorted(found, key=lambda one: (one[0].at_ms, one[0].chain, one[0].sequence), reverse=True)
    with psycopg.connect(postgres_server.admin_dsn, autocommit=True) as connection:
        connection.execute("DELETE FROM audit.event")


@pytest.fixture
def store(postgres):
    database = Database(postgres.reader_dsn, pool_min=0, pool_max=2)
    database.open()
    yield SearchStore(database, 5_000)
    database.close()


def expected(events, search, scope):
    """The plain model: every event is looked at."""
    ended = {(e.kind, e.request_id) for _, e in events if e.phase == "outcome"}
    for place, e in events:
        shown = e.phase == "outcome" or (e.phase == "intent" and (e.kind, e.request_id) not in ended)
        if "phase" not in search.where and not shown:
            continue
        seen = scope.everything or e.unit in scope.units or e.patient in scope.patients
        wanted = all(getattr(e, column) in values for column, values in search.where.items())
        if seen and wanted and search.from_ms <= e.at_ms < search.to_ms:
            yield place, e


QUERIES = [
    "", "&patient=pat,1", "&patient=pat%09%5C2", "&patient=nobody", "&user=s-1,s-2", "&role=nurse", "&unit=u-1",
    "&unit=u-1,u-3&action=C,D", "&client=c-1", "&action=R", "&action=R,D", "&outcome=4", "&outcome=allowed",
    "&outcome=pending", "&outcome=8,0", "&purpose=HOPERAT", "&request=r-17", "&entity=Observation/o-2&role=patient",
    "&address=192.0.2.1&route=a", "&route=b&outcome=failed&action=U", "&kind=unit.up", "&kind=access,unit.up",
    "&phase=completion", "&phase=intent,outcome&user=s-3", "&date=ge2026-04-01T10:00:00Z&date=lt2026-04-03",
]  # fmt: skip
SCOPES = {
    "all": ALL, "two units": Scope(units=("u-1", "u,\"x", "u-2")), "a patient": Scope(patients=("pat,1", "pat\t\\2")),
    "nothing": Scope(),
}  # fmt: skip


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
def test_as_the_model_says(store, events, scope):
    for query in QUERIES:
        search = parse(SPAN + query + "&_count=200", count=50, most=5000)
        wanted = list(itertools.islice(expected(events, search, scope), search.count + 1))
        found = [(place, decode(canonical)) for place, canonical in store.find(search, scope)]
        assert found == wanted, query


def test_the_model_finds_something(events):
    """In nearly all of these: a comparison of nothing with nothing would show little."""
    counts = [len(list(expected(events, parse(SPAN + q, count=50, most=50), ALL))) for q in QUERIES]
    assert sum(count > 0 for count in counts) == len(QUERIES) - 1
    assert max(counts) > 500


@pytest.mark.parametrize("query", ["", "&role=nurse", "&unit=u-1,u-2"])
def test_pages_follow_each_other_without_gap_and_overlap(store, events, query):
    search = parse(SPAN + query + "&_count=37", count=50, most=100)
    pages, after = [], None
    while True:
        found = store.find(parse(search.link("").strip("?") if after is None else search.link("", after).strip("?"),
                                 count=50, most=100), ALL)  # fmt: skip
        pages += found[:37]
        if len(found) <= 37:
            break
        after = found[36][0]
    assert [place for place, _ in pages] == [place for place, _ in expected(events, search, ALL)]


def test_one_event(store, events):
    place, e = events[7]
    assert decode(store.read(place.chain, place.sequence, ALL)) == e
    assert store.read(place.chain, 10**9, ALL) is None
    assert store.read(place.chain, place.sequence, Scope()) is None


def test_a_search_that_takes_too_long_is_ended(store, events, monkeypatch):
    monkeypatch.setattr("gateway.store.trail_search._ACCESSES", "(SELECT true FROM pg_sleep(0.3))")
    store._timeout_ms = 50
    with pytest.raises(DatabaseTimeout, match="narrow"):
        store.find(parse(SPAN, count=1, most=1), ALL)
    store._timeout_ms = 5_000
    monkeypatch.undo()
    assert store.find(parse(SPAN, count=1, most=1), ALL)


def test_each_parameter_has_an_index(postgres):
    """Else what is rare, or not there, is looked for in every event of the range: `make audit-search`."""
    with psycopg.connect(postgres.admin_dsn) as connection:
        rows = connection.execute(
            "SELECT substring(indexdef FROM '\\((\\w+)[,)]') FROM pg_indexes "
            "WHERE schemaname = 'audit' AND tablename = 'event'"
        ).fetchall()
    assert set(FIELDS.values()) - {column for (column,) in rows} == set()


class TestLogins:
    """The database is the second lock."""

    @pytest.fixture
    def reader(self, postgres, events):
        with psycopg.connect(postgres.reader_dsn) as connection:
            yield connection

    def test_who_was_not_told_what_he_may_see_sees_nothing(self, reader):
        assert reader.execute("SELECT count(*) FROM audit.visible").fetchone() == (0,)

    @pytest.mark.parametrize(
        "statement",
        [
            "SELECT 1 FROM audit.event", "SELECT 1 FROM audit.checkpoint", "DELETE FROM audit.visible",
            "INSERT INTO audit.event (chain) VALUES ('x')", "SELECT 1 FROM portal.patient", "SET ROLE caregate_owner",
            "SET ROLE caregate_gateway", "CREATE TEMPORARY TABLE x ()",
        ],
    )  # fmt: skip
    def test_and_can_do_nothing_else(self, reader, statement):
        reader.execute("SET default_transaction_read_only = off")
        reader.commit()
        with pytest.raises((psycopg.errors.InsufficientPrivilege, psycopg.errors.ObjectNotInPrerequisiteState,
                            psycopg.errors.UndefinedTable)):  # fmt: skip
            reader.execute(statement)

    def test_the_login_that_writes_reads_nothing(self, postgres, events):
        for statement in ("SELECT 1 FROM audit.visible", "SET ROLE caregate_audit_reader", "SELECT 1 FROM audit.event"):
            with psycopg.connect(postgres.gateway_dsn) as connection:
                connection.execute("SELECT set_config('caregate.audit_scope', 'all', true)")
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
