"""Versions of the configuration in PostgreSQL: added one after another, never changed, and by whom."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psycopg
import pytest

from gateway.errors import DatabaseUnavailable
from gateway.store.config_version import VersionFeed, VersionsError, VersionStore

DIGEST = "ab" * 32


@pytest.fixture
def operator_dsn(postgres) -> str:
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        # What keeps versions from being removed does not hold in this mode, which is a superuser's.
        admin.execute("SET session_replication_role = replica; TRUNCATE caregate.config_version")
    return postgres.admin_dsn.replace("//postgres@", "//caregate_operator@")


@pytest.fixture
def store(operator_dsn) -> Iterator[VersionStore]:
    with VersionStore(operator_dsn) as store:
        yield store


@pytest.fixture
def feed(operator_dsn, postgres) -> Iterator[VersionFeed]:
    feed = VersionFeed(postgres.gateway_dsn)
    yield feed
    feed.close()


def add(store: VersionStore, base: int, text: str = "version: 1") -> bool:
    return store.add(base, DIGEST, text, "an operator", "a reason")


def test_versions_follow_each_other(store: VersionStore, feed: VersionFeed) -> None:
    assert (store.newest(), feed.newest(), feed.head()) == (None, None, (0, ""))
    feed.add_first(DIGEST, "first", "gateway", "imported")
    feed.add_first(DIGEST, "again", "gateway", "imported")
    assert add(store, 1, "second")
    assert not add(store, 1, "late")
    assert not add(store, 7, "early")
    assert feed.head() == (2, DIGEST)
    newest = feed.newest()
    assert newest == store.newest() == store.read(2)
    assert newest is not None
    assert (newest.document, newest.actor) == ("second", "caregate_operator")
    assert [(e.number, e.actor) for e in store.history(9)] == [(2, "caregate_operator"), (1, "caregate_gateway")]
    assert [e.number for e in store.history(1)] == [2]
    assert store.read(3) is None


def test_a_new_version_is_told(store: VersionStore, feed: VersionFeed) -> None:
    add(store, 0)
    feed.wait(10.0)
    assert feed.head() == (1, DIGEST)


_INSERT = (
    "INSERT INTO caregate.config_version (number, digest, document, author, reason) VALUES (%s, '%s', 'd', 'a', 'r')"
)


@pytest.mark.parametrize(
    ("login", "query"),
    [
        *[
            pytest.param(login, query, id=f"{login}-{query.split()[0].lower()}")
            for login in ("caregate_gateway", "caregate_operator", "postgres")
            for query in (
                "UPDATE caregate.config_version SET reason = 'x'",
                "DELETE FROM caregate.config_version",
                "TRUNCATE caregate.config_version",
            )
        ],
        pytest.param("caregate_gateway", _INSERT % (2, DIGEST), id="gateway-adds-the-second"),
        pytest.param("caregate_operator", _INSERT % (3, DIGEST), id="operator-leaves-a-gap"),
        pytest.param("caregate_operator", _INSERT % (2, "x"), id="operator-adds-without-digest"),
        pytest.param(
            "caregate_operator",
            "INSERT INTO caregate.config_version (number, digest, document, author, reason, actor) "
            f"VALUES (2, '{DIGEST}', 'd', 'a', 'r', 'another')",
            id="operator-as-another",
        ),
    ],
)
def test_what_nobody_may(store: VersionStore, postgres, login: str, query: str) -> None:
    add(store, 0)
    dsn = postgres.admin_dsn.replace("//postgres@", f"//{login}@")
    with psycopg.connect(dsn, autocommit=True) as connection, pytest.raises(psycopg.Error):
        connection.execute(query)
    assert [entry.number for entry in store.history(9)] == [1]


@pytest.mark.parametrize(
    ("connect", "error"), [(VersionFeed, DatabaseUnavailable), (VersionStore, VersionsError)], ids=["feed", "store"]
)
def test_a_server_that_is_away(connect: Callable[[str], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        connect("postgresql://caregate_gateway@/caregate?host=/nowhere")


def test_a_connection_that_is_lost(feed: VersionFeed, postgres) -> None:
    postgres.stop()
    with pytest.raises(DatabaseUnavailable):
        feed.wait(1.0)
