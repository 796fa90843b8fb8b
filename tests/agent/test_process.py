"""The command: bad arguments, signals, and what it costs to run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from gevent.subprocess import Popen

from gateway.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
MAX_RESIDENT_KB = 40_000
NOT_THE_AGENTS = {"falcon", "gunicorn", "psycopg", "msgspec", "yaml", "structlog", "jwt", "prometheus_client"}


@pytest.fixture
def command(rig, key_file):
    return [
        "agent",
        "--gateway",
        f"ws://127.0.0.1:{rig.gateway.port}",
        "--unit",
        "linden-clinic",
        "--key",
        str(key_file),
        "--target",
        f"http://127.0.0.1:{rig.service.port}",
        "--connections",
        "1",
    ]


@pytest.fixture
def running(rig, command):
    process = Popen(
        [sys.executable, "-m", "gateway.cli.main", *command],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    yield process
    if process.poll() is None:
        process.kill()
        process.wait()


def test_bad_argument_is_status_2_and_one_line(command, capsys):
    assert main([*command, "--unit", "NO"]) == 2
    assert capsys.readouterr().err.startswith("caregate agent: --unit ")


def test_sigterm_ends_it_with_0_and_every_line_is_json(rig, read, running):
    rig.service.handler = lambda number, sock: (
        read(sock),
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
    )
    peer = rig.gateway.accept(15)
    assert peer.answer(peer.request())[1] == b"hi"
    running.send_signal(signal.SIGTERM)
    with gevent.Timeout(10):
        output, errors = running.communicate()
    assert running.returncode == 0
    assert output == b""
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    assert events[0] == "warning"
    assert events[1] == "started"
    assert events[-1] == "stopped"


def test_second_signal_does_not_wait(rig, read, running):
    got = gevent.event.Event()
    rig.service.handler = lambda number, sock: (read(sock), got.set(), gevent.sleep(20))
    peer = rig.gateway.accept(15)
    peer.request()
    assert got.wait(5)
    running.send_signal(signal.SIGINT)
    rig.wait_for(lambda: peer.session.state.value == "draining")
    assert running.poll() is None
    running.send_signal(signal.SIGTERM)
    with gevent.Timeout(10):
        running.wait()
    assert running.returncode == 0


def test_resident_set(rig, read, running):
    rig.service.handler = lambda number, sock: (
        read(sock),
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"),
    )
    peer = rig.gateway.accept(15)
    for _ in range(20):
        peer.answer(peer.request())
    status = Path(f"/proc/{running.pid}/status").read_text()
    assert int(status.split("VmRSS:")[1].split()[0]) <= MAX_RESIDENT_KB


def test_imports_only_the_base_distribution():
    code = (
        "import gateway.cli.agent, gateway.agent.process, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    )
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, check=True)
    assert not NOT_THE_AGENTS & set(done.stdout.decode().split())
