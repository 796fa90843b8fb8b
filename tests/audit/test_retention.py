"""Removal after retention, with a false clock: the chains hold without what is gone, and say what it was."""

import calendar
import json

import psycopg
import pytest

from gateway.audit.pseudonyms import KEY, Keys, load_or_make_key
from gateway.audit.retention import due
from gateway.audit.trail import AuditTrail
from gateway.cli import audit_retention
from gateway.cli.main import main
from gateway.store.pool import Database

A, B = "a" * 16, "b" * 16
DAY_MS = 86_400_000


def at(year, month, day=1):
    return calendar.timegm((year, month, day, 0, 0, 0))


@pytest.fixture
def trail(written, tmp_path, monkeypatch):
    """Two chains from January to April 2026: two records a day in one, one in the other, signed each month."""
    from cryptography.hazmat.primitives import serialization

    written.chains.clear()
    written.sealed.clear()
    written.now_ms = written.began_ms
    with psycopg.connect(written.dsn, autocommit=True) as connection:
        # NOTE: other tests of this database make months too, and one more than ours would count.
        for name in months(written.dsn):
            connection.execute(f"DROP TABLE audit.event_2026_{name}")
        for month in range(1, 5):
            connection.execute("SELECT audit.make_month(make_date(2026, %s, 1))", (month,))
        connection.execute("DELETE FROM audit.hold; DELETE FROM audit.removal")
    for days in (31, 28, 31, 20):
        for _ in range(days):
            written.add(A, 2, step_ms=DAY_MS // 3 - 1)
            written.add(B, 1, step_ms=DAY_MS // 3)
        written.seal()
    written.store()
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "checkpoint.pub").write_bytes((tmp_path / "audit.pub").read_bytes())
    pem = written.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = tmp_path / "audit" / "checkpoint.key"
    key.touch(0o600)
    key.write_bytes(pem)
    yield written
    with psycopg.connect(written.dsn, autocommit=True) as connection:
        for table in ("hold", "removal", "event", "checkpoint"):
            connection.execute(f"DELETE FROM audit.{table}")


@pytest.fixture
def audit(trail, tmp_path, capsys, monkeypatch):
    def audit(*arguments, now=None):
        if now is not None:
            monkeypatch.setattr(audit_retention, "clock", lambda: float(now))
        status = main(["audit", *arguments, "--dsn", trail.dsn, "--data-dir", str(tmp_path)])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return audit


def months(dsn):
    with psycopg.connect(dsn) as connection:
        query = "SELECT relname FROM pg_class WHERE relname LIKE 'event\\_2026\\_0%' AND relkind = 'r' ORDER BY relname"
        return [name[-2:] for (name,) in connection.execute(query)]


def execute(dsn, statement):
    with psycopg.connect(dsn, autocommit=True) as connection:
        connection.execute(statement)


DUE = {
    "on the last day": (at(2032, 1, 31), []),
    "six years later": (at(2032, 2, 1), ["2026-01"]),
    "two months": (at(2032, 3, 31), ["2026-01", "2026-02"]),
    "all": (at(2040, 1, 1), ["2026-01", "2026-02", "2026-03"]),
}


@pytest.mark.parametrize(("now", "gone"), DUE.values(), ids=DUE)
def test_what_is_due(now, gone):
    assert due(["2026-03", "2026-01", "2026-02"], now * 1000, 72) == gone


def test_nothing_is_due_before_its_time(audit, trail):
    status, out = audit("remove", now=at(2031, 12, 31))
    assert (status, out) == (0, "no month: 0 records are past 72 months\n")
    assert months(trail.dsn) == ["01", "02", "03", "04"]


def test_what_is_removed_is_told_and_the_rest_holds(audit, trail, tmp_path):
    status, out = audit("remove", "--reason", "six years", now=at(2032, 3, 1))
    assert (status, out.splitlines()[-1]) == (0, "removed by act 1"), out
    assert months(trail.dsn) == ["03", "04"]
    status, out = audit("verify")
    assert status == 0, out
    assert "177 records of 2026-01, 2026-02 removed, kept for 72 months: six years" in out.splitlines()[0]
    assert "177 records are gone by acts of removal" in out
    assert out.splitlines()[1].startswith("153 records in 2 chains, 153 of them under 4 signed checkpoints, 0 not yet")
    status, out = audit("remove", now=at(2032, 4, 1))
    assert (status, months(trail.dsn)) == (0, ["04"]), "the next month, a month later"
    status, out = audit("verify")
    assert (status, "act 2 of 2032-04-01" in out, "270 records are gone" in out) == (0, True, True), out
    status, out = audit("verify", "--from", "2026-02-10", "--to", "2026-04-10")
    assert status == 0, out
    export = tmp_path / "export.ndjson"
    assert audit("export", "--out", str(export))[0] == 0
    status, out = audit("verify", "--export", str(export))
    assert (status, "270 records are gone" in out) == (0, True), out


def test_all_of_a_chain(audit, trail):
    execute(trail.dsn, "SELECT audit.make_month(make_date(2026, 5, 1))")
    assert audit("remove", now=at(2040, 1, 1))[0] == 0
    status, out = audit("verify")
    assert (status, out.splitlines()[1][:21]) == (0, "0 records in 2 chains"), out


TAMPERED = {
    "the next record too": (f"DELETE FROM audit.event WHERE chain = '{A}' AND sequence = 63", "record 63: missing"),
    "a record put back": (
        f"INSERT INTO audit.event SELECT chain, 7, occurred_at, {{rest}} FROM audit.event "
        f"WHERE chain = '{A}' AND sequence = 63",
        "record 7: added",
    ),
    "no act in the database": ("DELETE FROM audit.removal", ""),
    "an act changed": (
        "UPDATE audit.removal SET act = replace(act, '\"records\":', '\"records\": ')",
        "not what was signed",
    ),
}


@pytest.mark.parametrize(("statement", "found"), TAMPERED.values(), ids=TAMPERED)
def test_removal_hides_no_tampering(audit, trail, statement, found):
    from tests.audit.test_verify import _REST

    audit("remove", now=at(2032, 2, 1))
    execute(trail.dsn, statement.format(rest=_REST))
    status, out = audit("verify")
    assert (status, found in out) == ((1, True) if found else (0, True)), out


def test_without_its_act_a_removal_is_a_gap(audit, trail, tmp_path):
    audit("remove", now=at(2032, 2, 1))
    execute(trail.dsn, "DELETE FROM audit.removal")
    (tmp_path / "audit" / "removals.ndjson").unlink()
    status, out = audit("verify")
    assert (status, "record 1: missing: records 1 to 62" in out) == (1, True), out


def test_an_act_signed_by_somebody_else_explains_nothing(audit, trail, tmp_path):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    from gateway.audit.removing import decode
    from gateway.audit.retention import SealedAct, encode, seal

    audit("remove", now=at(2032, 2, 1))
    path = tmp_path / "audit" / "removals.ndjson"
    with psycopg.connect(trail.dsn) as connection:
        act = decode(SealedAct(*connection.execute("SELECT act, signature FROM audit.removal").fetchone()))
    path.write_bytes(encode(seal(act, Ed25519PrivateKey.generate())) + b"\n")
    execute(trail.dsn, "DELETE FROM audit.removal")
    status, out = audit("verify")
    assert (status, "no key that is known has signed it" in out) == (1, True), out


def test_what_is_not_as_it_was_written_is_not_removed(audit, trail):
    execute(trail.dsn, f"UPDATE audit.event SET subject = 'x' WHERE chain = '{A}' AND sequence = 9")
    status, out = audit("remove", now=at(2032, 2, 1))
    assert (status, f"chain {A} record 9: changed: subject differ" in out) == (1, True), out
    assert months(trail.dsn) == ["01", "02", "03", "04"]


def rewritten(trail):
    trail.rewrite(B, 3, subject="somebody else")
    trail.store()


SIGNED_OTHERWISE = {
    "rewritten": (rewritten, f"chain {B} record 1: rewritten: records 1 to 31 are not those that were signed"),
    "cut off": (
        lambda trail: execute(trail.dsn, f"DELETE FROM audit.event WHERE chain = '{B}' AND sequence > 20"),
        f"chain {B}: records 21 to 110 are missing, a checkpoint has signed them",
    ),
    "a checkpoint removed": (
        lambda trail: execute(trail.dsn, "DELETE FROM audit.checkpoint WHERE number = 2"),
        "number 2 of 5555555555555555 is missing",
    ),
    "a checkpoint changed": (
        lambda trail: execute(trail.dsn, "UPDATE audit.checkpoint SET signature = repeat('0', 128) WHERE number = 1"),
        "not what was signed",
    ),
}


@pytest.mark.parametrize(("tamper", "found"), SIGNED_OTHERWISE.values(), ids=SIGNED_OTHERWISE)
def test_what_is_not_as_it_was_signed_is_not_removed(audit, trail, tamper, found):
    tamper(trail)
    status, out = audit("remove", now=at(2032, 2, 1))
    assert (status, found in out) == (1, True), out
    assert months(trail.dsn) == ["01", "02", "03", "04"]


def test_checkpoints_of_an_older_key(audit, trail, tmp_path):
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    newer = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (tmp_path / "audit" / "checkpoint.key").write_bytes(newer)
    assert audit("remove", now=at(2032, 2, 1))[0] == 1
    assert audit("remove", "--key", str(tmp_path / "audit.pub"), now=at(2032, 2, 1))[0] == 0


def test_a_key_that_others_can_read_signs_nothing(audit, trail, tmp_path):
    (tmp_path / "audit" / "checkpoint.key").chmod(0o640)
    status, out = audit("remove", now=at(2032, 2, 1))
    assert (status, "readable by others, chmod 600 it" in out) == (2, True), out
    assert months(trail.dsn) == ["01", "02", "03", "04"]


def test_a_hold_that_comes_at_the_last_moment(audit, trail, monkeypatch):
    from gateway.store.retention import RetentionStore

    original = RetentionStore.remove

    def late(self, *arguments):
        assert self.hold("late", [], "", ("", ""), "court order")
        original(self, *arguments)

    monkeypatch.setattr(RetentionStore, "remove", late)
    status, out = audit("remove", now=at(2032, 2, 1))
    assert (status, "2026-01 is held by late by now: nothing was removed" in out) == (1, True), out
    assert months(trail.dsn) == ["01", "02", "03", "04"]
    # The act that was signed in vain lets nobody else remove what is held.
    execute(trail.dsn, "DELETE FROM audit.event WHERE occurred_at < '2026-02-01'")
    status, out = audit("verify")
    assert (status, f"chain {A} record 1: missing" in out) == (1, True), out


@pytest.mark.parametrize(
    "about",
    [["case 7", "--reason", "x"], ["", "--reason", "x"], ["c", "--reason", ""], ["c", "--reason", "x" * 501],
     ["c", "--reason", "x", "--patient", ""]],
)  # fmt: skip
def test_a_hold_that_says_nothing_is_none(audit, trail, about):
    status, out = audit("hold", *about)
    assert (status, "constraint" in out) == (2, False), out
    assert audit("holds")[1] == ""


HOLDS = {
    "a patient": (["--patient", "pat\t\\3", "--from", "2026-02-10", "--to", "2026-02-12"], ["02"]),
    "a patient nobody saw": (["--patient", "nobody"], []),
    "a period": (["--from", "2026-01-31", "--to", "2026-02-02"], ["01", "02"]),
    "a unit": (["--unit", "u-1"], []),
    "everything": ([], ["01", "02", "03"]),
}


@pytest.mark.parametrize(("about", "kept"), HOLDS.values(), ids=HOLDS)
def test_legal_hold(audit, trail, about, kept):
    assert audit("hold", "case-7", "--reason", "court order", *about)[0] == 0
    assert audit("hold", "case-7", "--reason", "again")[0] == 2
    assert "case-7  in force" in audit("holds")[1]
    status, out = audit("remove", now=at(2032, 4, 1))
    assert status == 0, out
    assert months(trail.dsn) == [*kept, "04"]
    assert all(f"2026-{month} is kept: held by case-7" in out for month in kept)
    assert audit("verify")[0] == 0
    assert audit("release", "case-7")[0] == 0
    assert audit("release", "case-7")[0] == 2
    audit("remove", now=at(2032, 4, 1))
    assert months(trail.dsn) == ["04"]
    assert audit("verify")[0] == 0, "also where a month in the middle went first"


@pytest.fixture
def keys(trail, tmp_path):
    """The key of patients; their table is empty afterwards."""
    yield Keys(load_or_make_key(tmp_path / "audit" / KEY))
    execute(trail.dsn, "TRUNCATE audit.patient, audit.erased_patient")


def name_patient(trail, keys, patient):
    row = keys.make(patient, keys.lookup(patient))
    execute(
        trail.dsn,
        "INSERT INTO audit.patient (name, lookup, sealed) VALUES "
        f"('{row.name}', decode('{row.lookup}', 'hex'), decode('{row.sealed}', 'hex'))",
    )
    return row.name


def test_a_name_that_a_patient_is_given_later_is_held_too(audit, trail, keys):
    assert audit("hold", "case-7", "--patient", "anna", "--reason", "court order")[0] == 0
    assert "case-7  in force  1 names of a patient" in audit("holds")[1]
    name = name_patient(trail, keys, "anna")
    name_patient(trail, keys, "berta")
    execute(trail.dsn, f"UPDATE audit.event SET patient = '{name}' WHERE chain = '{A}' AND sequence = 70")
    status, out = audit("remove", "--dry-run", now=at(2032, 3, 1))
    assert (status, out.splitlines()[0]) == (0, "2026-02 is kept: held by case-7"), out
    assert "2026-01: 93 records" in out


def test_nobody_is_erased_whom_a_hold_names(audit, trail, keys, tmp_path):
    name_patient(trail, keys, "anna")
    for name, patient in (("case-7", "anna"), ("case-8", "berta")):
        assert audit("hold", name, "--patient", patient, "--reason", "court order")[0] == 0
    status, out = audit("erase", "--patient", "anna", "--reason", "asked for")
    assert (status, "the patient is held by case-7: nobody is erased" in out) == (2, True), out
    audit("release", "case-7")
    assert audit("erase", "--patient", "anna", "--reason", "asked for") == (0, "1 names of the patient are erased\n")


def test_who_names_a_patient_needs_the_key(audit, trail, keys, tmp_path, monkeypatch):
    """Without it, or with another, nothing would be held, found or erased, and nobody would know."""
    name_patient(trail, keys, "anna")
    own, other = tmp_path / "audit" / KEY, tmp_path / "other.key"
    elsewhere = tmp_path / "elsewhere.key"
    own.rename(elsewhere)
    load_or_make_key(other)
    commands = (
        ("hold", "case-7", "--patient", "anna", "--reason", "court order"),
        ("erase", "--patient", "anna", "--reason", "asked for"),
        ("report", "patient", "--patient", "anna"),
        ("export", "--format", "csv", "--with-ids", "--out", str(tmp_path / "out.csv")),
    )
    for command in commands:
        status, out = audit(*command)
        assert (status, "their key is not here: give --patient-key" in out) == (2, True), out
        status, out = audit(*command, "--patient-key", str(other))
        assert (status, "this is not their key" in out) == (2, True), out
        assert audit(*command, "--patient-key", str(tmp_path / "none"))[0] == 2
    assert audit("report", "user", "--user", "s-1")[0] == 0, "who names no patient needs none"
    monkeypatch.setenv("CAREGATE_AUDIT_PATIENT_KEY", f"file:{elsewhere}")
    assert audit("report", "patient", "--patient", "anna")[0] == 0
    assert audit(*commands[0])[0] == 0
    assert audit(*commands[1])[1].startswith("caregate audit: the patient is held by case-7"), "the hold is of her"


def test_a_dry_run_removes_nothing(audit, trail):
    status, out = audit("remove", "--dry-run", now=at(2032, 2, 1))
    assert (status, out) == (0, "2026-01: 93 records are past 72 months\n")
    assert months(trail.dsn) == ["01", "02", "03", "04"]


def test_what_was_done_waits_in_the_spool_for_the_gateway(audit, trail, tmp_path, postgres):
    audit("remove", "--reason", "six years", now=at(2032, 2, 1))
    database = Database(postgres.gateway_dsn, pool_max=2)
    database.open()
    try:
        AuditTrail(database, tmp_path, segment_bytes=262_144).start()
    finally:
        database.close()
    spooled = b"".join(path.read_bytes() for path in (tmp_path / "audit").glob("*/*") if path.is_file())
    assert b'"kind":"audit.removed"' in spooled
    assert b'"months":"2026-01"' in spooled


class TestMonths:
    def test_rows_move_into_their_month_when_it_is_made(self, postgres, written):
        execute(written.dsn, "DROP TABLE IF EXISTS audit.event_2026_01")
        written.store()
        with psycopg.connect(written.dsn, autocommit=True) as connection:
            assert connection.execute("SELECT count(*) FROM audit.event_other").fetchone() == (95,)
            assert connection.execute("SELECT audit.make_month('2026-01-15')").fetchone() == (True,)
            assert connection.execute("SELECT audit.make_month('2026-01-16')").fetchone() == (False,)
            assert connection.execute("SELECT count(*) FROM audit.event_other").fetchone() == (0,)
            assert connection.execute("SELECT count(*) FROM audit.event_2026_01").fetchone() == (95,)
        assert main(["audit", "verify", "--dsn", written.dsn, "--key", str(written.folder / "audit.pub")]) == 0

    def test_the_gateway_makes_months_and_owns_none(self, postgres):
        with psycopg.connect(postgres.gateway_dsn, autocommit=True) as connection:
            assert connection.execute("SELECT audit.make_months(500)").fetchone()[0] <= 25
            for statement in (
                "SELECT audit.make_month('2040-01-01')", "DROP TABLE audit.event_other", "SELECT 1 FROM audit.removal",
                "INSERT INTO audit.removal (number, act, signature) VALUES (1, '', '')", "DELETE FROM audit.hold",
            ):  # fmt: skip
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    connection.execute(statement)

    def test_a_living_gateway_makes_them(self, postgres, tmp_path):
        import time

        import gevent

        with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
            (name,) = connection.execute(
                "SELECT to_char(now() AT TIME ZONE 'UTC' + interval '1 month', 'YYYY_MM')"
            ).fetchone()
            connection.execute(f"DROP TABLE IF EXISTS audit.event_{name}")
        database = Database(postgres.gateway_dsn, pool_max=2)
        database.open()
        trail = AuditTrail(database, tmp_path, segment_bytes=262_144, checkpoint_s=0.1)
        trail.start()
        try:
            end = time.monotonic() + 10
            with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
                while connection.execute(f"SELECT to_regclass('audit.event_{name}')").fetchone() == (None,):
                    assert time.monotonic() < end
                    gevent.sleep(0.05)
        finally:
            trail.stop()
            database.close()


def test_the_act_is_readable(audit, trail):
    audit("remove", now=at(2032, 2, 1))
    with psycopg.connect(trail.dsn) as connection:
        (act,) = connection.execute("SELECT act FROM audit.removal").fetchone()
    document = json.loads(act)
    assert (document["months"], document["records"], document["keep_months"]) == (["2026-01"], 93, 72)
    assert [(chain, first, last) for chain, first, last, _, _ in document["removed"]] == [(A, 1, 62), (B, 1, 31)]
