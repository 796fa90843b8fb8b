"""`python -m loadtests.bench`: rows against peers, interleaved; ROWS=, SECONDS=, ROUNDS= choose what and how long.

Prints a table, saves `results/latest.json` and `results/latest.svg`.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from loadtests.bench.measure import Sample, wrk
from loadtests.bench.ours import UNIT, Caregate
from loadtests.bench.policy import make_keys, write_tokens
from loadtests.bench.report import Bar, Figure, judge, plot, table
from loadtests.bench.servers import LOAD_CPU, Missing, Peers, Server, answer, free_port

WORK = Path(".caregate/bench")
RESULTS = Path(__file__).resolve().parent / "results"
CONNECTIONS = 32
UNIQUE_TOKENS = 100_000
UPSTREAM_BODIES = {"small": b'{"ok":true}', "64k": b"x" * 65_536, "1m": b"x" * 1_048_576}


@dataclass(frozen=True, slots=True)
class Contender:
    """One server of a row: how it starts, what it is asked, what it must answer."""

    name: str
    start: Callable[[], Server]
    path: str
    body: bytes | None = b'{"ok":true}'
    ready: Callable[[Server], None] | None = None


@dataclass(frozen=True, slots=True)
class Row:
    name: str
    tokens: str
    contenders: tuple[Contender, ...]


class Bench:
    """One run: its keys, tokens, upstream, and the rows."""

    def __init__(self, run: Path) -> None:
        WORK.mkdir(parents=True, exist_ok=True)
        self.run = run
        run.chmod(0o755)
        self.keys = make_keys()
        self.upstream_port = free_port()
        self.peers = Peers(self.keys, WORK.resolve(), run, self.upstream_port)
        self.ours = Caregate(self.keys, run, self.upstream_port, "")

    def rows(self) -> list[Row]:
        """All rows; each contender starts with the row and stops after it."""
        peers, ours, cache = self.peers, self.ours, 200_000
        policy = (
            Contender("envoy-cached", lambda: peers.envoy("RS256", cache, "envoy-cached"), "/policy"),
            Contender("haproxy", lambda: peers.haproxy("RS256", "haproxy"), "/policy"),
            Contender("fastify-cached", lambda: peers.fastify("RS256", "fastify-cached"), "/policy"),
            Contender("stock-gunicorn", lambda: peers.stock("RS256", "stock-gunicorn"), "/policy"),
        )
        return [
            Row("policy_rs256", "rs256", (
                Contender("caregate", lambda: ours.start("caregate", bare=True), "/policy"), *policy,
                Contender("caregate-logged", lambda: ours.start("caregate-logged"), "/policy"),
            )),
            Row("policy_rs256_unique", "unique", (
                Contender("caregate", lambda: ours.start("caregate-unique", bare=True), "/policy"),
                Contender("envoy-cached", lambda: peers.envoy("RS256", 50_000, "envoy-unique"), "/policy"),
            )),
            Row("policy_hs256", "hs256", (
                Contender("caregate", lambda: ours.start("caregate-hs", bare=True), "/policy"),
                Contender("envoy", lambda: peers.envoy("HS256", 0, "envoy-hs"), "/policy"),
                Contender("haproxy", lambda: peers.haproxy("HS256", "haproxy-hs"), "/policy"),
                Contender("fastify", lambda: peers.fastify("HS256", "fastify-hs"), "/policy"),
            )),
            *(self._upstream(size, body) for size, body in UPSTREAM_BODIES.items()),
            Row("relay_small", "rs256", (
                Contender("caregate", lambda: ours.start("caregate-relay", bare=True), f"/units/{UNIT}/up/small",
                          ready=lambda server: ours.agent(server, self.upstream_port)),
                Contender("envoy-cached", lambda: peers.envoy("RS256", cache, "envoy-relay"), "/up/small"),
            )),
            Row("routes_10k", "rs256", (
                Contender("caregate", lambda: ours.start("caregate-few", bare=True), "/policy"),
                Contender("caregate-10k", lambda: ours.start("caregate-10k", routes=10_000, bare=True), "/policy"),
            )),
        ]  # fmt: skip

    def _upstream(self, size: str, body: bytes) -> Row:
        path, name = f"/up/{size}", f"-up-{size}"
        return Row(f"upstream_{size}", "rs256", (
            Contender("caregate", lambda: self.ours.start("caregate" + name, bare=True), path, body),
            Contender("envoy-cached", lambda: self.peers.envoy("RS256", 200_000, "envoy" + name), path, body),
            Contender("haproxy", lambda: self.peers.haproxy("RS256", "haproxy" + name), path, body),
            Contender("fastify-cached", lambda: self.peers.fastify("RS256", "fastify" + name), path, body),
        ))  # fmt: skip

    def tokens(self, kind: str) -> Path:
        """The token file of a row, made when first needed."""
        path = self.run / f"tokens-{kind}" / "tokens"
        if not path.exists():
            path.parent.mkdir()
            count = UNIQUE_TOKENS if kind == "unique" else 1
            tell(f"{count} {kind} tokens")
            write_tokens(self.keys, path, "HS256" if kind == "hs256" else "RS256", count)
        return path


def tell(text: str) -> None:
    """The progress line."""
    print(f"\r\033[K  {text}", end="", file=sys.stderr, flush=True)


def measure(bench: Bench, row: Row, seconds: float, rounds: int) -> list[Figure]:
    """All contenders of a row, in turn, `rounds` times; medians."""
    tokens = bench.tokens(row.tokens)
    first = tokens.read_text().partition("\n")[0]
    samples: dict[str, list[Sample]] = {}
    used: dict[str, int] = {}
    with ExitStack() as stack:
        running: list[tuple[Contender, Server]] = []
        for contender in row.contenders:
            tell(f"{row.name}: starting {contender.name}")
            try:
                server = contender.start()
            except Missing as missing:
                print(f"\nleft out: {contender.name}: {missing}", file=sys.stderr)
                continue
            stack.callback(server.stop)
            if contender.ready is not None:
                contender.ready(server)
            check(contender, server, first)
            running.append((contender, server))
        for turn in range(rounds + 1):
            for contender, server in running:
                tell(f"{row.name}: round {turn}/{rounds} {contender.name}")
                sample = wrk(
                    server.port, contender.path, tokens, server.pids(), seconds=seconds if turn else 1,
                    connections=CONNECTIONS, cpu=LOAD_CPU, start=used.get(contender.name, 0),
                )  # fmt: skip
                used[contender.name] = used.get(contender.name, 0) + sample.requests
                if sample.errors:
                    raise RuntimeError(f"{row.name}: {contender.name} answered {sample.errors} requests wrongly")
                if turn:
                    samples.setdefault(contender.name, []).append(sample)
    return [_median(row.name, name, found) for name, found in samples.items()]


def check(contender: Contender, server: Server, token: str) -> None:
    """Every answer is right before anything is measured: allowed with the token, refused without and with a bad one."""
    until = time.monotonic() + 15
    while True:
        status, body = answer(server, contender.path, token)
        if status == 200 and (contender.body is None or body == contender.body):
            break
        if time.monotonic() > until:
            raise RuntimeError(f"{contender.name} answers {status} {body[:200]!r} to a good token: see {server.log}")
        time.sleep(0.1)
    for bad in ("", token[:-8] + "AAAAAAAA"):
        status, _ = answer(server, contender.path, bad)
        if status not in (401, 403):
            raise RuntimeError(f"{contender.name} answers {status} to a bad token")


def _median(row: str, server: str, samples: list[Sample]) -> Figure:
    def middle(name: str) -> float:
        return round(statistics.median(getattr(sample, name) for sample in samples), 3)

    return Figure(row, server, middle("cpu_us"), middle("rps"), middle("p50_ms"), middle("p99_ms"))


def main() -> int:
    """Run the chosen rows."""
    seconds, rounds = float(os.environ.get("SECONDS", "5")), int(os.environ.get("ROUNDS", "5"))
    wanted = [name for name in os.environ.get("ROWS", "").replace(",", " ").split() if name]
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="caregate-bench-") as folder:
        bench = Bench(Path(folder))
        rows = bench.rows()
        unknown = set(wanted) - {row.name for row in rows}
        if unknown:
            print(
                f"no such row: {', '.join(sorted(unknown))}; there are {', '.join(r.name for r in rows)}",
                file=sys.stderr,
            )
            return 2
        nginx = bench.peers.nginx()
        try:
            for row in rows:
                if not wanted or row.name in wanted:
                    figures += measure(bench, row, seconds, rounds)
        finally:
            nginx.stop()
    tell("")
    bars: list[Bar] = judge(figures)
    print(table(figures, bars))
    RESULTS.mkdir(exist_ok=True)
    document = [asdict(f) for f in figures] + [asdict(b) for b in bars]
    (RESULTS / "latest.json").write_text(json.dumps(document, indent=1) + "\n")
    (RESULTS / "latest.svg").write_text(plot(figures))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
