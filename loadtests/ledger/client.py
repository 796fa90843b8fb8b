"""Callers that write down what they were answered: `python -m loadtests.ledger.client --plan FILE --ledger FOLDER`.

Each caller has a file of its own there. A line is written before a request is sent, and synced after it was answered,
before the next one:

    asked TRACE KIND            answered TRACE REQUEST_ID STATUS CODE MONOTONIC_S TOOK_MS    broken TRACE

The trace id that the request carries names it in the audit trail, too. SIGTERM ends the callers once they have their
answers.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import signal
import threading
import time
from pathlib import Path
from typing import Any

from loadtests.ledger.verdict import NO_CODE

_PATIENCE_S = 12.0


class Caller(threading.Thread):
    """One connection at a time; a broken one is opened again."""

    def __init__(self, number: int, plan: dict[str, Any], folder: Path, stop: threading.Event) -> None:
        super().__init__(name=f"caller {number}")
        self._number = number
        self._port = int(plan["port"])
        self._run = str(plan["run"])
        self._requests: list[dict[str, Any]] = plan["requests"]
        self._pause_s = float(plan["pause_s"])
        self._file = os.open(folder / f"{self._run}-{number}.ledger", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._ended = stop
        self._dice = random.Random(number)
        self._connection: http.client.HTTPConnection | None = None

    def run(self) -> None:
        count = 0
        while not self._ended.is_set():
            count += 1
            what = self._requests[(count + self._number) % len(self._requests)]
            trace = f"{self._run:0>8}{self._number:08x}{count:016x}"
            self._write(f"asked {trace} {what['kind']}")
            sent_s = time.monotonic()
            try:
                answer = self._ask(what, trace)
            except (OSError, http.client.HTTPException, ValueError):
                self._write(f"broken {trace}")
                self._hang_up()
                self._ended.wait(0.05)
                continue
            at_s = time.monotonic()
            self._write(f"answered {trace} {' '.join(map(str, answer))} {at_s:.6f} {(at_s - sent_s) * 1000:.3f}")
            os.fdatasync(self._file)
            self._ended.wait(self._dice.uniform(0, 2 * self._pause_s))
        self._hang_up()
        os.close(self._file)

    def _ask(self, what: dict[str, Any], trace: str) -> tuple[str, int, str]:
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_PATIENCE_S)
        fields = {"Authorization": f"Bearer {what['token']}", "traceparent": f"00-{trace}-00000000000000aa-00"}
        fields["x-chaos-id"] = trace
        body = b"b" * 100 if what["method"] == "POST" else None
        self._connection.request(what["method"], what["path"], body, fields)
        answer = self._connection.getresponse()
        data = answer.read()
        code = NO_CODE
        if (answer.getheader("Content-Type") or "").startswith("application/problem+json"):
            code = str(json.loads(data)["type"]).rpartition(":")[2]
        if answer.getheader("Connection") == "close":
            self._hang_up()
        return answer.headers["X-Request-Id"], answer.status, code

    def _write(self, text: str) -> None:
        os.write(self._file, f"{text}\n".encode())

    def _hang_up(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--ledger", type=Path, required=True)
    options = parser.parse_args()
    plan = json.loads(options.plan.read_text())
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    callers = [Caller(number, plan, options.ledger, stop) for number in range(plan["callers"])]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()


if __name__ == "__main__":
    main()
