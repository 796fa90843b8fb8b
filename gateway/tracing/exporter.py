"""Spans to a collector by OTLP over HTTP: in batches, by one greenlet, from a queue that drops what finds no room."""

from __future__ import annotations

import http.client
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from urllib.parse import urlsplit

import gevent
from gevent.event import Event

from gateway.tracing.otlp import Span, encode_request

log = logging.getLogger("caregate.tracing")

_BATCH = 128
"""Encoded without a break: about two milliseconds."""
_TIMEOUT_S = 5.0
_REST_S = 5.0
"""How long a collector that failed is left alone."""
_SCOPE = "caregate"


class Exporter:
    """Holds: at most `queue` spans; one connection to the collector; one greenlet from `start` to `stop`."""

    def __init__(
        self,
        endpoint: str,
        resource: Mapping[str, str | int],
        version: str,
        *,
        queue: int,
        interval_s: float,
        count: Callable[[str, int], None],
    ) -> None:
        """Shapes: `endpoint` is an http or https URL; `count(outcome, number)` hears of spans: exported, dropped (no
        room), failed (the collector did not take them).
        """
        url = urlsplit(endpoint)
        self._secure = url.scheme == "https"
        self._host, self._port = url.hostname or "", url.port
        self._path = url.path or "/v1/traces"
        self._resource, self._version = resource, version
        self._most, self._interval_s = queue, interval_s
        self._count = count
        self._spans: deque[Span] = deque()
        self._news = Event()
        self._connection: http.client.HTTPConnection | None = None
        self._greenlet: gevent.Greenlet | None = None
        self._failing = False

    def start(self) -> None:
        """Start the greenlet that sends."""
        self._greenlet = gevent.spawn(self._run)

    def stop(self, timeout_s: float = 2.0) -> None:
        """Send what waits, if the collector takes it in time.

        Yields to the hub: yes.
        """
        if self._greenlet is not None:
            self._greenlet.kill()
            self._greenlet = None
        with gevent.Timeout(timeout_s, False):
            while self._spans and not self._failing:
                self._send()
        if self._connection is not None:
            self._connection.close()

    def add(self, span: Span) -> None:
        """Send a span with the next batch; if the queue is full it is dropped and counted."""
        if len(self._spans) >= self._most:
            self._count("dropped", 1)
            return
        self._spans.append(span)
        if len(self._spans) == _BATCH:
            self._news.set()

    def _run(self) -> None:
        while True:
            self._news.wait(timeout=self._interval_s)
            self._news.clear()
            while self._spans:
                self._send()
                gevent.sleep(_REST_S if self._failing else 0)

    def _send(self) -> None:
        """Send one batch; what the collector does not take is gone: a trace is no evidence."""
        batch = [self._spans.popleft() for _ in range(min(_BATCH, len(self._spans)))]
        body = encode_request(self._resource, _SCOPE, self._version, batch)
        reason = self._post(body)
        self._count("failed" if reason else "exported", len(batch))
        if bool(reason) != self._failing:
            self._failing = bool(reason)
            log.warning("the trace collector %s", f"does not take spans: {reason}" if reason else "takes spans again")

    def _post(self, body: bytes) -> str:
        """Why it failed, or nothing. A kept connection that the collector has closed is opened again, once."""
        is_kept = self._connection is not None
        began_s = time.monotonic()
        try:
            if self._connection is None:
                kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
                self._connection = kind(self._host, self._port, timeout=_TIMEOUT_S)
            self._connection.request("POST", self._path, body, {"Content-Type": "application/x-protobuf"})
            answer = self._connection.getresponse()
            answer.read(65_536)
            if answer.will_close or answer.length:
                self._hang_up()
            return "" if 200 <= answer.status < 300 else f"status {answer.status}"
        except (OSError, http.client.HTTPException) as error:
            self._hang_up()
            if is_kept and time.monotonic() - began_s < 1:
                return self._post(body)
            return type(error).__name__

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
