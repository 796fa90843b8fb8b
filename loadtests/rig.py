"""A fresh gateway for one load: own directory, PostgreSQL with the demo's portal, a fleet's units in its configuration.

It is the demo platform without the demo's units; fleet and callers are children of it, so one `stop` ends everything.
"""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg
import yaml

from gateway.config.parse import parse
from gateway.demo import story
from gateway.demo.platform import Child, DemoError, Platform, Ports
from loadtests.credentials import Issuer, write_unit_key
from loadtests.document import for_load, token_lifetime_s, unit_ids
from loadtests.plan import Caller, Plan, Unit, write_plan

_STOP_S = 10.0
CALLERS_FILE = Path(__file__).with_name("locustfile.py")


class Rig(Platform):
    """`start`, `start_fleet`, `start_callers`, and `stop` in any state."""

    def __init__(
        self, directory: Path, *, units: int, workers: int, seconds: int, tell: Callable[[str], None] = print
    ) -> None:
        gateway, operations = free_ports(2)
        super().__init__(directory, gateway, workers, tell=tell)
        self.ports = Ports(gateway)
        self.ports.ops = operations
        self.units = unit_ids(units)
        self.fleet_report = self.directory / "fleet.json"
        self.callers_report = self.directory / "callers.json"
        self._plan = self.directory / "plan.json"
        self._seconds = seconds

    def start(self) -> None:
        """Start PostgreSQL and the gateway, and write the plan.

        Raises: DemoError naming what failed and the log to read.
        """
        config = self.start_gateway()
        write_plan(self._make_plan(config), self._plan)

    def write_documents(self) -> Path:
        """The demo's keys and configuration, extended for the load."""
        path = super().write_documents()
        keys = path.parent / "keys"
        for unit in self.units:
            write_unit_key(unit, keys)
        demo: dict[str, Any] = yaml.safe_load(path.read_text())
        document = for_load(demo, self.units, self._seconds)
        path.write_text(yaml.dump(document, Dumper=_Dumper, sort_keys=False))
        return path

    def start_fleet(self, connections: int) -> Child:
        """Start the units; they dial at once."""
        return self._spawn(
            "fleet", "-m", "loadtests.fleet", "--plan", str(self._plan),
            "--connections", str(connections), "--report", str(self.fleet_report),
        )  # fmt: skip

    def start_callers(self, *, users: int, rate: float, seconds: int, drain_s: int, html: Path) -> Child:
        """Start the callers.

        Units: `rate` requests a second of one user; `drain_s` for the requests under way at the end.
        """
        return self._spawn(
            "callers", "-m", "locust", "--locustfile", str(CALLERS_FILE), "--headless", "--only-summary",
            "--host", f"http://127.0.0.1:{self.ports.gateway}", "--users", str(users), "--spawn-rate", str(users),
            "--run-time", f"{seconds}s", "--stop-timeout", str(drain_s), "--exit-code-on-error", "0",
            "--rate", str(rate), "--plan", str(self._plan), "--report", str(self.callers_report), "--html", str(html),
        )  # fmt: skip

    def stop(self) -> None:
        """Stop callers, fleet, gateway and PostgreSQL, in this order; the data is deleted."""
        for name in ("callers", "fleet"):
            self.stop_child(name)
        super().stop()
        if self._postgres is not None:
            self._postgres.remove()

    def stop_child(self, name: str) -> None:
        """End one of the processes, if it was started; returns when it has ended."""
        if (child := self.children.get(name)) is not None:
            child.signal(signal.SIGTERM)
            child.wait(time.monotonic() + _STOP_S)

    def _make_plan(self, config: Path) -> Plan:
        document = parse(config.read_bytes()).document
        if document is None:
            raise DemoError("the load's configuration cannot be parsed")
        issuer = Issuer(document, config.parent, token_lifetime_s(self._seconds))
        keys = config.parent / "keys"
        return Plan(
            gateway=f"http://127.0.0.1:{self.ports.gateway}",
            patients=[
                Caller(patient, issuer.token("patient", f"user-{patient}", {"patient": patient}))
                for patient in self._patients()
            ],
            staff=[
                Caller(unit, issuer.token("practitioner", f"staff-{unit}", {"units": [unit]})) for unit in self.units
            ],
            units=[Unit(unit, str(keys / f"{unit}.key")) for unit in self.units],
            booking_unit=story.HOSPITAL,
        )

    def _patients(self) -> list[str]:
        """The portal's patients."""
        assert self._postgres is not None
        with psycopg.connect(self._postgres.admin_dsn) as connection:
            rows = connection.execute("SELECT id FROM portal.patients ORDER BY id").fetchall()
        if not rows:
            raise DemoError("the portal has no patients")
        return [row[0] for row in rows]


class _Dumper(yaml.SafeDumper):
    """Writes no anchors and aliases: the gateway refuses them."""

    def ignore_aliases(self, data: object) -> bool:
        return True


def free_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports
