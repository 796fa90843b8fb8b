"""Measuring: CPU time of a process tree from /proc, and one wrk run with its percentiles."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

LUA = """
local tokens = {}
local n = 0
for line in io.lines(os.getenv("BENCH_TOKENS")) do tokens[#tokens + 1] = line end
local path = os.getenv("BENCH_PATH")
local total = #tokens
-- every run goes on where another left off, so that a token is used once as long as there are enough of them
local start = tonumber(os.getenv("BENCH_START") or "0")
function request()
  n = n + 1
  return wrk.format("GET", path, {["Authorization"] = "Bearer " .. tokens[(start + n - 1) % total + 1]})
end
function done(summary, latency, requests)
  io.write(string.format('\\nRESULT {"requests": %d, "us": %d, "errors": %d, "p50": %d, "p99": %d}\\n',
    summary.requests, summary.duration,
    summary.errors.status + summary.errors.connect + summary.errors.read + summary.errors.write
      + summary.errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """One run. Units: `cpu_us` microseconds of the server's CPU a request, `p50_ms`, `p99_ms` milliseconds."""

    cpu_us: float
    rps: float
    p50_ms: float
    p99_ms: float
    requests: int
    errors: int


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def cpu_seconds(pids: list[int]) -> float:
    """User and system time of processes that live."""
    total = 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        total += int(fields[11]) + int(fields[12])
    return total * _TICK_S


def wrk(
    port: int, path: str, tokens: Path, pids: list[int], *, seconds: float, connections: int, cpu: str, start: int = 0
) -> Sample:
    """Load a server from another core and say what a request cost it.

    Raises: RuntimeError if wrk itself fails.
    """
    script = tokens.with_name("bench.lua")
    script.write_text(LUA)
    before = cpu_seconds(pids)
    result = subprocess.run(
        ["taskset", "-c", cpu, "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s",
         "-s", str(script), f"http://127.0.0.1:{port}"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "BENCH_TOKENS": str(tokens), "BENCH_PATH": path, "BENCH_START": str(start)},
    )  # fmt: skip
    spent = cpu_seconds(pids) - before
    line = next((x for x in result.stdout.splitlines() if x.startswith("RESULT ")), None)
    if result.returncode or line is None:
        raise RuntimeError(f"wrk failed: {result.stderr or result.stdout}")
    found = json.loads(line.removeprefix("RESULT "))
    requests = max(1, found["requests"])
    return Sample(
        cpu_us=spent / requests * 1e6,
        rps=requests / (found["us"] / 1e6),
        p50_ms=found["p50"] / 1000,
        p99_ms=found["p99"] / 1000,
        requests=found["requests"],
        errors=found["errors"],
    )
