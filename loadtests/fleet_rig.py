"""The gateway with a fleet's units and one route to them; the fleet in a few processes; the workers' memory."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import yaml

from gateway.config.parse import parse
from gateway.demo.platform import ROOT, Child, DemoError, Platform
from loadtests.credentials import Issuer, write_unit_key
from loadtests.demo import PlainDumper
from loadtests.document import for_load, token_lifetime_s, unit_ids
from loadtests.measure import read_report
from loadtests.plan import Plan, Unit, write_plan
from loadtests.rig import free_ports

ABSENT = "absent-unit"
"""In the configuration, and never connected."""

COUNTED = ("connected", "connections", "dials", "lost", "moved", "dial_cpu_s")
READY_S = 120.0
SPARE_FILES = 1_000
"""Descriptors that a process needs beside its unit connections: mesh, database, callers, logs."""


class TooFewFiles(RuntimeError):
    """The descriptor limit has no room for the fleet; the message says what to do."""


def raise_file_limit(connections: int, workers: int, simulators: int) -> None:
    """Room for what one process holds at most: a worker, while the others are replaced, or a simulator that moves.

    Raises: TooFewFiles.
    """
    needed = max(2 * connections // max(1, workers - 1), 2 * connections // simulators) + SPARE_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < needed:
        raise TooFewFiles(
            f"{connections} connections need {needed} descriptors a process, the limit (RLIMIT_NOFILE) is {hard}: "
            f"raise it (ulimit -Hn {needed}) or choose fewer with UNITS="
        )
    if soft != resource.RLIM_INFINITY and soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


class FleetRig(Platform):
    """`start`, `start_fleet`, `begin`, and `stop` in any state."""

    def __init__(
        self,
        directory: Path,
        *,
        units: int,
        connections: int,
        workers: int,
        simulators: int,
        seconds: int,
        tell: Callable[[str], None],
    ) -> None:
        gateway, operations = free_ports(2)
        super().__init__(directory, gateway, workers, tell=tell)
        self.ports.ops = operations
        # What is installed has its bytecode; without it each worker that starts would compile all modules anew.
        self._env.pop("PYTHONDONTWRITEBYTECODE", None)
        self.units = unit_ids(units)
        self.seats = units * connections
        self.token = ""
        self._connections = connections
        self._simulators = simulators
        self._seconds = seconds
        self._plan = self.directory / "plan.json"

    def start(self) -> None:
        """PostgreSQL and the gateway. Raises: DemoError."""
        config = self.start_gateway()
        document = parse(config.read_bytes()).document
        if document is None:
            raise DemoError("the fleet's configuration cannot be parsed")
        self.token = Issuer(document, config.parent, token_lifetime_s(self._seconds)).token(
            "practitioner", "fleet-caller", {}
        )
        keys = config.parent / "keys"
        units = [Unit(unit, str(keys / f"{unit}.key")) for unit in self.units]
        write_plan(Plan(f"http://127.0.0.1:{self.ports.gateway}", [], [], units, ""), self._plan)

    def write_documents(self) -> Path:
        path = super().write_documents()
        for unit in [*self.units, ABSENT]:
            write_unit_key(unit, path.parent / "keys")
        document = for_load(yaml.safe_load(path.read_text()), [*self.units, ABSENT], self._seconds)
        document["controllers"] = {"fleet": _route()}
        path.write_text(yaml.dump(document, Dumper=getattr(yaml, "CSafeDumper", PlainDumper), sort_keys=False))
        return path

    # --- the fleet

    def start_fleet(self, dials_per_s: float) -> None:
        """Start the units' processes and wait until all are ready to dial.

        Units: `dials_per_s` of the whole fleet, and only its first dials. Raises: DemoError.
        """
        for number in range(self._simulators):
            self._spawn(
                f"fleet-{number}", "-m", "loadtests.fleet", "--plan", str(self._plan),
                "--connections", str(self._connections), "--share", f"{number}/{self._simulators}",
                "--dials-per-s", str(dials_per_s / self._simulators),
                "--report", str(self._report(number)), "--journal", str(self._journal(number)), "--hold",
            )  # fmt: skip
        until_s = time.monotonic() + READY_S
        while any(read_report(self._report(number)) is None for number in range(self._simulators)):
            if time.monotonic() > until_s or not all(child.running() for child in self.fleet_children()):
                raise DemoError(f"the fleet does not start: see {self.logs}")
            time.sleep(0.05)

    def begin(self) -> None:
        """All units dial, from the same moment."""
        for child in self.fleet_children():
            child.signal(signal.SIGUSR1)

    def fleet(self) -> dict[str, Any]:
        """Counts of the whole fleet; `whole_s`: since when all seats are up, 0 if not.

        Raises: DemoError if a part of it has ended.
        """
        parts = [read_report(self._report(number)) for number in range(self._simulators)]
        for child in self.fleet_children():
            if not child.running():
                raise DemoError(f"a part of the fleet ended: see {child.log}")
        reports = [part for part in parts if part is not None]
        whole = len(reports) == self._simulators and all(part["whole_s"] for part in reports)
        dials = [part["first_dial_s"] for part in reports if part["first_dial_s"]]
        return {
            **{key: sum(part[key] for part in reports) for key in COUNTED},
            "refused": dict(sum((Counter(part["refused"]) for part in reports), Counter())),
            "first_dial_s": min(dials, default=0.0),
            "whole_s": max(part["whole_s"] for part in reports) if whole else 0.0,
        }

    def fleet_children(self) -> list[Child]:
        return [self.children[f"fleet-{number}"] for number in range(self._simulators)]

    def stop_fleet(self) -> list[str]:
        """Every POST that a unit ran, as often as it was run."""
        until_s = time.monotonic() + 30
        for child in self.fleet_children():
            child.signal(15)
        for child in self.fleet_children():
            child.wait(until_s)
        return [line for number in range(self._simulators) for line in self._journal(number).read_text().splitlines()]

    def _report(self, number: int) -> Path:
        return self.directory / f"fleet-{number}.json"

    def _journal(self, number: int) -> Path:
        return self.directory / f"fleet-{number}.posts"

    # --- the workers

    def workers_now(self) -> list[psutil.Process]:
        arbiter = self.children["gateway"].process
        assert arbiter is not None
        return list(psutil.Process(arbiter.pid).children())

    def rss_kib(self) -> float:
        """Resident memory of all workers together."""
        return sum(worker.memory_info().rss for worker in self.workers_now()) / 1024

    def cpu_s(self) -> float:
        """CPU time of all workers together."""
        return sum(sum(worker.cpu_times()[:2]) for worker in self.workers_now())

    def start_roll(self) -> subprocess.Popen[str]:
        """`caregate workers roll`, its output in a pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "gateway.cli.main", "workers", "roll", "--run-dir", str(self.directory / "run")],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip


def _route() -> dict[str, Any]:
    return {
        "path": "/fleet/v1/{unit}/{path:path}",
        "methods": ["GET", "POST"],
        "audiences": ["staff-portal"],
        "roles": ["practitioner"],
        "unbound_roles": ["practitioner"],
        "permission": "records.read",
        "deadline_ms": 30_000,
        "unit": {"unit": "path:unit", "target": "/{path}"},
    }
