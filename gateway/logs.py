"""The gateway's own log: structlog, one JSON object a line, nothing personal.

An exception is logged as its type and where it happened, never with its message or values, which may hold input.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from typing import Any, BinaryIO, Final, cast

import orjson
import structlog

from gateway.outlet import Outlet, outlet

_LEVELS: Final = {"warn": "warning", "exception": "error"}
"""Methods of a logger that are not named after their level."""
_SECOND_NS: Final = 1_000_000_000
_RANKS: Final = {name.lower(): rank for name, rank in logging.getLevelNamesMapping().items()}
_MOST_WAITING_BYTES: Final = 2**20
_outlets: Final[dict[int, Outlet | None]] = {}
_least = logging.INFO


def configure(level: str, **bound: object) -> structlog.typing.FilteringBoundLogger:
    """Set up structlog for the process and return its logger with `bound` on every line."""
    shared: list[structlog.typing.Processor] = [Stamp(), where_not_what]
    _adopt_libraries(shared)
    set_level(level)
    structlog.configure(
        processors=[_enough, *shared, _render],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.BytesLoggerFactory(file=cast("BinaryIO", _unstalled() or sys.stderr.buffer)),
        cache_logger_on_first_use=False,
    )
    # PERF: `worker_ms_per_dial` of `make fleet`: what `get_logger` returns makes a logger of itself for each line.
    logger: structlog.typing.FilteringBoundLogger = structlog.get_logger().bind(**bound)
    return logger


def _unstalled() -> Outlet | None:
    """Where lines go instead, if standard error is a pipe: its reader may stall."""
    try:
        fd = sys.stderr.fileno()
    except (OSError, ValueError):
        return None
    if fd not in _outlets:
        _outlets[fd] = outlet(fd, most=_MOST_WAITING_BYTES)
    return _outlets[fd]


class _Texts:
    """A text stream over an outlet, as `logging` wants one."""

    def __init__(self, under: Outlet) -> None:
        self._under = under

    def write(self, text: str) -> None:
        self._under.write(text.encode("utf-8", "replace"))

    def flush(self) -> None:
        self._under.flush()


def set_level(level: str) -> None:
    """The least level that is written from now on, by loggers that were bound before too."""
    global _least
    _least = _RANKS[level]
    logging.getLogger().setLevel(level.upper())


def _enough(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    if _RANKS.get(_LEVELS.get(method, method), _least) < _least:
        raise structlog.DropEvent
    return event


class Stamp:
    """Adds `level` and `time`, RFC 3339 in UTC to the microsecond.

    PERF: `worker_ms_per_dial` of `make fleet`: structlog's own took a third of a line.
    """

    def __init__(self) -> None:
        self._second = (-1, "")

    def __call__(self, logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
        at_s, rest_ns = divmod(time.time_ns(), _SECOND_NS)
        second, text = self._second
        if second != at_s:
            text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(at_s))
            self._second = (at_s, text)
        event["level"] = _LEVELS.get(method, method)
        event["time"] = f"{text}.{rest_ns // 1000:06d}Z"
        return event


def _adopt_libraries(shared: list[structlog.typing.Processor]) -> None:
    """What libraries, and gunicorn in a worker, say through `logging` comes out as the same JSON lines."""
    unstalled = _unstalled()
    handler = logging.StreamHandler(sys.stderr if unstalled is None else _Texts(unstalled))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder(), *shared],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=lambda event, **_: _dumps(event).decode()),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    # SEC: gunicorn's own handler writes an exception with its message.
    gunicorn = logging.getLogger("gunicorn.error")
    gunicorn.handlers, gunicorn.propagate = [], True
    # The pool repeats every failed attempt; `gateway.store` says once that the database is away.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)


def where_not_what(logger: Any, method: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Replace exc_info by the exception's type and the lines it passed.

    SEC: messages of exceptions quote values (a row, a claim, a URL); frames do not.
    """
    info = event.pop("exc_info", None)
    if not info:
        return event
    error = info if isinstance(info, BaseException) else info[1] if isinstance(info, tuple) else sys.exc_info()[1]
    if error is None:
        return event
    event["exception"] = type(error).__name__
    event["at"] = [
        f"{f.filename.rpartition('/')[2]}:{f.lineno} {f.name}" for f in traceback.extract_tb(error.__traceback__)
    ]
    if error.__cause__ is not None:
        event["cause"] = type(error.__cause__).__name__
    return event


def _render(logger: Any, method: str, event: structlog.typing.EventDict) -> bytes:
    return _dumps(event)


def _dumps(event: object) -> bytes:
    return orjson.dumps(event, default=repr)
