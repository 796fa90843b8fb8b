"""Secrets that a command prints: what it may be, how long and how much, and what is said when it fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from gateway.admin import versions
from gateway.config.secret import Secrets, SecretUnavailable

FILE = {"PATH": "/usr/bin:/bin"}
DATABASE = {**FILE, "CAREGATE_CONFIG_SOURCE": "database"}


@pytest.fixture
def program(tmp_path):
    def program(text, mode=0o755, name="program"):
        path = tmp_path / name
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(mode)
        return str(path)

    return program


def resolve(reference, environ=FILE):
    return Secrets(Path("/nowhere"), environ).resolve(reference, private=True)


def refused(reference, environ=FILE):
    with pytest.raises(SecretUnavailable) as caught:
        resolve(reference, environ)
    return str(caught.value)


def test_what_it_prints_is_the_secret(program):
    path = program('printf "%s-%s\\n" "$1" "$2"')
    assert resolve(f'exec:["{path}", "a b", "$(id)"]') == b"a b-$(id)", "arguments as they are, no shell"


def test_it_runs_once(program, tmp_path):
    path = program(f"echo x >> {tmp_path}/runs; echo secret")
    secrets = Secrets(tmp_path, FILE)
    assert {secrets.resolve(f'exec:["{path}"]', private=private) for private in (True, False)} == {b"secret"}
    assert (tmp_path / "runs").read_text().count("x") <= 2


def test_it_does_not_see_the_other_secrets(program):
    path = program('echo "${CAREGATE_SECRET_X-none}${HOME-}${KEPT}"')
    assert resolve(f'exec:["{path}"]', {**FILE, "CAREGATE_SECRET_X": "hidden", "KEPT": "kept"}) == b"nonekept"


@pytest.mark.parametrize(
    ("text", "environ", "said"),
    [
        ("sleep 20", {"CAREGATE_EXEC_TIMEOUT_MS": "200"}, "did not end in time"),
        ("echo x; exec >&-; sleep 20", {"CAREGATE_EXEC_TIMEOUT_MS": "200"}, "did not end in time"),
        ("(sleep 20; echo x) & echo y", {"CAREGATE_EXEC_TIMEOUT_MS": "200"}, "did not end in time"),
        ("yes", {}, "more than 65536 bytes"),
        ("echo leaked-secret; exit 3", {}, "ended with 3"),
        ("echo leaked-secret; kill -9 $$", {}, "ended with -9"),
        ("true", {}, "is empty"),
        ("echo x", {"CAREGATE_EXEC_TIMEOUT_MS": "soon"}, "is not a number of milliseconds"),
    ],
    ids=["slow", "closed-and-slow", "a-child-stays", "endless", "fails", "killed", "nothing", "setting"],
)
def test_it_fails(program, text, environ, said):
    begun_s, before = time.monotonic(), children()
    message = refused(f'exec:["{program(text)}"]', {**FILE, **environ})
    assert said in message
    assert "leaked-secret" not in message
    assert time.monotonic() - begun_s < 5
    assert children() <= before, "what was started is gone, and reaped"


def children():
    return {pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()}


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("exec:[]", "is not a command"),
        ('exec:["/bin/echo", 7]', "is not a command"),
        ("exec:[/bin/echo]", "is not a command"),
        ('exec:["echo", "x"]', "absolute path"),
        ('exec:["./echo", "x"]', "absolute path"),
        ('exec:["/bin/echo", "a\\u0000b"]', "absolute path"),
        ('exec:["/nowhere/at/all"]', "no such file"),
        ('exec:["/bin"]', "is not a program"),
    ],
)
def test_it_cannot_be_run(reference, said):
    assert said in refused(reference)


def test_a_program_that_others_may_write_is_not_run(program):
    assert "only its owner may write" in refused(f'exec:["{program("echo x", 0o777)}"]')
    assert "permission denied" in refused(f'exec:["{program("echo x", 0o600)}"]') or os.geteuid() == 0


def test_a_document_in_the_database_runs_only_what_is_named(program):
    path = program("echo x")
    assert "CAREGATE_EXEC_COMMANDS does not name" in refused(f'exec:["{path}"]', DATABASE)
    named = {**DATABASE, "CAREGATE_EXEC_COMMANDS": f"/usr/bin/other:{path}"}
    assert resolve(f'exec:["{path}"]', named) == b"x"
    assert "does not name" in refused('exec:["/bin/echo", "x"]', named)
    assert "does not name" in refused('exec:["/bin/echo", "x"]', {**FILE, "CAREGATE_EXEC_COMMANDS": path})


def test_a_document_that_was_sent_to_be_checked_runs_only_what_is_named(program, tmp_path):
    """It runs as the gateway, whoever sent it and wherever the document in force is."""
    path = program(f"touch {tmp_path}/ran; echo x")
    secrets = Secrets(tmp_path, FILE, sent=True)
    with pytest.raises(SecretUnavailable, match="CAREGATE_EXEC_COMMANDS does not name"):
        secrets.resolve(f'exec:["{path}"]', private=True)
    assert not (tmp_path / "ran").exists()
    named = Secrets(tmp_path, {**FILE, "CAREGATE_EXEC_COMMANDS": path}, sent=True)
    assert named.resolve(f'exec:["{path}"]', private=True) == b"x"


def test_the_admin_api_checks_a_document_as_one_that_was_sent(program, tmp_path):
    reference = json.dumps(f'exec:["{program(f"touch {tmp_path}/ran; echo x")}"]')
    document = f"""
version: 1
audiences: {{a: {{issuer: "https://id.test"}}}}
roles: {{r: {{audience: a, keys: [{{kid: k, alg: HS256, secret: {reference}}}]}}}}
controllers: {{}}
"""
    desk = SimpleNamespace(settings=SimpleNamespace(config_path=tmp_path / "caregate.yaml"))
    call = SimpleNamespace(body=SimpleNamespace(document=document))
    answer = versions.check(desk, call).answer
    assert [fault.path for fault in answer.faults if "CAREGATE_EXEC_COMMANDS" in fault.detail]
    assert not (tmp_path / "ran").exists()


def test_in_a_thread_of_a_patched_process(program):
    """As a worker reloads: gevent's own way of starting a process knows the main thread alone."""
    code = f"""
from gevent import monkey; monkey.patch_all()
import gevent
from pathlib import Path
from gateway.config.secret import Secrets
secrets = Secrets(Path("/nowhere"), {FILE!r})
print(gevent.get_hub().threadpool.apply(secrets.resolve, ('exec:["{program("echo x")}"]',), {{"private": True}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "b'x'\n", done.stderr


def test_in_a_thread_of_gevents_pool(program):
    import gevent

    path = program("sleep 0.2; echo x")
    ticks = []
    ticker = gevent.spawn(lambda: [(ticks.append(1), gevent.sleep(0.01)) for _ in range(1_000)])
    assert gevent.get_hub().threadpool.apply(resolve, (f'exec:["{path}"]',)) == b"x"
    ticker.kill()
    assert len(ticks) > 3, "the hub went on meanwhile"
    assert sys.version_info >= (3, 11)
