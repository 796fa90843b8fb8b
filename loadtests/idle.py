"""Kept connections that wait, in one worker, and what they cost it.

`python -m loadtests.idle --connections 10000`: each asks once, then stays. The last line is RESULT and JSON; the exit
status is 1 if a connection was lost, did not answer afterwards, or left a descriptor behind.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from typing import Any

import psutil

from gateway.demo import story
from gateway.demo.platform import DemoError
from loadtests.demo import DemoUnderLoad
from loadtests.interruption import interruptible, scratch

SPARE_FILES = 500
"""Descriptors that worker and client need beside the connections."""
PROGRESS_EVERY = 1000
ASKED_AGAIN = 200


def room_for(connections: int) -> int:
    """How many of them the descriptor limit has room for, raised as far as it may be."""
    wanted = connections + SPARE_FILES
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limits in ((wanted, max(hard, wanted)), (min(wanted, hard), hard)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            break
        except (ValueError, OSError):
            continue
    return min(connections, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES)


def ask(sock: socket.socket, request: bytes) -> None:
    """Send a request and read its whole answer. Raises: DemoError, OSError."""
    sock.sendall(request)
    data = b""
    while b"\r\n\r\n" not in data:
        data += _more(sock)
    head, _, body = data.partition(b"\r\n\r\n")
    fields = dict(line.lower().partition(b": ")[::2] for line in head.split(b"\r\n")[1:])
    if not head.startswith(b"HTTP/1.1 200 "):
        raise DemoError(f"answered {head[:40]!r}")
    left = int(fields[b"content-length"]) - len(body)
    while left > 0:
        left -= len(_more(sock))


def _more(sock: socket.socket) -> bytes:
    piece = sock.recv(65_536)
    if not piece:
        raise DemoError("a connection was closed")
    return piece


class Idle:
    """The connections, and the worker that holds them."""

    def __init__(self, platform: DemoUnderLoad) -> None:
        self._address = ("127.0.0.1", platform.ports.gateway)
        path = f"/portal/v1/patients/{story.OWN}/appointments"
        token = platform.tokens[story.PATIENT]
        self._request = f"GET {path} HTTP/1.1\r\nHost: g\r\nAuthorization: Bearer {token}\r\n\r\n".encode()
        (pid,) = platform.worker_pids()
        self._worker = psutil.Process(pid)
        self._held: list[socket.socket] = []

    def run(self, connections: int) -> dict[str, Any]:
        """Open, ask, wait, ask some again, close. Raises: DemoError, OSError."""
        self._add()  # what the first request alone costs is not a connection's
        before_mib, before_fds = self._rss_mib(), self._settled_fds()
        started_s = time.monotonic()
        for number in range(1, connections + 1):
            self._add()
            if number % PROGRESS_EVERY == 0:
                _tell(f"{number:7d} connections  {self._rss_mib():7.1f} MiB  {time.monotonic() - started_s:5.1f} s")
        held_mib, held = self._rss_mib(), self._worker.num_fds() - before_fds
        used_s = sum(self._worker.cpu_times()[:2])
        time.sleep(2)
        idle_cpu = (sum(self._worker.cpu_times()[:2]) - used_s) / 2
        again = self._held[:: max(1, len(self._held) // ASKED_AGAIN)]
        for sock in again:
            ask(sock, self._request)
        left = self._close(before_fds)
        return {
            "connections": connections,
            "held": held,
            "asked_again": len(again),
            "before_mib": round(before_mib, 1),
            "held_mib": round(held_mib, 1),
            "kib_each": round((held_mib - before_mib) * 1024 / connections, 2),
            "idle_cpu_percent": round(100 * idle_cpu, 1),
            "after_mib": round(self._rss_mib(), 1),
            "left_descriptors": left,
        }

    def _add(self) -> None:
        sock = socket.create_connection(self._address, 10)
        self._held.append(sock)
        ask(sock, self._request)

    def _settled_fds(self) -> int:
        """How many descriptors the worker holds once it opens none for a second: pools still fill after its start."""
        held, since_s = self._worker.num_fds(), time.monotonic()
        while time.monotonic() - since_s < 1:
            time.sleep(0.1)
            if (now := self._worker.num_fds()) != held:
                held, since_s = now, time.monotonic()
        return held

    def _close(self, before_fds: int) -> int:
        """Close all; how many of their descriptors the worker still holds ten seconds later."""
        for sock in self._held:
            sock.close()
        until_s = time.monotonic() + 10
        while (left := self._worker.num_fds() - before_fds) > 0 and time.monotonic() < until_s:
            time.sleep(0.05)
        return max(0, left)

    def _rss_mib(self) -> float:
        return float(self._worker.memory_info().rss / 2**20)


def _tell(text: str) -> None:
    print(text, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m loadtests.idle", description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=10_000, help="how many (10000)")
    wanted = parser.parse_args(argv).connections
    connections = room_for(wanted)
    if connections < wanted:
        _tell(f"only {connections} of {wanted}: the descriptor limit (RLIMIT_NOFILE) allows no more")
    directory = scratch("caregate-idle-")
    platform = DemoUnderLoad(directory, 1, 600, tell=_tell, CAREGATE_KEEPALIVE_S="600")
    try:
        platform.start_without_units()
        result = Idle(platform).run(connections)
    except (DemoError, OSError) as error:
        print(f"idle: {error}", file=sys.stderr)
        return 1
    finally:
        platform.stop()
        shutil.rmtree(directory, ignore_errors=True)
    _tell("RESULT " + json.dumps(result))
    # NOTE: one in fifty may be the worker's own: it also opens files and connections to the database.
    own = connections // 50
    return 0 if 0 <= result["held"] - connections <= own and result["left_descriptors"] <= own else 1


if __name__ == "__main__":
    raise SystemExit(interruptible(main))
