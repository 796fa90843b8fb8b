"""One row: start everybody, check every answer, then measure in turns."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack

from loadtests.bench.measure import Sample, wrk
from loadtests.bench.progress import say, tell
from loadtests.bench.report import Figure
from loadtests.bench.row import Contender, Row
from loadtests.bench.rows import Rows
from loadtests.bench.servers import LOAD_CPU, Missing, Server, answer

_PATIENCE_S = 20.0
_WARM_S = 120.0


class WrongAnswer(RuntimeError):
    """A contender does not do what it is measured for."""


def measure(rows: Rows, row: Row, seconds: float, rounds: int) -> list[Figure]:
    """All contenders of a row, in turn, `rounds` times; medians. Who cannot be had here is left out, and said.

    Raises: WrongAnswer.
    """
    if row.measure is not None:
        return row.measure(seconds, rounds)
    samples: dict[str, list[Sample]] = {}
    with ExitStack() as stack:
        running = []
        for contender in row.contenders:
            server = _started(row, contender)
            if server is not None:
                stack.callback(server.stop)
                if contender.ready is not None:
                    contender.ready(server)
                check(rows, row, contender, server)
                running.append(_Runner(rows, row, contender, server))
        for runner in running:
            tell(f"{row.name}: {runner.name} warms up")
            runner.warm_up()
        for turn in range(rounds):
            for runner in running:
                tell(f"{row.name}: round {turn + 1}/{rounds} {runner.name}")
                samples.setdefault(runner.name, []).append(runner.load(seconds))
    return [_median(row.name, name, found) for name, found in samples.items()]


class _Runner:
    """One contender under load; each run goes on with the tokens where the last one left off."""

    def __init__(self, rows: Rows, row: Row, contender: Contender, server: Server) -> None:
        self.name = contender.name
        self.contender = contender
        self._row = row.name
        self._server = server
        self._tokens = rows.tokens(contender.tokens or row.tokens)
        self._used = 0

    def warm_up(self) -> None:
        """Load until every token that is to be remembered has been seen.

        Raises: WrongAnswer.
        """
        until = time.monotonic() + _WARM_S
        self.load(1)
        while self._used < self.contender.warm_requests and time.monotonic() < until:
            self.load(3)

    def load(self, seconds: float) -> Sample:
        """Raises: WrongAnswer if a single request failed."""
        server = self._server
        sample = wrk(
            server.port, self.contender.path, self._tokens, server.pids(), beside=server.beside(), seconds=seconds,
            connections=self.contender.connections, cpu=LOAD_CPU, start=self._used,
            body_bytes=self.contender.body_bytes,
        )  # fmt: skip
        self._used += sample.requests
        if sample.errors:
            raise WrongAnswer(f"{self._row}: {self.name} answered {sample.errors} requests wrongly: see {server.log}")
        return sample


def _started(row: Row, contender: Contender) -> Server | None:
    tell(f"{row.name}: starting {contender.name}")
    try:
        return contender.start()
    except Missing as missing:
        say(f"{row.name}: left out: {contender.name}: {missing}")
        return None


def check(rows: Rows, row: Row, contender: Contender, server: Server) -> None:
    """Every answer is right before anything is measured.

    Raises: WrongAnswer.
    """
    kind = contender.tokens or row.tokens
    good = rows.tokens(kind).open().readline().strip()
    _await(contender, server, good)
    if not contender.policy:
        return
    for what, token, expected in (
        ("no token", "", 401),
        ("a token with a bad signature", good[:-8] + "AAAAAAAA", 401),
        ("another role's token", rows.wrong_role(contender, kind), 403),
    ):
        status, _ = answer(server, contender.path, token, post=contender.body_bytes > 0)
        if status != expected:
            raise WrongAnswer(f"{row.name}: {contender.name} answers {status}, not {expected}, to {what}")


def _await(contender: Contender, server: Server, token: str) -> None:
    """Wait until the good answer comes.

    Raises: WrongAnswer.
    """
    until = time.monotonic() + _PATIENCE_S
    while True:
        status, body = answer(server, contender.path, token, post=contender.body_bytes > 0)
        if status == 200 and (body == contender.body or (contender.body is None and body)):
            return
        if time.monotonic() > until:
            log = server.log.read_text(errors="replace")[-600:]
            raise WrongAnswer(f"{contender.name} answers {status} {body[:200]!r} to a good token: {log}")
        time.sleep(0.1)


def _median(row: str, server: str, samples: list[Sample]) -> Figure:
    def middle(name: str) -> float:
        return float(round(statistics.median(getattr(sample, name) for sample in samples), 3))

    return Figure(
        row, server, middle("cpu_us"), middle("rps"), middle("p50_ms"), middle("p99_ms"),
        beside_us=middle("beside_us"), load_cores=middle("load_cores"),
    )  # fmt: skip
