"""The demo platform: PostgreSQL, gateway, cloud service, three units with their agents, under one supervisor.

Every child dies with the supervisor, however that ends (PR_SET_PDEATHSIG), so nothing is left behind.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psycopg

from gateway.cli.token import Unusable, issue
from gateway.config.load import Refused, load
from gateway.demo import CONTROL, story
from gateway.demo.accounts import Logins, make_accounts
from gateway.demo.keys import prepare_config, write_keys
from gateway.demo.portal_data import keep_or_load_portal
from gateway.store.embedded import EmbeddedError, EmbeddedPostgres
from gateway.store.migrate import MigrationFailed, migrate
from gateway.store.unit_operator import OperatorError

_PR_SET_PDEATHSIG = 1
_STOP_GRACE_S = 12.0
_KILLED_RUN_PATIENCE_S = 15.0
_TOKEN_LIFETIME_S = 3600
ROOT = Path(__file__).resolve().parents[2]


class DemoError(RuntimeError):
    """The platform cannot start; the message says what to do."""


@dataclass(slots=True)
class Child:
    """One process of the platform; its output goes to a log file."""

    name: str
    argv: list[str]
    log: Path
    env: Mapping[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, in a session of its own so that Ctrl-C reaches only the supervisor."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(  # noqa: S603 - our own argv, no shell
                self.argv,
                cwd=ROOT,
                env=dict(self.env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=_die_with_parent,
            )

    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def signal(self, number: int) -> None:
        if self.process is not None and self.running():
            self.process.send_signal(number)

    def wait(self, until_s: float) -> None:
        """Wait for its end; past the moment, kill it."""
        if self.process is None:
            return
        try:
            self.process.wait(max(0.1, until_s - time.monotonic()))
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@dataclass(slots=True)
class Ports:
    """All on loopback, counted from the gateway's."""

    gateway: int
    ops: int = field(init=False)
    units: dict[str, int] = field(init=False)
    upstream: int = field(init=False)
    flaky: int = field(init=False)

    def __post_init__(self) -> None:
        self.ops = self.gateway + 1010 if self.gateway < 64_000 else self.gateway - 1010
        names = (story.HOSPITAL, story.CLINIC, story.POST)
        self.units = {name: self.gateway + 11 + i for i, name in enumerate(names)}
        self.upstream = self.gateway + 14
        self.flaky = self.gateway + 15

    def all(self) -> dict[str, int]:
        """What each port is for."""
        return {
            "gateway": self.gateway,
            "operations": self.ops,
            **self.units,
            "terminology service": self.upstream,
            "rural line": self.flaky,
        }


