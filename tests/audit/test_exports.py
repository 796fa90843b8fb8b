"""What leaves the trail: FHIR lines and CSV with a manifest, reports, syslog messages."""

import csv
import io
import json
import re

import psycopg
import pytest
from fhir.resources.R4B.auditevent import AuditEvent as FhirAuditEvent

from gateway.audit.chain import genesis, link
from gateway.audit.columns import COLUMNS, row
from gateway.audit.csv_text import EVENT_COLUMNS, cell, event_values
from gateway.audit.event import AuditEvent, decode, encode
from gateway.audit.syslog import frame, message
from gateway.cli.audit_source import who
from gateway.cli.main import main
from tests.audit.test_rsyslog import write_certificate

BEGAN_MS = 1_767_225_600_000
HOUR_MS = 3_600_000


@pytest.fixture
def audit(written, tmp_path, capsys):
    from cryptography.hazmat.primitives import serialization

    (tmp_path / "audit").mkdir(exist_ok=True)
    (tmp_path / "audit" / "checkpoint.pub").write_bytes((tmp_path / "audit.pub").read_bytes())
    pem = written.key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    key = tmp_path / "audit" / "checkpoint.key"
    key.touch(0o600)
    key.write_bytes(pem)

    def audit(*arguments):
        source = () if arguments[0] == "check" else ("--dsn", written.dsn)
        status = main(["audit", *arguments, *source, "--data-dir", str(tmp_path)])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return audit


class TestExport:
    def test_fhir(self, audit, tmp_path):
        out = tmp_path / "out.ndjson"
        assert audit("export", "--format", "fhir", "--out", str(out)) == (0, "95 events\n")
        resources = [json.loads(line) for line in out.read_text().splitlines()]
        assert len({one["id"] for one in resources}) == 95
        assert [one["recorded"] for one in resources] == sorted(one["recorded"] for one in resources)
        for one in resources[:5]:
            FhirAuditEvent.model_validate(one)
        assert (
            audit("check", str(out)) == (0, "95 events, fhir, made by root: as it was signed\n") or "as it was signed"
        )

    def test_a_span(self, audit, tmp_path):
        out = tmp_path / "out.ndjson"
        span = ("--from", "2026-01-01T00:00:10Z", "--to", "2026-01-01T00:00:20Z")
        assert audit("export", "--format", "fhir", "--out", str(out), *span)[0] == 0
        times = [json.loads(line)["recorded"] for line in out.read_text().splitlines()]
        assert times
        assert all("T00:00:10" <= time[10:19] < "T00:00:20" for time in times)

    @pytest.mark.parametrize("what", ["file", "manifest", "signed by another", "no manifest"])
    def test_a_change_is_found(self, audit, tmp_path, what):
        out = tmp_path / "out.ndjson"
        audit("export", "--format", "fhir", "--out", str(out))
        manifest = tmp_path / "out.ndjson.manifest.json"
        if what == "file":
            out.write_bytes(out.read_bytes().replace(b"r-7", b"r-8"))
        elif what == "manifest":
            manifest.write_bytes(manifest.read_bytes().replace(b":95,", b":94,"))
        elif what == "no manifest":
            manifest.write_bytes(b"{}")
        else:
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

            from gateway.audit.manifest import Manifest, seal

            about = json.loads(json.loads(manifest.read_bytes())["manifest"])
            manifest.write_bytes(seal(Manifest(**about), Ed25519PrivateKey.generate()))
        assert audit("check", str(out))[0] == 1

    def test_csv(self, audit, tmp_path):
        out = tmp_path / "out.csv"
        assert audit("export", "--format", "csv", "--out", str(out))[0] == 0
        rows = list(csv.reader(io.StringIO(out.read_bytes().decode(), newline="")))
        assert (rows[0], len(rows)) == (list(EVENT_COLUMNS), 96)
        assert {row[EVENT_COLUMNS.index("patient")] for row in rows[1:]} == {f"pat\t\\{n}" for n in range(5)}
        assert audit("check", str(out))[0] == 0

    def test_a_record_that_is_no_event_hides_no_other(self, written, audit, tmp_path):
        with psycopg.connect(written.dsn, autocommit=True) as owner:
            owner.execute("UPDATE audit.event SET canonical = '7' WHERE sequence = 5")
        out = tmp_path / "out.ndjson"
        assert audit("export", "--format", "fhir", "--out", str(out)) == (0, "95 events\n")
        resources = [json.loads(line) for line in out.read_text().splitlines()]
        bad = [FhirAuditEvent.model_validate(one) for one in resources if one["subtype"][0]["code"] == "unreadable"]
        assert [(one.id[-2:], one.outcome) for one in bad] == [("-5", "8"), ("-5", "8")]

    def test_exporting_is_an_event(self, audit, tmp_path):
        audit("export", "--format", "csv", "--out", str(tmp_path / "out.csv"))
        spooled = b"".join(path.read_bytes() for path in (tmp_path / "audit").glob("*/*") if path.is_file())
        assert b'"kind":"audit.exported"' in spooled
        assert b'"format":"csv","found":"95"' in spooled

    def test_what_the_trail_cannot_be_told_does_not_leave_it(self, audit, tmp_path, monkeypatch):
        from gateway.audit import spool

        def full(root, segment_bytes, max_bytes):
            raise spool.SpoolFull("no room")

        monkeypatch.setattr(spool, "open_spool", full)
        for kind in ("csv", "trail"):
            status, out = audit("export", "--format", kind, "--out", str(tmp_path / "out"))
            assert (status, "it is not done" in out, (tmp_path / "out").exists()) == (2, True, False)


