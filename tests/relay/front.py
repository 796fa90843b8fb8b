"""The relay alone as the application of real workers; its directory is in the environment."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gateway.config.snapshot import SnapshotHolder
from tests.relay.conftest import Worker, make_snapshot


class Front:
    """The rig's application, with a worker's moments."""

    def __init__(self) -> None:
        folder, holder = Path(os.environ["TEST_RUN_DIR"]), SnapshotHolder(make_snapshot())
        grace_s = int(os.environ["TEST_GRACE_S"])
        self._worker = Worker(folder, holder, f"relay-{os.getpid()}.sock", {}, drain_grace_s=grace_s)
        self._worker.relay.start()

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        return self._worker.app(environ, start)

    def drain(self) -> None:
        self._worker.relay.drain()

    def stop(self) -> None:
        self._worker.relay.stop()


app = Front()
Path(os.environ["TEST_NOTES"] + ".ready").touch()
