"""What a text says is kept for the next worker; whatever is odd about what was kept, the text itself is read."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.config import kept
from gateway.config.kept import NAME, KeptText
from gateway.config.source import Source, read

TEXT = b"""\
roles: [a, b]
units:
  north: {name: "N\xc3\xb6rd", max: 4, ratio: 0.1, whole: 1.0, off: false, nothing: null, big: 999999999999999999}
"""


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """The texts that were read from their YAML."""
    texts: list[bytes] = []

    def note(raw: bytes) -> Source:
        texts.append(raw)
        return read(raw)

    monkeypatch.setattr(kept, "read", note)
    return texts


def types_of(value: object) -> object:
    if isinstance(value, dict):
        return [(key, types_of(member)) for key, member in value.items()]
    return [types_of(member) for member in value] if isinstance(value, list) else type(value)


def test_the_next_worker_has_the_same_without_reading(tmp_path: Path, parsed: list[bytes]) -> None:
    first = KeptText(tmp_path).read(TEXT)
    again = KeptText(tmp_path).read(TEXT)
    assert again == first == read(TEXT)
    assert types_of(again.data) == types_of(first.data)
    assert parsed == [TEXT]
    assert (tmp_path / NAME).stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == [NAME]


def test_another_text_is_read(tmp_path: Path, parsed: list[bytes]) -> None:
    reader = KeptText(tmp_path)
    other = TEXT.replace(b"max: 4", b"max: 5")
    assert reader.read(TEXT) != reader.read(other)
    assert reader.read(other) == read(other)
    assert parsed == [TEXT, other]


def test_so_it_is_by_other_code(tmp_path: Path, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    KeptText(tmp_path).read(TEXT)
    monkeypatch.setattr(kept, "_code", lambda: iter([b"a newer parser"]))
    KeptText(tmp_path).read(TEXT)
    assert parsed == [TEXT, TEXT]


@pytest.mark.parametrize("text", [b"a: 1\na: 2\n", b"a: *b\n", b"\xff", b"", b"a: 1e999\n"])
def test_what_is_faulty_or_no_json_is_not_kept(tmp_path: Path, text: bytes) -> None:
    assert KeptText(tmp_path).read(text) == read(text)
    assert not (tmp_path / NAME).exists()


def open_to_others(path: Path) -> None:
    path.chmod(0o620)


def a_link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def of_another_shape(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b'"lines":', b'"rows":'))


@pytest.mark.parametrize("spoil", [open_to_others, a_link, a_directory, a_fifo, cut, empty, of_another_shape])
def test_what_is_odd_is_not_looked_at(tmp_path: Path, parsed: list[bytes], spoil) -> None:
    KeptText(tmp_path).read(TEXT)
    spoil(tmp_path / NAME)
    assert KeptText(tmp_path).read(TEXT) == read(TEXT)
    assert parsed == [TEXT, TEXT]
    if spoil is not a_directory:
        assert KeptText(tmp_path).read(TEXT) == read(TEXT)
        assert parsed == [TEXT, TEXT], "it was replaced by a sound one"


def test_where_nothing_can_be_kept_it_is_read_each_time(tmp_path: Path, parsed: list[bytes]) -> None:
    reader = KeptText(tmp_path / "absent")
    assert reader.read(TEXT) == reader.read(TEXT)
    assert parsed == [TEXT, TEXT]


def test_what_another_user_wrote_is_not_looked_at(
    tmp_path: Path, parsed: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    KeptText(tmp_path).read(TEXT)
    other = os.geteuid() + 1
    monkeypatch.setattr(kept.os, "geteuid", lambda: other)
    assert KeptText(tmp_path).read(TEXT) == read(TEXT)
    assert parsed == [TEXT, TEXT]
