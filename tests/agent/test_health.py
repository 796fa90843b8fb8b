"""The health file, sd_notify, and the unit file that uses both."""

from __future__ import annotations

import configparser
import os
import shutil
import socket
import subprocess

import gevent
import orjson
import pytest

from gateway.agent.health import Health, HealthState
from gateway.agent.notify import Notifier
from gateway.cli.main import main


@pytest.fixture
def manager(tmp_path):
    """A service manager's socket: what it was told so far."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind(str(tmp_path / "notify"))
        sock.setblocking(False)

        def told():
            found = []
            while True:
                try:
                    found += sock.recv(4096).decode().split("\n")
                except BlockingIOError:
                    return found

        told.address = str(tmp_path / "notify")
        yield told


def read(path):
    return orjson.loads(path.read_bytes())


def test_the_file_follows_the_state(tmp_path):
    now = [1_800_000_000.0]
    path = tmp_path / "health.json"
    health = Health(path, now=lambda: now[0])
    health.tell(HealthState.STARTING, wanted=2)
    now[0] += 1
    health.fault("refused with 403")
    health.tell(HealthState.DISCONNECTED)
    now[0] += 1
    health.tell(HealthState.DISCONNECTED)
    assert read(path) == {
        "state": "disconnected",
        "since": "2027-01-15T08:00:01.000Z",
        "updated": "2027-01-15T08:00:02.000Z",
        "connections": 0,
        "wanted": 2,
        "last_error": "refused with 403",
        "last_error_at": "2027-01-15T08:00:01.000Z",
        "pid": os.getpid(),
    }
    assert [entry.name for entry in tmp_path.iterdir()] == ["health.json"]


def test_a_place_that_cannot_be_written_stops_nothing(tmp_path):
    Health(tmp_path / "none" / "health.json").tell(HealthState.CONNECTED)


def test_an_agent_from_start_to_stop(rig, tmp_path, manager):
    path = tmp_path / "health.json"
    rig.health = Health(path, Notifier(manager.address))
    peer = rig.connect(connections=2)
    rig.gateway.accept()
    rig.wait_for(lambda: read(path)["state"] == "connected")
    rig.gateway.script = lambda attempt, head: b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n"
    peer.close()
    rig.wait_for(lambda: read(path)["state"] == "degraded")
    rig.wait_for(lambda: rig.pauses and (rig.health.tell(HealthState.DEGRADED) or "403" in read(path)["last_error"]))
    rig.agent.drain(0.01)
    assert read(path)["state"] == "stopped"
    told = manager()
    assert "STOPPING=1" in told
    assert "STATUS=connected, 2 of 2 connections" in told


def test_beats_for_the_watchdog(manager):
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())}
    health = Health(None, Notifier.from_environment(environment))
    health.ready()
    beating = gevent.spawn(health.keep_beating)
    gevent.sleep(0.05)
    beating.kill()
    told = manager()
    assert told[0] == "READY=1"
    assert 3 <= told.count("WATCHDOG=1") <= 8


@pytest.mark.parametrize(
    ("environment", "watchdog_s"),
    [
        ({}, 0),
        ({"NOTIFY_SOCKET": "@abstract", "WATCHDOG_USEC": "30000000"}, 30),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"}, 0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "soon"}, 0),
        ({"NOTIFY_SOCKET": "vsock:2:1", "WATCHDOG_USEC": "1000000"}, 0),
    ],
)
def test_environments(environment, watchdog_s):
    notifier = Notifier.from_environment(environment)
    assert notifier.watchdog_s == watchdog_s
    notifier.send("READY=1")


def test_an_abstract_socket():
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        name = f"caregate-test-{os.getpid()}"
        sock.bind("\0" + name)
        Notifier("@" + name).send("READY=1", "STATUS=x")
        assert sock.recv(100) == b"READY=1\nSTATUS=x"


def test_the_unit_file(capsys, tmp_path):
    assert main(["agent", "systemd-unit", "--executable", "/usr/local/bin/caregate"]) == 0
    text = capsys.readouterr().out
    unit = configparser.ConfigParser(strict=False)
    unit.optionxform = str
    unit.read_string(text)
    service = unit["Service"]
    assert service["ExecStart"] == "/usr/local/bin/caregate agent --config /etc/caregate/agent.toml"
    expected = {"DynamicUser": "yes", "ProtectSystem": "strict", "NoNewPrivileges": "yes", "Restart": "always"}
    assert {name: service[name] for name in expected} == expected
    assert (service["Type"], service["WatchdogSec"]) == ("notify", "30")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here to check it with")
def test_systemd_accepts_the_unit_file(capsys, tmp_path):
    main(["agent", "systemd-unit", "--executable", "/bin/true"])
    path = tmp_path / "caregate-agent.service"
    path.write_text(capsys.readouterr().out)
    done = subprocess.run(["systemd-analyze", "verify", str(path)], capture_output=True, text=True, timeout=20)
    assert not [line for line in done.stderr.splitlines() if "caregate-agent.service" in line], done.stderr
