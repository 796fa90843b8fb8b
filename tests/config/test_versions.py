"""A worker follows the versions of the configuration, with a database that can be away, lose news and go back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

import gevent
import pytest
from gevent.event import Event

from gateway.config import versions as module
from gateway.config.fault import Fault
from gateway.config.load import Refused
from gateway.config.snapshot import SnapshotHolder
from gateway.config.version import Version
from gateway.config.versions import KEPT, REFUSED_AGAIN_S, Versions
from gateway.demo.keys import write_config, write_keys
from gateway.errors import DatabaseUnavailable
from gateway.settings import Settings


class Source:
    """A database."""

    def __init__(self) -> None:
        self.rows: list[Version] = []
        self.away = False
        self.told = Event()

    def dial(self) -> Source:
        self._answer()
        return self

    def head(self) -> tuple[int, str]:
        self._answer()
        return (self.rows[-1].number, self.rows[-1].digest) if self.rows else (0, "")

    def newest(self) -> Version | None:
        self._answer()
        return self.rows[-1] if self.rows else None

    def add_first(self, digest: str, document: str, author: str, reason: str) -> None:
        if not self.rows:
            self.add(document, digest=digest)

    def wait(self, timeout_s: float) -> None:
        self._answer()
        self.told.wait(timeout_s)
        self.told.clear()

    def close(self) -> None: ...

    def add(self, document: str, *, digest: str = "", tell: bool = True) -> None:
        number = len(self.rows) + 1
        self.rows.append(
            Version(
                number=number, digest=digest or f"{number}", document=document, author="a", reason="r", actor="x",
                at=datetime.now(UTC),
            )
        )  # fmt: skip
        if tell:
            self.told.set()

    def _answer(self) -> None:
        if self.away:
            raise DatabaseUnavailable


class Worker:
    """One worker's part, with what it noted."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self.noted: list[tuple[str, str]] = []
        self.now_s = 0.0
        self.faults: list[Fault] = []
        self.catalog_away = False
        self.versions = Versions(settings, source.dial, self._catalog, note=self._note, clock=lambda: self.now_s)

    def run(self) -> SnapshotHolder:
        self.holder = SnapshotHolder(self.versions.boot())
        self.versions.start(self.holder)
        return self.holder

    def _note(self, outcome: str, detail: Mapping[str, str]) -> None:
        self.noted.append((outcome, detail["version"]))

    def _catalog(self, document: object) -> list[Fault]:
        if self.catalog_away:
            raise DatabaseUnavailable
        return self.faults


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def settings(tmp_path: Path, keys: Path) -> Settings:
    (tmp_path / "keys").symlink_to(keys)
    return Settings(config_path=write_config(tmp_path), data_dir=tmp_path, run_dir=tmp_path, config_poll_ms=10)


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def worker(settings: Settings, source: Source, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], Worker]]:
    monkeypatch.setattr(module, "RETRY_S", 0.01)
    made: list[Worker] = []

    def make() -> Worker:
        made.append(Worker(settings, source))
        return made[-1]

    yield make
    for one in made:
        one.versions.stop()


def soon(check: Callable[[], object]) -> None:
    with gevent.Timeout(5):
        while not check():
            gevent.sleep(0.005)


def realm(settings: Settings, name: str) -> str:
    text = settings.config_path.read_text()
    line = next(line for line in text.splitlines() if "realm:" in line)
    return text.replace(line, f"  realm: {name}")


def test_the_file_is_the_first_version_and_then_counts_no_more(
    settings: Settings, source: Source, worker: Callable[[], Worker]
) -> None:
    first = worker()
    holder = first.run()
    assert (holder.current.version, len(source.rows), first.noted) == (1, 1, [("allowed", "1")])
    assert source.rows[0].digest == holder.current.digest
    settings.config_path.write_text("- broken\n")
    second = worker()
    assert second.run().current.version == 1
    assert second.noted == []


