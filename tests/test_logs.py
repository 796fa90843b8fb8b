"""The gateway's log says where an exception happened and never what it said."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys

import pytest

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
        logs._adopt_libraries([logs.where_not_what])
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


@pytest.mark.parametrize(
    ("at_ns", "time_of_it"),
    [
        pytest.param(1_700_000_000_000_000_000, "2023-11-14T22:13:20.000000Z", id="a whole second"),
        pytest.param(1_700_000_000_000_001_999, "2023-11-14T22:13:20.000001Z", id="the same second"),
        pytest.param(1_700_000_000_999_999_999, "2023-11-14T22:13:20.999999Z", id="its end"),
        pytest.param(1_700_000_001_000_000_000, "2023-11-14T22:13:21.000000Z", id="the next"),
        pytest.param(1_699_999_999_500_000_000, "2023-11-14T22:13:19.500000Z", id="a clock that was set back"),
    ],
)
def test_a_line_says_when(monkeypatch, at_ns, time_of_it):
    stamp = logs.Stamp()
    for moment_ns in (1_700_000_000_100_000_000, at_ns):
        monkeypatch.setattr(logs.time, "time_ns", lambda moment_ns=moment_ns: moment_ns)
        event = stamp(None, "info", {})
    assert event == {"level": "info", "time": time_of_it}


@pytest.mark.parametrize(("method", "level"), [("info", "info"), ("warn", "warning"), ("exception", "error")])
def test_a_line_says_how_bad_it_is(method, level):
    assert logs.Stamp()(None, method, {})["level"] == level


CRASHES = """
from gevent import monkey; monkey.patch_all()
import logging, threading
import gevent
from gateway import crashes, logs

kept = logs.configure("info", worker=7)
crashes.adopt()

def fail():
    raise ValueError("patient Smith")

class Falls:
    def __del__(self):
        fail()

gevent.spawn(fail).join(1)
threading.Thread(target=fail).start()
gevent.sleep(0.01)
Falls()
try:
    fail()
except ValueError:
    logging.getLogger("gunicorn.error").exception("Error on a connection")
logs.set_level("warning"); kept.info("quiet")
logs.set_level("debug"); kept.debug("loud")
fail()
"""


def test_what_nobody_caught_is_a_line_without_its_message_and_levels_hold_for_all_loggers():
    done = subprocess.run([sys.executable, "-c", CRASHES], capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in done.stderr.splitlines()]
    told = [(line["level"], line["event"], line.get("exception")) for line in lines]
    crash = ("error", "an exception that nobody caught", "ValueError")
    assert told == [
        crash, crash, crash, ("error", "Error on a connection", "ValueError"), ("debug", "loud", None), crash,
    ]  # fmt: skip
    assert all(any(where.endswith(" fail") for where in line["at"]) for line in lines if "exception" in line)
    assert "Smith" not in done.stderr
