"""The platform under the ledger: PostgreSQL and one unit for all runs, a gateway with a fresh spool for each."""

from __future__ import annotations

import glob
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import psutil
import psycopg
import yaml

from gateway.config.parse import parse
from gateway.demo import story
from gateway.demo.platform import ROOT, Child
from loadtests.credentials import Issuer, write_unit_key
from loadtests.demo import DemoUnderLoad, PlainDumper
from loadtests.document import for_load
from loadtests.ledger.disk import Disk, build_shim
from loadtests.ledger.verdict import Asked, Kept, read_ledger

UNIT = "ledger-unit"
SEGMENT_BYTES = 262_144
_LIFETIME_S = 7_200
_FAKETIME = "/usr/lib/*/faketime/libfaketimeMT.so.1"
_COLUMNS = "chain, sequence, phase, request_id, trace, outcome, rule, status, phi, canonical"


def clock_library() -> str:
    """libfaketime, or nothing where it is not installed."""
    found = sorted(glob.glob(_FAKETIME))
    return found[0] if found else ""


class LedgerPlatform(DemoUnderLoad):
    """`start`, then for each run `begin`, `start_callers`, what a run does, `finish`, and `stop` in any state."""

    def __init__(self, directory: Path, workers: int, *, tell: Callable[[str], None]) -> None:
        super().__init__(directory, workers, _LIFETIME_S, tell=tell)
        self.run = ""
        self.disk: Disk | None = None
        self._plan: list[dict[str, Any]] = []
        self._run_dir = directory
        self._clock = directory / "clock"
        self._callers: Child | None = None

    # --- once

    def start(self) -> None:
        """Raises: DemoError."""
        config = self.start_gateway()
        journal = self.directory / "unit.journal"
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        self._spawn("unit-service", "-m", "loadtests.chaos.service", "--port", str(port), "--journal", str(journal))
        key = str(self.directory / "keys" / f"{UNIT}.key")
        argv = [
            sys.executable, "-m", "gateway.cli.main", "agent", "--unit", UNIT, "--key", key,
            "--gateway", f"http://127.0.0.1:{self.ports.gateway}", "--target", f"http://127.0.0.1:{port}",
        ]  # fmt: skip
        self.children["unit-agent"] = Child("unit-agent", argv, self.logs / "unit-agent.log", self._env)
        self._plan = self._requests(config)

    def write_documents(self) -> Path:
        path = super().write_documents()
        document = yaml.safe_load(path.read_text())
        write_unit_key(UNIT, path.parent / "keys")
        document["units"] = {}
        document = for_load(document, [UNIT], self._seconds)
        controllers = {"appointments": document["controllers"]["appointments"]}
        controllers["synced"] = {**_controller("/ledger/v1/synced/{unit}/{path:path}"), "phi": True}
        controllers["written"] = _controller("/ledger/v1/written/{unit}/{path:path}")
        document["controllers"] = controllers
        document["gateway"]["leeway_s"] = 60
        path.write_text(yaml.dump(document, Dumper=PlainDumper, sort_keys=False))
        return path

    def _start_workers(self) -> None:
        """Each run has its own."""

    def _requests(self, config: Path) -> list[dict[str, Any]]:
        document = parse(config.read_bytes()).document
        assert document is not None
        issuer = Issuer(document, config.parent, _LIFETIME_S)
        # The clock jumps back, too.
        long_ago = {"iat": int(time.time()) - 3_600, "exp": int(time.time()) + _LIFETIME_S - 3_600}
        patient = issuer.token("patient", "user-anna", {"patient": story.OWN, **long_ago})
        staff = issuer.token("practitioner", "user-weber", {"units": [UNIT], **long_ago})
        own, other = (f"/portal/v1/patients/{who}/appointments" for who in (story.OWN, story.OTHER))
        synced, written = (f"/ledger/v1/{kind}/{UNIT}/fast" for kind in ("synced", "written"))
        return [
            {"kind": "phi-portal", "method": "GET", "path": own, "token": patient},
            {"kind": "phi-relay", "method": "GET", "path": synced, "token": staff},
            {"kind": "written-relay", "method": "GET", "path": written, "token": staff},
            {"kind": "phi-relay", "method": "POST", "path": synced, "token": staff},
            {"kind": "phi-refused", "method": "GET", "path": other, "token": patient},
            {"kind": "written-token", "method": "GET", "path": own, "token": "no.token.of-ours"},
        ]

    # --- a run

    def begin(self, run: str, *, clock: bool, settings: Mapping[str, str]) -> None:
        """A gateway with an empty spool on a disk of its own; its clock can be set if `clock`.

        Raises: DemoError.
        """
        self.run = run
        self._run_dir = self.directory / f"run-{run}"
        self._run_dir.mkdir(mode=0o711)
        self.disk = Disk(self._run_dir / "audit", self._run_dir)
        self.disk.mount()
        self.set_clock(0)
        # NOTE: before libfaketime, which it corrects.
        preload = [str(build_shim())]
        environment = {**self.disk.environment(), **settings}
        if clock:
            preload.append(clock_library())
            environment |= {"FAKETIME_TIMESTAMP_FILE": str(self._clock), "FAKETIME_CACHE_DURATION": "1"}
            environment["FAKETIME_DONT_FAKE_MONOTONIC"] = "1"
        self._start_run({**environment, "LD_PRELOAD": ":".join(preload)})
        self._start_agent()

    def begin_plainly(self, run: str) -> None:
        """A gateway on an ordinary disk, with the segments that it has in service. Raises: DemoError."""
        self.run = run
        self._run_dir = self.directory / f"run-{run}"
        self._run_dir.mkdir(mode=0o711)
        self._start_run({"CAREGATE_AUDIT_SEGMENT_BYTES": "4194304"})
        self._start_agent()

    def _start_agent(self) -> None:
        # A new agent: the old one may wait for long before it dials again.
        agent = self.children["unit-agent"]
        agent.signal(signal.SIGKILL)
        agent.wait(time.monotonic() + 5)
        agent.start()
        self._wait("unit-agent", self._has_unit, 15)

    def begin_again(self) -> None:
        """The same gateway on what is left, without faults. Raises: DemoError."""
        assert self.disk is not None
        self._start_run(self.disk.environment() | {"LD_PRELOAD": ""})

    def _start_run(self, environment: Mapping[str, str]) -> None:
        settings = {
            "CAREGATE_DATA_DIR": str(self._run_dir),
            "CAREGATE_NODE": f"ledger-{self.run}",
            "CAREGATE_AUDIT_SEGMENT_BYTES": str(SEGMENT_BYTES),
            "CAREGATE_AUDIT_CHECKPOINT_S": "2",
            "CAREGATE_AUDIT_KEY": f"file:{self.directory / 'audit.key'}",
            "CAREGATE_DRAIN_LINGER_S": "0",
            "CAREGATE_DRAIN_GRACE_S": "3",
        }
        child = Child(
            "gateway", [sys.executable, "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py")],
            self.logs / f"gateway-{self.run}.log", {**self._env, **settings, **environment},
        )  # fmt: skip
        child.start()
        self.children["gateway"] = child
        self._wait("gateway", self._is_ready, 30)

    def _is_ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.ports.ops), timeout=1) as sock:
                sock.settimeout(2)
                sock.sendall(b"GET /readyz HTTP/1.1\r\nHost: ledger\r\nConnection: close\r\n\r\n")
                return b" 200 " in sock.recv(64)
        except OSError:
            return False

    def backlog(self) -> int:
        """Events that PostgreSQL does not have yet, of all workers."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.ports.ops}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
        return round(sum(float(line.split()[-1]) for line in lines if line.startswith("caregate_audit_backlog")))

    def _has_unit(self) -> bool:
        """Does every worker know where the unit is?"""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.ports.ops}/status", timeout=2) as answer:
                return bool(json.loads(answer.read())["units"])
        except OSError:
            return False

    def start_callers(self, count: int, pause_s: float) -> None:
        plan = self._run_dir / "plan.json"
        content = {"port": self.ports.gateway, "run": self.run, "callers": count, "pause_s": pause_s}
        plan.write_text(json.dumps({**content, "requests": self._plan}))
        self._callers = self._spawn(
            "callers", "-m", "loadtests.ledger.client", "--plan", str(plan), "--ledger", str(self._run_dir)
        )

    def stop_callers(self) -> None:
        """Returns when the last answer is written down."""
        if self._callers is not None:
            self._callers.signal(signal.SIGTERM)
            self._callers.wait(time.monotonic() + 30)

    def asked(self) -> dict[str, Asked]:
        """What the callers wrote down, of which the last line may be torn while they run."""
        lines: list[str] = []
        for path in self._run_dir.glob("*.ledger"):
            lines += path.read_text().split("\n")[:-1]
        return read_ledger(lines)

    def kept(self) -> list[Kept]:
        """The access events of this run's gateway, each chain in its order."""
        assert self._postgres is not None
        query = f"SELECT {_COLUMNS} FROM audit.event WHERE node = %s AND kind = 'access' ORDER BY chain, sequence"
        with psycopg.connect(self._postgres.admin_dsn) as connection:
            return [Kept(*row) for row in connection.execute(query, (f"ledger-{self.run}",)).fetchall()]

    def verify(self) -> str:
        """What `caregate audit verify` says of this run's checkpoints and all chains: the first fault, or nothing."""
        assert self._postgres is not None
        argv = [sys.executable, "-m", "gateway.cli.main", "audit", "verify", "--dsn", self._postgres.admin_dsn]
        argv += [
            "--key",
            str(self.directory / "audit.pub"),
            "--checkpoints",
            str(self._run_dir / "audit" / "checkpoints"),
        ]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, env=self._env, cwd=ROOT)
        return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()

    # --- what is done to it

    def set_clock(self, offset_s: int) -> None:
        """So far from the true time."""
        part = self._clock.with_suffix(".part")
        part.write_text(f"{offset_s:+d}\n")
        part.rename(self._clock)

    def kill_worker(self, pick: Callable[[list[int]], int]) -> None:
        pids = self.worker_pids()
        if pids:
            os.kill(pick(pids), signal.SIGKILL)

    def kill_gateway(self) -> None:
        """Arbiter and workers at the same moment; returns when none is left."""
        arbiter = self.children["gateway"].process
        assert arbiter is not None
        arbiter.send_signal(signal.SIGSTOP)
        family = [*psutil.Process(arbiter.pid).children(), psutil.Process(arbiter.pid)]
        for process in family:
            process.kill()
        psutil.wait_procs(family[:-1], timeout=10)
        arbiter.wait()

    def end_gateway(self) -> None:
        child = self.children["gateway"]
        child.signal(signal.SIGTERM)
        child.wait(time.monotonic() + 15)

    def freeze_database(self, number: int = signal.SIGSTOP) -> None:
        """All of its processes; SIGCONT thaws them."""
        assert self._postgres is not None
        if self._postgres.pid is not None:
            postmaster = psutil.Process(self._postgres.pid)
            for process in [postmaster, *postmaster.children()]:
                process.send_signal(number)

    def thaw_database(self) -> None:
        self.freeze_database(signal.SIGCONT)

    def stop_database(self) -> None:
        assert self._postgres is not None
        self._postgres.stop()

    def kill_database(self) -> None:
        assert self._postgres is not None
        if self._postgres.pid is not None:
            os.kill(self._postgres.pid, signal.SIGKILL)

    def start_database(self) -> None:
        assert self._postgres is not None
        self._postgres.start()

    def leave(self) -> None:
        """The run is over: its disk goes."""
        if self.disk is not None:
            self.disk.unmount()

    def stop(self) -> None:
        if self._callers is not None:
            self._callers.signal(signal.SIGKILL)
        self.thaw_database() if self._postgres is not None else None
        if (service := self.children.get("unit-service")) is not None:
            service.signal(signal.SIGKILL)
        super().stop()
        self.leave()
        if self._postgres is not None:
            self._postgres.remove()


def _controller(path: str) -> dict[str, Any]:
    return {
        "path": path,
        "methods": ["GET", "POST"],
        "audiences": ["staff-portal"],
        "roles": ["practitioner"],
        "bind": [{"param": "unit", "claim": "units"}],
        "permission": "records.read",
        "unit": {"unit": "path:unit", "target": "/{path}"},
    }
