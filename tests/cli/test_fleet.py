"""One row a unit: workers joined with the database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from gateway.cli.fleet import HEADINGS, age, cells, table
from gateway.cli.main import main
from gateway.store.unit_operator import RegisteredKey, UnitRecord
from gateway.units.fleet import fleet

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
AN_HOUR_AGO = NOW - timedelta(hours=1)


def connection(unit="north", conn="c1", rtt_ms=2.0, offset_ms=-300.0, kid="k1"):
    return {"unit": unit, "conn": conn, "streams": 2, "rtt_ms": rtt_ms, "clock_offset_ms": offset_ms,
            "agent": "caregate-agent/0.1", "kid": kid}  # fmt: skip


def record(unit="north", seen_at=AN_HOUR_AGO, why="silent", revoked_at=None, reason=""):
    return UnitRecord(unit, seen_at, why, 3, revoked_at, reason)


KEY = RegisteredKey("k1", "north", "EdDSA", NOW - timedelta(days=31), None, None, None)
STATES = [
    ("connected", {"north": True}, [connection()], [record()], "connected"),
    ("disconnected", {"north": True}, [], [record()], "disconnected"),
    ("never", {"north": True}, [], [], "never-connected"),
    ("revoked", {"north": True}, [], [record(revoked_at=NOW, reason="stolen")], "revoked"),
    ("disabled", {"north": False}, [], [record()], "disabled"),
    ("only-in-the-database", {}, [], [record()], "disconnected"),
]


@pytest.mark.parametrize(("known", "held", "records", "state"), [c[1:] for c in STATES], ids=[c[0] for c in STATES])
def test_states(known, held, records, state):
    assert [row.state for row in fleet([{"pid": 1, "known": known, "connections": held}], records, [], NOW)] == [state]


NOT_ASKED = [
    ("no database", True, None, "disconnected"),
    ("no worker", False, [record()], "unknown"),
    ("no worker, never seen", False, [record(seen_at=None)], "unknown"),
    ("no worker, revoked", False, [record(revoked_at=NOW)], "revoked"),
]


@pytest.mark.parametrize(("asked", "records", "state"), [c[1:] for c in NOT_ASKED], ids=[c[0] for c in NOT_ASKED])
def test_what_nobody_could_say_is_not_said(asked, records, state):
    workers = [{"pid": 1, "known": {"north": True}, "connections": []}] if asked else []
    assert [row.state for row in fleet(workers, records, [], NOW, asked=asked)] == [state]


def test_the_connections_of_all_workers_are_one_row():
    workers = [
        {"pid": 1, "known": {"north": True}, "connections": [connection()]},
        {"pid": 2, "known": {"north": True}, "connections": [connection(conn="c2", rtt_ms=5.0, offset_ms=None)]},
    ]
    (row,) = fleet(workers, [record()], [KEY], NOW)
    assert (row.streams, row.rtt_ms, row.clock_offset_ms, row.flaps, row.why) == (4, 5.0, -300.0, 3, "")
    assert [c["worker"] for c in row.connections] == [1, 2]
    assert dict(zip(HEADINGS, cells(row), strict=True)) == {
        "UNIT": "north", "STATE": "connected", "LINKS": "2", "RTT": "5.0ms", "STREAMS": "4", "AGENT": "0.1",
        "CLOCK": "-0.3s", "KEY AGE": "31d", "LAST SEEN": "2026-03-01T12:00:00Z", "FLAPS": "3", "WHY": "-",
    }  # fmt: skip


def test_a_unit_that_is_away_says_why():
    (row,) = fleet([], [record()], [], NOW)
    assert cells(row)[-3:] == ("2026-03-01T11:00:00Z", "3", "silent")


@pytest.mark.parametrize(("seconds", "text"), [(40, "40s"), (119, "119s"), (120, "2m"), (7200, "2h"), (2.7e6, "31d")])
def test_age(seconds, text):
    assert age(seconds) == text


def test_table_is_aligned():
    assert table([("A", "B"), ("long", "x")]) == ["A     B", "long  x"]


BAD = [
    ["unit", "enrol", "North"],
    ["unit", "enrol", "north", "--expires", "0h"],
    ["unit", "enrol", "north", "--expires", "30d"],
    ["unit", "revoke", "north", "--reason", "x" * 501],
    ["unit"],
]


@pytest.mark.parametrize("arguments", BAD, ids=" ".join)
def test_bad_arguments(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_without_a_database_the_command_says_what_to_give(tmp_path, capsys):
    assert main(["unit", "revoke", "north", "--data-dir", str(tmp_path)]) == 2
    assert "give --dsn" in capsys.readouterr().err
