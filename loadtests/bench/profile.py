"""`make profile`: flame graphs of a worker under the policy row's load, and of the kernels; SVG files in `results/`.

Sampled by py-spy with native frames, so the kernels and the C libraries show.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

from loadtests.bench.__main__ import RESULTS
from loadtests.bench.database import portal_database
from loadtests.bench.measure import wrk
from loadtests.bench.rows import Rows
from loadtests.bench.run import check
from loadtests.bench.servers import LOAD_CPU, Server
from loadtests.interruption import interruptible


def worker_of(server: Server) -> int:
    """The worker's process id: the last child of gunicorn's arbiter that is a Python."""
    pythons = [pid for pid in server.pids() if "gunicorn" in Path(f"/proc/{pid}/cmdline").read_text()]
    return pythons[-1]


def record(target: list[str], seconds: float, path: Path) -> None:
    """Sample a process into an SVG.

    Raises: RuntimeError with py-spy's own words, for example where it may not attach.
    """
    argv = ["py-spy", "record", "--native", "--rate", "500", "--format", "flamegraph", "--output", str(path)]
    if target[0] == "--pid":
        argv += ["--duration", str(round(seconds))]
    result = subprocess.run([*argv, *target], capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"py-spy: {result.stderr.strip()[-400:]}")


def main() -> int:
    """Profile for SECONDS."""
    seconds = float(os.environ.get("SECONDS", "10"))
    RESULTS.mkdir(exist_ok=True)
    os.environ["PATH"] = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="caregate-profile-") as folder:
        _profile_worker(Path(folder), seconds)
    record(
        ["--", sys.executable, "-m", "loadtests.bench_fastpath", "--rounds", "1"],
        seconds,
        RESULTS / "profile-kernels.svg",
    )
    for name in ("profile-worker.svg", "profile-kernels.svg"):
        print(os.path.relpath(RESULTS / name))
    return 0


def _profile_worker(run: Path, seconds: float) -> None:
    with portal_database(run / "postgres") as portal:
        rows = Rows(run, portal)
        row = next(row for row in rows.all() if row.name == "policy_rs256")
        ours = next(c for c in row.contenders if c.name == os.environ.get("SERVER", "caregate"))
        server = ours.start()
        try:
            check(rows, row, ours, server)
            load = threading.Thread(
                target=wrk,
                args=(server.port, ours.path, rows.tokens(row.tokens), server.pids()),
                kwargs={"seconds": seconds + 2, "connections": 32, "cpu": LOAD_CPU},
            )
            load.start()
            record(["--pid", str(worker_of(server))], seconds, RESULTS / "profile-worker.svg")
            load.join()
        finally:
            server.stop()


if __name__ == "__main__":
    raise SystemExit(interruptible(main))