@pytest.mark.parametrize(
    ("resource_id", "shown"), [("p.1", "anna"), ("o-1", "o-1"), ("", "")], ids=["the patient", "another", "none"]
)
def test_a_patient_is_shown_also_as_the_resource(resource_id, shown):
    values = {"v": 1, "kind": "access", "phase": "outcome", "at_ms": BEGAN_MS, "duration_us": 1, "request_id": "r",
              "outcome": "allowed", "rule": "", "status": 200}  # fmt: skip
    cells = event_values(AuditEvent(patient="p.1", resource_id=resource_id, **values), "a" * 16, 1, "anna")
    found = dict(zip(EVENT_COLUMNS, cells, strict=True))
    assert (found["patient"], found["resource_id"]) == ("anna", shown)


CELLS = {
    "=1+1": "'=1+1", "+49": "+49", "+cmd|' /C calc'!A0": "'+cmd|' /C calc'!A0", "-7": "-7", "-7+1": "'-7+1",
    "@SUM(A1)": "'@SUM(A1)", "\t=1": "'\t=1", "  =1": "'  =1", "\r\n=1": "'\r\n=1", "'=1": "''=1", '"=1': "'\"=1",
    "\uff1d1": "'\uff1d1", "\ufeff=1": "'\ufeff=1", "\u3000=1": "'\u3000=1",
    "\u200b @x": "'\u200b @x", "\u2028\u00a0-x": "'\u2028\u00a0-x", "pat-0001": "pat-0001", "": "",
    "2026-01-01": "2026-01-01",
}  # fmt: skip


@pytest.mark.parametrize(("value", "shown"), CELLS.items())
def test_no_cell_is_a_formula(value, shown):
    assert cell(value) == (shown if value != "+49" else "'+49")


MESSAGE = re.compile(
    rb"<(\d{1,3})>1 (\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z) ([!-~]{1,255}) ([!-~]{1,48}) - ([!-~]{1,32}) "
    rb'\[caregate@32473((?: [a-z_]{1,32}="(?:[^"\\\]]|\\.)*")+)\] \xef\xbb\xbf(.*)\Z',
    re.DOTALL,
)


