"""Callers of the fleet's units, a thread each: what they asked, when, and what came of it."""

from __future__ import annotations

import http.client
import random
import select
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Final

import orjson

from loadtests.measure import percentile

TIMEOUT_S: Final = 35.0
POST_EVERY: Final = 5
"""Every fifth request is a POST, which no one may repeat."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One request. Units: `at_s` of time.monotonic. Shapes: `failure` is "" or a word for what went wrong."""

    at_s: float
    took_s: float
    method: str
    target: str
    failure: str


class Caller:
    """One connection, kept, or a new one for each request; nothing is ever repeated.

    As every pool of connections does, it looks whether a kept one was closed before it asks on it.
    """

    def __init__(self, port: int, token: str, *, kept: bool) -> None:
        self._port = port
        self._headers = {"Authorization": f"Bearer {token}"}
        self._kept = kept
        self._connection = self._connect()

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self._port, timeout=TIMEOUT_S)

    def ask(self, method: str, path: str, expected: int, target: str = "") -> Asked:
        """Raises: nothing; a broken connection is a failure too."""
        at_s = time.monotonic()
        self._drop_closed()
        try:
            self._connection.request(method, path, headers=self._headers)
            response = self._connection.getresponse()
            body = response.read()
            failure = "" if response.status == expected else _failure(response.status, body)
        except (OSError, http.client.HTTPException) as error:
            failure = type(error).__name__
            self._connection.close()
        if not self._kept:
            self._connection.close()
        return Asked(at_s, time.monotonic() - at_s, method, target, failure)

    def _drop_closed(self) -> None:
        sock = self._connection.sock
        if sock is not None and select.select([sock], [], [], 0)[0]:
            self._connection.close()


def _failure(status: int, body: bytes) -> str:
    try:
        problem = orjson.loads(body)
        return f"{status} {problem['type'].rpartition(':')[2]} {problem.get('delivery', '')} {problem.get('why', '')}"
    except (ValueError, KeyError, AttributeError):
        return str(status)


class Callers:
    """Ask units at random at a rate, half over kept connections, half over new ones."""

    def __init__(self, port: int, token: str, units: list[str], *, rate: float, threads: int) -> None:
        """Units: `rate` requests a second of all threads together."""
        self._units = units
        self._callers = [Caller(port, token, kept=number % 2 == 0) for number in range(threads)]
        self._period_s = threads / rate
        self._numbers = count(1)
        self._stopped = threading.Event()
        self.asked: list[Asked] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        """Ask inside the block; it ends when the last answer has come."""
        threads = [threading.Thread(target=self._ask_on, args=(caller,)) for caller in self._callers]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self._stopped.set()
            for thread in threads:
                thread.join()

    def _ask_on(self, caller: Caller) -> None:
        next_s = time.monotonic() + random.random() * self._period_s
        while not self._stopped.wait(max(0.0, next_s - time.monotonic())):
            next_s = max(next_s + self._period_s, time.monotonic() - self._period_s)
            number = next(self._numbers)
            method, expected = ("POST", 201) if number % POST_EVERY == 0 else ("GET", 200)
            target = f"/fhir/Observation/{number}"
            path = f"/fleet/v1/{random.choice(self._units)}{target}"
            self.asked.append(caller.ask(method, path, expected, target))


@dataclass(frozen=True, slots=True)
class Verdict:
    """What callers saw in a stretch of time. Units: `*_ms` milliseconds."""

    requests: int
    failed_idempotent: int
    failed_posts: int
    p50_ms: float
    p99_ms: float
    slowest_ms: float
    reasons: list[tuple[str, int]]


def judge(asked: list[Asked], begun: Callable[[float], bool] = lambda at_s: True) -> Verdict:
    """Of the requests whose beginning is in the stretch."""
    found = [one for one in asked if begun(one.at_s)]
    times_ms = sorted(one.took_s * 1000 for one in found)
    failed = [one for one in found if one.failure]
    return Verdict(
        requests=len(found),
        failed_idempotent=sum(1 for one in failed if one.method == "GET"),
        failed_posts=sum(1 for one in failed if one.method != "GET"),
        p50_ms=round(percentile(times_ms, 50) or 0.0, 2),
        p99_ms=round(percentile(times_ms, 99) or 0.0, 2),
        slowest_ms=round(times_ms[-1] if times_ms else 0.0, 2),
        reasons=Counter(f"{one.method} {one.failure}" for one in failed).most_common(8),
    )
