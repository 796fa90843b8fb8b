"""Every kind of tampering, by one who owns the database; offline on an export too."""

import time

import msgspec
import orjson
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from gateway.audit.chain import genesis, link
from gateway.audit.checkpoint import Checkpoint, Sealed, seal
from gateway.audit.columns import COLUMNS
from gateway.cli.main import main

A, B = "a" * 16, "b" * 16
SOURCE = "5" * 16


@pytest.fixture
def verify(written, capsys):
    def verify(*more, outside=True):
        arguments = ["audit", "verify", "--dsn", written.dsn, "--key", str(written.folder / "audit.pub")]
        if outside:
            arguments += ["--checkpoints", str(written.folder / "outside")]
        status = main([*arguments, *more])
        return status, capsys.readouterr().out

    return verify


@pytest.fixture
def as_owner(written):
    def run(*statements):
        with psycopg.connect(written.dsn, autocommit=True) as connection:
            for statement in statements:
                assert connection.execute(statement).rowcount, statement

    return run


def test_untouched(verify):
    status, out = verify()
    assert (status, out.splitlines()) == (0, [
        "95 records in 2 chains, 90 of them under 3 signed checkpoints, 5 not yet",
        "everything is covered until 2026-01-01T00:01:30.030Z; what was cut off behind that cannot be told",
        "verify: ok",
    ])  # fmt: skip


def of(chain, sequence):
    return f"WHERE chain = '{chain}' AND sequence = {sequence}"


_REST = (
    "kind, phase, duration_us, request_id, outcome, rule, status, method, trace, delivery, unit, agent, patient, "
    "resource_id, client_address, route, action, resource_type, phi, purpose, issuer, subject, role, audience, "
    "organisation, client, token_id, node, config_version, hash, canonical, recorded_at"
)


