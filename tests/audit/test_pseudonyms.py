"""Patients under other names: made without the database, found again, erased without breaking a hash."""

import time

import gevent
import orjson
import psycopg
import pytest

from gateway.audit.event import decode
from gateway.audit.pseudonyms import (
    FOLDER,
    Keys,
    KeyUnusable,
    Name,
    NamesReader,
    Pseudonyms,
    load_or_make_key,
    read_names,
)
from gateway.audit.spool import sync_files
from gateway.audit.trail import AuditTrail
from gateway.cli.main import main
from gateway.context import Principal, RequestContext, new_request_id
from gateway.errors import AuditUnavailable, BadRequest, DatabaseTimeout
from gateway.store.pool import Database
from tests.audit.disk import under

SECRET = b"k" * 32


class Nowhere:
    """A database that keeps what it is given, or is away."""

    def __init__(self):
        self.rows, self.erased, self.away = {}, [], False

    def insert_names(self, names, timeout_s):
        if self.away:
            raise ConnectionError
        for one in names:
            self.rows.setdefault(one.lookup, []).append(one.name)
        return {one.lookup: self.rows[one.lookup][0] for one in names}

    def erased_names(self, after, timeout_s):
        return len(self.erased), self.erased[after:] if after >= 0 else []


@pytest.fixture
def make(tmp_path):
    made = []

    def make(chain="a" * 16):
        made.append(Pseudonyms(tmp_path / FOLDER, chain, Keys(SECRET)))
        return made[-1]

    yield make
    for one in made:
        one.close()


class TestNames:
    def test_a_patient_keeps_a_name_that_says_nothing(self, make):
        names = make()
        one, other = names.of("pat-1"), names.of("pat-2")
        assert names.of("pat-1") == one != other
        assert one.startswith("p.")
        assert "pat-1" not in one
        assert names.of(one) == one, "a name has no name of its own"

    def test_it_is_in_the_file_before_it_is_used_and_found_there_by_a_successor(self, make, tmp_path):
        name = make().of("pat-1")
        (kept,) = read_names(tmp_path / FOLDER / f"{'a' * 16}.ndjson")
        assert (kept.name, "pat-1" in str(kept)) == (name, False)
        assert make().of("pat-1") == name

    def test_half_a_line_is_none(self, make, tmp_path):
        name = make().of("pat-1")
        path = tmp_path / FOLDER / f"{'a' * 16}.ndjson"
        path.write_bytes(path.read_bytes() + b'{"name":"p.77')
        assert [one.name for one in read_names(path)] == [name]

    def test_the_file_is_synced_until_a_sync_has_ended(self, make):
        names = make()
        names.of("pat-1")
        first, files = names.to_sync(0)
        assert (len(files), len(names.to_sync(1)[1])) == (1, 1), "the first may fail"
        assert files != names.to_sync(1)[1]
        names.of("pat-2")
        names.synced(first)
        second, files = names.to_sync(0)
        assert len(files) == 1, "the second name came after that sync began"
        names.synced(second)
        names.synced(first)
        assert names.to_sync(0)[1] == []
        names.of("pat-1")
        assert names.to_sync(0)[1] == []

    def test_what_a_failed_sync_may_have_lost_is_written_again(self, make, tmp_path):
        names = make()
        name = names.of("pat-1")
        path = tmp_path / FOLDER / f"{'a' * 16}.ndjson"
        names.to_sync(0)
        path.write_bytes(b"")
        names.sync_failed()
        assert [one.name for one in read_names(path)] == [name]
        assert len(names.to_sync(0)[1]) == 1

    def test_the_older_name_of_another_worker_is_taken_over(self, make, tmp_path):
        store, one, other = Nowhere(), make(), make("b" * 16)
        first = one.of("pat-1")
        one.ship(store, 1)
        second = other.of("pat-1")
        other.ship(store, 1)
        assert first != second
        assert other.of("pat-1") == first
        assert read_names(tmp_path / FOLDER / f"{'b' * 16}.ndjson") == [], "what the database has need not wait"

    def test_what_could_not_be_shipped_waits(self, make, tmp_path):
        store, names = Nowhere(), make()
        store.away = True
        names.of("pat-1")
        with pytest.raises(ConnectionError):
            names.ship(store, 1)
        assert len(read_names(tmp_path / FOLDER / f"{'a' * 16}.ndjson")) == 1
        store.away = False
        names.ship(store, 1)
        assert len(store.rows) == 1

    def test_what_was_erased_is_used_no_more(self, make):
        store, names = Nowhere(), make()
        names.follow(store, 1)
        before, other = names.of("pat-1"), names.of("pat-2")
        names.ship(store, 1)
        store.erased.append(before)
        store.rows.clear()
        names.follow(store, 1)
        assert names.of("pat-1") != before
        assert names.of("pat-2") == other

    def test_memory_is_bounded(self, make, monkeypatch):
        monkeypatch.setattr("gateway.audit.pseudonyms.MOST", 10)
        names = make()
        for n in range(100):
            names.of(f"pat-{n}")
        assert len(names.names) <= 10


