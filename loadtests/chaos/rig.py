"""The demo's gateway with two units of its own, their agents behind a line that can be cut."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from loadtests.credentials import write_unit_key
from loadtests.demo import DemoUnderLoad, PlainDumper
from loadtests.document import for_load

DEADLINE_S = 2.0
UNITS = ("chaos-north", "chaos-south")


class ChaosPlatform(DemoUnderLoad):
    """Shapes: children are named UNIT-agent and UNIT-service."""

    units = UNITS

    def __init__(self, directory: Path, workers: int, seconds: int, *, tell: Callable[[str], None]) -> None:
        super().__init__(directory, workers, seconds, tell=tell)
        self.journals = {unit: self.directory / f"{unit}.journal" for unit in UNITS}

    def write_documents(self) -> Path:
        path = super().write_documents()
        document = yaml.safe_load(path.read_text())
        for unit in UNITS:
            write_unit_key(unit, path.parent / "keys")
        document["units"] = {}
        document = for_load(document, UNITS, self._seconds)
        document["controllers"] = {"chaos": _controller()}
        path.write_text(yaml.dump(document, Dumper=PlainDumper, sort_keys=False))
        return path

    def start_units(self, line_port: int) -> None:
        """Local services and agents; the agents dial through the line."""
        for unit in UNITS:
            port = _free_port()
            self._spawn(
                f"{unit}-service", "-m", "loadtests.chaos.service",
                "--port", str(port), "--journal", str(self.journals[unit]),
            )  # fmt: skip
            state = self.directory / f"{unit}.state"
            state.mkdir(mode=0o700)
            self._spawn(
                f"{unit}-agent", "-m", "gateway.cli.main", "agent", "--unit", unit,
                "--gateway", f"http://127.0.0.1:{line_port}", "--key", str(self.directory / "keys" / f"{unit}.key"),
                "--target", f"http://127.0.0.1:{port}", "--state-dir", str(state),
            )  # fmt: skip

    def restart(self, name: str) -> None:
        """SIGKILL, and a new one at once. Blocks until the old one has ended."""
        child = self.children[name]
        child.signal(signal.SIGKILL)
        if child.process is not None:
            child.process.wait()
        child.start()

    def stop(self) -> None:
        for unit in UNITS:
            if (child := self.children.get(f"{unit}-service")) is not None:
                child.signal(signal.SIGKILL)
        super().stop()


def _controller() -> dict[str, Any]:
    return {
        "path": "/chaos/v1/{unit}/{path:path}",
        "methods": ["GET", "POST"],
        "audiences": ["staff-portal"],
        "roles": ["practitioner"],
        "unbound_roles": ["practitioner"],
        "permission": "records.read",
        "query": "any",
        "unit": {"unit": "path:unit", "target": "/{path}"},
        "deadline_ms": round(DEADLINE_S * 1000),
    }


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])
