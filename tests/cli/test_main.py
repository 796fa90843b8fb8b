"""The `caregate` command as the shell runs it."""

from __future__ import annotations

import argparse
import os
import secrets
import subprocess
import sys

import pytest

from gateway.canary.marks import make_marks
from gateway.canary.probes import Heard
from gateway.cli.audit_source import Unusable, checkpoints_of
from gateway.cli.canary import in_file
from gateway.cli.main import main
from gateway.conformance.kit import filled


@pytest.mark.parametrize(
    "action",
    [pytest.param(["schema"], id="long"), pytest.param(["show-routes", "gateway/demo/caregate.yaml"], id="short")],
)
def test_a_reader_that_leaves_early_gets_no_complaint(action: list[str]) -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with subprocess.Popen(
        [sys.executable, "-m", "gateway.cli.main", "config", *action],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=buffered,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        command.stdout.close()
        assert b"BrokenPipe" not in command.stderr.read()
    assert command.returncode == 1


BINARY = b"\xcd\xff no text"


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        pytest.param("explain GET /x --token-file {binary}", 2, "is not text in UTF-8", id="a binary token"),
        pytest.param("explain POST /x --body {binary}", 2, "what was read is not text in UTF-8", id="a binary body"),
        pytest.param("canary --gateway {url} --log x --token {binary}", 2, "is not text in UTF-8", id="canary's token"),
        pytest.param("canary --gateway {url} --log x --token {empty}", 2, "holds no bearer token", id="no token"),
        pytest.param("canary --gateway {url} --log x --token {lines}", 2, "holds no bearer token", id="two tokens"),
        pytest.param("canary --gateway {url}", 2, "name a place to look in: --metrics, --log", id="nowhere to look"),
        pytest.param("canary --gateway {url} --log x", 2, "http://127.0.0.1:1: Connection refused", id="nobody there"),
        pytest.param("selftest --config gateway/demo/caregate.yaml --gateway {url}", 2, "127.0.0.1:1: Connection r",
                     id="nobody to test"),
        pytest.param("selftest --config {folder}/no --gateway {url}", 2, "/no: No such file or dir", id="no document"),
        pytest.param("audit verify --export {binary} --key {binary}", 2, "binary is no public key in PEM", id="no key"),
        pytest.param("canary --gateway nope", 2, "takes a URL", id="no URL"),
        pytest.param("selftest --config x --gateway http://[::1", 2, "takes a URL", id="half a URL"),
        pytest.param("workers list --run-dir {folder}", 1, "no gateway runs under", id="no workers"),
        pytest.param("workers log-level --run-dir {folder}", 1, "no gateway runs under", id="no workers to ask"),
        pytest.param("units --data-dir {folder}", 2, "no embedded database", id="neither workers nor database"),
        pytest.param("units --run-dir {folder} --dsn {away}", 2, "Connection refused Is the server", id="one line"),
        pytest.param("audit verify --data-dir {folder} --from 2030-01-01 --to 2020-01-01", 2, "is not after --from",
                     id="a span backwards"),
        pytest.param("audit report denials --most 0", 2, "takes a whole number from 1 on", id="no refusals"),
        pytest.param("serve --workers 0", 2, "takes a whole number from 1 on", id="no worker to serve"),
        pytest.param("demo run --workers -1", 2, "takes a whole number from 1 on", id="less than none"),
        pytest.param("conformance", 2, "--agent and a command are needed", id="no agent"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_one_line(tmp_path, capsys, arguments, status, said) -> None:
    for name, data in (("binary", BINARY), ("empty", b""), ("lines", b"one\ntwo\n")):
        (tmp_path / name).write_bytes(data)
    places = {name: str(tmp_path / name) for name in ("binary", "empty", "lines")}
    words = arguments.format(**places, folder=tmp_path, url="http://127.0.0.1:1", away="port=1@host=127.0.0.1").split()
    try:
        code = main([word.replace("@", " ") for word in words])
    except SystemExit as end:
        code = int(end.code or 0)
    told = capsys.readouterr().err
    assert (code, told.count(said)) == (status, 1), told
    assert told.splitlines()[-1].startswith(f"caregate {words[0]}") or status == 1, told


def test_serve_tells_a_bad_setting_in_one_line(monkeypatch, capsys) -> None:
    monkeypatch.setenv("CAREGATE_POOL_MIN", "-1")
    monkeypatch.setattr(os, "execv", lambda *_: pytest.fail("gunicorn was started"))
    assert main(["serve"]) == 2
    assert capsys.readouterr().err == "caregate serve: CAREGATE_POOL_MIN: must be at least 1, not -1\n"


@pytest.mark.parametrize("outside", ["file", "folder"])
def test_checkpoints_that_are_not_there_verify_nothing(tmp_path, outside) -> None:
    """Somebody who can empty the copy outside must not get an `ok` from it."""
    path = tmp_path / "outside"
    path.touch() if outside == "file" else path.mkdir()
    with pytest.raises(Unusable, match="no checkpoint is there"):
        checkpoints_of(argparse.Namespace(checkpoints=path, export=None, data_dir=tmp_path))


def test_the_words_of_an_agent_s_command_are_filled_in_and_other_braces_stay() -> None:
    assert filled('{key}:{"a": {nope}}', {"key": "k.pem"}) == 'k.pem:{"a": {nope}}'


def test_a_canary_that_nobody_answered_is_not_clean(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("gateway.canary.probes.send", lambda gateway, probe, verify: Heard(probe, 0, b""))
    (tmp_path / "log").touch()
    assert main(["canary", "--gateway", "http://127.0.0.1:1", "--log", str(tmp_path), "--wait", "0"]) == 2
    said = capsys.readouterr()
    assert "answered none of" in said.err
    assert "clean" not in said.out


def test_the_canary_counts_what_it_could_not_look_at(tmp_path) -> None:
    marks = make_marks(secrets.token_hex)
    empty = tmp_path / "logs"
    empty.mkdir()
    for path in (empty, tmp_path / "nowhere"):
        with pytest.raises(FileNotFoundError):
            list(in_file(path, marks))
    (empty / "access.log").write_text("x")
    assert list(in_file(empty, marks)) == []