class TestSyslog:
    def event(self, **changes):
        values = {
            "v": 1, "kind": "access", "phase": "outcome", "at_ms": BEGAN_MS + 7, "duration_us": 1, "request_id": "r-1",
            "outcome": "allowed", "rule": "allowed", "status": 200, "node": "gw 1ü", "subject": 'a"b]c\\d', **changes,
        }  # fmt: skip
        return AuditEvent(**values)

    @pytest.mark.parametrize(("outcome", "priority"), [("allowed", 110), ("refused", 108), ("failed", 107)])
    def test_a_message(self, outcome, priority):
        event = self.event(outcome=outcome)
        found = MESSAGE.match(message(event, "a" * 16, 7, encode(event)))
        assert found is not None
        assert (int(found[1]), found[2], found[3], found[4]) == (
            priority, b"2026-01-01T00:00:00.007Z", b"gw_1_", b"caregate",
        )  # fmt: skip
        assert rb'subject="a\"b\]c\\d"' in found[6]
        assert decode(found[7]) == event

    @pytest.mark.parametrize(
        ("to", "ca", "status", "said"),
        [
            ("127.0.0.1:1", "ca.pem", 1, "0 messages"), ("127.0.0.1:0", "ca.pem", 2, "HOST:PORT"),
            ("127.0.0.1:65536", "ca.pem", 2, "HOST:PORT"), ("127.0.0.1", "ca.pem", 2, "HOST:PORT"),
            ("127.0.0.1:1", "nothing.pem", 2, "--ca: no such file"),
        ],
    )  # fmt: skip
    def test_what_is_not_sent_at_once_is_told(self, audit, tmp_path, monkeypatch, to, ca, status, said):
        monkeypatch.setattr("gateway.audit.forwarding._RETRY_S", (0.0,))
        write_certificate(tmp_path)
        found, out = audit("syslog", "--to", to, "--ca", str(tmp_path / ca), "--once")
        assert (found, said in out) == (status, True), out
        spooled = b"".join(path.read_bytes() for path in (tmp_path / "audit").glob("*/*.spool"))
        told = b'"detail":{"by":"%s","format":"syslog","query":"to=127.0.0.1:1"}' % who().encode()
        assert (told in spooled) == (status == 1)

    def test_frames(self):
        for text in (b"x", b"\xc3\xbc" * 700):
            length, _, rest = frame(text).partition(b" ")
            assert (int(length), rest) == (len(text), text)


