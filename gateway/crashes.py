"""Exceptions that nobody caught go into the log as any other does: their type and where, never what they say."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import Any

from gevent import get_hub

log = logging.getLogger("caregate.worker")


def adopt() -> None:
    """Take over what gevent and the interpreter would print with its message.

    SEC: messages of exceptions quote values: a row, a claim, a URL.
    Source: gevent.hub.Hub.handle_error: an application may set such a property on the instance.
    """
    get_hub().print_exception = _in_greenlet
    threading.excepthook = lambda args: _tell(args.exc_value, args.exc_traceback)
    sys.unraisablehook = lambda args: _tell(args.exc_value, args.exc_traceback)
    sys.excepthook = lambda kind, error, traceback: _tell(error, traceback)


def _in_greenlet(context: Any, kind: Any, error: BaseException | None, traceback: TracebackType | None) -> None:
    _tell(error, traceback)


def _tell(error: BaseException | None, traceback: TracebackType | None) -> None:
    if error is not None and not isinstance(error, SystemExit):
        log.error("an exception that nobody caught", exc_info=(type(error), error, traceback))
