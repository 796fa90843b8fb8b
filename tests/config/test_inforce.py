"""What is in force, on disk: the first start, later workers, edited and broken files."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from gateway.config.fault import Fault
from gateway.config.inforce import LAST_GOOD, STATE, InForce, life_of
from gateway.config.load import Refused
from gateway.demo.keys import write_config, write_keys
from gateway.errors import DatabaseUnavailable
from gateway.settings import Settings

BROKEN = "roles: [patient]", "roles: [nobody]"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def config(tmp_path: Path, keys: Path) -> Path:
    (tmp_path / "keys").symlink_to(keys)
    return write_config(tmp_path)


@pytest.fixture
def make(tmp_path: Path, config: Path) -> Callable[..., InForce]:
    settings = Settings(config_path=config, data_dir=tmp_path, run_dir=tmp_path)
    return lambda arbiter=1: InForce(settings, arbiter=arbiter)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def test_first_start_takes_the_file_and_keeps_it(make: Callable[..., InForce], config: Path, tmp_path: Path) -> None:
    snapshot = make().boot()
    assert snapshot.version == 1
    assert (tmp_path / LAST_GOOD).read_bytes() == config.read_bytes()
    for name in (LAST_GOOD, STATE):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600


def test_first_start_with_a_bad_file_is_refused(make: Callable[..., InForce], config: Path) -> None:
    make(arbiter=2).boot()  # another life of the gateway, whose last good document does not count
    edit(config, *BROKEN)
    with pytest.raises(Refused, match="nobody"):
        make().boot()


def test_later_worker_does_not_die_of_a_bad_file(make: Callable[..., InForce], config: Path) -> None:
    first = make().boot()
    edit(config, *BROKEN)
    assert make().boot().digest == first.digest
    config.unlink()
    again = make().boot()
    assert (again.digest, again.version) == (first.digest, 1)


def test_later_worker_runs_what_the_others_run(make: Callable[..., InForce], config: Path) -> None:
    first = make().boot()
    edit(config, "realm: caregate", "realm: edited")
    assert make().boot().realm == "caregate"
    assert make(arbiter=2).boot().realm == "edited", "a new gateway takes the file"
    assert first.realm == "caregate"


def test_later_worker_without_a_last_good_one(make: Callable[..., InForce], config: Path, tmp_path: Path) -> None:
    make().boot()
    (tmp_path / LAST_GOOD).unlink()
    edit(config, "realm: caregate", "realm: edited")
    assert make().boot().realm == "edited", "better another version than no worker"
    (tmp_path / LAST_GOOD).unlink()
    edit(config, *BROKEN)
    with pytest.raises(OSError, match=LAST_GOOD):
        make().boot()


def test_hup_takes_an_edited_file_as_a_new_version(make: Callable[..., InForce], config: Path) -> None:
    make().boot()
    edit(config, "realm: caregate", "realm: edited")
    make().reconsider()
    assert [(s.version, s.realm) for s in (make().boot(), make().boot())] == [(2, "edited")] * 2


def test_hup_with_a_bad_file_keeps_what_was(make: Callable[..., InForce], config: Path) -> None:
    first = make().boot()
    edit(config, *BROKEN)
    make().reconsider()
    assert [(s.version, s.digest) for s in (make().boot(), make().boot())] == [(1, first.digest)] * 2


def _no_function(document: object) -> list[Fault]:
    return [Fault("controllers.me.function.name", "no such function")]


def _away(document: object) -> list[Fault]:
    raise DatabaseUnavailable


@pytest.mark.parametrize("catalog_check", [_no_function, _away], ids=["no-such-function", "database-away"])
def test_hup_with_unchecked_functions_keeps_what_was(
    make: Callable[..., InForce], config: Path, catalog_check: Callable[[object], list[Fault]]
) -> None:
    first = make().boot()
    edit(config, "realm: caregate", "realm: edited")
    make().reconsider()
    taken = [make().boot(catalog_check) for _ in range(2)]
    assert [(s.version, s.digest) for s in taken] == [(1, first.digest)] * 2


def test_hup_without_an_edit_needs_no_database(make: Callable[..., InForce]) -> None:
    first = make().boot()
    make().reconsider()
    again = make().boot(_away)
    assert (again.version, again.digest) == (first.version, first.digest)


def test_catch_up(make: Callable[..., InForce], config: Path) -> None:
    started = make().boot()
    assert make().catch_up(started) is None
    edit(config, "realm: caregate", "realm: edited")
    loaded = make().load_file()
    make().record(replace(loaded.snapshot, version=5), loaded.raw)
    newer = make().catch_up(started)
    assert newer is not None
    assert (newer.version, newer.realm) == (5, "edited")


def test_functions_are_checked_at_the_first_start(make: Callable[..., InForce]) -> None:
    with pytest.raises(Refused, match=r"controllers\.me\.function\.name: no such function"):
        make().boot(lambda document: [Fault("controllers.me.function.name", "no such function")])


def test_a_gateway_starts_without_its_database(make: Callable[..., InForce]) -> None:
    def away(document: object) -> list[Fault]:
        raise DatabaseUnavailable

    assert make().boot(away).version == 1


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"gateway": 1}', b"\xff"])
def test_an_unreadable_record_counts_as_none(make: Callable[..., InForce], tmp_path: Path, content: bytes) -> None:
    (tmp_path / STATE).write_bytes(content)
    assert make().state() is None
    assert make().boot().version == 1


def test_a_process_is_named_beyond_its_id() -> None:
    assert life_of(os.getpid()).startswith(f"{os.getpid()}:")
    assert life_of(os.getpid()) == life_of(os.getpid())
    assert life_of(2**22 + 1) == str(2**22 + 1)