class Platform:
    """The whole demo under one directory; `start`, then `stop`, in any state."""

    def __init__(self, directory: Path, port: int, workers: int = 2, *, tell: Callable[[str], None] = print) -> None:
        self.directory = directory.resolve()
        self.ports = Ports(port)
        self.workers = workers
        self.children: dict[str, Child] = {}
        self.tokens: dict[str, str] = {}
        self.logins: Logins | None = None
        self._tell = tell
        self._postgres: EmbeddedPostgres | None = None
        self._lock: int | None = None
        self._config = self.directory / "caregate.yaml"
        self._renew_at_s = 0.0
        self._env = dict(os.environ)

    # --- start

    def start(self) -> None:
        """Start everything and wait until all units answer.

        Raises: DemoError naming what failed and the log to read.
        """
        self._lock_directory()
        self._check_ports()
        config = self.start_gateway()
        self._make_accounts()
        self._start_units()
        self._issue_tokens(config)
        self._wait_for_units()

    def start_gateway(self) -> Path:
        """Start PostgreSQL with the portal and the gateway, without units; returns the configuration's path.

        Raises: DemoError naming what failed and the log to read.
        """
        for folder in (self.directory, self.logs, self.directory / "run", self.directory / "units"):
            # 0711: started by root, PostgreSQL runs as another account and must pass through.
            folder.mkdir(parents=True, exist_ok=True, mode=0o711 if folder == self.directory else 0o700)
        self._tell("keys and configuration")
        config = self.write_documents()
        _check_config(config)
        self._tell("PostgreSQL")
        self._env.update(
            CAREGATE_CONFIG_PATH=str(config),
            CAREGATE_DSN=self._start_database(),
            CAREGATE_AUDIT_DSN=EmbeddedPostgres(self.directory / "postgres").find().reader_dsn,
            CAREGATE_OPERATOR_DSN=self._postgres.operator_dsn if self._postgres is not None else "",
            CAREGATE_DATA_DIR=str(self.directory),
            CAREGATE_RUN_DIR=str(self.directory / "run"),
            CAREGATE_BIND=f"127.0.0.1:{self.ports.gateway}",
            CAREGATE_OPS_BIND=f"127.0.0.1:{self.ports.ops}",
            CAREGATE_WORKERS=str(self.workers),
        )
        self._start_workers()
        return config

    def write_documents(self) -> Path:
        """Keys and the configuration that refers to them; returns the configuration's path."""
        write_keys(self.directory)
        if prepare_config(self.directory, upstream_port=self.ports.upstream):
            self._tell(f"keeping the edited {os.path.relpath(self._config)}")
        return self._config

    def _start_database(self) -> str:
        """PostgreSQL with the portal; the DSN of the gateway's role."""
        self._postgres = EmbeddedPostgres(self.directory / "postgres")
        try:
            self._postgres.start()
            migrate(self._postgres.admin_dsn)
            keep_or_load_portal(self._postgres.admin_dsn)
        except (EmbeddedError, MigrationFailed, psycopg.Error) as error:
            raise DemoError(str(error)) from error
        return self._postgres.gateway_dsn

    def _make_accounts(self) -> None:
        """Accounts to log in with. Raises: DemoError."""
        assert self._postgres is not None  # noqa: S101 - the gateway runs
        self._tell("accounts")
        try:
            self.logins = make_accounts(self.directory, self._postgres.operator_dsn)
        except OperatorError as error:
            raise DemoError(str(error)) from error

    @property
    def logs(self) -> Path:
        return self.directory / "logs"

    def _lock_directory(self) -> None:
        """One platform a directory; the lock ends with the process, however that ends."""
        self.directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._lock = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise DemoError(f"a demo runs in {os.path.relpath(self.directory)} already: stop that one first") from error

    def _check_ports(self) -> None:
        """Raises: DemoError if one is taken; children of a run that was killed get time to end."""
        killed = (self.directory / CONTROL).exists()
        until_s = time.monotonic() + (_KILLED_RUN_PATIENCE_S if killed else 0)
        while taken := [(what, port) for what, port in self.ports.all().items() if not _free(port)]:
            if time.monotonic() >= until_s:
                what, port = taken[0]
                raise DemoError(f"port {port} ({what}) is taken: choose another with PORT=")
            time.sleep(0.1)

    def _spawn(self, name: str, *argv: str) -> Child:
        child = Child(name, [sys.executable, *argv], self.logs / f"{name}.log", self._env)
        child.start()
        self.children[name] = child
        return child

    def _start_workers(self) -> None:
        self._tell(f"gateway, {self.workers} workers")
        self._spawn("gateway", "-m", "gunicorn", "-c", str(ROOT / "gunicorn.conf.py"))
        self._wait("gateway", lambda: _answers(self.ports.ops, "/readyz"), 30)

    def _start_units(self) -> None:
        self._spawn("terminology", "-m", "gateway.demo.terminology", "--port", str(self.ports.upstream))
        self._spawn(
            "rural-line", "-m", "gateway.demo.flaky_link",
            "--listen", str(self.ports.flaky), "--to", str(self.ports.gateway),
        )  # fmt: skip
        for unit, port in self.ports.units.items():
            self._tell(f"unit {unit}")
            context_key = str(self.directory / "keys" / f"{unit}.context")
            self._spawn(
                f"{unit}-service", "-m", "gateway.demo.unit_service",
                "--unit", unit, "--port", str(port), "--context-key", context_key,
                "--journal", str(self.directory / "units" / f"{unit}.ndjson"),
            )  # fmt: skip
            self.start_agent(unit)
        self._wait("terminology", lambda: _answers(self.ports.upstream, "/health"), 20)
        for unit, port in self.ports.units.items():
            self._wait(f"{unit}-service", lambda port=port: _answers(port, "/health"), 30)  # type: ignore[misc]

    def start_agent(self, unit: str) -> None:
        """Start a unit's agent."""
        port = self.ports.flaky if unit == story.POST else self.ports.gateway
        state = self.directory / "agents" / unit
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._spawn(
            f"{unit}-agent", "-m", "gateway.cli.main", "agent",
            "--gateway", f"http://127.0.0.1:{port}",
            "--unit", unit,
            "--key", str(self.directory / "keys" / f"{unit}.key"),
            "--target", f"http://127.0.0.1:{self.ports.units[unit]}",
            "--context-key", str(self.directory / "keys" / f"{unit}.context"),
            "--allow", "GET /fhir/*", "--allow", "POST /fhir/*",
            "--state-dir", str(state), "--health-file", str(state / "health.json"),
        )  # fmt: skip

    def stop_agent(self, unit: str) -> None:
        """Stop a unit's agent; returns when it has ended."""
        child = self.children.get(f"{unit}-agent")
        if child is not None:
            child.signal(signal.SIGTERM)
            child.wait(time.monotonic() + _STOP_GRACE_S)

    def act(self, verb: str, unit: str) -> None:
        """Stop or start a unit's agent and wait until the gateway has seen it.

        Raises: DemoError for another verb or unit.
        """
        if unit not in self.ports.units or verb not in ("stop", "start"):
            raise DemoError(f"stop or start, and one of {', '.join(self.ports.units)}")
        if verb == "stop":
            self.stop_agent(unit)
            return
        if not self.children[f"{unit}-agent"].running():
            self.start_agent(unit)
        self._wait(f"{unit}-agent", lambda: self._unit_answers(unit), 15)

    def _issue_tokens(self, config: Path) -> None:
        for name, (role, claims) in story.TOKENS.items():
            try:
                self.tokens[name] = issue(config, role, claims, _TOKEN_LIFETIME_S)[0]
            except Unusable as error:
                raise DemoError(f"no token for {role}: {error}") from error
        lines = "".join(f"export {name}='{token}'\n" for name, token in self.tokens.items())
        path = self.directory / "tokens.env"
        path.touch(mode=0o600)
        path.write_text(lines)
        self._renew_at_s = time.time() + _TOKEN_LIFETIME_S / 2

    def renew_tokens(self) -> None:
        """Issue new tokens once the old ones are half spent; not while the configuration is being edited."""
        if time.time() < self._renew_at_s:
            return
        try:
            self._issue_tokens(self._config)
        except DemoError:
            self._renew_at_s = time.time() + 60

    def _unit_answers(self, unit: str) -> bool:
        step = story.Step("", story.PATIENT, "GET", f"/units/v1/{unit}/patients/{story.OWN}/lab-results", 200)
        try:
            status, _ = story.request(self.ports.gateway, step, self.tokens)
        except OSError:
            return False
        return status == 200

    def _wait_for_units(self) -> None:
        for unit in self.ports.units:
            self._wait(f"{unit}-agent", lambda unit=unit: self._unit_answers(unit), 20)  # type: ignore[misc]

    def _wait(self, name: str, ready: Callable[[], bool], limit_s: float) -> None:
        until_s = time.monotonic() + limit_s
        while not ready():
            child = self.children[name]
            if not child.running() or time.monotonic() > until_s:
                state = "is not ready in time" if child.running() else "ended"
                raise DemoError(f"{name} {state}: see {os.path.relpath(child.log)}\n{_tail(child.log)}")
            time.sleep(0.05)

    # --- stop

    def stop(self) -> None:
        """Stop everything, callers' side first; returns when all of it has ended."""
        until_s = time.monotonic() + _STOP_GRACE_S
        agents = [c for n, c in self.children.items() if n.endswith("-agent")]
        others = [c for n, c in self.children.items() if not n.endswith("-agent")]
        for group in (agents, others):
            for child in group:
                child.signal(signal.SIGTERM)
            for child in group:
                child.wait(until_s)
        if self._postgres is not None:
            self._postgres.stop()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def started(self) -> bool:
        """Is there anything to stop?"""
        return self._postgres is not None or bool(self.children)

    def dead(self) -> list[str]:
        """Children that ended although nobody stopped them; a stopped agent does not count."""
        return [n for n, c in self.children.items() if not n.endswith("-agent") and not c.running()]


def _check_config(path: Path) -> None:
    """Raises: DemoError with every fault."""
    try:
        load(path)
    except Refused as refused:
        shown = os.path.relpath(path)
        faults = [f"{shown}:{fault.line or 1}: {fault}" for fault in refused.places]
        raise DemoError("\n".join([f"{shown} is refused; mend it, or delete it", *faults])) from refused


def _free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _answers(port: int, path: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _tail(path: Path, lines: int = 12) -> str:
    text = path.read_text(errors="replace") if path.exists() else ""
    return "\n".join(text.splitlines()[-lines:])