@pytest.mark.parametrize("broken", ["text", "missing", "functions"])
def test_a_bad_file_does_not_become_the_first_version(
    settings: Settings, source: Source, worker: Callable[[], Worker], broken: str
) -> None:
    one = worker()
    if broken == "text":
        settings.config_path.write_text("- broken\n")
    elif broken == "missing":
        settings.config_path.unlink()
    else:
        one.faults = [Fault("controllers.me.function", "does not exist")]
    with pytest.raises(Refused):
        one.run()
    assert source.rows == []


def test_a_notification_that_was_lost(settings: Settings, source: Source, worker: Callable[[], Worker]) -> None:
    holder = worker().run()
    source.add(realm(settings, "silent"), tell=False)
    soon(lambda: holder.current.version == 2)
    assert holder.current.realm == "silent"


def test_a_refused_version_is_tried_again_after_a_while(
    settings: Settings, source: Source, worker: Callable[[], Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = worker()
    holder = one.run()
    key = settings.config_path.parent / "late.secret"
    source.add(realm(settings, "late").replace("file:keys/patient.secret", "file:late.secret"))
    soon(lambda: "refused" in one.versions.describe())
    assert one.versions.describe()["refused"]["version"] == 2
    key.write_bytes((settings.config_path.parent / "keys" / "patient.secret").read_bytes())
    key.chmod(0o600)
    gevent.sleep(0.01)
    assert holder.current.version == 1
    one.now_s += REFUSED_AGAIN_S
    soon(lambda: holder.current.version == 2)
    assert one.versions.describe() == {"source": "database"}
    assert one.noted == [("allowed", "1"), ("refused", "2"), ("allowed", "2")]


def test_a_database_that_went_back_rules(settings: Settings, source: Source, worker: Callable[[], Worker]) -> None:
    holder = worker().run()
    source.add(realm(settings, "newer"))
    soon(lambda: holder.current.version == 2)
    source.rows.pop()
    soon(lambda: holder.current.version == 1)


def test_a_catalog_that_does_not_answer_refuses_nothing(
    settings: Settings, source: Source, worker: Callable[[], Worker]
) -> None:
    one = worker()
    holder = one.run()
    one.catalog_away = True
    source.add(realm(settings, "patience"))
    gevent.sleep(0.01)
    assert (holder.current.version, one.versions.describe()) == (1, {"source": "database"})
    one.catalog_away = False
    soon(lambda: holder.current.version == 2)


def test_what_prevents_the_swap_is_a_fault(settings: Settings, source: Source, worker: Callable[[], Worker]) -> None:
    one = worker()
    holder = one.run()

    def object_to(snapshot: object) -> None:
        raise ValueError

    holder.before_swap(object_to)
    source.add(realm(settings, "unwanted"))
    soon(lambda: "refused" in one.versions.describe())
    assert holder.current.version == 1


@pytest.mark.parametrize(("kept", "version"), [("good", 2), ("torn", 0), ("none", 0)])
def test_a_start_without_the_database(
    settings: Settings, source: Source, worker: Callable[[], Worker], kept: str, version: int
) -> None:
    holder = worker().run()
    source.add(realm(settings, "kept"))
    soon(lambda: holder.current.version == 2)
    path = settings.data_dir / KEPT
    soon(lambda: b"realm: kept" in path.read_bytes())
    assert path.stat().st_mode & 0o777 == 0o600
    if kept == "torn":
        path.write_bytes(path.read_bytes()[:100])
    elif kept == "none":
        path.unlink()
    source.away = True
    late = worker()
    late_holder = late.run()
    assert late_holder.current.version == version
    source.away = False
    soon(lambda: late_holder.current.version == 2)


def test_a_bad_newest_version_at_a_start_leaves_the_last_good_one(
    settings: Settings, source: Source, worker: Callable[[], Worker]
) -> None:
    worker().run()
    source.add("- broken\n")
    late = worker()
    assert late.run().current.version == 1
    assert late.versions.describe()["refused"]["version"] == 2


@pytest.mark.parametrize("name", [None, "", "../x", "config-last-good.yaml", "config-candidate-0.yaml", 7])
def test_only_candidates_are_tried(source: Source, worker: Callable[[], Worker], name: object) -> None:
    with pytest.raises(Refused):
        worker().versions.load(name)
