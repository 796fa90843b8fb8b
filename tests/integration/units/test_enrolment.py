"""Enrolment, revocation and rotation against four real workers and PostgreSQL, by the commands that people type."""

from __future__ import annotations

import stat
import time

import pytest

from gateway.relay.frames import GoAway, GoAwayCode
from tests.integration.units.conftest import Link

pytestmark = pytest.mark.integration


def test_a_code_registers_a_key_that_links_at_every_worker(site, tmp_path):
    keys = site.enrolled("site-1", tmp_path / "keys")
    assert stat.S_IMODE(keys.key.stat().st_mode) == stat.S_IMODE(keys.context.stat().st_mode) == 0o600
    links = [Link(site, "site-1", keys, index) for index in range(4)]
    assert [link.status for link in links] == [101] * 4
    row = site.fleet()["site-1"]
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


def test_revoking_a_unit_cuts_its_links_in_every_worker_within_a_second(site, tmp_path):
    keys = site.enrolled("site-4", tmp_path)
    links = [Link(site, "site-4", keys, index) for index in range(4)]
    assert len({link.welcome.worker for link in links}) == 4
    with site.operator() as operator:
        begun_s = time.monotonic()
        assert operator.revoke("site-4", "stolen")
        ends = [link.until_closed() for link in links]
    took_s = [end_s - begun_s for _, end_s in ends]
    print(f"cut after {[round(s * 1000) for s in took_s]} ms")
    assert max(took_s) < 1.0
    for frames, _ in ends:
        assert [f.code for f in frames if isinstance(f, GoAway)] == [GoAwayCode.UNIT_DISABLED]
    assert [Link(site, "site-4", keys).status for _ in range(8)] == [403] * 8
    site.restart()
    assert Link(site, "site-4", keys).status == 403
    site.operate("unit", "enable", "site-4")
    assert Link(site, "site-4", keys).status == 101


def test_revoking_a_key_cuts_the_links_of_that_key_alone(site, tmp_path):
    lost, kept = site.enrolled("site-5", tmp_path / "lost"), site.enrolled("site-5", tmp_path / "kept")
    cut, stays = [Link(site, "site-5", lost, i) for i in range(2)], Link(site, "site-5", kept)
    begun_s = time.monotonic()
    site.operate("unit", "revoke", "site-5", "--key", lost.identity("site-5").kid)
    assert max(link.until_closed()[1] for link in cut) - begun_s < 3.0  # the command's own start is in it
    assert Link(site, "site-5", lost).status == 401
    assert Link(site, "site-5", kept, 1).status == 101
    assert stays.welcome.conn in {c["conn"] for c in site.fleet()["site-5"]["connections"]}