class TestKeys:
    def test_what_a_row_says_only_with_the_key(self):
        keys, other = Keys(SECRET), Keys(b"x" * 32)
        made = keys.make("pat-1", keys.lookup("pat-1"))
        sealed = bytes.fromhex(made.sealed)
        assert keys.open(made.name, sealed) == "pat-1"
        assert other.open(made.name, sealed) is None
        assert keys.open("p." + "0" * 32, sealed) is None, "a row is of its name"
        assert other.lookup("pat-1") != keys.lookup("pat-1")
        assert keys.make("pat-1", "").name != made.name

    def test_made_once_for_all_and_for_nobody_else(self, tmp_path):
        path = tmp_path / "patients.key"
        assert load_or_make_key(path) == load_or_make_key(path)
        assert (len(load_or_make_key(path)), path.stat().st_mode & 0o777) == (64, 0o600)
        path.chmod(0o644)
        with pytest.raises(KeyUnusable, match="readable by others"):
            load_or_make_key(path)
        with pytest.raises(KeyUnusable, match="less than 32"):
            Keys(b"short")

    def test_rows_that_the_owner_of_the_table_exchanged_show_nobody_another_s_record(self):
        keys = Keys(SECRET)
        made = [keys.make(patient, keys.lookup(patient)) for patient in ("pat-1", "pat-2")]
        rows = [(one.name, bytes.fromhex(one.sealed)) for one in made]
        reader = NamesReader(lambda: keys, lambda column, values: rows)
        assert reader.names_of("pat-1") == ("pat-1", made[0].name)

    def test_without_a_key_patients_are_found_by_their_ids_alone(self):
        reader = NamesReader(lambda: None, lambda column, values: 1 / 0)
        assert (reader.names_of("pat-1"), reader.ids_of(["p." + "0" * 32])) == (("pat-1",), {})


class TestTrail:
    """With a real database."""

    @pytest.fixture
    def ask(self, postgres):
        def ask(query, *values):
            with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
                cursor = connection.execute(query, values)
                return cursor.fetchall() if cursor.description else []

        for table in ("event", "patient", "erased_patient"):
            ask(f"DELETE FROM audit.{table}")
        return ask

    @pytest.fixture
    def trail(self, postgres, tmp_path, ask):
        database = Database(postgres.gateway_dsn, pool_max=2)
        database.open()
        key = tmp_path / "audit" / "patients.key"
        trail = AuditTrail(
            database, tmp_path, segment_bytes=262_144, checkpoint_s=0.2, patients=lambda: Keys(load_or_make_key(key))
        )
        trail.start()
        yield trail
        trail.stop(timeout_s=5)
        database.close()
        for table in ("event", "checkpoint", "patient", "erased_patient"):
            ask(f"DELETE FROM audit.{table}")

    def events(self, ask, count):
        end = time.monotonic() + 15
        while (
            len(rows := ask("SELECT patient, resource_id, canonical FROM audit.event ORDER BY chain, sequence")) < count
        ):
            assert time.monotonic() < end
            gevent.sleep(0.05)
        return rows

    def request(self, patient, **changes):
        return RequestContext(
            id=new_request_id(), started_ns=time.monotonic_ns(), method="GET", params={"patient": patient}, **changes
        )

    def test_no_event_has_the_id_and_it_is_found_again(self, trail, ask, tmp_path, postgres):
        claims = {"patient": "pat-0002"}
        principal = Principal(
            subject="s", issuer="i", audience="a", role="patient", permissions=frozenset(), token_id="", key_id="",
            expires_at_s=0, claims=claims,
        )  # fmt: skip
        trail.record(self.request("pat-0001"), 0)
        trail.record(self.request("pat-0001"), 200)
        trail.enqueue_finished(RequestContext(id="r", started_ns=0, method="GET", principal=principal), 200)
        trail.note("audit.searched", "allowed", patient="pat-0001", query="patient=*")
        trail.note("audit.read-own", "allowed", ctx=RequestContext(id="r", started_ns=0, principal=principal))
        rows = self.events(ask, 5)
        names = [row[0] for row in rows]
        assert len(set(names)) == 2
        assert names[0] == names[1] == names[3]
        assert names[2] == names[4]
        assert not [text for _, _, text in rows if "pat-000" in text]
        arguments = ["audit", "report", "patient", "--patient", "pat-0001", "--dsn", postgres.admin_dsn]
        assert main([*arguments, "--data-dir", str(tmp_path), "--format", "json"]) == 0

    def test_names_that_could_not_be_synced_are_written_again(self, trail, tmp_path):
        def fail(files):
            raise OSError(5, "Input/output error")

        disk = under(trail)
        disk.work = fail
        ctx = self.request("pat-0001")
        trail.enqueue_finished(ctx, 0)
        (path,) = (tmp_path / "audit" / FOLDER).glob("*.ndjson")
        # As a kernel does that forgets what it could not write.
        path.write_bytes(b"")
        with pytest.raises(AuditUnavailable):
            trail.record(ctx, 200)
        assert [one.name for one in read_names(path)] == [trail._pseudonyms.of("pat-0001")]
        disk.work = sync_files

    def test_a_resource_that_is_the_patient(self, trail, ask):
        from gateway.routing.model import ResourceAction, Route, RouteKind

        route = Route(
            name="x", template="/x", methods=("GET",), kind=RouteKind.RESOURCE, action=ResourceAction("x"),
            audiences=frozenset(), roles=frozenset(), permission=None,
            metadata={"resource_type": "Patient", "resource_param": "patient"},
        )  # fmt: skip
        trail.record(self.request("pat-0001", route=route), 200)
        ((patient, resource, _),) = self.events(ask, 1)
        assert patient == resource != "pat-0001"

    @pytest.mark.parametrize(
        ("error", "outcome"), [(None, "allowed"), (BadRequest(), "refused"), (DatabaseTimeout(), "failed")], ids=str
    )
    def test_the_others_whom_a_batch_names_have_its_outcome(self, trail, ask, error, outcome):
        """None: the unit itself may have answered 405; nothing was refused here."""
        from gateway.routing.model import ResourceAction, Route, RouteKind

        route = Route(
            name="x", template="/fhir", methods=("POST",), kind=RouteKind.RESOURCE, action=ResourceAction("x"),
            audiences=frozenset(), roles=frozenset(), permission=None, metadata={"resource_type": "Bundle"},
        )  # fmt: skip
        ctx = RequestContext(id="r", started_ns=0, method="POST", route=route, error=error)
        ctx.told, ctx.also = ("", "pat-0001"), ("pat-0002",)
        trail.note_others(ctx)
        trail.enqueue_finished(ctx, 405)
        rows = [decode(text.encode()) for _, _, text in self.events(ask, 2)]
        assert [(event.kind, event.outcome, event.action) for event in rows] == [
            ("access.also", outcome, "E"), ("access", outcome, "E"),
        ]  # fmt: skip
        assert "" != rows[0].patient != rows[1].patient != ""

    def test_who_is_erased_is_nobody_and_the_chain_holds(self, trail, ask, tmp_path, postgres, capsys, monkeypatch):
        monkeypatch.setattr("gateway.audit.shipper._ERASED_S", 0.05)
        monkeypatch.setattr("gateway.audit.shipper._ORPHAN_SCAN_S", 0.1)
        trail._shipper._scan_s = 0.0
        trail.record(self.request("pat-0001"), 200)
        trail.record(self.request("pat-0002"), 200)
        rows = self.events(ask, 2)

        def report():
            capsys.readouterr()
            argv = ["audit", "report", "patient", "--patient", "pat-0001", "--dsn", postgres.admin_dsn]
            assert main([*argv, "--data-dir", str(tmp_path), "--format", "json"]) == 0
            return orjson.loads(capsys.readouterr().out)

        assert [one["patient"] for one in report()] == ["pat-0001"]
        argv = ["audit", "erase", "--patient", "pat-0001", "--reason", "asked for", "--dsn", postgres.admin_dsn]
        assert main([*argv, "--data-dir", str(tmp_path)]) == 0
        assert "1 names of the patient are erased" in capsys.readouterr().out
        assert report() == []
        assert ask("SELECT count(*) FROM audit.patient") == [(1,)]
        end = time.monotonic() + 15
        while trail._name_of("pat-0001") == rows[0][0]:
            assert time.monotonic() < end, "the worker goes on with the erased name"
            gevent.sleep(0.05)
        trail.record(self.request("pat-0001"), 200)
        kinds = self.events(ask, 6)
        accesses = {patient for patient, _, text in kinds if '"kind":"access"' in text}
        assert len(accesses) == 3, "another person, for all that is known"
        assert [text for _, _, text in kinds if '"kind":"audit.erased"' in text and '"pseudonyms":"1"' in text]
        reports = [patient for patient, _, text in kinds if '"kind":"audit.reported"' in text]
        assert sorted(reports) == ["", rows[0][0]], "a report names its patient, as long as she has a name"
        assert sum('"kind":"audit.erased"' in text for _, _, text in kinds) == 1, "what the command did is there too"
        trail.stop(timeout_s=5)
        assert main(["audit", "verify", "--dsn", postgres.admin_dsn, "--data-dir", str(tmp_path)]) == 0
        assert "verify: ok" in capsys.readouterr().out

    def test_an_erased_name_is_not_brought_back(self, trail, ask):
        name = "p." + "7" * 32
        ask("INSERT INTO audit.erased_patient (name) VALUES (%s)", name)
        trail._store.insert_names([Name(name, "00" * 32, "11" * 40)], 5)
        assert ask("SELECT count(*) FROM audit.patient WHERE name = %s", name) == [(0,)]

    def test_names_left_by_a_worker_that_is_gone_are_shipped_before_its_events(self, trail, ask, tmp_path, monkeypatch):
        from gateway.audit.spool import open_spool

        spool = open_spool(tmp_path / "audit", 262_144, 16 * 262_144)
        left = Pseudonyms(
            tmp_path / "audit" / FOLDER, spool.chain, Keys(load_or_make_key(tmp_path / "audit/patients.key"))
        )
        name = left.of("pat-0009")
        spool.append(b'{"v":1,"kind":"access","phase":"outcome","at_ms":1,"duration_us":1,"request_id":"r",'
                     b'"outcome":"allowed","rule":"","status":200,"patient":"%s"}' % name.encode())  # fmt: skip
        spool.close()
        left.close()
        trail._shipper._scan_s = 0.0
        assert [row[0] for row in self.events(ask, 1)] == [name]
        assert ask("SELECT count(*) FROM audit.patient WHERE name = %s", name) == [(1,)]

    def test_the_gateway_cannot_read_or_undo(self, postgres, trail):
        with psycopg.connect(postgres.gateway_dsn, autocommit=True) as connection:
            for statement in (
                "SELECT sealed FROM audit.patient", "DELETE FROM audit.patient", "UPDATE audit.patient SET lookup = ''",
                "DELETE FROM audit.erased_patient", "INSERT INTO audit.erased_patient (name) VALUES ('x')",
            ):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)
