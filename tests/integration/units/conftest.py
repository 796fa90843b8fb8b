"""Four real workers whose configuration names units without keys: every key is registered."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml

from fastpath.frames import OP_BINARY, OP_CLOSE, Decoder, encode_frame
from gateway.agent.endpoint import gateway_endpoint
from gateway.agent.enrol import EnrolmentFailed, KeyDirectory, enrol
from gateway.cli.operator import ask_workers
from gateway.demo import story
from gateway.demo.platform import ROOT, Platform
from gateway.relay.decoding import decode
from gateway.relay.frames import Hello, encode
from gateway.store.unit_operator import UnitOperator
from gateway.units import code
from gateway.units.fleet import FLAP_WINDOW_S, fleet
from loadtests.demo import free_base_port

UNITS = [f"site-{number}" for number in range(1, 9)]
WORKERS = 4


class UnitsPlatform(Platform):
    """The demo's gateway and database; its units are ours, and have no keys yet."""

    def __init__(self, directory: Path, port: int) -> None:
        super().__init__(directory, port, WORKERS, tell=lambda text: None)
        self._env.update(
            CAREGATE_DRAIN_GRACE_S="5",
            CAREGATE_RELAY_PING_MS="500",
            CAREGATE_UNIT_OVERLAP_S="600",
            CAREGATE_UNIT_ENROLMENTS_PER_MINUTE="1000",
        )

    def start(self) -> None:
        self._check_ports()
        self._issue_tokens(self.start_gateway())

    def write_documents(self) -> Path:
        path = super().write_documents()
        document = yaml.safe_load(path.read_text())
        document["units"] = {name: {"name": name, "max_connections": 4} for name in UNITS}
        document["controllers"] = {
            "relayed": {
                "path": "/units/v1/{unit}/{path:path}",
                "methods": ["GET"],
                "audiences": ["staff-portal"],
                "roles": ["practitioner"],
                "unbound_roles": ["practitioner"],
                "permission": "records.read",
                "unit": {"unit": "path:unit", "target": "/{path}"},
            }
        }
        path.write_text(yaml.dump(document))
        return path

    @property
    def gateway_url(self) -> str:
        return f"http://127.0.0.1:{self.ports.gateway}"

    def caregate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command as an operator of this machine would."""
        env = {name: value for name, value in os.environ.items() if not name.startswith("CAREGATE_")}
        return subprocess.run(
            [sys.executable, "-m", "gateway.cli.main", *arguments],
            capture_output=True, text=True, check=False, cwd=ROOT, env=env, timeout=30,
        )  # fmt: skip

    def operate(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        done = self.caregate(*arguments, "--data-dir", str(self.directory))
        assert done.returncode == 0, done.stderr
        return done

    def code(self, unit: str) -> str:
        text = code.issue()
        with self.operator() as operator:
            operator.issue_code(unit, code.digest(text), 3_600)
        return text

    def enrol(self, unit: str, code: str, directory: Path) -> subprocess.CompletedProcess[str]:
        return self.caregate(
            "agent", "enrol", "--gateway", self.gateway_url, "--unit", unit, "--code", code, "--key-dir", str(directory)
        )  # fmt: skip

    def enrolled(self, unit: str, directory: Path) -> KeyDirectory:
        """Its keys, registered without the commands: they take a second each to start."""
        keys = KeyDirectory(directory)
        text = self.code(unit)
        for _ in range(100):
            try:
                enrol(gateway_endpoint(self.gateway_url), unit, text, keys)
            except EnrolmentFailed as error:
                # A worker may not have noticed yet that the database is back; the code is good for this key.
                if "503" not in str(error):
                    raise
                time.sleep(0.1)
            else:
                return keys
        raise AssertionError("the database did not come back")

    def fleet(self) -> dict[str, dict[str, Any]]:
        """As `caregate units` has it."""
        workers = ask_workers(self.directory / "run")
        live = [connection["conn"] for worker in workers for connection in worker["connections"]]
        with self.operator() as operator:
            rows = fleet(workers, operator.records(live, FLAP_WINDOW_S), operator.keys(), datetime.now(UTC))
        return {row.unit: row.as_json() for row in rows}

    def sql(self, query: str) -> list[Any]:
        """As an administrator."""
        assert self._postgres is not None
        with psycopg.connect(self._postgres.admin_dsn, autocommit=True) as admin:
            cursor = admin.execute(query)
            return cursor.fetchall() if cursor.description else []

    def operator(self) -> UnitOperator:
        assert self._postgres is not None
        return UnitOperator(self._postgres.operator_dsn)

    def call(self, unit: str) -> tuple[int, bytes]:
        """A practitioner asks the unit."""
        connection = http.client.HTTPConnection("127.0.0.1", self.ports.gateway, timeout=10)
        try:
            connection.request("GET", f"/units/v1/{unit}/x", headers={"Authorization": f"Bearer {self.staff}"})
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def ask(self, unit: str) -> dict[str, Any]:
        """Why the unit cannot be asked."""
        status, body = self.call(unit)
        problem = json.loads(body)
        assert status == 503
        code = problem["type"].rpartition(":")[2]
        return {"code": code, "why": problem["why"], "last_seen": problem["last_seen"]}

    @property
    def staff(self) -> str:
        return next(self.tokens[name] for name, (role, _) in story.TOKENS.items() if role == "practitioner")

    def kill_workers(self) -> None:
        """All processes of the gateway at once."""
        arbiter = self.children["gateway"].process
        assert arbiter is not None
        children = Path(f"/proc/{arbiter.pid}/task/{arbiter.pid}/children").read_text().split()
        for pid in (arbiter.pid, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        arbiter.wait()

    def restart(self) -> None:
        """Stop and start the gateway; PostgreSQL stays."""
        self.stop_workers()
        self._start_workers()

    def stop_workers(self, number: int = signal.SIGTERM) -> None:
        child = self.children["gateway"]
        child.signal(number)
        child.wait(time.monotonic() + 15)


class Link:
    """A unit's connection that only says HELLO, and waits for its end."""

    def __init__(self, platform: UnitsPlatform, unit: str, keys: KeyDirectory, index: int = 0) -> None:
        token = keys.identity(unit).token(time.time())
        request = (
            f"GET /relay/v1/connect HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
            f"Sec-WebSocket-Protocol: caregate.relay.v1\r\nAuthorization: Bearer {token}\r\n\r\n"
        )
        self.sock = socket.create_connection(("127.0.0.1", platform.ports.gateway), timeout=10)
        self.sock.sendall(request.encode())
        head = b""
        while b"\r\n\r\n" not in head and (piece := self.sock.recv(65_536)):
            head += piece
        self.status = int(head[9:12])
        self.frames: list[Any] = []
        self._rest = head.partition(b"\r\n\r\n")[2]
        if self.status == 101:
            hello = Hello("test/1", f"{unit}-{os.urandom(4).hex()}", index, clock_ms=round(time.time() * 1000) + 5_000)
            self.sock.sendall(encode_frame(OP_BINARY, encode(hello), b"abcd"))
            self.welcome = self._next()

    def _next(self) -> Any:
        if not hasattr(self, "_decoder"):
            self._decoder, self._ready = Decoder(masked=False, max_bytes=131_072), []
        while not self._ready:
            data, self._rest = self._rest or self.sock.recv(65_536), b""
            if not data:
                return None
            self._ready += [
                None if opcode == OP_CLOSE else decode(payload, 131_072)
                for opcode, payload in self._decoder.feed(data)
                if opcode in (OP_BINARY, OP_CLOSE)
            ]
        return self._ready.pop(0)

    def until_closed(self, limit_s: float = 5.0) -> tuple[list[Any], float]:
        """What came until the end, and when that was (time.monotonic)."""
        self.sock.settimeout(limit_s)
        found = []
        while (frame := self._next()) is not None:
            found.append(frame)
        return found, time.monotonic()

    def send(self, frame: Any) -> None:
        self.sock.sendall(encode_frame(OP_BINARY, encode(frame), b"abcd"))


@pytest.fixture(scope="session")
def units_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnitsPlatform]:
    started = UnitsPlatform(tmp_path_factory.mktemp("units"), free_base_port())
    try:
        started.start()
        yield started
    finally:
        started.stop()


@pytest.fixture
def site(units_platform: UnitsPlatform) -> UnitsPlatform:
    if not units_platform.children["gateway"].running():
        units_platform._start_workers()
    return units_platform
