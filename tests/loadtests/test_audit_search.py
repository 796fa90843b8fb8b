"""The load run of searches, small: it fills, asks and reports."""

import sys

import psycopg

from loadtests import audit_verify
from loadtests.audit_search import fill, measure, report


def test_a_small_run(postgres, capsys):
    try:
        fill(postgres.admin_dsn, 3000, tell=False)
        with psycopg.connect(postgres.admin_dsn) as connection:
            names = {
                name for (name,) in connection.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'event'")
            }
        assert {"event_patient", "event_time", "event_request"} <= names, "they are there again"
        times = measure(postgres.reader_dsn, rounds=1)
    finally:
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as connection:
            connection.execute("DELETE FROM audit.event")
    assert len(times) > 20
    assert report({name: [20.0] for name in times}, 3000, 0.0, 0) == 0
    out = capsys.readouterr().out
    assert "patient, all time" in out
    assert out.splitlines()[-1].startswith('RESULT {"events":3000,')
    assert report({"slow": [500.0]}, 1, 0.0, 0) == 1


def test_a_small_verification(capsys, tmp_path, server_folder, monkeypatch):
    folder = server_folder / "verify"
    monkeypatch.setattr(sys, "argv", ["audit_verify", "--events", "2000", "--rounds", "1", "--directory", str(folder)])
    assert audit_verify.main() == 0
    out = capsys.readouterr().out.splitlines()
    assert out[-2].endswith("record 250: changed: subject differ from the canonical bytes")
    assert out[-1].startswith('RESULT {"events":2000,')
