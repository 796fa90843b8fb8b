"""Process settings: one variable a field, refused with its name."""

from __future__ import annotations

from pathlib import Path

import pytest

from gateway.settings import Settings, SettingsError


@pytest.mark.parametrize(
    ("environ", "field", "value"),
    [
        pytest.param({}, "ops_bind", "127.0.0.1:9090", id="default"),
        pytest.param({"CAREGATE_OPS_BIND": ""}, "ops_bind", "", id="no operations listener"),
        pytest.param({"CAREGATE_BIND": ""}, "bind", "127.0.0.1:8080", id="empty is not set"),
        pytest.param({"CAREGATE_WORKERS": "7"}, "workers", 7, id="number"),
        pytest.param({"CAREGATE_ACCESS_LOG": "false"}, "access_log", False, id="boolean"),
        pytest.param({"CAREGATE_RUN_DIR": "/run/x"}, "run_dir", Path("/run/x"), id="path"),
        pytest.param({"CAREGATE_SECRET_X": "y", "OTHER": "z"}, "workers", 2, id="secrets and others are not ours"),
    ],
)
def test_read(environ, field, value):
    assert getattr(Settings.from_environ(environ), field) == value


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        pytest.param({"CAREGATE_WORKER": "2"}, "CAREGATE_WORKER: no such setting", id="unknown"),
        pytest.param({"CAREGATE_WORKERS": "two"}, "CAREGATE_WORKERS: takes a whole number", id="not a number"),
        pytest.param({"CAREGATE_WORKERS": "0"}, "CAREGATE_WORKERS: must be at least 1", id="too small"),
        pytest.param({"CAREGATE_ACCESS_LOG": "maybe"}, "CAREGATE_ACCESS_LOG: takes true or false", id="boolean"),
        pytest.param({"CAREGATE_LOG_LEVEL": "loud"}, "CAREGATE_LOG_LEVEL", id="level"),
        pytest.param({"CAREGATE_TLS_KEY": "k"}, "give both or neither", id="half of a pair"),
        pytest.param({"CAREGATE_TRACE_RATIO": "1.5"}, "CAREGATE_TRACE_RATIO: from 0 to 1", id="ratio"),
        pytest.param({"CAREGATE_TRACE_RATIO": "nan"}, "CAREGATE_TRACE_RATIO: from 0 to 1", id="no ratio"),
        pytest.param({"CAREGATE_TRACE_RATIO": "all"}, "CAREGATE_TRACE_RATIO: takes a number", id="ratio in words"),
        pytest.param({"CAREGATE_TRACE_ENDPOINT": "collector:4318"}, "CAREGATE_TRACE_ENDPOINT: an http", id="no URL"),
        pytest.param({"CAREGATE_TRACE_ENDPOINT": "http://u:p@c/"}, "CAREGATE_TRACE_ENDPOINT: an http", id="password"),
        pytest.param({"CAREGATE_HTTP2": "1"}, "CAREGATE_HTTP2: is spoken over TLS alone", id="HTTP/2 in clear"),
        pytest.param({"CAREGATE_POOL_MIN": "9", "CAREGATE_POOL_MAX": "3"}, "CAREGATE_POOL_MIN", id="pool"),
    ],
)
def test_refused(environ, message):
    with pytest.raises(SettingsError, match=message):
        Settings.from_environ(environ)
