"""What the audit trail costs a request: `python -m loadtests.audit_cost [folder]`, figures as a table.

CPU time of this process, and for those who wait for the disk the time they wait. The folder is where the spool lies.
"""

from __future__ import annotations

import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import gevent

from gateway.audit.columns import row
from gateway.audit.commit import Commit
from gateway.audit.event import Accesses
from gateway.audit.spool import open_spool
from gateway.context import Principal, RequestContext
from gateway.routing.model import ResourceAction, Route, RouteKind

_ROUNDS = 5
_COUNT = 20_000
_CALLERS = 32
_WAITS = 200
_SHIPPED = 500
"""After so many requests what is durable is taken for shipped, so that files are used again."""


class _Snapshot:
    version = 12


def _context() -> RequestContext:
    claims = {"patient": "pat-0001", "org": "org-7", "client_id": "app-1"}
    principal = Principal(
        "f3b0c442-98fc-4c14-9afb-f4c8996fb924", "https://id.example.org/patients", "patient-app", "patient",
        frozenset(), "0af76519-16cd-43dd-8448-eb211c80319c", "kid", 0.0, claims,
    )  # fmt: skip
    route = Route(
        name="lab-results", template="/x", methods=("GET",), kind=RouteKind.RESOURCE, action=ResourceAction("x"),
        audiences=frozenset(), roles=frozenset(), permission=None, phi=True,
        metadata={"resource_type": "Observation", "purpose": "TREAT"},
    )  # fmt: skip
    return RequestContext(
        "5f1c9f1e-6f0a-4bb0-9a0d-4f1fbc1f4e3b", time.monotonic_ns(), "GET", client_address="192.0.2.17",
        principal=principal, route=route, params={"unit": "north-clinic", "patient": "pat-0001"}, rule="allowed",
        unit="north-clinic", delivery="response_started", snapshot=_Snapshot(),
    )  # fmt: skip


def _cpu_us(work: Callable[[], object], count: int = _COUNT) -> float:
    best = float("inf")
    for _ in range(_ROUNDS):
        began = time.process_time_ns()
        for _ in range(count):
            work()
        best = min(best, (time.process_time_ns() - began) / count / 1000)
    return best


def _group_commit(folder: Path) -> tuple[float, list[float]]:
    """CPU us a request and the waits in ms, of so many callers: intent and outcome, both waited for; completion."""
    spool = open_spool(folder, 1 << 22, 1 << 33)
    commit = Commit(spool)
    accesses, ctx, waits = Accesses("node-1", clock_ns=time.time_ns, since_ns=time.monotonic_ns), _context(), []

    def call() -> None:
        for _ in range(_WAITS):
            began = time.perf_counter()
            accesses.keep(ctx, 0, spool)
            commit.wait()
            accesses.keep(ctx, 200, spool)
            commit.wait()
            waits.append((time.perf_counter() - began) * 1000)
            accesses.complete(ctx, 200, True, spool)
            if len(waits) % _SHIPPED == 0:
                spool.shipped(commit.durable)

    began = time.process_time_ns()
    gevent.joinall([gevent.spawn(call) for _ in range(_CALLERS)], raise_error=True)
    took = time.process_time_ns() - began
    commit.stop()
    spool.close()
    return took / len(waits) / 1000, waits


def main(folder: Path) -> None:
    accesses, ctx = Accesses("node-1", clock_ns=time.time_ns, since_ns=time.monotonic_ns), _context()
    canonical = accesses.encode(ctx, 200, 1_700_000_000_123, 1234)
    spool = open_spool(folder, 1 << 24, 1 << 33)
    rows = [
        ("an event as bytes", _cpu_us(lambda: accesses.encode(ctx, 200, 1_700_000_000_123, 1234))),
        ("chain and spool", _cpu_us(lambda: spool.append(canonical))),
        ("event, chain and spool at once", _cpu_us(lambda: accesses.keep(ctx, 200, spool))),
        ("the event of a transfer's end, chain and spool", _cpu_us(lambda: accesses.complete(ctx, 200, True, spool))),
        ("a row for COPY", _cpu_us(lambda: row(spool.chain, 1, spool.hash, canonical))),
    ]
    spool.close()
    print(f"an event has {len(canonical)} bytes")
    for name, cost in rows:
        print(f"{name:<52}{cost:8.2f} us CPU")
    for folder_name in ("a", "b", "c"):
        cost, waits = _group_commit(folder / folder_name)
        quantiles = statistics.quantiles(waits, n=100)
        print(
            f"a `phi` request, its 3 events and 2 waits, {_CALLERS} callers {cost:8.2f} us CPU"
            f"   waits p50 {quantiles[49]:.2f} ms, p99 {quantiles[98]:.2f} ms"
        )


if __name__ == "__main__":
    where = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp(prefix="caregate-audit-cost-"))
    try:
        main(where)
    finally:
        if len(sys.argv) < 2:
            shutil.rmtree(where)
