"""Requests at a fixed rate, whatever the answers do: latency counts from when a request was due.

Connections are sorted by the worker that accepted them, as the kernel tells, so that a caller on the worker that holds
a unit and one on its sibling can be told apart.
"""

from __future__ import annotations

import select
import socket
import statistics
import time
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from loadtests.bench.report import Figure
from loadtests.bench.servers import Server, answer

_ESTABLISHED: Final = "01"
_MAX_CONNECTIONS: Final = 600
_PATIENCE_S: Final = 10.0


class OpenLoopFailed(RuntimeError):
    """An answer was wrong or did not come, or no connections could be had."""


def request_bytes(path: str, token: str) -> bytes:
    return f"GET {path} HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {token}\r\n\r\n".encode()


def connect(port: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=_PATIENCE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def connections_of(port: int, pids: Iterable[int], request: bytes, number: int) -> dict[int, list[socket.socket]]:
    """`number` connections to each of the processes that accept on `port`, each after one answer.

    Raises: OpenLoopFailed.
    """
    found: dict[int, list[socket.socket]] = {pid: [] for pid in pids}
    spare: list[socket.socket] = []
    for _ in range(_MAX_CONNECTIONS):
        if all(len(socks) >= number for socks in found.values()):
            break
        sock = connect(port)
        exchange(sock, request)
        owner = acceptor_of(port, sock.getsockname()[1], found)
        if owner is not None and len(found[owner]) < number:
            found[owner].append(sock)
        else:
            spare.append(sock)  # kept open: the kernel would hand the next one to the same worker
    for sock in spare:
        sock.close()
    if any(len(socks) < number for socks in found.values()):
        raise OpenLoopFailed("no connections to every worker")
    return found


def exchange(sock: socket.socket, request: bytes) -> None:
    """One request and its whole answer. Raises: OpenLoopFailed."""
    sock.sendall(request)
    data = b""
    while not is_whole(data):
        piece = sock.recv(65_536)
        if not piece:
            raise OpenLoopFailed("a connection was closed")
        data += piece


def is_whole(data: bytes) -> bool:
    """Is there a whole answer of 200? Raises: OpenLoopFailed for another status."""
    head, end, body = data.partition(b"\r\n\r\n")
    if not end:
        return False
    if not head.startswith(b"HTTP/1.1 200 "):
        raise OpenLoopFailed(head[:80].decode("latin-1"))
    for line in head.lower().split(b"\r\n"):
        if line.startswith(b"content-length:"):
            return len(body) >= int(line.partition(b":")[2])
    raise OpenLoopFailed("an answer without its length")


def open_loop(socks: list[socket.socket], request: bytes, rate: float, seconds: float) -> list[float]:
    """The latency of every request in milliseconds. Units: `rate` requests a second.

    Raises: OpenLoopFailed.
    """
    free, waiting = deque(socks), deque[float]()
    sent_for: dict[socket.socket, tuple[float, bytes]] = {}
    latencies: list[float] = []
    begun = time.perf_counter()
    # NOTE: counted, since a sum of 1 / rate is off by its rounding, and then by one request.
    asked, total = 0, round(rate * seconds)
    due, end = begun, begun + seconds
    while True:
        now = time.perf_counter()
        while due <= now and asked < total:
            waiting.append(due)
            asked += 1
            due = begun + asked / rate
        while waiting and free:
            sock = free.popleft()
            sent_for[sock] = waiting.popleft(), b""
            sock.sendall(request)
        if asked == total and not sent_for and not waiting:
            return latencies
        if now > end + _PATIENCE_S:
            raise OpenLoopFailed("answers did not come")
        # NOTE: epoll waits in milliseconds; select in microseconds.
        readable, _, _ = select.select(
            list(sent_for), [], [], max(0.0, due - time.perf_counter()) if asked < total else 1.0
        )
        for sock in readable:
            began, data = sent_for[sock]
            piece = sock.recv(65_536)
            if not piece:
                raise OpenLoopFailed("a connection was closed")
            data += piece
            if is_whole(data):
                latencies.append((time.perf_counter() - began) * 1000)
                del sent_for[sock]
                free.append(sock)
            else:
                sent_for[sock] = began, data


def at(ordered: list[float], share: float) -> float:
    """The value that so many are no larger than."""
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def medians(row: str, name: str, rate: float, samples: list[tuple[float, float, float]]) -> Figure:
    """Shapes: a round's CPU us, p50 ms, p99 ms."""
    cpu_us, p50_ms, p99_ms = (round(statistics.median(column), 3) for column in zip(*samples, strict=True))
    return Figure(row, name, cpu_us, rate, p50_ms, p99_ms)


def await_answer(server: Server, path: str, token: str) -> None:
    """Until it answers well. Raises: OpenLoopFailed."""
    until = time.monotonic() + 2 * _PATIENCE_S
    while answer(server, path, token)[0] != 200:
        if time.monotonic() > until:
            raise OpenLoopFailed(f"no good answer: {server.log.read_text(errors='replace')[-600:]}")
        time.sleep(0.1)


# --- who accepted a connection: /proc/net/tcp and the descriptors of the processes


def acceptor_of(port: int, client_port: int, pids: Iterable[int]) -> int | None:
    """Which of the processes accepted the connection from `client_port` on `port`."""
    inode = next((i for local, remote, i in _connections() if (local, remote) == (port, client_port)), None)
    return next((pid for pid in pids if inode in _inodes(pid)), None)


def holder_of(port: int, dialler: Iterable[int], pids: Iterable[int]) -> int | None:
    """Which of the processes holds the connection that a process of `dialler` made to `port`."""
    own = {inode for pid in dialler for inode in _inodes(pid)}
    client_port = next((local for local, remote, inode in _connections() if remote == port and inode in own), None)
    return None if client_port is None else acceptor_of(port, client_port, pids)


def _connections() -> list[tuple[int, int, str]]:
    """(local port, remote port, inode) of what is established over IPv4."""
    rows = (line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:])
    return [(_port(row[1]), _port(row[2]), row[9]) for row in rows if row[3] == _ESTABLISHED]


def _port(address: str) -> int:
    return int(address.partition(":")[2], 16)


def _inodes(pid: int) -> set[str]:
    found = set()
    for link in Path(f"/proc/{pid}/fd").glob("*"):
        try:
            target = link.readlink().name
        except OSError:
            continue
        if target.startswith("socket:["):
            found.add(target[8:-1])
    return found
