"""`caregate config check`, `show-routes` and `schema`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gateway.cli.main import main
from gateway.demo.keys import write_config, write_keys


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("demo")
    write_keys(directory)
    return directory


@pytest.fixture(autouse=True)
def _no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CAREGATE_DSN", raising=False)


def test_check_of_a_good_document(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(directory)
    assert main(["config", "check", str(path)]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{path}: good: 4 audiences, 7 roles, ")
    assert len(out.splitlines()) == 1


def test_check_names_every_fault_with_line_and_path(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(directory)
    before, at, after = path.read_text().partition("\ncontrollers:\n")
    text = before.replace("realm:", "reelm:", 1) + at + after.replace("roles: [patient]", "roles: [nobody]", 1)
    path.write_text(text)
    assert main(["config", "check", str(path)]) == 1
    realm, line = (text[: text.index(edit)].count("\n") + 1 for edit in ("reelm:", "[nobody]"))
    assert capsys.readouterr().out.splitlines() == [
        f"{path}:{realm}: gateway.reelm: is not a known field; did you mean realm?",
        f"{path}:{line}: controllers.me.roles[0]: there is no role nobody",
    ]


@pytest.mark.parametrize("command", ["check", "show-routes"])
def test_a_file_that_cannot_be_read(command: str, directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", command, str(directory / "nowhere.yaml")]) == 2
    assert main(["config", command, str(directory)]) == 2
    assert "No such file" in capsys.readouterr().err


def test_check_with_a_database_that_is_away(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(directory)
    assert main(["config", "check", str(path), "--dsn", "host=127.0.0.1 port=1 connect_timeout=1"]) == 2
    assert "database" in capsys.readouterr().err


def test_show_routes(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(directory)
    assert main(["config", "show-routes", str(path)]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert rows[0] == ["METHOD", "PATH", "CONTROLLER", "ANSWERED", "BY", "ROLES"]
    assert ["GET", "/partner/v1/units", "partner-units", "function", "portal.list_units", "partner"] in rows
    path.write_text("version: 1\n")
    assert main(["config", "show-routes", str(path)]) == 1


def test_schema(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "schema"]) == 0
    schema = json.loads(capsys.readouterr().out)
    assert schema["$schema"].startswith("https://json-schema.org/")
    controller = schema["$defs"]["Controller"]
    assert controller["additionalProperties"] is False
    assert set(controller["required"]) == {"path", "methods", "audiences", "roles"}
