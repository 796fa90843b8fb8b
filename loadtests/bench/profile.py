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

from loadtests.bench.__main__ import RESULTS, Bench, check
from loadtests.bench.measure import wrk
from loadtests.bench.servers import LOAD_CPU, Server


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
        bench = Bench(Path(folder))
        row = next(row for row in bench.rows() if row.name == "policy_rs256")
        tokens = bench.tokens(row.tokens)
        ours = row.contenders[0]
        server = ours.start()
        try:
            check(ours, server, tokens.read_text().partition("\n")[0])
            load = threading.Thread(
                target=wrk,
                args=(server.port, ours.path, tokens, server.pids()),
                kwargs={"seconds": seconds + 2, "connections": 32, "cpu": LOAD_CPU},
            )
            load.start()
            record(["--pid", str(worker_of(server))], seconds, RESULTS / "profile-worker.svg")
            load.join()
        finally:
            server.stop()
    record(["--", sys.executable, "-m", "loadtests.bench_fastpath", "--fast"], seconds, RESULTS / "profile-kernels.svg")
    for name in ("profile-worker.svg", "profile-kernels.svg"):
        print(os.path.relpath(RESULTS / name))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
