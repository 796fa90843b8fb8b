"""The agent with nothing installed but the distribution's base dependencies: a fresh environment, a real gateway."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tomllib
import venv
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

pytestmark = pytest.mark.integration

ROOT = Path(__file__).resolve().parents[3]
OF_THE_GATEWAY = ["falcon", "gunicorn", "psycopg", "msgspec", "yaml", "structlog", "jwt", "geventwebsocket"]
CONFIG = """\
gateway = "http://127.0.0.1:{gateway}"
unit = "{unit}"
key = "{keys}/{unit}.key"
context_key = "{keys}/{unit}.context"
state_dir = "."
health_file = "health.json"

[[service]]
prefix = "/fhir"
target = "http://127.0.0.1:{service}"
allow = ["GET /fhir/*", "POST /fhir/*"]
"""


def wanted():
    """The base dependencies and theirs, as distributions of this environment."""
    pending = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    found = {}
    while pending:
        requirement = Requirement(pending.pop())
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        if name in found or (requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})):
            continue
        found[name] = metadata.distribution(name)
        pending += metadata.requires(name) or []
    return found.values()


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """The interpreter of an environment that has the base dependencies and the distribution, and no more."""
    home = tmp_path_factory.mktemp("alone")
    venv.create(home, symlinks=True)
    packages = home / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    for distribution in wanted():
        for top in {file.parts[0] for file in distribution.files or [] if file.parts[0] not in ("..", "__pycache__")}:
            if not (packages / top).exists():  # several share a namespace
                (packages / top).symlink_to(Path(str(distribution.locate_file(top))))
    for ours in ("gateway", "fastpath"):
        (packages / ours).symlink_to(ROOT / ours)
    return home / "bin" / "python"


def run(python, *arguments, cwd):
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return subprocess.run(
        [python, *arguments], cwd=cwd, env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def test_nothing_of_the_gateway_is_installed(python, tmp_path):
    for module in OF_THE_GATEWAY:
        assert run(python, "-c", f"import {module}", cwd=tmp_path).returncode == 1, module


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--version"], "caregate 0"),
        (["agent", "--version"], "caregate-agent 0"),
        (["agent", "--help"], "--config FILE"),
        (["agent", "systemd-unit"], "[Service]"),
        (["agent", "enrol", "--help"], "--code"),
        (["agent", "rotate", "--help"], "--key-dir"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_commands(python, tmp_path, arguments, text):
    done = run(python, "-m", "gateway.cli.main", *arguments, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert text in done.stdout


def test_it_serves_a_gateway(rig, python, tmp_path):
    def behave(sock, head, body):
        sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")

    service = rig.service(behave)
    keys = rig.platform.directory / "keys"
    config = tmp_path / "agent.toml"
    config.write_text(CONFIG.format(gateway=rig.port, unit=rig.UNIT, keys=keys, service=service.port))
    checked = run(python, "-m", "gateway.cli.main", "agent", "--config", str(config), "--check", cwd=tmp_path)
    assert (checked.returncode, checked.stderr) == (0, "")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    agent = subprocess.Popen(
        [python, "-m", "gateway.cli.main", "agent", "--config", str(config)],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
    )
    try:
        rig.settle(rig.UNIT)
        caller = rig.caller(rig.pids()[0])
        assert caller("GET", f"/probe/v1/{rig.UNIT}/fhir/Patient").body == b"ok"
        assert caller("POST", f"/probe/v1/{rig.UNIT}/fhir/x", b"1", Idempotency_Key="k").body == b"ok"
        assert caller("POST", f"/probe/v1/{rig.UNIT}/fhir/x", b"1", Idempotency_Key="k").headers["Idempotent-Replayed"]
        refused = caller("DELETE", f"/probe/v1/{rig.UNIT}/fhir/Patient")
        elsewhere = caller("GET", f"/probe/v1/{rig.UNIT}/admin")
        assert [(answer.status, answer.problem["delivery"]) for answer in (refused, elsewhere)] == [
            (503, "not_dispatched"),
            (503, "not_dispatched"),
        ]
        assert len(service.seen) == 2
    finally:
        agent.send_signal(signal.SIGTERM)
        _, errors = agent.communicate(timeout=10)
    assert agent.returncode == 0
    assert b'"error"' not in errors
