"""Who may import whom, read from the source: the rules that keep a test of the policy free of sockets."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
IO = {"gevent", "geventwebsocket", "falcon", "psycopg", "psycopg_pool", "gunicorn", "socket", "select", "ssl"}
CLOCKS = {"time", "datetime", "sched"}

MAX_LINES = 600


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources(package: str, suffix: str = ".py") -> list[Path]:
    return sorted((ROOT / package).rglob(f"*{suffix}"))


def imports_of(tree: ast.Module) -> Iterator[str]:
    """Full names imported at run time, inside functions too; not what only type checkers read."""
    skipped = {
        id(child) for node in ast.walk(tree) if is_typing_block(node) for s in node.body for child in ast.walk(s)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_typing_block(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def imports(path: Path) -> set[str]:
    if path.suffix == ".py":
        return set(imports_of(ast.parse(path.read_text(), str(path))))
    found = re.findall(r"^\s*(?:from\s+([\w.]+)\s+c?import\s+(.+)|c?import\s+([\w.]+))", path.read_text(), re.MULTILINE)
    return {
        whole or f"{module}.{name.strip(' ()')}" for module, names, whole in found for name in (names or "-").split(",")
    }


def under(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def violations(paths: list[Path], forbidden) -> list[str]:
    return [f"{module_of(path)} imports {name}" for path in paths for name in sorted(imports(path)) if forbidden(name)]


PYTHON = sources("gateway") + sources("fastpath")
KERNELS = sources("fastpath", ".pyx") + sources("fastpath", ".pxd") + sources("fastpath", ".pxi")


def test_kernels_import_the_standard_library_c_and_orjson() -> None:
    allowed = set(sys.stdlib_module_names) | {"cython", "cpython", "libc", "orjson", "gunicorn_h1c", "fastpath"}
    assert len(KERNELS) >= 5
    assert violations(KERNELS + sources("fastpath"), lambda name: name.partition(".")[0] not in allowed) == []


PURE = [
    "errors", "context", "config/model", "rbac", "audit/event", "audit/search", "audit/fhir",
    "routing/model", "relay/frames", "relay/session",
]  # fmt: skip


def files_of(part: str) -> list[Path]:
    path = ROOT / "gateway" / part
    return sources(f"gateway/{part}") if path.is_dir() else [path.with_suffix(".py")]


def reached_from(paths: list[Path]) -> list[Path]:
    """These files and every file of ours they import, at any distance."""
    by_module = {module_of(path): path for path in PYTHON}
    seen, pending = {}, list(paths)
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        seen[path] = None
        for name in imports(path):
            found = by_module.get(name) or by_module.get(name.rpartition(".")[0])
            if found is not None:
                pending.append(found)
    return sorted(seen)


@pytest.mark.parametrize("part", PURE)
def test_pure_modules_know_no_socket_and_no_clock(part) -> None:
    assert violations(reached_from(files_of(part)), lambda name: under(name, *IO, *CLOCKS)) == []


MAY_IMPORT = {
    "psycopg": ["gateway.store", "gateway.demo"],
    "psycopg_pool": ["gateway.store"],
    "geventwebsocket": ["gateway.relay", "gateway.worker"],
    "gunicorn": ["gateway.worker", "gateway.boot", "gateway.http2.protocol"],
    "falcon": [
        "gateway.http", "gateway.portal", "gateway.upstream", "gateway.relay.resource", "gateway.relay.endpoint",
        "gateway.auth.endpoints", "gateway.auth.authorize", "gateway.units.endpoint", "gateway.audit.endpoint",
        "gateway.breakglass.endpoint", "gateway.admin.endpoint",
        "gateway.app", "gateway.worker", "gateway.demo",
    ],
}  # fmt: skip


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_a_library_stays_at_its_seam(library) -> None:
    outside = [path for path in PYTHON if not under(module_of(path), *MAY_IMPORT[library])]
    assert violations(outside, lambda name: under(name, library)) == []


def test_only_their_starters_import_app_and_worker() -> None:
    outside = [path for path in PYTHON if module_of(path) not in ("gateway.app", "gateway.worker")]
    assert violations(outside, lambda name: under(name, "gateway.app", "gateway.worker")) == []


OF_AGENT = [
    "fastpath.frames", "gateway.relay.frames", "gateway.relay.session", "gateway.relay.events", "gateway.errors",
    "gateway.relay.readable", "gateway.relay.unsent", "gateway.agent", "gateway.__version__",
]  # fmt: skip


def test_the_agent_needs_nothing_of_the_gateway() -> None:
    ours = {"gateway", "fastpath"}
    assert (
        violations(sources("gateway/agent"), lambda name: name.partition(".")[0] in ours and not under(name, *OF_AGENT))
        == []
    )


OF_GATEWAY_EXTRA = {
    "falcon",
    "gunicorn",
    "msgspec",
    "psycopg",
    "psycopg_pool",
    "structlog",
    "prometheus_client",
    "yaml",
}


def test_the_agent_runs_on_the_base_dependencies() -> None:
    assert violations(reached_from(sources("gateway/agent")), lambda name: under(name, *OF_GATEWAY_EXTRA)) == []


WRITTEN = PYTHON + KERNELS + sources("loadtests") + sources("tests")


def test_a_file_is_short() -> None:
    assert too_long() == []


def too_long() -> list[str]:
    long = [path for path in WRITTEN if len(path.read_text().splitlines()) >= MAX_LINES]
    return [f"{path.relative_to(ROOT)} has {MAX_LINES} lines or more" for path in long]


def test_the_rules_see_violations() -> None:
    tree = ast.parse(
        "import time\nfrom gevent import socket\nif TYPE_CHECKING:\n    import falcon\ndef f():\n    import yaml.x\n"
    )
    assert set(imports_of(tree)) == {"time", "gevent.socket", "yaml.x"}