CHANGED = {
    "a column": (
        f"UPDATE audit.event SET subject = 'other' {of(A, 7)}", f"chain {A} record 7: changed: subject differ",
    ),
    "the time": (
        f"UPDATE audit.event SET occurred_at = occurred_at + interval '1 us' {of(A, 7)}",
        f"chain {A} record 7: changed: occurred_at differ",
    ),
    "canonical bytes": (
        f"UPDATE audit.event SET canonical = replace(canonical, 'r-7', 'r-8') {of(A, 7)}",
        f"chain {A} record 7: changed: its hash does not follow",
    ),
    "canonical bytes and column": (
        f"UPDATE audit.event SET canonical = replace(canonical, 'r-7', 'r-8'), request_id = 'r-8' {of(A, 7)}",
        f"chain {A} record 7: changed: its hash does not follow",
    ),
    "no event": (f"UPDATE audit.event SET canonical = '7' {of(A, 7)}", f"chain {A} record 7: changed"),
    "the hash": (
        rf"UPDATE audit.event SET hash = '\x{'00' * 32}' {of(A, 7)}",
        f"chain {A} record 7: changed: its hash does not follow",
    ),
    "removed": (f"DELETE FROM audit.event {of(A, 7)}", f"chain {A} record 7: missing"),
    "several removed": (
        f"DELETE FROM audit.event WHERE chain = '{A}' AND sequence BETWEEN 7 AND 9",
        f"chain {A} record 7: missing: records 7 to 9",
    ),
    "the first": (f"DELETE FROM audit.event {of(A, 1)}", f"chain {A} record 1: missing"),
    "cut off": (
        f"DELETE FROM audit.event WHERE chain = '{A}' AND sequence > 50",
        f"chain {A} record 51: truncated: records 51 to 60 are missing",
    ),
    "a whole chain": (
        f"DELETE FROM audit.event WHERE chain = '{B}'", f"chain {B} record 1: truncated: records 1 to 30 are missing",
    ),
    "doubled": (
        "INSERT INTO audit.event SELECT chain, sequence, occurred_at + interval '1 day', "
        f"{_REST} FROM audit.event {of(A, 7)}",
        f"chain {A} record 7: added: this number is there more than once",
    ),
    "swapped": (
        f"UPDATE audit.event SET sequence = 15 - sequence WHERE chain = '{A}' AND sequence IN (7, 8)",
        f"chain {A} record 7: changed",
    ),
    "moved to another chain": (
        f"UPDATE audit.event SET chain = '{B}', sequence = 31 {of(A, 65)}", f"chain {B} record 31: changed",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("statement", "found"), CHANGED.values(), ids=CHANGED)
def test_tampering_with_records(verify, as_owner, statement, found):
    as_owner(statement)
    status, out = verify()
    assert status == 1
    assert out.splitlines()[0].startswith(found), out
    assert out.endswith("verify: FAILED\n")


def test_records_that_are_gone_are_counted_nowhere(verify, as_owner):
    as_owner(f"DELETE FROM audit.event WHERE chain = '{A}' AND sequence BETWEEN 25 AND 34")
    assert "85 records in 2 chains, 80 of them under 3 signed checkpoints, 5 not yet" in verify()[1]


@pytest.mark.parametrize("column", [name for name in COLUMNS if name not in ("chain", "sequence")])
def test_no_column_may_change(written, verify, as_owner, column):
    """Whatever its type: to another value of it."""
    with psycopg.connect(written.dsn) as connection:
        kind = connection.execute(
            "SELECT data_type FROM information_schema.columns WHERE (table_schema, table_name, column_name) = "
            "('audit', 'event', %s)", (column,),
        ).fetchone()[0]  # fmt: skip
    other = {
        "boolean": f"NOT {column}", "bytea": rf"'\x{'7' * 64}'",
        "timestamp with time zone": f"{column} + interval '1 day'",
    }.get(kind, f"{column} + 1" if "int" in kind else f"{column} || 'x'")  # fmt: skip
    as_owner(f"UPDATE audit.event SET {column} = {other} {of(A, 7)}")
    status, out = verify()
    assert (status, out.startswith(f"chain {A} record 7: changed")) == (1, True), out
    assert column in out.splitlines()[0] or column in ("hash", "canonical")


def _number_anew(written, chain, records):
    """As the owner of the database would: numbers without a gap, and hashes that fit."""
    head = genesis(chain)
    written.chains[chain] = []
    for sequence, canonical in enumerate(records, 1):
        head = link(head, sequence, canonical)
        written.chains[chain].append((sequence, head, canonical))


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda texts: [*texts[:6], *texts[7:]], "record 1: rewritten: records 1 to 20 are not those that were signed"),
        (lambda texts: [*texts[:6], texts[6], *texts[6:]], "record 1: rewritten: records 1 to 20"),
        (lambda texts: [*texts[:6], texts[7], texts[6], *texts[8:]], "record 1: rewritten: records 1 to 20"),
        (lambda texts: texts[:50], "record 51: truncated: records 51 to 60 are missing"),
        (lambda texts: [], "record 1: truncated: records 1 to 60 are missing"),
    ],
    ids=["removed", "added", "reordered", "truncated", "emptied"],
)
def test_chains_made_whole_again_afterwards(written, verify, change, found):
    _number_anew(written, A, change([canonical for _, _, canonical in written.chains[A]]))
    written.store()
    status, out = verify()
    assert status == 1
    assert out.startswith(f"chain {A} {found}"), out


def test_a_chain_under_another_name(written, verify, as_owner):
    as_owner(f"UPDATE audit.event SET chain = '{'c' * 16}' WHERE chain = '{A}'")
    status, out = verify()
    assert status == 1
    assert f"chain {A} record 1: truncated: records 1 to 60 are missing" in out
    assert f"chain {'c' * 16} record 1: changed" in out


def test_the_clock_was_set_back(written, verify):
    """What a checkpoint signed by the fast clock does not know is no addition, once the right one has signed."""
    written.now_ms += 600_000
    written.add(A, 2)
    written.seal()
    written.now_ms -= 590_000
    written.add(B, 2)
    written.store()
    assert verify()[0] == 1, "nobody has signed yet that it was set back"
    written.seal()
    written.add(A, 2)
    written.add(B, 2)
    written.store()
    status, out = verify()
    assert status == 0, out
    assert "covered until 2026-01-01T00:01:" in out


