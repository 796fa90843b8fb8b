"""The demo's keys and configuration."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from gateway.config.load import check_file, load
from gateway.demo.keys import PAIRS, SECRETS, UNITS, prepare_config, write_config, write_keys


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_keys(tmp_path)
    return tmp_path


def test_the_demo_configuration_has_no_fault(directory: Path) -> None:
    assert check_file(write_config(directory)) == []


def test_ports_are_filled_in(directory: Path) -> None:
    snapshot = load(write_config(directory, upstream_port=18_091))
    assert snapshot.upstreams["terminology"].endpoints == ("http://127.0.0.1:18091",)


def test_keys_are_made_once_and_for_the_owner_alone(directory: Path) -> None:
    files = {path.name: path.read_bytes() for path in (directory / "keys").iterdir()}
    assert set(files) == {*SECRETS, *(f"{name}.{half}" for name in PAIRS for half in ("key", "pub"))}
    assert all(stat.S_IMODE((directory / "keys" / name).stat().st_mode) == 0o600 for name in files)
    write_keys(directory)
    assert {path.name: path.read_bytes() for path in (directory / "keys").iterdir()} == files


def test_a_missing_half_makes_a_new_pair(directory: Path) -> None:
    public = (directory / "keys" / "partner.pub").read_bytes()
    (directory / "keys" / "partner.key").unlink()
    write_keys(directory)
    assert (directory / "keys" / "partner.pub").read_bytes() != public
    assert check_file(write_config(directory)) == []


def test_two_directories_share_no_key(directory: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = write_keys(tmp_path_factory.mktemp("other"))
    assert all((directory / "keys" / name).read_bytes() != (other / name).read_bytes() for name in SECRETS)


def test_a_unit_key_is_named_as_its_unit(directory: Path) -> None:
    units = load(write_config(directory)).document.units
    assert set(units) == set(UNITS)
    assert all(unit.keys[0].kid == name for name, unit in units.items())


def test_an_unedited_configuration_follows_the_shipped_one(directory: Path) -> None:
    path = write_config(directory)
    assert not prepare_config(directory, upstream_port=18_091)
    assert not prepare_config(directory, upstream_port=18_092)
    assert path.read_bytes() == write_config(directory, upstream_port=18_092).read_bytes()


@pytest.mark.parametrize(
    "edited",
    [
        pytest.param(b"# mine\n%s", id="good"),
        pytest.param(b"%s\nroles: {", id="broken"),
    ],
)
def test_an_edited_configuration_is_kept_with_the_port_of_now(directory: Path, edited: bytes) -> None:
    prepare_config(directory, upstream_port=18_091)
    path = directory / "caregate.yaml"
    path.write_bytes(edited % path.read_bytes())
    for port in (18_092, 18_093):
        assert prepare_config(directory, upstream_port=port)
        assert path.read_bytes() == edited % write_config_text(directory, port)


def test_a_deleted_configuration_is_written_anew(directory: Path) -> None:
    prepare_config(directory)
    path = directory / "caregate.yaml"
    path.write_text("version: 2")
    assert prepare_config(directory)
    path.unlink()
    assert not prepare_config(directory)
    assert check_file(path) == []


def write_config_text(directory: Path, port: int) -> bytes:
    shipped = directory / "shipped"
    shipped.mkdir(exist_ok=True)
    return write_config(shipped, upstream_port=port).read_bytes()
