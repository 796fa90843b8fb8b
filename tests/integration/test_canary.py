"""Planted names, ids, tokens and bodies travel through every route, error and crash of a platform: no sink holds one.

What a caller sends is in the units' own data and in the portal's afterwards; neither is a sink of the gateway.
"""

from __future__ import annotations

import re
import secrets
import subprocess
import sys
import threading
import time

import psycopg
import pytest
from psycopg.rows import dict_row

from gateway.canary.marks import make_marks
from gateway.canary.probes import probes, send
from gateway.canary.sinks import look, look_in_files, look_in_rows, look_in_spool
from gateway.demo import story

pytestmark = pytest.mark.integration

UNIT_IDS = {"unit": story.HOSPITAL, "path": "Patient/{mark}"}


def paths(platform) -> list[str]:
    """A path of every controller of the configuration, marks where a caller chooses."""
    text = (platform.directory / "caregate.yaml").read_text()
    templates = sorted(set(re.findall(r"^ +path: (/\S*)$", text, re.M)))
    assert len(templates) > 10
    return [
        re.sub(r"\{(\w+)(:path)?\}", lambda found: UNIT_IDS.get(found[1], "{mark}"), template) for template in templates
    ]


def sinks(platform, marks, begun_s):
    """Everything that the platform writes but what is PostgreSQL's own and the units' own records."""
    directory = platform.directory
    own = {"postgres", "audit", "units", "agents"}
    yield from look_in_spool(directory / "audit", marks)
    yield from look_in_files([one for one in directory.iterdir() if one.name not in own], marks)
    yield from look_in_files((directory / "agents").rglob("*.log"), marks)
    with psycopg.connect(platform._postgres.admin_dsn, row_factory=dict_row) as admin:
        rows = admin.execute("SELECT * FROM audit.event WHERE occurred_at > to_timestamp(%s)", (begun_s,))
        yield from look_in_rows("audit.event", rows, marks)
        tables = admin.execute(
            "SELECT format('%I.%I', schemaname, tablename) AS name FROM pg_tables WHERE schemaname = 'caregate'"
        ).fetchall()
        for table in tables:
            rows = admin.execute(f"SELECT * FROM {table['name']}")
            yield from look_in_rows(table["name"], rows, marks)


@pytest.mark.parametrize("who", ["PATIENT", "PRACTITIONER", "PARTNER"])
def test_no_sink_holds_what_is_personal(platform, call, worker_pids, kill, wait, who):
    marks = make_marks(secrets.token_hex)
    begun_s = time.time() - 1
    base = f"http://127.0.0.1:{platform.ports.gateway}"
    sent = list(probes(marks, paths(platform), platform.tokens[who]))
    heard = [send(base, probe) for probe in sent]
    statuses = {one.status for one in heard}
    assert statuses >= {200, 400, 401, 404}, statuses
    # And while a worker dies over them.
    racing = [threading.Thread(target=send, args=(base, probe)) for probe in sent[-12:]]
    for thread in racing:
        thread.start()
    kill(worker_pids()[0])
    for thread in racing:
        thread.join()
    last = wait(lambda: asked(call), 20)
    wait(lambda: event_of(platform, last), 20)
    log = platform.directory / "logs" / "gateway.log"
    wait(lambda: last.encode() in log.read_bytes(), 10)
    for one in heard:
        allowed = one.probe.echoes if 200 <= one.status < 300 else frozenset()
        found = {kind for leak in look(one.probe.title, one.data, marks) for kind in leak.kinds}
        assert found <= allowed, f"the answer {one.status} to {one.probe.title}"
    for path in ("/metrics", "/status", "/readyz"):
        assert not list(look(path, str(call.ops(path)).encode(), marks))
    assert not list(sinks(platform, marks, begun_s))


def asked(call) -> str:
    """The id of a request that was answered; "" for one that went to the killed worker."""
    try:
        answer = call("GET", f"/portal/v1/patients/{story.OWN}/appointments", "PATIENT")
    except OSError:
        return ""
    return answer.headers["X-Request-Id"] or ""


def event_of(platform, request_id: str) -> bool:
    with psycopg.connect(platform._postgres.admin_dsn) as admin:
        return bool(admin.execute("SELECT 1 FROM audit.event WHERE request_id = %s", (request_id,)).fetchall())


def test_the_command_looks_everywhere(platform, tmp_path):
    token = tmp_path / "token"
    token.write_text(platform.tokens["PATIENT"])
    argv = [
        sys.executable, "-m", "gateway.cli.main", "canary", "--gateway", f"http://127.0.0.1:{platform.ports.gateway}",
        "--token", str(token), "--path", "/portal/v1/patients/{mark}/appointments", "--path", "/portal/v1/me",
        "--metrics", f"http://127.0.0.1:{platform.ports.ops}", "--log", str(platform.directory / "logs"),
        "--data-dir", str(platform.directory),
    ]  # fmt: skip
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env=platform._env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("clean") == 9, done.stdout
    gone = subprocess.run(
        [*argv, "--log", str(tmp_path / "nothing")], capture_output=True, text=True, check=False, env=platform._env
    )
    assert gone.returncode == 2
    assert "cannot be looked at" in gone.stdout