@pytest.mark.parametrize(("chain", "sequence", "first"), [(A, 7, 1), (A, 20, 1), (A, 21, 21), (A, 60, 41), (B, 30, 21)])
def test_a_chain_written_anew_with_hashes_that_fit(written, verify, chain, sequence, first):
    written.rewrite(chain, sequence, subject="somebody else")
    written.store()
    status, out = verify()
    assert status == 1
    last = {A: (first + 19) // 20 * 20, B: (first + 9) // 10 * 10}[chain]
    assert out.splitlines()[0] == (
        f"chain {chain} record {first}: rewritten: records {first} to {last} are not those that were signed"
    )
    assert len([line for line in out.splitlines() if line.startswith("chain")]) == 1


def test_a_past_that_is_younger_than_the_last_checkpoint_is_not_judged(written, verify):
    """Said in the answer: it covers until the last checkpoint."""
    written.rewrite(A, 62, subject="somebody else", at_ms=written.now_ms)
    written.store()
    assert verify()[0] == 0


@pytest.mark.parametrize("behind", [True, False], ids=["at the end of a chain", "as a chain of its own"])
def test_records_added_later_that_claim_to_be_old(written, verify, behind):
    now_ms, written.now_ms = written.now_ms, written.began_ms + 10_000
    written.add(B if behind else "c" * 16, 3)
    written.now_ms = now_ms
    written.store()
    status, out = verify()
    assert status == 1
    assert out.startswith(f"chain {B} record 31: added" if behind else f"chain {'c' * 16} record 1: added")


def test_who_cuts_the_checkpoints_too_is_found_by_those_outside(written, verify, as_owner):
    as_owner(
        f"DELETE FROM audit.event WHERE chain = '{A}' AND sequence > 40",
        f"DELETE FROM audit.event WHERE chain = '{B}' AND sequence > 20",
        "DELETE FROM audit.checkpoint WHERE number = 3",
    )
    status, out = verify()
    assert (status, out.splitlines()[0]) == (
        1, f"chain {A} record 41: truncated: records 41 to 60 are missing, a checkpoint has signed them",
    )  # fmt: skip
    status, out = verify(outside=False)
    assert status == 0, "nothing in the database says so ..."
    assert "covered until 2026-01-01T00:01:00.020Z" in out, "... but that it ends too early"


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda s: Sealed(s.checkpoint.replace('"n"', '"m"'), s.signature), "not what was signed"),
        (lambda s: None, "number 2 of 5555555555555555 is missing"),
    ],
    ids=["changed", "removed"],
)
def test_tampering_with_checkpoints(written, verify, change, found):
    changed = change(written.sealed[1])
    written.sealed[1:2] = [changed] if changed else []
    written.store()
    status, out = verify()
    assert status == 1
    assert found in out.splitlines()[0]


@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("UPDATE audit.checkpoint SET signature = repeat('00', 64) WHERE number = 2", "not what was signed"),
        ("UPDATE audit.checkpoint SET checkpoint = checkpoint || ' ' WHERE number = 3", "not what was signed"),
        ("DELETE FROM audit.checkpoint WHERE number = 2", f"number 2 of {SOURCE} is missing in the database"),
        ("DELETE FROM audit.checkpoint WHERE number = 3", f"number 3 of {SOURCE} is missing in the database"),
        ("DELETE FROM audit.checkpoint", f"number 1 of {SOURCE} is missing in the database"),
        (
            "UPDATE audit.checkpoint SET number = 7 - number WHERE number > 1",
            f"number 4 of {SOURCE} in the database is",
        ),
        ("UPDATE audit.checkpoint SET source = '6'", "in the database is number 1 of"),
    ],
    ids=["signature", "text", "removed", "last removed", "all removed", "numbers", "source"],
)
def test_tampering_with_checkpoints_in_the_database_alone(written, verify, as_owner, statement, found):
    """Those outside are as they were, and the gateway has noted what it sent."""
    (written.folder / "outside" / "source").write_text(SOURCE)
    (written.folder / "outside" / "shipped").write_text("3")
    as_owner(statement)
    status, out = verify()
    assert (status, found in out) == (1, True), out


def test_checkpoints_that_were_not_sent_yet_are_not_missing(written, verify, as_owner):
    """PostgreSQL was away; where the gateway's note is not at hand, nothing says that it had the last one."""
    as_owner("DELETE FROM audit.checkpoint WHERE number = 3")
    assert verify()[0] == 0
    (written.folder / "outside" / "source").write_text(SOURCE)
    (written.folder / "outside" / "shipped").write_text("2")
    assert verify()[0] == 0


def test_a_series_signed_anew_with_another_key(written, verify):
    written.rewrite(A, 7, subject="somebody else")
    written.key, written.sealed = Ed25519PrivateKey.generate(), []
    written.seal()
    written.store()
    status, out = verify()
    assert (status, "no key that is known has signed it" in out) == (1, True)


def test_a_checkpoint_that_does_not_follow(written, verify):
    """Signed with the right key, by one who has it, but not after the one before."""
    written.sealed[1] = written.sealed[0]
    written.seal()
    written.sealed[1:3] = []
    changed = orjson.loads(written.sealed[1].checkpoint) | {"number": 2, "previous": "7" * 64}
    written.sealed[1] = seal(msgspec.convert(changed, Checkpoint), written.key)
    written.store()
    assert "number 2 of 5555555555555555 does not follow from the one before" in verify()[1]


class TestSpan:
    def test_only_what_lies_between_is_read(self, verify, as_owner):
        as_owner(f"DELETE FROM audit.event {of(A, 7)}", f"DELETE FROM audit.event {of(A, 55)}")
        span = ("--from", "2026-01-01T00:00:40Z", "--to", "2026-01-01T00:00:50Z")
        status, out = verify(*span)
        assert status == 0
        assert out.startswith("30 records in 2 chains, 30 of them under 2 signed checkpoints")
        status, out = verify(*span[:2])
        assert (status, out.splitlines()[0]) == (1, f"chain {A} record 55: missing")
        status, out = verify(*span[2:])
        assert (status, out.splitlines()[0]) == (1, f"chain {A} record 7: missing")

    def test_a_change_between_is_found(self, verify, as_owner):
        as_owner(f"UPDATE audit.event SET role = 'x' {of(A, 25)}")
        status, out = verify("--from", "2026-01-01T00:00:40Z", "--to", "2026-01-01T00:00:50Z")
        assert (status, out.splitlines()[0].startswith(f"chain {A} record 25: changed: role")) == (1, True)

    def test_a_start_that_was_cut_off_is_found(self, verify, as_owner):
        as_owner(f"DELETE FROM audit.event {of(A, 21)}")
        status, out = verify("--from", "2026-01-01T00:00:40Z")
        assert (status, out.splitlines()[0]) == (1, f"chain {A} record 21: missing")


def _begin(lines, chain, sequence, hash_digit=None):
    """An export of which a chain begins behind a record; with `hash_digit` the hash it begins with is another."""
    at = next(n for n, line in enumerate(lines) if line.startswith(b'{"chain":"%s"' % chain.encode()))
    before = orjson.loads(lines[at + sequence])["hash"].encode() if sequence else b"f" * 64
    header = b'{"chain":"%s","start":%d,"hash":"%s"}\n' % (
        chain.encode(), sequence, hash_digit * 64 if hash_digit else before,
    )  # fmt: skip
    return [*lines[:at], header, *lines[at + 1 + sequence :]]


