"""The row of the durable audit trail: a route, and a relayed one, with `phi` and without, on a disk that syncs in 1 ms.

The spool lies in memory, where there is such a file system, and a library under the gateway makes every sync take the
millisecond (loadtests/ledger/shim.c): in both, so that the only difference is the trail.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from loadtests.bench.ours import Caregate
from loadtests.bench.policy import UNIT
from loadtests.bench.row import Contender, Row
from loadtests.bench.servers import Missing, Server
from loadtests.ledger.disk import NoCompiler, build_shim

SYNC_MS = 1
_MEMORY = Path("/dev/shm")
_RELAYED = f"/units/{UNIT}/up/small"


def audit_rows(ours: Caregate) -> list[Row]:
    """Each of 32 callers waits for intent and outcome, so for at least two syncs a request."""

    def starts(name: str, *, phi: bool) -> Callable[[], Server]:
        return lambda: _start(ours, f"caregate-audit-{name}", phi=phi)

    return [
        Row("audit_durable", "rs256", (
            Contender("caregate", starts("none", phi=False), "/policy"),
            Contender("caregate-durable", starts("durable", phi=True), "/policy"),
            Contender("caregate-relay", starts("relay-none", phi=False), _RELAYED, ready=ours.agent),
            Contender("caregate-relay-durable", starts("relay-durable", phi=True), _RELAYED, ready=ours.agent),
        )),
    ]  # fmt: skip


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
