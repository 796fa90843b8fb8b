"""The database's tests once more where gevent has patched everything, as in a worker."""

import subprocess
import sys
from pathlib import Path

import pytest

_HERE = Path(__file__).parent
_PYTEST = (
    "from gevent import monkey; monkey.patch_all(); import sys, pytest; "
    "sys.exit(pytest.main(['-q', '-p', 'no:cacheprovider', *sys.argv[1:]]))"
)


@pytest.mark.slow
@pytest.mark.parametrize(
    "files", [["test_pool.py", "test_convoy.py"], ["../audit/test_trail.py"]], ids=["pool", "audit"]
)
def test_under_monkey_patching(files):
    paths = [str(_HERE / name) for name in files]
    result = subprocess.run(
        [sys.executable, "-c", _PYTEST, *paths], capture_output=True, text=True, timeout=600, cwd=_HERE.parents[1]
    )
    assert result.returncode == 0, result.stdout[-6000:]


@pytest.mark.parametrize(("order", "status"), [("patch, psycopg", 0), ("psycopg, patch", 1)], ids=["right", "wrong"])
def test_psycopg_imported_before_patching_is_refused(order, status):
    """Its waits would stop the whole worker."""
    lines = {"patch": "from gevent import monkey; monkey.patch_all()", "psycopg": "import psycopg"}
    script = "\n".join(
        [*(lines[name] for name in order.split(", ")), "from gateway.store.pool import Database; Database('')"]
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=_HERE.parents[1])
    assert result.returncode == status, result.stderr
    assert ("before gevent patched" in result.stderr) == bool(status)


def test_what_the_arbiter_imports_leaves_psycopg_alone():
    script = "import gateway.store.embedded, gateway.store.migrate, sys; sys.exit('psycopg' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], cwd=_HERE.parents[1]).returncode == 0
