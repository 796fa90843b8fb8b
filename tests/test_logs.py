"""The gateway's log says where an exception happened and never what it said."""

from __future__ import annotations

import io
import json
import logging
import re
import sys

from gateway import logs


def test_an_exception_is_logged_without_its_message():
    try:
        raise RuntimeError("row 17 of patient Smith")
    except RuntimeError as error:
        event = logs.where_not_what(None, "error", {"event": "request failed", "exc_info": error})
    assert event["exception"] == "RuntimeError"
    assert [re.sub(":[0-9]+", "", where) for where in event["at"]] == [
        "test_logs.py test_an_exception_is_logged_without_its_message"
    ]
    assert "Smith" not in json.dumps(event)


def test_libraries_log_the_same_json(monkeypatch):
    stderr = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stderr)
    root = logging.getLogger()
    before = root.handlers, root.level
    try:
        logs._adopt_libraries("info", [logs.where_not_what])
        try:
            raise ValueError("patient Smith")
        except ValueError:
            logging.getLogger("some.library").exception("it failed")
    finally:
        root.handlers, root.level = before
    line = json.loads(stderr.getvalue())
    assert line["event"] == "it failed"
    assert line["logger"] == "some.library"
    assert line["exception"] == "ValueError"
    assert "Smith" not in stderr.getvalue()
