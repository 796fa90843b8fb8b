import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest

from gateway.cli.main import main
from gateway.store.migrate import MigrationFailed, migrate
from gateway.store.migrations import SCHEMA, MigrationError, apply_migrations, migrations


@pytest.fixture
def empty_dsn(postgres):
    """A database of its own, as an administrator."""
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("DROP DATABASE IF EXISTS fresh")
        admin.execute("CREATE DATABASE fresh")
    yield postgres.admin_dsn.replace("/caregate?", "/fresh?")
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("DROP DATABASE fresh WITH (FORCE)")


def _applied(dsn):
    with psycopg.connect(dsn) as connection:
        return [row[0] for row in connection.execute("SELECT number FROM caregate.migration ORDER BY 1")]


@pytest.fixture
def folder(tmp_path):
    for path in SCHEMA.glob("*.sql"):
        (tmp_path / path.name).write_text(path.read_text())
    return tmp_path


def test_all_once(empty_dsn):
    names = apply_migrations(empty_dsn)
    assert [int(name.split()[0]) for name in names] == _applied(empty_dsn) == list(range(1, len(names) + 1))
    assert apply_migrations(empty_dsn) == []


def test_two_at_once(empty_dsn):
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(apply_migrations, [empty_dsn] * 4))
    assert sorted(map(len, results))[:3] == [0, 0, 0]
    assert max(map(len, results)) == len(migrations())


def test_a_failing_migration_leaves_nothing_of_itself(empty_dsn, folder):
    last = len(migrations()) + 1
    (folder / f"{last:04}_bad.sql").write_text("CREATE TABLE public.half (n integer); SELECT 1 / 0")
    with pytest.raises(MigrationError, match="division by zero"):
        apply_migrations(empty_dsn, folder)
    assert last not in _applied(empty_dsn)
    with psycopg.connect(empty_dsn) as connection:
        assert connection.execute("SELECT to_regclass('public.half')").fetchone() == (None,)
    (folder / f"{last:04}_bad.sql").write_text("CREATE TABLE public.whole (n integer)")
    assert apply_migrations(empty_dsn, folder) == [f"{last:04} bad"]


def test_a_changed_migration_is_refused(empty_dsn, folder):
    apply_migrations(empty_dsn, folder)
    first = sorted(folder.glob("*.sql"))[0]
    first.write_text(first.read_text() + "-- changed")
    with pytest.raises(MigrationError, match="0001 was changed"):
        apply_migrations(empty_dsn, folder)


def test_a_newer_database_is_refused(empty_dsn, folder):
    last = len(migrations()) + 1
    (folder / f"{last:04}_newer.sql").write_text("SELECT 1")
    apply_migrations(empty_dsn, folder)
    with pytest.raises(MigrationError, match=f"{last:04}, which this version does not know"):
        apply_migrations(empty_dsn)


@pytest.mark.parametrize("names", [["0002_b.sql"], ["0001_a.sql", "0001_b.sql"]], ids=["gap", "doubled"])
def test_numbering(tmp_path, names):
    for name in names:
        (tmp_path / name).write_text("SELECT 1")
    with pytest.raises(MigrationError, match="without a gap"):
        migrations(tmp_path)


def test_in_a_process_of_its_own(empty_dsn):
    assert len(migrate(empty_dsn)) == len(migrations())
    assert migrate(empty_dsn) == []
    with pytest.raises(MigrationFailed, match="connection"):
        migrate(f"postgresql://x@/y?host={Path('/nowhere')}")


def test_by_an_administrator_who_is_no_superuser(postgres, empty_dsn):
    """As on a managed service: CREATEROLE, and owner of the database."""
    with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
        admin.execute("CREATE ROLE manager LOGIN CREATEROLE")
        admin.execute("GRANT caregate_owner, caregate_gateway TO manager WITH ADMIN OPTION")
        admin.execute("ALTER DATABASE fresh OWNER TO manager")
    try:
        dsn = empty_dsn.replace("//postgres@", "//manager@")
        assert len(apply_migrations(dsn)) == len(migrations())
        assert apply_migrations(dsn) == []
    finally:
        with psycopg.connect(empty_dsn, autocommit=True) as admin:
            admin.execute("REASSIGN OWNED BY manager TO postgres; DROP OWNED BY manager")
        with psycopg.connect(postgres.admin_dsn, autocommit=True) as admin:
            admin.execute("ALTER DATABASE fresh OWNER TO postgres; DROP OWNED BY manager; DROP ROLE manager")


class TestCommand:
    def test_init(self, empty_dsn, capsys):
        assert main(["db", "init", "--dsn", empty_dsn]) == 0
        assert "applied 0001 roles_and_schemas" in capsys.readouterr().out
        assert main(["db", "init", "--dsn", empty_dsn]) == 0
        assert capsys.readouterr().out == "the database is up to date\n"

    def test_dsn_from_the_environment(self, empty_dsn, monkeypatch, capsys):
        monkeypatch.setenv("CAREGATE_SECRET_ADMIN_DSN", empty_dsn)
        assert main(["db", "init"]) == 0

    @pytest.mark.parametrize(
        ("arguments", "status"), [([], 2), (["--dsn", "postgresql://x@/y?host=/nowhere"], 1)], ids=["none", "away"]
    )
    def test_failures(self, arguments, status, monkeypatch, capsys):
        monkeypatch.delenv("CAREGATE_SECRET_ADMIN_DSN", raising=False)
        assert main(["db", "init", *arguments]) == status
        assert capsys.readouterr().err.startswith("caregate db: ")


def test_the_dsn_is_in_no_process_list(empty_dsn):
    """`migrate` hands it over on stdin."""
    script = "import gateway.store.migrate as m, subprocess\n"
    script += "subprocess.run = lambda argv, **k: (_ for _ in ()).throw(SystemExit(any('secret' in a for a in argv)))\n"
    script += "m.migrate('postgresql://x:secret@/y')"
    assert subprocess.run([sys.executable, "-c", script], cwd=Path.cwd()).returncode == 0