class TestReports:
    @pytest.fixture
    def events(self, written):
        def store(*events):
            head, chain = genesis("a" * 16), "a" * 16
            with psycopg.connect(written.dsn, autocommit=True) as connection, connection.cursor() as cursor:
                cursor.execute("DELETE FROM audit.event; DELETE FROM audit.checkpoint")
                with cursor.copy(f"COPY audit.event ({', '.join(COLUMNS)}) FROM STDIN") as copy:
                    for n, event in enumerate(sorted(events, key=lambda e: e.at_ms), 1):
                        canonical = encode(event)
                        head = link(head, n, canonical)
                        copy.write(row(chain, n, head, canonical))

        return store

    @pytest.fixture
    def report(self, audit):
        def report(*arguments):
            status, out = audit("report", *arguments, "--format", "json", "--to", "2030-01-01")
            assert status == 0, out
            return json.loads(out)

        return report

    def access(self, hour=12.0, **changes):
        values = {
            "v": 1, "kind": "access", "phase": "outcome", "duration_us": 1, "request_id": "r", "outcome": "allowed",
            "rule": "allowed", "status": 200, "issuer": "i", "subject": "s-1", "role": "nurse", "unit": "u-1",
            "client_address": "192.0.2.1", **changes,
        }  # fmt: skip
        return AuditEvent(at_ms=BEGAN_MS + round(hour * HOUR_MS), **values)

    def test_a_patient_and_a_user(self, events, report):
        events(
            self.access(1, patient="p-1", request_id="a"), self.access(2, patient="p-2", request_id="b", subject="s-2"),
            self.access(3, patient="p-1", request_id="c", outcome="refused", subject="s-2"),
            self.access(3, patient="p-1", request_id="c", phase="intent", outcome="pending"),
        )  # fmt: skip
        assert [one["request"] for one in report("patient", "--patient", "p-1")] == ["a", "c"]
        assert [one["request"] for one in report("user", "--user", "s-2")] == ["b", "c"]
        assert report("patient", "--patient", "p-1", "--from", "2026-01-01T02:00:00Z")[0]["at"].startswith(
            "2026-01-01T03"
        )

    def test_an_access_without_an_outcome_is_one(self, events, report):
        about = {"patient": "p-1", "phase": "intent", "outcome": "pending", "status": 0}
        events(
            *(self.access(n / 10, request_id=f"h-{n}", subject="s-3") for n in range(3)),
            self.access(1, request_id="died", subject="s-3", unit="u-2", **about),
            self.access(1, request_id="died", kind="break-glass.used", subject="s-9", unit=""),
            self.access(2, request_id="lived", subject="s-3", **about),
            self.access(2.01, request_id="lived", subject="s-3", patient="p-1"),
        )
        shown = [(one["request"], one["outcome"]) for one in report("patient", "--patient", "p-1")]
        assert shown == [("died", "pending"), ("lived", "allowed")]
        assert [one["request"] for one in report("user", "--user", "s-3")] == ["h-0", "h-1", "h-2", "died", "lived"]
        assert [one["request"] for one in report("night", "--from-hour", "1", "--to-hour", "2")] == ["died"]
        assert [one["request"] for one in report("unit")] == ["died"]

    def test_another_unit(self, events, report):
        events(
            *(self.access(n, request_id=f"h-{n}") for n in range(5)), self.access(6, unit="u-2", request_id="x"),
            *(self.access(n, subject="s-2", unit="u-2", request_id=f"o-{n}") for n in range(3)),
            self.access(7, subject="s-2", unit="u-1", outcome="refused", request_id="y"),
        )  # fmt: skip
        assert [one["request"] for one in report("unit")] == ["x", "y"]
        assert [one["request"] for one in report("unit", "--unit", "u-1")] == ["y"]

    @pytest.mark.parametrize(
        ("options", "found"),
        [
            ((), ["0", "5", "22", "23"]), (("--timezone", "Europe/Berlin"), ["0", "21", "22", "23"]),
            (("--from-hour", "1", "--to-hour", "3"), []), (("--from-hour", "5", "--to-hour", "13"), ["5", "6", "12"]),
            (("--role", "patient"), []),
        ],
    )  # fmt: skip
    def test_nights(self, events, report, options, found):
        events(*(self.access(hour, request_id=str(hour)) for hour in (0, 5, 6, 12, 21, 22, 23)))
        assert [one["request"] for one in report("night", *options)] == found

    def test_break_glass_that_nobody_reviewed(self, events, report):
        def case(hour, kind, name, **changes):
            return self.access(hour, kind=f"break-glass.{kind}", detail={"case": name}, request_id=name, **changes)

        events(
            case(1, "started", "open"), case(2, "started", "done"), case(3, "reviewed", "done"),
            case(4, "used", "open"), case(5, "reviewed", "other"), case(6, "started", "refused", outcome="refused"),
            case(7, "started", "tried"), case(8, "reviewed", "tried", outcome="refused"),
            case(9, "reviewed", "tried", outcome="pending"),
        )  # fmt: skip
        assert [one["request"] for one in report("break-glass")] == ["open", "tried"]

    def test_denial_bursts(self, events, report):
        def denied(minute, subject, **changes):
            return self.access(
                minute / 60, subject=subject, outcome="refused", rule="role", patient=f"p-{minute}", **changes
            )

        events(
            *(denied(n * 0.4, "fast") for n in range(12)), *(denied(n * 6, "slow") for n in range(30)),
            *(denied(300 + n * 0.1, "", client_address="192.0.2.66") for n in range(15)),
            *(denied(600 + n * 0.2, "fast") for n in range(10)),
            *(self.access(n / 60, subject="good") for n in range(30)),
        )  # fmt: skip
        found = report("denials")
        assert [(one["who"], one["refusals"], one["most_at_once"]) for one in found] == [
            ("address 192.0.2.66", 15, 15), ("i fast", 12, 12), ("i fast", 10, 10),
        ]  # fmt: skip
        assert report("denials", "--most", "13") == [found[0]]

    def test_guesses_at_passwords_are_a_burst_of_their_address(self, events, report):
        events(*(
            self.access(n / 600, kind="login", outcome="refused", rule="login:password") for n in range(11)
        ))  # fmt: skip
        assert [(one["who"], one["refusals"]) for one in report("denials")] == [("address 192.0.2.1", 11)]

    def test_tables_and_csv_are_safe_to_look_at(self, events, audit):
        events(self.access(1, patient="=HYPERLINK(1)", subject="x\x1b[31m\x07"))
        status, out = audit("report", "patient", "--patient", "=HYPERLINK(1)", "--to", "2030-01-01")
        assert (status, "\x1b" in out, out.splitlines()[-1]) == (0, False, "1 rows")
        out = audit("report", "patient", "--patient", "=HYPERLINK(1)", "--to", "2030-01-01", "--format", "csv")[1]
        assert '"\'=HYPERLINK(1)"' in out
        assert audit("report", "night", "--timezone", "Mars/Base")[0] == 2