class TestExport:
    @pytest.fixture
    def export(self, written, capsys):
        path = written.folder / "export.ndjson"
        assert main(["audit", "export", "--dsn", written.dsn, "--out", str(path)]) == 0
        assert capsys.readouterr().out == "95 records, 3 checkpoints\n"
        return path

    @pytest.fixture
    def judge(self, written, export, capsys):
        def judge(*more):
            key = str(written.folder / "audit.pub")
            status = main(["audit", "verify", "--export", str(export), "--key", key, *more])
            return status, capsys.readouterr().out

        return judge

    def test_untouched(self, judge, postgres):
        postgres.stop()
        status, out = judge()
        assert (status, out.splitlines()[0]) == (
            0, "95 records in 2 chains, 90 of them under 3 signed checkpoints, 5 not yet",
        )  # fmt: skip

    @pytest.mark.parametrize(
        ("change", "found"),
        [
            (lambda lines: lines[:10] + lines[11:], f"chain {A} record 6: missing"),
            (lambda lines: [*lines[:9], lines[10], lines[9], *lines[11:]], f"chain {A} record 5: missing"),
            (lambda lines: [line.replace(b"r-6", b"r-9") for line in lines], f"chain {A} record 6: changed"),
            (lambda lines: [*lines[:10], lines[10], *lines[10:]], f"chain {A} record 6: added"),
            (lambda lines: lines[:-10], f"chain {B} record 21: truncated"),
            (lambda lines: [*lines[:2], *lines[3:]], "checkpoints: number 2 of 5555555555555555 is missing"),
            (lambda lines: lines[:-31], f"chain {B} record 1: truncated: records 1 to 30 are missing"),
            (lambda lines: _begin(lines, A, 7), f"chain {A} record 1: missing: it begins behind record 7"),
            (lambda lines: _begin(lines, A, 60, b"0"), f"chain {A} record 1: missing: it begins behind record 60"),
            (lambda lines: _begin(lines, A, 0, b"0"), f"chain {A}: changed: it begins with another hash"),
            (lambda lines: [line.replace(b'{"sequence":6,', b'{"sequence":6,"note":"x",') for line in lines],
             f"chain {A} record 6: unreadable"),
            (lambda lines: [line.replace(b'{"sequence":6,', b'{"sequence":7,"sequence":6,') for line in lines],
             f"chain {A} record 6: unreadable"),
            (lambda lines: [line.replace(b'\\"n\\"', b'\\"m\\"') for line in lines], "checkpoints: one of them is not"),
        ],
        ids=[
            "removed", "reordered", "changed", "added", "truncated", "checkpoint removed", "chain removed",
            "checkpoint changed", "begun later", "begun at its end", "begun with another hash", "a member more",
            "a member twice",
        ],
    )  # fmt: skip
    def test_tampering(self, export, judge, change, found):
        export.write_bytes(b"".join(change(export.read_bytes().splitlines(keepends=True))))
        status, out = judge()
        assert status == 1
        assert out.startswith(found), out

    def test_without_any_checkpoint_nothing_can_be_judged(self, export, judge):
        lines = export.read_bytes().splitlines(keepends=True)
        export.write_bytes(b"".join([lines[0], *lines[4:]]))
        status, out = judge()
        assert (status, out.splitlines()[-1]) == (2, "verify: NOT JUDGED, nothing was signed")

    def test_a_file_from_which_all_was_taken(self, export, judge):
        export.write_bytes(export.read_bytes().splitlines(keepends=True)[0])
        status, out = judge()
        assert (status, out.splitlines()[-1]) == (2, "verify: NOT JUDGED, nothing was signed")

    def test_with_the_key_of_another(self, written, export, judge):
        other = Ed25519PrivateKey.generate().public_key()
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        (written.folder / "audit.pub").write_bytes(other.public_bytes(serialization.Encoding.PEM, form))
        status, out = judge()
        assert (status, "no key that is known has signed it" in out) == (1, True)

    def test_without_its_last_checkpoint_it_covers_less(self, export, judge):
        lines = export.read_bytes().splitlines(keepends=True)
        export.write_bytes(b"".join([*lines[:3], *lines[4:]]))
        assert "covered until 2026-01-01T00:01:00.020Z" in judge()[1]

    @pytest.mark.parametrize(
        "change",
        [
            lambda lines: [*lines[:4], lines[5], *lines[4:]],
            lambda lines: [*lines[:4], b'{"note":"x"}\n', *lines[4:]],
            lambda lines: [*lines[:4], lines[4], lines[5].replace(b"r-1", b"r-9"), *lines[4:]],
        ],
        ids=["a record before all chains", "something else", "a chain twice"],
    )
    def test_what_is_of_no_chain_is_not_passed_over(self, export, judge, change):
        export.write_bytes(b"".join(change(export.read_bytes().splitlines(keepends=True))))
        assert judge()[0] == 2

    def test_a_torn_file(self, export, judge, capsys):
        export.write_bytes(export.read_bytes()[:-20])
        assert judge()[0] == 2

    def test_a_span(self, written, capsys):
        path = written.folder / "span.ndjson"
        span = ["--from", "2026-01-01T00:00:40Z", "--to", "2026-01-01T00:00:50Z"]
        assert main(["audit", "export", "--dsn", written.dsn, "--out", str(path), *span]) == 0
        key = str(written.folder / "audit.pub")
        assert main(["audit", "verify", "--export", str(path), "--key", key]) == 0
        assert "30 records in 2 chains, 30 of them" in capsys.readouterr().out


