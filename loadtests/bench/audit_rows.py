"""The durable audit trail: a route, and a relayed one, with `phi` and without, on a disk that syncs in 1 ms.

In `audit_durable` 32 callers ask as fast as they are answered: what a request costs, and how long it waits for a worker
at its limit. In `audit_open` they ask 1,000 times a second: what the trail adds to an answer under the same load.

The spool lies in memory, where there is such a file system, and a library under the gateway makes every sync take the
millisecond (loadtests/ledger/shim.c): in both, so that the only difference is the trail.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from loadtests.bench.measure import cpu_seconds
from loadtests.bench.openloop import at, await_answer, connect, medians, open_loop, request_bytes
from loadtests.bench.ours import Caregate
from loadtests.bench.policy import UNIT
from loadtests.bench.progress import tell
from loadtests.bench.report import Figure
from loadtests.bench.row import Contender, Row
from loadtests.bench.servers import LOAD_CPU, Missing, Server
from loadtests.ledger.disk import NoCompiler, build_shim

SYNC_MS = 1
OPEN_RATE = 1000.0
OPEN_CONNECTIONS = 32
_MIN_OPEN_S = 4.0
_MEMORY = Path("/dev/shm")
_RELAYED = f"/units/{UNIT}/up/small"


def audit_rows(ours: Caregate, tokens: Callable[[], Path]) -> list[Row]:
    """A caller waits for intent and outcome, so for at least two syncs a request. Shapes: `tokens` as in relay_rows."""

    def contenders(row: str) -> tuple[Contender, ...]:
        def starts(name: str, *, phi: bool) -> Callable[[], Server]:
            return lambda: _start(ours, f"caregate-{row}-{name}", phi=phi)

        return (
            Contender("caregate", starts("none", phi=False), "/policy"),
            Contender("caregate-durable", starts("durable", phi=True), "/policy"),
            Contender("caregate-relay", starts("relay-none", phi=False), _RELAYED, ready=ours.agent),
            Contender("caregate-relay-durable", starts("relay-durable", phi=True), _RELAYED, ready=ours.agent),
        )

    open_to = contenders("open")

    def measure(seconds: float, rounds: int) -> list[Figure]:
        token = tokens().open().readline().strip()
        return _measure_open(open_to, token, max(seconds, _MIN_OPEN_S), rounds)

    return [
        Row("audit_durable", "rs256", contenders("audit")),
        Row("audit_open", "rs256", open_to, measure),
    ]


def _measure_open(contenders: tuple[Contender, ...], token: str, seconds: float, rounds: int) -> list[Figure]:
    """All contenders in turns, from the load's core; medians."""
    samples: dict[str, list[tuple[float, float, float]]] = {contender.name: [] for contender in contenders}
    affinity = os.sched_getaffinity(0)
    with ExitStack() as stack:
        running = []
        for contender in contenders:
            tell(f"audit_open: starting {contender.name}")
            server = contender.start()
            stack.callback(server.stop)
            if contender.ready is not None:
                contender.ready(server)
            await_answer(server, contender.path, token)
            socks = [stack.enter_context(connect(server.port)) for _ in range(OPEN_CONNECTIONS)]
            running.append((contender, server, socks))
        os.sched_setaffinity(0, {int(LOAD_CPU)})
        stack.callback(os.sched_setaffinity, 0, affinity)
        for turn in range(rounds + 1):
            for contender, server, socks in running:
                tell(f"audit_open: round {turn}/{rounds} {contender.name}" + (", to warm up" if not turn else ""))
                before = cpu_seconds(server.pids())
                request = request_bytes(contender.path, token)
                latencies = sorted(open_loop(socks, request, OPEN_RATE, seconds if turn else 1.0))
                spent = (cpu_seconds(server.pids()) - before) / len(latencies) * 1e6
                if turn:
                    samples[contender.name].append((spent, at(latencies, 0.5), at(latencies, 0.99)))
    return [medians("audit_open", name, OPEN_RATE, found) for name, found in samples.items()]


def _start(ours: Caregate, name: str, *, phi: bool) -> Server:
    """Raises: Missing where the library cannot be compiled."""
    try:
        shim = build_shim()
    except NoCompiler as error:
        raise Missing(str(error)) from None
    memory = _MEMORY if _MEMORY.is_dir() else None
    data = Path(tempfile.mkdtemp(prefix="caregate-bench-", dir=memory))
    control = data / "disk"
    control.write_text(f"{SYNC_MS} 0 0\n")
    environment = {
        "CAREGATE_DATA_DIR": str(data),
        "CAREGATE_TEST_SHIM_ROOT": str(data / "audit"),
        "CAREGATE_TEST_SHIM_CONTROL": str(control),
        "LD_PRELOAD": str(shim),
    }
    try:
        server = ours.start(name, bare=True, phi=phi, environment=environment)
    except BaseException:
        shutil.rmtree(data, ignore_errors=True)
        raise
    server.folders.append(data)
    return server
