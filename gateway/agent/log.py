"""The agent's log: one JSON object a line on stderr.

Nothing personal goes in: no path, query, header or body of a relayed request, and no token. Callers pass ids, codes,
counts and durations only.
"""

from __future__ import annotations

import sys
import time
from typing import BinaryIO

import orjson

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}


class Log:
    """Writes events of at least `level`, each with the fields bound to this log."""

    def __init__(self, level: str = "info", stream: BinaryIO | None = None, **bound: object) -> None:
        self._threshold = LEVELS[level]
        self._level = level
        self._stream = stream
        self._bound = bound

    def bind(self, **fields: object) -> Log:
        return Log(self._level, self._stream, **{**self._bound, **fields})

    def debug(self, event: str, **fields: object) -> None:
        self._write("debug", event, fields)

    def info(self, event: str, **fields: object) -> None:
        self._write("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        self._write("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        self._write("error", event, fields)

    def _write(self, level: str, event: str, fields: dict[str, object]) -> None:
        if LEVELS[level] < self._threshold:
            return
        record = {"ts": timestamp(time.time()), "level": level, "event": event, **self._bound, **fields}
        line = orjson.dumps(record, default=repr, option=orjson.OPT_APPEND_NEWLINE)
        stream = self._stream or sys.stderr.buffer
        try:
            stream.write(line)
            stream.flush()
        except (OSError, ValueError):  # a closed stderr must not stop the relay
            pass


def timestamp(now_s: float) -> str:
    """RFC 3339 UTC with milliseconds."""
    whole = int(now_s)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((now_s - whole) * 1000):03d}Z"
