"""The demo platform with limits that no load reaches."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import psutil
import yaml

from gateway.demo.platform import DemoError, Platform
from loadtests.document import for_load


class DemoUnderLoad(Platform):
    """The demo on free ports. Shapes: `settings` are CAREGATE_ variables of the gateway."""

    def __init__(
        self, directory: Path, workers: int, seconds: int, *, tell: Callable[[str], None], **settings: str
    ) -> None:
        super().__init__(directory, free_base_port(), workers, tell=tell)
        self._seconds = seconds
        self._env.update(settings)

    def write_documents(self) -> Path:
        path = super().write_documents()
        document = for_load(yaml.safe_load(path.read_text()), [], self._seconds)
        path.write_text(yaml.dump(document, Dumper=PlainDumper, sort_keys=False))
        return path

    def start_without_units(self) -> None:
        """PostgreSQL, gateway and tokens. Raises: DemoError."""
        self._issue_tokens(self.start_gateway())

    def worker_pids(self) -> list[int]:
        arbiter = self.children["gateway"].process
        assert arbiter is not None
        return sorted(child.pid for child in psutil.Process(arbiter.pid).children())


class PlainDumper(yaml.SafeDumper):
    """Writes no anchors and aliases: the gateway refuses them."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_held: list[socket.socket] = []
"""As long as this process lives, no other is given what it was given."""


def free_base_port() -> int:
    """A port with all of a platform's other ports free beside it, which is given to no one else. Raises: DemoError."""
    bases = range(12_200, 31_000, 40)
    start = os.getpid() % len(bases)
    for base in [*bases[start:], *bases[:start]]:
        if all(_free(base + offset) for offset in (0, 11, 12, 13, 14, 15, 1010)) and _hold(base):
            return base
    raise DemoError("no free ports between 12200 and 31000")


def _hold(base: int) -> bool:
    """False if another process was given it: a socket's abstract name belongs to one, in the namespace of the ports."""
    holder = socket.socket(socket.AF_UNIX)
    try:
        holder.bind(f"\0caregate-ports-{base}")
    except OSError:
        holder.close()
        return False
    _held.append(holder)
    return True


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