def test_who_takes_everything_away_is_not_believed(verify, as_owner):
    as_owner("DELETE FROM audit.event", "DELETE FROM audit.checkpoint")
    status, out = verify(outside=False)
    assert (status, out.splitlines()[-1]) == (2, "verify: NOT JUDGED, nothing was signed")
    assert verify()[0] == 1


def test_who_cuts_all_that_is_new_leaves_an_old_end(verify, as_owner, monkeypatch):
    from gateway.cli import audit

    as_owner(
        f"DELETE FROM audit.event WHERE chain = '{A}' AND sequence > 20",
        f"DELETE FROM audit.event WHERE chain = '{B}' AND sequence > 10",
        "DELETE FROM audit.checkpoint WHERE number > 1",
    )
    assert verify(outside=False)[0] == 0
    monkeypatch.setattr(audit.time, "time", lambda: 1_767_225_600 + 100.0)
    assert verify("--fresh", "2", outside=False)[0] == 0
    status, out = verify("--fresh", "1", outside=False)
    assert (status, "checkpoints: the last is older than 1 minutes" in out) == (1, True), out


def test_the_embedded_database_of_a_data_directory(written, postgres, capsys, tmp_path):
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "checkpoint.pub").write_bytes((written.folder / "audit.pub").read_bytes())
    (tmp_path / "postgres").symlink_to(postgres.directory)
    assert main(["audit", "verify", "--data-dir", str(tmp_path)]) == 0
    assert "95 records in 2 chains" in capsys.readouterr().out
    assert main(["audit", "unfinished", "--data-dir", str(tmp_path)]) == 0


def test_usage(written, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("CAREGATE_DATA_DIR", str(tmp_path / "data"))
    for arguments, reason in (
        (["verify", "--key", str(written.folder / "audit.pub")], "give --dsn"),
        (["verify", "--dsn", written.dsn], "checkpoint.pub: does not exist; give --key"),
        (["verify", "--dsn", written.dsn, "--key", str(tmp_path / "none")], "does not exist"),
        (["verify", "--dsn", "host=/nowhere", "--key", str(written.folder / "audit.pub")], "connection"),
        (["export", "--dsn", written.dsn, "--out", str(written.folder / "audit.pub")], "File exists"),
    ):
        assert main(["audit", *arguments]) == 2
        assert reason in capsys.readouterr().err


def test_intents_without_an_outcome(written, capsys, postgres):
    with psycopg.connect(written.dsn, autocommit=True) as connection:
        connection.execute("UPDATE audit.event SET phase = 'intent' WHERE request_id = 'r-7' AND chain = %s", (A,))
        # What else the request did is no outcome of it.
        used = "UPDATE audit.event SET kind = 'break-glass.used' WHERE request_id = 'r-7' AND chain = %s"
        assert connection.execute(used, (B,)).rowcount == 1
    assert main(["audit", "unfinished", "--dsn", written.dsn]) == 1
    out = capsys.readouterr().out
    assert f"chain {A} record 7  request r-7" in out
    assert out.endswith("1 intents without an outcome\n")


@pytest.mark.slow
def test_speed(written, verify):
    """A twentieth of what is promised for a million, with room for a slow machine."""
    written.chains.clear()
    written.sealed.clear()
    written.now_ms = written.began_ms
    for _ in range(5):
        written.add(A, 10_000, step_ms=6)
        written.seal()
    written.store()
    began = time.process_time()
    status, out = verify()
    assert status == 0
    assert out.startswith("50000 records")
    assert time.process_time() - began < 5


def test_the_events_here_need_escapes(written):
    assert all(b"\\" in canonical for _, _, canonical in written.chains[A])
