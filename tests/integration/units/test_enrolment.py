"""Enrolment, revocation and rotation against four real workers and PostgreSQL, by the commands that people type."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
import threading
import time
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from gateway.agent.enrol import KeyDirectory
from gateway.demo.platform import ROOT
from gateway.relay.frames import GoAway, GoAwayCode
from tests.integration.units.conftest import Link

pytestmark = pytest.mark.integration


def test_a_code_registers_a_key_that_links_at_every_worker(site, tmp_path):
    code = site.operate("unit", "enrol", "site-1", "--expires", "30m").stdout.strip()
    assert site.enrol("site-1", code, tmp_path / "keys").returncode == 0
    keys = KeyDirectory(tmp_path / "keys")
    assert stat.S_IMODE(keys.key.stat().st_mode) == stat.S_IMODE(keys.context.stat().st_mode) == 0o600
    links = [Link(site, "site-1", keys, index) for index in range(4)]
    assert [link.status for link in links] == [101] * 4
    row = {row["unit"]: row for row in json.loads(site.operate("units", "--json").stdout)}["site-1"]
    assert row == {**site.fleet()["site-1"], "last_seen": row["last_seen"], "key_age_s": row["key_age_s"]}
    assert (row["state"], len(row["connections"]), row["agent"]) == ("connected", 4, "test/1")
    assert {c["worker"] for c in row["connections"]} == {link.welcome.worker for link in links}
    assert row["key_age_s"] < 60
    assert 4_000 < row["clock_offset_ms"] < 6_000


def test_a_code_that_is_not_good_gets_one_and_the_same_answer(site, tmp_path):
    used, expired = site.code("site-2"), site.code("site-2")
    assert site.enrol("site-2", used, tmp_path / "first").returncode == 0
    site.sql("UPDATE caregate.unit_code SET issued_at = now() - interval '2 days', expires_at = now() - interval '1 s' "
             "WHERE used_at IS NULL AND unit = 'site-2'")  # fmt: skip
    codes = {"wrong": "ABCDE-ABCDE-ABCDE-ABCDE-ABCDE-A", "another's": site.code("site-3"), "used": used}
    codes["expired"] = expired
    said = {}
    for name, code in codes.items():
        done = site.enrol("site-2", code, tmp_path / name)
        assert done.returncode == 1
        assert not (tmp_path / name / "unit.key").exists()
        said[name] = done.stderr
    assert len(set(said.values())) == 1
    assert "403 The code is not one that enrols this unit now" in said["wrong"]


def test_revoking_a_unit_cuts_its_links_in_every_worker_within_a_second(site, tmp_path, wait):
    keys = site.enrolled("site-4", tmp_path)
    links = wait(lambda: one_at_every_worker(site, "site-4", keys))
    with site.operator() as operator:
        begun_s = time.monotonic()
        assert operator.revoke("site-4", "lost")
        ends = [link.until_closed() for link in links]
    took_s = [end_s - begun_s for _, end_s in ends]
    print(f"cut after {[round(s * 1000) for s in took_s]} ms")
    assert max(took_s) < 1.0
    for frames, _ in ends:
        assert [f.code for f in frames if isinstance(f, GoAway)] == [GoAwayCode.UNIT_DISABLED]
    assert [Link(site, "site-4", keys).status for _ in range(8)] == [403] * 8
    with site.operator() as operator:
        assert operator.enable("site-4", "found again")


def test_revoking_a_key_cuts_the_links_of_that_key_alone(site, tmp_path):
    lost, kept = site.enrolled("site-5", tmp_path / "lost"), site.enrolled("site-5", tmp_path / "kept")
    cut, stays = [Link(site, "site-5", lost, i) for i in range(2)], Link(site, "site-5", kept)
    begun_s = time.monotonic()
    done = site.operate("unit", "revoke", "site-5", "--key", lost.identity("site-5").kid)
    assert done.stdout.splitlines()[-1] == "in force in 4 workers"
    assert {Link(site, "site-5", lost).status for _ in range(12)} == {401}
    assert max(link.until_closed()[1] for link in cut) - begun_s < 3.0  # the command's own start is in it
    assert Link(site, "site-5", lost).status == 401
    assert Link(site, "site-5", kept, 1).status == 101
    assert stays.welcome.conn in {c["conn"] for c in site.fleet()["site-5"]["connections"]}


def test_a_key_is_replaced_by_one_that_it_vouches_for(site, tmp_path):
    keys = site.enrolled("site-6", tmp_path)
    old, old_pem = keys.identity("site-6"), keys.key.read_bytes()
    done = site.caregate(
        "agent", "rotate", "--gateway", site.gateway_url, "--unit", "site-6", "--key-dir", str(tmp_path)
    )
    assert done.returncode == 0, done.stderr
    assert keys.identity("site-6").kid != old.kid
    assert not keys.next_key.exists()
    assert Link(site, "site-6", keys).status == 101
    (tmp_path / "old").mkdir()
    before = KeyDirectory(tmp_path / "old")
    before.key.write_bytes(old_pem)
    before.path.joinpath("enrolled.json").write_text('{"unit": "site-6"}')
    assert Link(site, "site-6", before, 1).status == 101, "both are good during the overlap"
    site.sql(f"UPDATE caregate.unit_key SET retires_at = now() WHERE kid = '{old.kid}'")
    time.sleep(0.3)
    assert Link(site, "site-6", before, 2).status == 401
    assert Link(site, "site-6", keys, 2).status == 101
    timeline = [e["kind"] for e in json.loads(site.operate("units", "site-6", "--json").stdout)["timeline"]]
    assert [kind for kind in timeline if kind not in ("up", "down")] == ["key-rotated", "enrolled", "code-issued"]


def test_why_and_last_seen_survive_a_restart(site, tmp_path, wait):
    keys = site.enrolled("site-7", tmp_path / "keys")
    for lost in (1, 2):
        link = Link(site, "site-7", keys)
        link.send(GoAway(0, why="night shift"))
        link.sock.close()
        wait(lambda lost=lost: site.fleet()["site-7"]["flaps"] == lost)
    wait(lambda: site.fleet()["site-7"]["why"] == "unit: night shift")
    assert site.fleet()["site-7"]["state"] == "disconnected"
    before = site.ask("site-7")
    assert (before["code"], before["why"]) == ("unit-not-connected", "unit-left")
    shut_out = site.enrolled("site-4", tmp_path / "revoked")
    site.operate("unit", "revoke", "site-4", "--reason", "stolen")
    site.restart()
    assert site.ask("site-7") == before
    assert Link(site, "site-4", shut_out).status == 403
    site.operate("unit", "enable", "site-4")
    assert Link(site, "site-4", shut_out).status == 101
    shown = site.operate("units", "site-7").stdout
    assert "night shift" in shown
    assert shown.count("test/1") == 2


def test_a_killed_gateway_leaves_when_its_units_were_seen(site, tmp_path, wait):
    keys = site.enrolled("site-8", tmp_path)
    begun_s = time.time()
    link = Link(site, "site-8", keys)
    wait(lambda: site.sql("SELECT why FROM caregate.unit_presence WHERE unit = 'site-8'") == [("",)])
    site.kill_workers()
    assert link.until_closed()[0] == []
    site._start_workers()
    said = site.ask("site-8")
    assert said["why"] == "gateway-restarted"
    assert begun_s - 2 < datetime.fromisoformat(said["last_seen"]).timestamp() < time.time()


def test_without_the_database_the_last_known_keys_go_on(site, tmp_path, wait):
    keys = site.enrolled("site-1", tmp_path / "good")
    gone = site.enrolled("site-2", tmp_path / "gone")
    site.operate("unit", "revoke", "site-2", "--key", gone.identity("site-2").kid)
    copy = site.directory / "units-last-known.json"
    wait(lambda: copy.exists() and keys.identity("site-1").kid in copy.read_text())
    assert stat.S_IMODE(copy.stat().st_mode) == 0o600
    wait(lambda: '"revoked":true' in copy.read_text().partition(gone.identity("site-2").kid)[2][:400])
    site._postgres.stop()
    try:
        assert [Link(site, unit, k).status for unit, k in (("site-1", keys), ("site-2", gone))] == [101, 401]
        site.stop_workers()
        site._start_workers()
        assert [Link(site, unit, k).status for unit, k in (("site-1", keys), ("site-2", gone))] == [101, 401]
    finally:
        site._postgres.start()
    late = site.enrolled("site-3", tmp_path / "late")
    wait(lambda: Link(site, "site-3", late).status == 101)


def one_at_every_worker(site, unit, keys):
    """None while not all workers are back, and back at a database that was away."""
    links = [Link(site, unit, keys, index) for index in range(4)]
    if all(link.status == 101 for link in links) and len({link.welcome.worker for link in links}) == 4:
        return links
    for link in links:
        link.sock.close()
    return None


def test_a_lost_notification_is_healed_by_looking(site, tmp_path, wait):
    keys = site.enrolled("site-5", tmp_path)
    links = wait(lambda: one_at_every_worker(site, "site-5", keys))
    kid = keys.identity("site-5").kid
    # As a change whose notification got lost: the trigger that sends it is off.
    site.sql("CREATE OR REPLACE FUNCTION caregate.silent() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN UPDATE "
             "caregate.unit_revision SET number = number + 1 RETURNING number INTO NEW.revision; RETURN NEW; END $$; "
             "ALTER TABLE caregate.unit_key DISABLE TRIGGER revision; CREATE TRIGGER silent BEFORE UPDATE ON "
             "caregate.unit_key FOR EACH ROW EXECUTE FUNCTION caregate.silent()")  # fmt: skip
    try:
        begun_s = time.monotonic()
        site.sql(f"UPDATE caregate.unit_key SET revoked_at = now() WHERE kid = '{kid}'")
        ends = [link.until_closed() for link in links]
    finally:
        site.sql("DROP TRIGGER silent ON caregate.unit_key; ALTER TABLE caregate.unit_key ENABLE TRIGGER revision")
    took_s = [end_s - begun_s for _, end_s in ends]
    print(f"healed after {[round(s, 2) for s in took_s]} s")
    assert max(took_s) < 3.0, "a look is due every two seconds"
    for frames, _ in ends:
        assert [f.code for f in frames if isinstance(f, GoAway)] == [GoAwayCode.UNIT_DISABLED]


def test_a_real_agent_runs_on_what_enrolment_left(site, tmp_path, wait):
    site.enrolled("site-3", tmp_path)
    service = HTTPServer(("127.0.0.1", 0), Echo)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    agent = subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", "agent", "--gateway", site.gateway_url, "--unit", "site-3",
         "--key", str(tmp_path / "unit.key"), "--context-key", str(tmp_path / "context.key"),
         "--target", f"http://127.0.0.1:{service.server_port}"],
        cwd=ROOT, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait(lambda: site.call("site-3")[0] == 200, 10)
        status, body = site.call("site-3")
        assert (status, body.count(b".")) == (200, 2)
        row = wait(lambda: (r := site.fleet()["site-3"])["rtt_ms"] is not None and r)
        assert abs(row["clock_offset_ms"]) < 500
        assert row["agent"].startswith("caregate-agent/")
    finally:
        agent.terminate()
        agent.wait(10)
        service.shutdown()


class Echo(BaseHTTPRequestHandler):
    """Says what context it was called with; the agent has checked it."""

    def do_GET(self):
        body = self.headers.get("x-caregate-context", "").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass
