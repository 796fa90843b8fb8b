"""The mesh of a machine's workers: each listens on a unix socket, dials its siblings, announces the units it holds."""

from __future__ import annotations

import contextlib
import os
import socket as plain
import struct
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import gevent
import orjson
from gevent import socket

from gateway import unixsocket
from gateway.relay.connection import UnitConnection
from gateway.relay.handover import handover_path
from gateway.relay.mesh_link import AskingLink, Forward, HoldingLink
from gateway.relay.registry import Registry

RESCAN_S: Final = 2.0
"""How often the directory is looked at for siblings that were missed; a new worker dials by itself, at once."""

DIAL_TIMEOUT_S: Final = 2.0

TELL_S: Final = 0.04
"""Connections that come so soon after siblings were told of others are told together; the first, and those that go, at
the end of the turn. PERF: `make fleet` with 1,500 units: each record wakes every sibling up; with the reads and the log
lines that became cheaper at the same time `worker_ms_per_dial` went from 1.83 to 1.66, medians of six pairs."""

JOIN_S: Final = 5.0
"""How long a new worker waits at most for what its siblings hold."""


class Fabric:
    """Membership is known by connection: when a link ends, the units behind it are gone."""

    def __init__(self, run_dir: Path, registry: Registry, name: str | None = None) -> None:
        self._dir = run_dir
        self._registry = registry
        self.name = name or f"relay-{os.getpid()}.sock"
        self._listener: Any = None
        self._greenlets: list[Any] = []
        self._holding: dict[str, HoldingLink] = {}
        self._scanned = False
        self._asking: set[AskingLink] = set()
        self._news: dict[str, list[Any]] = {}
        self._told_s = 0.0
        registry.announce = self._announce
        registry.buffers.meters.append(self.buffered_bytes)
        registry.buffers.holders.append(self._forwards)

    def start(self) -> None:
        """Listen, dial the siblings that are there, keep looking. Yields to the hub: yes."""
        self._dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = self._dir / self.name
        self._listener = socket.socket(plain.AF_UNIX, plain.SOCK_STREAM)
        unixsocket.bind(self._listener, path, 128)
        self._timer = gevent.get_hub().loop.timer(TELL_S)
        self._greenlets = [gevent.spawn(self._accept_loop), gevent.spawn(self._scan_loop)]
        self._join()

    def stop(self) -> None:
        """Close every link and take the socket away."""
        gevent.killall(self._greenlets)
        self._timer.stop()
        self._timer.close()
        if self._listener is not None:
            self._listener.close()
        with contextlib.suppress(OSError):
            (self._dir / self.name).unlink()
        for link in [*self._asking, *self._holding.values()]:
            link.carrier.abort()

    def _join(self) -> None:
        """Let the siblings tell their units before the first caller comes, else he would be told there are none."""
        end_s = time.monotonic() + JOIN_S
        while not self._scanned or (set(self._holding) - set(self.siblings)):
            if time.monotonic() > end_s:
                return
            gevent.sleep(0.005)

    @property
    def siblings(self) -> list[str]:
        """Names of the workers that announce to this one."""
        return sorted(link.name for link in self._asking if link.name)

    @property
    def takers(self) -> list[AskingLink]:
        """The siblings that take connections which are in use."""
        return [link for link in self._asking if link.name and link.takes_live]

    def buffered_bytes(self) -> int:
        """Body bytes in memory on their way between workers. NOTE: what units sent or are to be sent, they count."""
        asked = sum(link.session.buffered_bytes for link in self._asking)
        return asked + sum(link.kept_bytes for link in self._holding.values())

    def _forwards(self) -> Iterator[Forward]:
        for link in self._holding.values():
            yield from link.forwards

    def younger(self, than_s: float) -> set[str]:
        """Names of the siblings that began to announce after a moment. Units: monotonic seconds."""
        return {link.name for link in self._asking if link.name and link.began_s > than_s}

    # --- siblings that dial us: we ask them

    def _accept_loop(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                # Out of file descriptors, most likely: a closed listener ends this greenlet from outside.
                gevent.sleep(0.1)
                continue
            if _is_own_user(sock):
                gevent.spawn(self._ask, sock)
            else:
                sock.close()

    def _ask(self, sock: Any) -> None:
        link = AskingLink(sock, self._registry, self._dial)
        self._asking.add(link)
        try:
            link.run()
        finally:
            self._asking.discard(link)

    # --- siblings we dial: we hold units for them

    def _scan_loop(self) -> None:
        while True:
            for path in sorted(self._dir.glob("relay-*.sock")):
                self._dial(path.name)
            self._scanned = True
            gevent.sleep(RESCAN_S)

    def _dial(self, name: str) -> None:
        """Announce to the worker of that name, once."""
        if name == self.name or name in self._holding or "/" in name:
            return
        sock = socket.socket(plain.AF_UNIX, plain.SOCK_STREAM)
        sock.settimeout(DIAL_TIMEOUT_S)
        try:
            unixsocket.connect(sock, self._dir / name)
        except ConnectionRefusedError:
            sock.close()
            if not _is_alive(name):
                (self._dir / name).unlink(missing_ok=True)
                handover_path(self._dir, name).unlink(missing_ok=True)
            return
        except OSError:
            sock.close()
            return
        if name in self._holding:
            sock.close()
            return
        sock.settimeout(None)
        link = self._holding[name] = HoldingLink(sock, self._registry, self.name)
        link.announce(orjson.dumps(self._membership()))
        gevent.spawn(self._hold, name, link)

    def _hold(self, name: str, link: HoldingLink) -> None:
        try:
            link.run()
        finally:
            if self._holding.get(name) is link:
                del self._holding[name]

    # --- membership

    def _membership(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "up": [_row(connection) for connection in self._registry.all_local() if not connection.retired],
            "down": [],
            "ledger": _ledgers(self._registry.all_local()),
            "past": [(unit, f.at_s, f.why) for unit, f in self._registry.farewells().items()],
        }

    def _announce(self, connection: UnitConnection, up: bool, why: str) -> None:
        """NOTE: of one record siblings take what came before what went: a connection that did both is gone."""
        if up:
            self._tell_soon("up")
            self._news.setdefault("up", []).append(_row(connection))
            self._news.setdefault("ledger", []).extend(_ledgers([connection]))
        elif not (connection.retired and connection.ended):
            # One that was retired was told then.
            self._tell_soon("down")
            self._news.setdefault("down", []).append((connection.unit, connection.conn, why, time.time()))

    def _tell_soon(self, what: str) -> None:
        if what in self._news:
            return
        wait_s = self._told_s + TELL_S - time.monotonic() if what == "up" else 0.0
        if wait_s <= 0:
            gevent.get_hub().loop.run_callback(self._tell)
        elif not self._news:
            # NOTE: of its own each time: a timer that has run out would run out at once if it were started again.
            self._timer.close()
            self._timer = gevent.get_hub().loop.timer(wait_s)
            self._timer.start(self._tell)

    def _tell(self) -> None:
        """Called from the hub."""
        if not self._news:
            return
        self._told_s = time.monotonic()
        payload, self._news = orjson.dumps(self._news), {}
        for link in self._holding.values():
            link.announce(payload)


def _row(connection: UnitConnection) -> tuple[str, str, int, str, int]:
    return connection.unit, connection.conn, connection.epoch, *connection.seat


def _ledgers(connections: Iterable[UnitConnection]) -> list[str]:
    return [connection.conn for connection in connections if connection.keeps_keys]


def _is_alive(name: str) -> bool:
    """Does the worker that the socket is named after run? One that starts has a socket before it listens."""
    number = name.removeprefix("relay-").removesuffix(".sock")
    if not number.isdigit():
        return True
    try:
        os.kill(int(number), 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _is_own_user(sock: Any) -> bool:
    """SEC: beside the socket's mode, the kernel says who is there."""
    credentials = sock.getsockopt(plain.SOL_SOCKET, plain.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    return bool(uid == os.getuid())
