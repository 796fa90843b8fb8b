"""Measuring: CPU time of a process tree from /proc, and one wrk run with its percentiles."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")

LUA = """
local requests = {}
local total = 0
local n = 0
-- every run goes on where another left off, so that a token is used once as long as there are enough of them
local start = tonumber(os.getenv("BENCH_START") or "0")
-- PERF: `scale`: requests are written before the clock starts. To write them while it runs takes the generator so long
-- with 100,000 tokens that the server waits for it.
function init(args)
  local path = os.getenv("BENCH_PATH")
  local size = tonumber(os.getenv("BENCH_BODY") or "0")
  local body = size > 0 and string.rep("x", size) or nil
  for line in io.lines(os.getenv("BENCH_TOKENS")) do
    total = total + 1
    requests[total] = wrk.format(body and "POST" or "GET", path, {["Authorization"] = "Bearer " .. line}, body)
  end
end
function request()
  n = n + 1
  return requests[(start + n - 1) % total + 1]
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
    """One run.

    Units: `cpu_us` microseconds of the server's CPU a request, `beside_us` the same of what helps it (agent,
    PostgreSQL); `p50_ms`, `p99_ms` milliseconds; `load_cores` the load generator's CPU seconds a second.
    """

    cpu_us: float
    rps: float
    p50_ms: float
    p99_ms: float
    requests: int
    errors: int
    beside_us: float = 0.0
    load_cores: float = 0.0


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            # A thread may end between the two looks.
            with contextlib.suppress(OSError):
                found += [int(child) for child in task.read_text().split()]
    return found


def cpu_seconds(pids: Sequence[int]) -> float:
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
    port: int,
    path: str,
    tokens: Path,
    pids: list[int],
    *,
    seconds: float,
    connections: int,
    cpu: str,
    start: int = 0,
    beside: Sequence[int] = (),
    body_bytes: int = 0,
) -> Sample:
    """Load a server from another core and say what a request cost it. With a body it is a POST.

    Raises: RuntimeError if wrk itself fails.
    """
    script = tokens.with_name("bench.lua")
    script.write_text(LUA)
    before, beside_before, children = cpu_seconds(pids), cpu_seconds(beside), os.times()
    result = subprocess.run(
        ["taskset", "-c", cpu, "wrk", "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "--timeout", "10s",
         "-s", str(script), f"http://127.0.0.1:{port}"],
        capture_output=True, text=True, check=False,
        env={**os.environ, "BENCH_TOKENS": str(tokens), "BENCH_PATH": path, "BENCH_START": str(start),
             "BENCH_BODY": str(body_bytes)},
    )  # fmt: skip
    spent, beside_spent, after = cpu_seconds(pids) - before, cpu_seconds(beside) - beside_before, os.times()
    load_s = after.children_user + after.children_system - children.children_user - children.children_system
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
        beside_us=beside_spent / requests * 1e6,
        load_cores=load_s / (found["us"] / 1e6),
    )
