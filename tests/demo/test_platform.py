"""What stops the demo platform before it starts anything."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from gateway.demo.keys import prepare_config, write_keys
from gateway.demo.platform import DemoError, Platform, _free


def silent(directory: Path, port: int) -> Platform:
    return Platform(directory, port, tell=lambda text: None)


@pytest.fixture
def taken_port(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port: int = taken.getsockname()[1]
        monkeypatch.setattr("gateway.demo.platform._free", lambda asked: asked != port or _free(asked))
        yield port


@pytest.mark.parametrize(
    ("offset", "what"), [pytest.param(0, "gateway", id="gateway"), pytest.param(14, "terminology", id="a service")]
)
def test_a_taken_port_is_named_before_anything_is_written(
    tmp_path: Path, taken_port: int, offset: int, what: str
) -> None:
    platform = silent(tmp_path / "demo", taken_port - offset)
    with pytest.raises(DemoError, match=rf"port {taken_port} \({what}.*PORT="):
        platform.start()
    assert not platform.started()
    assert list((tmp_path / "demo").iterdir()) == []
    platform.stop()


def test_a_directory_has_one_platform(tmp_path: Path, taken_port: int) -> None:
    first, second = silent(tmp_path, taken_port), silent(tmp_path, taken_port)
    with pytest.raises(DemoError, match="is taken"):
        first.start()
    with pytest.raises(DemoError, match="already"):
        second.start()
    first.stop()
    with pytest.raises(DemoError, match="is taken"):
        second.start()
    second.stop()


def test_every_fault_of_an_edited_configuration_is_named(tmp_path: Path) -> None:
    write_keys(tmp_path)
    prepare_config(tmp_path)
    path = tmp_path / "caregate.yaml"
    path.write_text(path.read_text().replace("alg: HS256", "alg: none").replace("per: route", "per: moon"))
    platform = silent(tmp_path, 15_000)
    with pytest.raises(DemoError) as refused:
        platform.start_gateway()
    assert not platform.started()
    text = str(refused.value)
    assert "roles.patient.keys[0].alg" in text
    assert "limits.terminology.per" in text
    assert "delete it" in text
