"""The rows of the relay: small answers, large bodies beside a plain TCP relay, latency at a fixed rate."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from loadtests.bench.measure import cpu_seconds, tree
from loadtests.bench.openloop import (
    at,
    await_answer,
    connect,
    connections_of,
    holder_of,
    medians,
    open_loop,
    request_bytes,
)
from loadtests.bench.ours import MIB, Caregate
from loadtests.bench.policy import UNIT
from loadtests.bench.progress import tell
from loadtests.bench.report import Figure
from loadtests.bench.row import Contender, Row
from loadtests.bench.servers import BOTH_CPUS, LOAD_CPU, Peers, Server

if TYPE_CHECKING:
    import socket

RATE = 500.0
OPEN_CONNECTIONS = 32
DOWN_BYTES, UP_BYTES = 64 * MIB, 16 * MIB
"""A request's body is at most 16 MiB: 64 MiB go up in four of them."""

_PATH = f"/units/{UNIT}/up/small"
_MIN_OPEN_S = 4.0


def relay_rows(ours: Caregate, peers: Peers, tokens: Callable[[], Path], cache: int) -> list[Row]:
    """Shapes: `tokens` makes the file whose first line is the token of the row at a fixed rate."""
    return [
        Row("relay_small", "rs256", (
            Contender("caregate", lambda: ours.start("caregate-relay", bare=True), _PATH, ready=ours.agent),
            Contender("caregate-logged", lambda: ours.start("caregate-logged-relay"), _PATH, ready=ours.agent),
            Contender("envoy-cached", lambda: peers.envoy("RS256", cache, "envoy-relay"), "/up/small"),
            Contender("node-ws", lambda: peers.relay("node-ws"), _PATH, ready=peers.unit),
        )),
        _large("relay_64m_down", f"/units/{UNIT}/up/{DOWN_BYTES}", f"/up/{DOWN_BYTES}", 0, ours, peers),
        _large("relay_64m_up", f"/upload/{UNIT}/up/0", "/up/0", UP_BYTES, ours, peers),
        _open(ours, tokens),
    ]  # fmt: skip


def _large(name: str, path: str, plain_path: str, body_bytes: int, ours: Caregate, peers: Peers) -> Row:
    """One direction of large bodies, beside bytes that HAProxy passes on without looking at them."""

    def tcp() -> Server:
        service = peers.large()
        server = peers.tcp(f"haproxy-tcp-{name}", service.port)
        server.helpers.append(service.process)
        return server

    def agent(gateway: Server) -> None:
        service = peers.large()
        gateway.helpers.append(service.process)
        ours.agent(gateway, service.port)

    return Row(name, "rs256", (
        Contender("caregate", lambda: ours.start(f"caregate-{name}", bare=True), path, None, ready=agent,
                  body_bytes=body_bytes, connections=2),
        Contender("haproxy-tcp", tcp, plain_path, None, body_bytes=body_bytes, connections=2, policy=False),
    ))  # fmt: skip


# --- latency over calling the local service directly, at a rate that nobody is saturated by


def _open(ours: Caregate, tokens: Callable[[], Path]) -> Row:
    def start() -> Server:
        return ours.start("caregate-open", workers=2, cpu=BOTH_CPUS, bare=True)

    def measure(seconds: float, rounds: int) -> list[Figure]:
        return _measure_open(ours, tokens().open().readline().strip(), start, max(seconds, _MIN_OPEN_S), rounds)

    return Row("relay_open", "rs256", (
        Contender("direct", start, "/up/small"),
        Contender("caregate", start, _PATH),
        Contender("caregate-hop", start, _PATH),
    ), measure)  # fmt: skip


def _measure_open(ours: Caregate, token: str, start: Callable[[], Server], seconds: float, rounds: int) -> list[Figure]:
    samples: dict[str, list[tuple[float, float, float]]] = {}
    affinity = os.sched_getaffinity(0)
    with ExitStack() as stack:
        tell("relay_open: starting caregate with two workers")
        server = start()
        stack.callback(server.stop)
        ours.agent(server)
        await_answer(server, _PATH, token)
        os.sched_setaffinity(0, {int(LOAD_CPU)})
        stack.callback(os.sched_setaffinity, 0, affinity)
        groups = _groups(ours, server, token)
        for socks, _ in groups.values():
            for sock in socks:
                stack.callback(sock.close)
        for turn in range(rounds):
            for name, (socks, request) in groups.items():
                tell(f"relay_open: round {turn + 1}/{rounds} {name}")
                before = cpu_seconds(server.pids())
                latencies = sorted(open_loop(socks, request, RATE, seconds))
                spent = (cpu_seconds(server.pids()) - before) / len(latencies) * 1e6
                samples.setdefault(name, []).append((spent, at(latencies, 0.5), at(latencies, 0.99)))
    samples["direct"] = [(0.0, *waits) for _, *waits in samples["direct"]]  # nobody of ours worked for it
    return [medians("relay_open", name, RATE, found) for name, found in samples.items()]


def _groups(ours: Caregate, server: Server, token: str) -> dict[str, tuple[list[socket.socket], bytes]]:
    """Connections to the service itself, to the worker that holds the unit, and to its sibling."""
    workers = [pid for pid in server.pids()[1:] if Path(f"/proc/{pid}/fd").exists()]
    agents = [pid for helper in server.helpers for pid in tree(helper.pid)]
    through = request_bytes(_PATH, token)
    accepting = [pid for pid in workers if b"gunicorn" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    holder = holder_of(server.port, agents, accepting)
    if holder is None:
        raise RuntimeError("no worker holds the unit's connection")
    found = connections_of(server.port, accepting, through, OPEN_CONNECTIONS)
    sibling = next(pid for pid in found if pid != holder)
    direct = [connect(ours.upstream_port) for _ in range(OPEN_CONNECTIONS)]
    return {
        "direct": (direct, request_bytes("/up/small", token)),
        "caregate": (found[holder], through),
        "caregate-hop": (found[sibling], through),
    }
