"""A file that is replaced is there whole, or as it was, and its owner's alone."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gateway.files import replace_file


@pytest.mark.parametrize("durable", [True, False])
def test_a_file_is_replaced_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool) -> None:
    path, synced = tmp_path / "file", []
    path.write_bytes(b"before")
    path.chmod(0o644)
    reader = path.open("rb")
    monkeypatch.setattr("gateway.files.os.fsync", lambda fd: synced.append(os.fstat(fd).st_size))
    replace_file(path, b"after", durable=durable)
    assert (reader.read(), path.read_bytes(), path.stat().st_mode & 0o777) == (b"before", b"after", 0o600)
    assert synced == ([5] if durable else [])
    assert os.listdir(tmp_path) == ["file"]
    reader.close()


def test_one_that_cannot_be_written_is_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"before")

    def fail(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gateway.files.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        replace_file(path, b"after")
    assert path.read_bytes() == b"before"


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(b"of another")
    (tmp_path / f".file.{os.getpid()}").symlink_to(elsewhere)
    with pytest.raises(OSError, match="symbolic links"):
        replace_file(tmp_path / "file", b"content")
    assert elsewhere.read_bytes() == b"of another"
