"""Do all workers know of a revocation? For the operators' commands and the Admin API."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Final

from gateway.config.reload import ask

SETTLE_S: Final = 5.0
"""How long to wait for the workers; they know within a second."""
_PAUSE_S: Final = 0.05
TOKENS: Final = ("access", "revocations")
"""Where workers say how far they know of revoked tokens: (question, member of the answer)."""
UNITS: Final = ("units", "revision")
"""The same of revoked units and their keys."""


def await_workers(
    run_dir: Path, revision: int, timeout_s: float = SETTLE_S, of: tuple[str, str] = TOKENS
) -> tuple[list[int], list[int]]:
    """The workers that know that revision of TOKENS or UNITS, and those that do not by the end of the time.

    Raises: ReloadFailed.
    Yields to the hub: in a worker, yes.
    """
    question, member = of
    until_s = time.monotonic() + timeout_s
    while True:
        found = ask(run_dir, question, timeout_s=timeout_s)
        late = [worker["pid"] for worker in found if worker[member] < revision]
        if not late or time.monotonic() > until_s:
            return [worker["pid"] for worker in found if worker["pid"] not in late], late
        time.sleep(_PAUSE_S)
